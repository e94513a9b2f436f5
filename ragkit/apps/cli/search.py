"""Commands that answer: search, explain, show, eval."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ragkit.apps.cli.options import PARTLY, AsJson, IndexPath, Password, open_index, parse_filters, print_json, say
from ragkit.apps.cli.progress import progress_bar

if TYPE_CHECKING:
    from ragkit.apps.show import Evidence
    from ragkit.core.types import Hit, Hits
    from ragkit.index.index import Index
    from ragkit.search.queries import Query


def search(
    index: IndexPath,
    query: Annotated[str, typer.Argument(help="The question; with --image it may be left out.")] = "",
    image: Annotated[Path | None, typer.Option(help="A picture to search with, alone or together with the question.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many hits.")] = 5,
    mode: Annotated[str, typer.Option(help="hybrid, text, pages, dense, lexical, multi, or a space.")] = "hybrid",
    rerank: Annotated[str | None, typer.Option(help="maxsim: order what was found by the vectors of its tokens.")] = None,
    filters: Annotated[
        str | None, typer.Option("--filter", help='JSON, such as \'{"lang": "en", "year": {"$gte": 2020}}\'.')
    ] = None,
    dims: Annotated[int | None, typer.Option(help="Compare the first DIMS of the vectors only.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Leave out hits below this score.")] = None,
    per_document: Annotated[bool, typer.Option("--per-document", help="The best hit of each document.")] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Look at every vector: nothing compressed or coarse decides what is looked at.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Print the whole text of each hit.")] = False,
    degraded: Annotated[
        bool, typer.Option("--degraded", help="Answer from what is intact of a damaged index, and say what is missing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Ask, and get passages and pages with their citations."""
    if not query and image is None:
        raise ValueError("there is no question: give a text, or --image FILE")
    with open_index(index, create=False) as library:
        hits = library.search(
            _query(query, image),
            k,
            mode=mode,
            rerank=rerank,
            filters=parse_filters(filters),
            dims=dims,
            min_score=min_score,
            group_by="document" if per_document else None,
            exact=exact,
            degraded=degraded,
        )
    for missing in hits.missing:
        say(f"degraded: {missing}")
    if as_json:
        _print_hits_as_json(hits, degraded=degraded)
    else:
        _print_hits(hits, full=full)
    if hits.missing:
        raise typer.Exit(PARTLY)


def _query(text: str, image: Path | None) -> Query:
    """Return the text, the picture, or both, as `Index.search` takes them. ValueError for a file that is no supported image."""
    if image is None:
        return text
    from PIL import Image, UnidentifiedImageError

    from ragkit.encode.images import upright_rgb

    try:
        with Image.open(image) as opened:
            picture = upright_rgb(0, opened)
    except UnidentifiedImageError:
        raise ValueError(f"{image} is not a supported image") from None
    return (text, picture) if text else picture


def _print_hits_as_json(hits: Hits, *, degraded: bool) -> None:
    from ragkit.search.hit_json import hit_fields

    rows = [hit_fields(hit) for hit in hits]
    print_json({"hits": rows, "missing": hits.missing} if degraded else rows)


def _print_hits(hits: Hits, *, full: bool) -> None:
    if not hits:
        say("no hits")
    for hit in hits:
        _print_hit(hit, full=full)


def _print_hit(hit: Hit, *, full: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    via = ", ".join(f"{reason.space} #{reason.rank}" for reason in hit.via)
    head = (
        Text(f"{hit.rank}. ")
        .append(str(hit.citation), style="bold")
        .append(f"   {hit.score:.3f} {hit.scale} · {via} · key {hit.key}", style="dim")
    )
    console.print(head)
    if hit.headings:
        console.print(Text("   " + " › ".join(hit.headings), style="italic"))
    if count := hit.meta.get("hidden_characters"):
        console.print(Text(f"   {count} hidden characters in this document were left out", style="yellow"))
    text = hit.text if full else _shortened(hit.text)
    console.print(Text("   " + text.replace("\n", "\n   ")))


def _shortened(text: str, width: int = 300) -> str:
    """Return the text in one line, cut at a blank before `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[:width].rsplit(" ", 1)[0] + " …"


def explain(
    index: IndexPath,
    key: Annotated[int, typer.Argument(metavar="KEY", help="The key of a hit.")],
    query: Annotated[str, typer.Argument(help="The question it was found for.")],
    as_json: AsJson = False,
) -> None:
    """Take a hit's MaxSim score apart: what each word of the question matched, and its share."""
    with open_index(index, create=False) as library:
        explanation = library.explain(query, key)
    if as_json:
        matches = [asdict(match) for match in explanation.matches]
        print_json({"score": explanation.score, "citation": str(explanation.citation), "matches": matches})
        return
    print(f"{explanation.score:.4f} maxsim  {explanation.citation}")
    for match in explanation.matches:
        place = ", ".join("({:.0f} {:.0f} {:.0f} {:.0f})".format(*box.box) for box in match.boxes)
        print(f"{match.share:8.4f}  {match.query_word or '·'} → {match.word or place or '·'}")


def show(
    index: IndexPath,
    reference: Annotated[str, typer.Argument(metavar="KEY|SOURCE", help="A hit's key, or a document's source or id.")],
    query: Annotated[str, typer.Option("--query", "-q", help="Box the best passages of this document for a question.")] = "",
    image: Annotated[Path | None, typer.Option(help="A picture to ask with, alone or together with the question.")] = None,
    page: Annotated[int | None, typer.Option(min=1, help="Which page; the first with evidence if left out.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The PNG to write; SOURCE-pN.png if left out.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many passages to box, with --query.")] = 1,
    dpi: Annotated[int, typer.Option(min=18, max=600)] = 110,
    password: Password = None,
    as_json: AsJson = False,
) -> None:
    """Write the cited page as a PNG with the evidence boxed; for documents without pages, print the passage."""
    from ragkit.apps.show import evidence, page_png

    with open_index(index, create=False) as library:
        shown = evidence(library, reference, query=_query(query, image) if query or image else None, k=k)
        number = _page_to_draw(library, shown, page)
        path = None
        if number is not None:
            path = output or Path(f"{Path(shown.row.source).name}-p{number}.png")
            path.write_bytes(page_png(library, shown, page=number, dpi=dpi, password=password))
    if as_json:
        from ragkit.search.hit_json import citation_fields

        citations = [citation_fields(citation) for citation in shown.citations]
        print_json({"png": None if path is None else str(path), "citations": citations})
        return
    _print_citations(shown)
    if number is not None:
        print(f"wrote {path}: {shown.row.source}, p. {number}, {shown.boxes_on(number)} boxes")


def _page_to_draw(library: Index, shown: Evidence, page: int | None) -> int | None:
    """Return the number of the page that was named, or of the first one with evidence; None if no page can be drawn."""
    from ragkit.apps.show import can_draw

    number = page or next(iter(shown.pages), None)
    return number if number is not None and can_draw(shown.row) and library.pages(shown.row) else None


def _print_citations(shown: Evidence) -> None:
    if not shown.citations:
        say(f"nothing in {shown.row.source} is found by this question: the index has no passage or page image of it")
    for citation, text in zip(shown.citations, shown.texts, strict=True):
        print(f"{citation}: {_shortened(text)}")


def eval_(
    index: IndexPath,
    judged: Annotated[
        Path,
        typer.Argument(metavar="JUDGED", help="A BEIR folder (corpus, queries, qrels), or one with questions.jsonl and pdfs/."),
    ],
    add_documents: Annotated[bool, typer.Option("--add", help="Bring the judged documents into the index first.")] = False,
    modes: Annotated[
        str, typer.Option(help="Modes, separated by commas. The first is compared with each other one.")
    ] = "hybrid,dense,lexical",
    split: Annotated[str | None, typer.Option(help="Which of qrels/*.tsv.")] = None,
    measures: Annotated[
        str | None, typer.Option(help="Names of ir_measures, separated by commas: nDCG@10,R@100,RR@10,hit@5.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Targets ranked per query.")] = 100,
    one_by_one: Annotated[bool, typer.Option("--latency", help="Ask one query at a time, and report p50 and p95.")] = False,
    per_query: Annotated[bool, typer.Option("--per-query", help="With --json: each query's measures too.")] = False,
    model: Annotated[str | None, typer.Option(help="The encoder, where --add creates the index.")] = None,
    chunker: Annotated[str | None, typer.Option(help="The chunker, where --add creates the index.")] = None,
    overflow: Annotated[str | None, typer.Option(help="error, truncate or window, where --add creates the index.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure retrieval on judged queries, with paired bootstrap intervals between modes."""
    from ragkit.apps.evaluate import compare, evaluate, read_beir, read_pages, table, to_json

    questions = read_pages(judged) if (judged / "questions.jsonl").exists() else read_beir(judged, split=split)
    names = tuple(measures.split(",")) if measures else None
    with open_index(index, create=add_documents, model=model, chunker=chunker, overflow=overflow) as library:
        if add_documents:
            with progress_bar("adding", quiet=as_json, adding=True) as progress:
                say(str(library.add(questions.documents, progress=progress)))
        runs = [
            evaluate(library, questions, mode=mode, k=k, measures=names, batch=1 if one_by_one else 64)
            for mode in modes.split(",")
        ]
    differences = [compare(runs[0], run, measure=next(iter(runs[0].measures))) for run in runs[1:]]
    if as_json:
        print(to_json(runs, differences, per_query=per_query))
        return
    print(table(runs))
    for run, difference in zip(runs[1:], differences, strict=True):
        print(f"{runs[0].mode} - {run.mode}: {difference}")
