"""Commands that change which documents an index holds: add, retry, status, delete, list."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ragkit.apps.cli.options import (
    FAILED,
    PARTLY,
    AsJson,
    IndexPath,
    add_progress,
    app,
    keywords,
    open_index,
    print_json,
    say,
    with_recipe,
)

if TYPE_CHECKING:
    from ragkit.core.types import AddReport


SHOWN = 10  # skipped files named one by one


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
    from ragkit.ingest.collect import paths_of
    from ragkit.load import IGNORE_FILES, Limits

    paths_of(sources)  # what is not there is told before anything is made or loaded for it
    limits = Limits.parse(limit or ())
    how = keywords(settings)
    with open_index(index, device=device, cache=cache, **how) as opened, add_progress(quiet=quiet or as_json) as callback:
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
    with open_index(index, create=False) as opened, add_progress(quiet=quiet or as_json) as callback:
        report = opened.retry(password=password, workers=workers, limits=limits, progress=callback)
    _print_report(report, as_json=as_json)
    if report.failed:
        raise typer.Exit(PARTLY)


@app.command()
def status(index: IndexPath, as_json: AsJson = False) -> None:
    """What became of all that was added: counts by kind and language, failures with their reasons, files that are gone."""
    from ragkit.care.status import lines

    with open_index(index, create=False) as opened:
        found = opened.status()
    if as_json:
        print_json(asdict(found))
    else:
        print("\n".join(lines(found, index)))
    if found.failures:
        raise typer.Exit(PARTLY)


def _print_report(report: AddReport, *, as_json: bool) -> None:
    kinds = ("added", "updated", "unchanged", "failed", "pruned", "skipped")
    if as_json:
        outcomes = {kind: [asdict(one) for one in getattr(report, kind)] for kind in kinds}
        counts = {"truncated": report.truncated, "pages": report.pages, "blank": report.blank}
        print_json({**outcomes, **counts, "seconds": round(report.seconds, 3)})
        return
    units = sum(one.units for one in (*report.added, *report.updated))
    print(f"{report.counts}  ({units} units in {report.seconds:.1f} s)")
    for one in report.failed:
        say(f"  failed   {one.source}: {one.reason}")
    for one in report.pruned:
        say(f"  pruned   {one.source}")
    for one in report.skipped[:SHOWN]:
        say(f"  skipped  {one.source}: {one.reason}")
    if len(report.skipped) > SHOWN:
        say(f"  skipped  … and {len(report.skipped) - SHOWN} more; --json lists them all")
    for one in (*report.added, *report.updated):
        for warning in one.warnings:
            say(f"  warning  {one.source}: {warning}")


@app.command()
def delete(
    index: IndexPath,
    references: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Sources, ids or paths, as `ragkit list` prints them.")
    ],
    as_json: AsJson = False,
) -> None:
    """Delete documents, and forget what failed under these names."""
    with open_index(index, create=False) as opened:
        failed = len(opened.failures())
        count = opened.delete(references)
        forgotten = failed - len(opened.failures())
    if as_json:
        print_json({"deleted": count, "forgotten": forgotten})
    else:
        print(f"deleted {count}" + (f", forgot {forgotten} that failed" if forgotten else ""))
    if not count and not forgotten:
        say(f"nothing by {'that name' if len(references) == 1 else 'those names'} is in the index; see: ragkit list {index}")
        raise typer.Exit(FAILED)


@app.command("list")
def list_(
    index: IndexPath,
    failed: Annotated[bool, typer.Option("--failed", help="Those that could not be added, and why.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the documents."""
    with open_index(index, create=False) as opened:
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
        print_json(rows)
    else:
        for line in lines:
            print(line)
