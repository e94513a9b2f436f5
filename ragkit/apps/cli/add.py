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
    Device,
    IndexPath,
    Password,
    Quiet,
    keywords,
    open_index,
    print_json,
    say,
    with_recipe,
)
from ragkit.apps.cli.progress import progress_bar

if TYPE_CHECKING:
    from ragkit.core.types import AddReport, Json
    from ragkit.index.index import Index

SHOWN = 10  # skipped files named one by one
Workers = Annotated[int, typer.Option(min=1, help="Parsing processes.")]
Limit = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="What one document may cost (docs/limits.md); may be repeated.")
]


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
    password: Password = None,
    workers: Workers = 1,
    limit: Limit = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Then delete documents whose files beneath these sources are gone.")
    ] = False,
    device: Device = None,
    cache: Annotated[
        Path | None, typer.Option(help="A file that keeps embeddings, to use them again; created if there is none.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    **settings: Any,
) -> None:
    """Bring files into the index: what is new or changed is embedded, the rest is left alone."""
    from ragkit.ingest.collect import check_paths
    from ragkit.load import IGNORE_FILES, Limits

    check_paths(sources)  # a missing file is an error before an index is created or a model loaded for it
    limits = Limits.parse(limit or ())
    with (
        open_index(index, device=device, cache=cache, **keywords(settings)) as library,
        progress_bar("adding", quiet=quiet or as_json, adding=True) as progress,
    ):
        report = library.add(
            sources,
            include=include or (),
            exclude=exclude or (),
            ignore_files=(*IGNORE_FILES, *(ignore_file or ())),
            password=password,
            limits=limits,
            workers=workers,
            prune=prune,
            progress=progress,
        )
    _print_report(report, as_json=as_json)
    if report.failed:
        raise typer.Exit(PARTLY)


def retry(
    index: IndexPath,
    password: Password = None,
    workers: Workers = 1,
    limit: Limit = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Try again what failed, as `ragkit status` lists it: with a password, more time, or the missing package installed."""
    from ragkit.load import Limits

    limits = Limits.parse(limit or ())
    with (
        open_index(index, create=False) as library,
        progress_bar("adding", quiet=quiet or as_json, adding=True) as progress,
    ):
        report = library.retry(password=password, workers=workers, limits=limits, progress=progress)
    _print_report(report, as_json=as_json)
    if report.failed:
        raise typer.Exit(PARTLY)


def _print_report(report: AddReport, *, as_json: bool) -> None:
    if as_json:
        print_json(_report_fields(report))
        return
    written = (*report.added, *report.updated)
    print(f"{report.counts}  ({sum(outcome.units for outcome in written)} units in {report.seconds:.1f} s)")
    for outcome in report.failed:
        say(f"  failed   {outcome.source}: {outcome.reason}")
    for outcome in report.pruned:
        say(f"  pruned   {outcome.source}")
    for outcome in report.skipped[:SHOWN]:
        say(f"  skipped  {outcome.source}: {outcome.reason}")
    if len(report.skipped) > SHOWN:
        say(f"  skipped  … and {len(report.skipped) - SHOWN} more; --json lists them all")
    for source, warning in [(outcome.source, warning) for outcome in written for warning in outcome.warnings]:
        say(f"  warning  {source}: {warning}")


def _report_fields(report: AddReport) -> Json:
    kinds = ("added", "updated", "unchanged", "failed", "pruned", "skipped")
    outcomes = {kind: [asdict(outcome) for outcome in getattr(report, kind)] for kind in kinds}
    counts = {"truncated": report.truncated, "pages": report.pages, "blank": report.blank}
    return {**outcomes, **counts, "seconds": round(report.seconds, 3)}


def status(index: IndexPath, as_json: AsJson = False) -> None:
    """Say what became of all that was added: counts by kind and language, failures with their reasons, files that are gone."""
    from ragkit.care.status import lines

    with open_index(index, create=False) as library:
        status = library.status()
    if as_json:
        print_json(asdict(status))
    else:
        print("\n".join(lines(status, index)))
    if status.failures:
        raise typer.Exit(PARTLY)


def delete(
    index: IndexPath,
    references: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Sources, ids or paths, as `ragkit list` prints them.")
    ],
    as_json: AsJson = False,
) -> None:
    """Delete documents, and forget what failed under these names."""
    with open_index(index, create=False) as library:
        failed = len(library.failures())
        deleted = library.delete(references)
        forgotten = failed - len(library.failures())
    if as_json:
        print_json({"deleted": deleted, "forgotten": forgotten})
    else:
        print(f"deleted {deleted}" + (f", forgot {forgotten} that failed" if forgotten else ""))
    if not deleted and not forgotten:
        names = "that name" if len(references) == 1 else "those names"
        say(f"nothing by {names} is in the index; see: ragkit list {index}")
        raise typer.Exit(FAILED)


def list_(
    index: IndexPath,
    failed: Annotated[bool, typer.Option("--failed", help="Those that could not be added, and why.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the documents."""
    with open_index(index, create=False) as library:
        rows = _failures(library) if failed else _documents(library)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        print(f"{row['source']}: {row['reason']}" if failed else f"{row['source']}\t{row['units']} units\t{row['title']}")


def _failures(library: Index) -> list[Json]:
    return [{"source": failure.source, "reason": failure.reason} for failure in library.failures()]


def _documents(library: Index) -> list[Json]:
    names = ("source", "title", "mime", "units", "characters")
    return [
        {**{name: getattr(row, name) for name in names}, "meta": dict(row.meta), "root": row.root} for row in library.documents()
    ]
