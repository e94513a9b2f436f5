"""Commands that answer: search, explain, show, eval."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ragkit.apps.cli.options import PARTLY, AsJson, IndexPath, add_progress, app, open_index, parse_filters, print_json, say

if TYPE_CHECKING:
    from ragkit.core.types import Hit


@app.command()
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
    with open_index(index, create=False) as opened:
        asked: Any = _with_picture(query, image)
        hits = opened.search(
            asked,
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
    for one in hits.missing:
        say(f"degraded: {one}")
    if as_json:
        from ragkit.search.cite import hit_fields

        found = [hit_fields(hit) for hit in hits]
        print_json({"hits": found, "missing": hits.missing} if degraded else found)
    if not hits and not as_json:
        say("no hits")
    if not as_json:
        for hit in hits:
            _print_hit(hit, full=full)
    if hits.missing:
        raise typer.Exit(PARTLY)


@app.command()
def explain(
    index: IndexPath,
    key: Annotated[int, typer.Argument(metavar="KEY", help="The key of a hit.")],
    query: Annotated[str, typer.Argument(help="The question it was found for.")],
    as_json: AsJson = False,
) -> None:
    """Take a hit's MaxSim score apart: what each word of the question matched, and its share."""
    with open_index(index, create=False) as opened:
        found = opened.explain(query, key)
    if as_json:
        print_json({"score": found.score, "citation": str(found.citation), "matches": [asdict(one) for one in found.matches]})
        return
    print(f"{found.score:.4f} maxsim  {found.citation}")
    for one in found.matches:
        place = ", ".join("({:.0f} {:.0f} {:.0f} {:.0f})".format(*box.box) for box in one.boxes)
        print(f"{one.share:8.4f}  {one.query_word or '·'} → {one.word or place or '·'}")


def _with_picture(query: str, image: Path | None) -> Any:
    if image is None:
        return query
    from PIL import Image, UnidentifiedImageError

    from ragkit.encode.images import upright_rgb

    try:
        with Image.open(image) as opened:
            picture = upright_rgb(0, opened)
    except UnidentifiedImageError:
        raise ValueError(f"{image} is no picture of a known kind") from None
    return (query, picture) if query else picture


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
    text = hit.text if full else _shortened(" ".join(hit.text.split()))
    console.print(Text("   " + text.replace("\n", "\n   ")))


def _shortened(text: str, width: int = 300) -> str:
    return text if len(text) <= width else text[:width].rsplit(" ", 1)[0] + " …"


@app.command()
def show(
    index: IndexPath,
    reference: Annotated[str, typer.Argument(metavar="KEY|SOURCE", help="A hit's key, or a document's source or id.")],
    query: Annotated[str, typer.Option("--query", "-q", help="Box the best passages of this document for a question.")] = "",
    image: Annotated[Path | None, typer.Option(help="A picture to ask with, alone or together with the question.")] = None,
    page: Annotated[int | None, typer.Option(min=1, help="Which page; the first with evidence if left out.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The PNG to write; SOURCE-pN.png if left out.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many passages to box, with --query.")] = 1,
    dpi: Annotated[int, typer.Option(min=18, max=600)] = 110,
    password: Annotated[str | None, typer.Option(envvar="RAGKIT_PASSWORD", help="For encrypted documents.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the cited page as a PNG with the evidence boxed; for documents without pages, print the passage."""
    from ragkit.apps.show import can_draw, evidence, page_png

    with open_index(index, create=False) as opened:
        asked = _with_picture(query, image)
        found = evidence(opened, reference, query=None if asked == "" else asked, k=k)
        number = page or (found.pages[0] if found.pages else None)
        path = None
        if number is not None and can_draw(found.row) and opened.pages(found.row):
            path = output or Path(f"{Path(found.row.source).name}-p{number}.png")
            path.write_bytes(page_png(opened, found, page=number, dpi=dpi, password=password))
    if as_json:
        from ragkit.search.cite import citation_fields

        print_json({"png": None if path is None else str(path), "citations": [citation_fields(one) for one in found.citations]})
        return
    if not found.citations:
        say(f"nothing in {found.row.source} is found by this question: the index has no passage or page image of it")
    for citation, text in zip(found.citations, found.texts, strict=True):
        print(f"{citation}: {_shortened(' '.join(text.split()))}")
    if path is not None:
        print(f"wrote {path}: {found.row.source}, p. {number}, {found.boxes_on(number or 0)} boxes")


@app.command("eval")
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
    with open_index(index, create=add_documents, model=model, chunker=chunker, overflow=overflow) as opened:
        if add_documents:
            with add_progress(quiet=as_json) as callback:
                say(str(opened.add(questions.documents, progress=callback)))
        runs = [
            evaluate(opened, questions, mode=mode, k=k, measures=names, batch=1 if one_by_one else 64)
            for mode in modes.split(",")
        ]
    first = next(iter(runs[0].measures))
    gaps = [compare(runs[0], run, measure=first) for run in runs[1:]]
    if as_json:
        print(to_json(runs, gaps, per_query=per_query))
        return
    print(table(runs))
    for run, gap in zip(runs[1:], gaps, strict=True):
        print(f"{runs[0].mode} - {run.mode}: {gap}")
