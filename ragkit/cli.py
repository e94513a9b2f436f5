"""The command line: `ragkit add | search | show | delete | list | stats | verify | compact | backup | …`.

Answers go to standard output, progress and messages to standard error; `--json` prints one JSON value. Exit codes: 0 done,
1 an error, 2 wrong usage, 3 done but some documents failed or something was missing, 130 interrupted (what was committed
stays; run it again).
Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ragkit import care
from ragkit.errors import RagkitError
from ragkit.serve import commands as serving
from ragkit.terminal import FAILED, INTERRUPTED, PARTLY, AsJson, IndexPath, keywords, tell_cost, with_recipe
from ragkit.terminal import opened as _opened
from ragkit.terminal import print_json as _print_json
from ragkit.terminal import say as _say

if TYPE_CHECKING:
    from ragkit.types import AddReport, Hit, Progress

SHOWN = 10  # skipped files named one by one

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Index documents, ask, and check the evidence.",
)

for command in (*care.COMMANDS, *serving.COMMANDS):
    app.command(command.__name__.rstrip("_"))(command)
app.add_typer(serving.keys_app, name="keys")


def main() -> None:
    """Run the command line, with every expected error as one clear line."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _say("interrupted: what was committed is in the index; run the same command again for the rest")
        raise
    except (RagkitError, ValueError, TypeError, OSError) as error:
        _say(f"error: {error}")
        sys.exit(FAILED)


def _terminate(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


@app.command()
@with_recipe
def add(
    index: IndexPath,
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Files, folders or globs.")],
    *,
    include: Annotated[list[str] | None, typer.Option(help="Only files that match this glob; may be repeated.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="No files that match this glob; may be repeated.")] = None,
    ignore_file: Annotated[
        list[str] | None,
        typer.Option(help="Heed files of this name too, with rules as in .gitignore; may be repeated. .ragkitignore always is."),
    ] = None,
    password: Annotated[str | None, typer.Option(envvar="RAGKIT_PASSWORD", help="For encrypted documents.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Parsing processes.")] = 1,
    limit: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="What one document may cost (docs/limits.md); may be repeated.")
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Then delete documents whose files beneath these sources are gone.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …")] = None,
    cache: Annotated[Path | None, typer.Option(help="A file of embeddings made before; made if it is not there.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: AsJson = False,
    **settings: Any,
) -> None:
    """Bring files into the index: what is new or changed is embedded, the rest is left alone."""
    from ragkit.ingest import paths_of
    from ragkit.load import IGNORE_FILES, Limits

    paths_of(sources)  # what is not there is told before anything is made or loaded for it
    limits = Limits.parse(limit or ())
    how = keywords(settings)
    with _opened(index, device=device, cache=cache, **how) as opened, _progress(quiet=quiet or as_json) as callback:
        report = opened.add(
            sources,
            include=include or (),
            exclude=exclude or (),
            ignore_files=(*IGNORE_FILES, *(ignore_file or ())),
            password=password,
            limits=limits,
            workers=workers,
            prune=prune,
            progress=callback,
        )
    _print_report(report, as_json=as_json)
    if report.failed:
        raise typer.Exit(PARTLY)


@app.command()
def retry(
    index: IndexPath,
    password: Annotated[str | None, typer.Option(envvar="RAGKIT_PASSWORD", help="For encrypted documents.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Parsing processes.")] = 1,
    limit: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="What one document may cost (docs/limits.md); may be repeated.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Try again what failed, as `ragkit status` lists it: with a password, more time, or the missing package installed."""
    from ragkit.load import Limits

    limits = Limits.parse(limit or ())
    with _opened(index, create=False) as opened, _progress(quiet=quiet or as_json) as callback:
        report = opened.retry(password=password, workers=workers, limits=limits, progress=callback)
    _print_report(report, as_json=as_json)
    if report.failed:
        raise typer.Exit(PARTLY)


@app.command()
def status(index: IndexPath, as_json: AsJson = False) -> None:
    """What became of all that was added: counts by kind and language, failures with their reasons, files that are gone."""
    from ragkit.status import lines

    with _opened(index, create=False) as opened:
        found = opened.status()
    if as_json:
        _print_json(asdict(found))
    else:
        print("\n".join(lines(found, index)))
    if found.failures:
        raise typer.Exit(PARTLY)


def _print_report(report: AddReport, *, as_json: bool) -> None:
    kinds = ("added", "updated", "unchanged", "failed", "pruned", "skipped")
    if as_json:
        outcomes = {kind: [asdict(one) for one in getattr(report, kind)] for kind in kinds}
        counts = {"truncated": report.truncated, "pages": report.pages, "blank": report.blank}
        _print_json({**outcomes, **counts, "seconds": round(report.seconds, 3)})
        return
    units = sum(one.units for one in (*report.added, *report.updated))
    print(f"{report.counts}  ({units} units in {report.seconds:.1f} s)")
    for one in report.failed:
        _say(f"  failed   {one.source}: {one.reason}")
    for one in report.pruned:
        _say(f"  pruned   {one.source}")
    for one in report.skipped[:SHOWN]:
        _say(f"  skipped  {one.source}: {one.reason}")
    if len(report.skipped) > SHOWN:
        _say(f"  skipped  … and {len(report.skipped) - SHOWN} more; --json lists them all")
    for one in (*report.added, *report.updated):
        for warning in one.warnings:
            _say(f"  warning  {one.source}: {warning}")


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Any]:
    """A callback that draws documents, units per second and the time left on standard error; None where nobody looks."""
    if quiet:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("documents · {task.fields[units]} units · {task.fields[rate]:.1f} units/s{task.fields[pages]} ·"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    started = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        job = bar.add_task("adding", total=None, units=0, rate=0.0, pages="")

        def callback(step: Progress_) -> None:
            if step.stage == "cost":
                tell_cost(step)
            elif step.stage == "pages":
                bar.update(job, pages=f" · {step.done} pages")
            elif step.stage == "encode":
                bar.update(job, units=step.done, rate=step.done / (time.monotonic() - started))
            else:
                bar.update(job, completed=step.done, total=step.total)

        yield callback


if TYPE_CHECKING:
    Progress_ = Progress


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
    with _opened(index, create=False) as opened:
        asked: Any = _with_picture(query, image)
        hits = opened.search(
            asked,
            k,
            mode=mode,
            rerank=rerank,
            filters=_filters(filters),
            dims=dims,
            min_score=min_score,
            group_by="document" if per_document else None,
            exact=exact,
            degraded=degraded,
        )
    for one in hits.missing:
        _say(f"degraded: {one}")
    if as_json:
        from ragkit.cite import hit_fields

        found = [hit_fields(hit) for hit in hits]
        _print_json({"hits": found, "missing": hits.missing} if degraded else found)
    if not hits and not as_json:
        _say("no hits")
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
    with _opened(index, create=False) as opened:
        found = opened.explain(query, key)
    if as_json:
        _print_json({"score": found.score, "citation": str(found.citation), "matches": [asdict(one) for one in found.matches]})
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


def _filters(text: str | None) -> Mapping[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--filter is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"--filter is a JSON object, got {text}")
    return value


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
    from ragkit.show import can_draw, evidence, page_png

    with _opened(index, create=False) as opened:
        asked = _with_picture(query, image)
        found = evidence(opened, reference, query=None if asked == "" else asked, k=k)
        number = page or (found.pages[0] if found.pages else None)
        path = None
        if number is not None and can_draw(found.row) and opened.pages(found.row):
            path = output or Path(f"{Path(found.row.source).name}-p{number}.png")
            path.write_bytes(page_png(opened, found, page=number, dpi=dpi, password=password))
    if as_json:
        from ragkit.cite import citation_fields

        _print_json({"png": None if path is None else str(path), "citations": [citation_fields(one) for one in found.citations]})
        return
    if not found.citations:
        _say(f"nothing in {found.row.source} is found by this question: the index has no passage or page image of it")
    for citation, text in zip(found.citations, found.texts, strict=True):
        print(f"{citation}: {_shortened(' '.join(text.split()))}")
    if path is not None:
        print(f"wrote {path}: {found.row.source}, p. {number}, {found.boxes_on(number or 0)} boxes")


@app.command()
def delete(
    index: IndexPath,
    references: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Sources, ids or paths, as `ragkit list` prints them.")
    ],
    as_json: AsJson = False,
) -> None:
    """Delete documents, and forget what failed under these names."""
    with _opened(index, create=False) as opened:
        failed = len(opened.failures())
        count = opened.delete(references)
        forgotten = failed - len(opened.failures())
    if as_json:
        _print_json({"deleted": count, "forgotten": forgotten})
    else:
        print(f"deleted {count}" + (f", forgot {forgotten} that failed" if forgotten else ""))
    if not count and not forgotten:
        _say(f"nothing by {'that name' if len(references) == 1 else 'those names'} is in the index; see: ragkit list {index}")
        raise typer.Exit(FAILED)


@app.command("list")
def list_(
    index: IndexPath,
    failed: Annotated[bool, typer.Option("--failed", help="Those that could not be added, and why.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the documents."""
    with _opened(index, create=False) as opened:
        if failed:
            rows: list[dict[str, Any]] = [{"source": one.source, "reason": one.reason} for one in opened.failures()]
            lines = [f"{row['source']}: {row['reason']}" for row in rows]
        else:
            rows = [
                {
                    "source": row.source,
                    "title": row.title,
                    "mime": row.mime,
                    "units": row.units,
                    "characters": row.characters,
                    "meta": dict(row.meta),
                    "root": row.root,
                }
                for row in opened.documents()
            ]
            lines = [f"{row['source']}\t{row['units']} units\t{row['title']}" for row in rows]
    if as_json:
        _print_json(rows)
    else:
        for line in lines:
            print(line)


@app.command()
def stats(index: IndexPath, as_json: AsJson = False) -> None:
    """What the index holds, and how its vectors are searched."""
    with _opened(index, create=False) as opened:
        found = opened.stats()
    if as_json:
        _print_json(asdict(found))
        return
    per_document = found.bytes // max(found.documents, 1)
    print(f"{found.path}: {found.documents} documents, {found.units} units, commit {found.commit}")
    chunk, encode = found.recipe["chunk"], found.recipe["encode"]
    dims = f"first {encode['dims']} dims" if encode["dims"] else "all dims"
    print(f"model      {found.model}; task {encode['task'] or 'default'}, {dims}, {encode['dtype']}")
    ways = (("late_chunking", "late chunking"), ("contextual_headers", "contextual headers"))
    around = [f"{name} {'on' if encode[field] else 'off'}" for field, name in ways]
    print(f"chunker    {chunk['chunker']}, {chunk['tokens']} tokens, overlap {chunk['overlap']}; {', '.join(around)}")
    if pages := found.recipe["pages"]:
        fewer = (f", pooled by {pages['pool']}" if pages["pool"] > 1 else "") + (
            "" if pages["background"] else ", one background"
        )
        print(f"pages      {pages['which']}, by {pages['model']}{fewer}")
    print(
        f"on disk    {found.bytes:,} bytes, {per_document:,} a document: "
        + ", ".join(f"{name} {size:,}" for name, size in found.bytes_by_part.items())
    )
    for name, dense, multi in (("segment", found.dense, found.multi), ("pages", found.page_dense, found.page_multi)):
        for segment in dense:
            how = f"{segment['structure']}, recall {segment['recall']:.4f}"
            print(f"{name:<10} {segment['live']:,} of {segment['rows']:,} rows, {how}")
        for segment in multi:
            shape = f"{segment['tokens']:,} token vectors of {segment['dims']} dims, {segment['precision']}"
            shape += f", {segment['coarse']:,} coarse ones" if segment["coarse"] else ""
            print(f"{name:<10} {segment['live']:,} of {segment['rows']:,} rows, {shape}")
    if found.failures:
        print(f"failed     {found.failures} documents; see: ragkit list {index} --failed")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Print versions, devices, engines and licences, and what is missing."""
    from ragkit.doctor import examine, render

    findings = examine()
    if as_json:
        _print_json(findings)
    else:
        print(render(findings))


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
    from ragkit.evaluate import compare, evaluate, read_beir, read_pages, table, to_json

    questions = read_pages(judged) if (judged / "questions.jsonl").exists() else read_beir(judged, split=split)
    names = tuple(measures.split(",")) if measures else None
    with _opened(index, create=add_documents, model=model, chunker=chunker, overflow=overflow) as opened:
        if add_documents:
            with _progress(quiet=as_json) as callback:
                _say(str(opened.add(questions.documents, progress=callback)))
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


if __name__ == "__main__":
    main()
