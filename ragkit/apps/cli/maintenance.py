"""Commands that keep an index whole, change it, move it, and say what it holds."""

from __future__ import annotations

from collections.abc import Iterator
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
    Quiet,
    interruptible,
    keywords,
    open_index,
    print_json,
    say,
    with_recipe,
)
from ragkit.apps.cli.progress import progress_bar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from ragkit.care.repair import RepairReport
    from ragkit.care.stats import Stats
    from ragkit.core.types import Metadata
    from ragkit.testing.crash_test import CrashReport


def _print_report(report: DataclassInstance, line: str, *, as_json: bool) -> None:
    """Print what a command returned: its fields as JSON, or one line for a person."""
    if as_json:
        print_json(asdict(report))
    else:
        print(line)


def verify(index: IndexPath, quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Compare every checksum, and the parts of the index with each other. Changes nothing; exits 1 on findings."""
    with open_index(index, create=False) as library, progress_bar("verifying", quiet=quiet or as_json) as progress:
        findings = library.verify(progress=progress)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            print(f"{finding.problem}\n    remedy: {finding.remedy}")
        print("whole: every checksum matches, and all parts agree" if not findings else f"{len(findings)} findings")
    if findings:
        raise typer.Exit(FAILED)


def compact(index: IndexPath, as_json: AsJson = False) -> None:
    """Rewrite all segments as one, without deleted rows. Answers do not change."""
    with open_index(index, create=False) as library:
        library.compact()
        stats = library.stats()
    if as_json:
        print_json({"segments": stats.segments, "bytes": stats.bytes})
    else:
        print(f"{stats.segments} segment{'' if stats.segments == 1 else 's'}, {stats.bytes:,} bytes")


def backup(
    index: IndexPath,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The folder to make; it must not be there yet.")],
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Copy the index to TARGET, whole and checked, while others add and search. To restore, copy the folder back."""
    with open_index(index, create=False) as library, progress_bar("backing up", quiet=quiet or as_json) as progress:
        report = library.backup(target, progress=progress)
    line = f"{report.path}: commit {report.commit}, {report.documents} documents, {report.bytes:,} bytes"
    _print_report(report, line, as_json=as_json)


def repair(
    index: IndexPath,
    embed: Annotated[
        bool, typer.Option("--embed/--no-embed", help="Embed documents that lost vectors again, from their stored texts.")
    ] = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Make a damaged index whole from its intact parts, and say what must be added again. Exits 3 if something is lost."""
    with open_index(index, create=False) as library, progress_bar("repairing", quiet=quiet or as_json) as progress:
        report = library.repair(embed=embed, progress=progress)
    _print_report(report, "\n".join(_repair_lines(report)), as_json=as_json)
    if report.lost and not as_json:
        say(f"{len(report.lost)} documents must be added again: ragkit list {index} --failed has their names, if any is left")
    if report.lost or report.warnings:
        raise typer.Exit(PARTLY)


def _repair_lines(report: RepairReport) -> Iterator[str]:
    if not report.problems:
        yield "whole: nothing to repair"
        return
    yield from (f"found       {problem}" for problem in report.problems)
    yield f"kept        {report.salvaged:,} vectors of damaged segments"
    yield from (f"embedded    {source}, again, from its stored text" for source in report.embedded)
    yield from (f"without     {warning}" for warning in report.warnings)
    if report.lexical:
        yield "rebuilt     the lexical index"
    yield from (f"quarantined {folder}: remove it when you need it no more" for folder in report.quarantined)
    yield from (f"lost        {document.source or document.identity}: {document.reason}" for document in report.lost)


@with_recipe
def migrate(
    index: IndexPath,
    *,
    device: Device = None,
    password: Annotated[
        str | None, typer.Option(envvar="RAGKIT_PASSWORD", help="For encrypted documents whose pages are seen.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    **settings: Any,
) -> None:
    """Change what an index was built with, redoing only what the change reaches. Searches go on meanwhile."""
    with open_index(index, create=False, device=device) as library, progress_bar("migrating", quiet=quiet or as_json) as progress:
        report = library.rebuild(**keywords(settings), password=password, progress=progress)
    if as_json:
        print_json(asdict(report))
        return
    outcomes = {
        "nothing": "nothing to do: the index has these settings already",
        "settings": "done: no vector had to change",
        "rows": "done: the stored vectors were rewritten, and nothing was embedded",
        "embedded": f"done: {report.documents} documents were made again, as {report.units} units",
    }
    print(outcomes[report.done])
    for warning in report.warnings:
        print(f"  {warning}")
    if report.to_parse:
        print(f"{report.to_parse} documents are parsed anew when their files are next added: ragkit add {index} FILES")


def export(
    index: IndexPath,
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to make; it must not be there yet.")],
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write documents, units and all vectors to FOLDER, as JSON lines and NumPy files, for other tools or `ragkit import`."""
    with open_index(index, create=False) as library, progress_bar("exporting", quiet=quiet or as_json) as progress:
        report = library.export(target, progress=progress)
    counts = f"{report.vectors} vectors" + (f", {report.tokens} of tokens" if report.tokens else "")
    _print_report(report, f"{report.path}: {report.documents} documents, {report.units} units, {counts}", as_json=as_json)


def import_(
    index: IndexPath,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `ragkit export` wrote.")],
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Bring an exported FOLDER into INDEX, new or built by the same recipe, with its chunks and vectors: nothing is embedded."""
    from ragkit.index.index import Index

    with interruptible(), progress_bar("importing", quiet=quiet or as_json) as progress:
        report = Index.import_from(index, folder, progress=progress)
    if as_json:
        print_json({kind: [asdict(outcome) for outcome in getattr(report, kind)] for kind in ("added", "updated", "unchanged")})
    else:
        print(report)


def selfcheck(
    crash: Annotated[int, typer.Option(min=1, help="How many processes to kill.")] = 100,
    folder: Annotated[Path, typer.Option(help="A folder on the disk to try; the current one if left out.")] = Path(),
    seed: Annotated[int, typer.Option(help="Which random moments.")] = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Kill processes that write to a small index on your own disk, and check that nothing is lost. Exits 1 if something is."""
    from ragkit.testing.crash_test import crash as run

    with interruptible(), progress_bar("crashing", quiet=quiet or as_json) as progress:
        report = run(folder.absolute(), crash, seed=seed, progress=progress)
    _print_report(report, _crash_line(report), as_json=as_json)
    if report.problems:
        raise typer.Exit(FAILED)


def _crash_line(report: CrashReport) -> str:
    if report.problems:
        return f"broken: {report.problems[0]}\nthe index is left in {report.folder}"
    return (
        f"{report.killed} processes killed, {report.finished} ended before that; {report.changes} changes were reported as done, "
        f"and all of them found; every checksum compared {report.verified} times ({report.seconds:.0f} s)"
    )


def stats(index: IndexPath, as_json: AsJson = False) -> None:
    """Print what the index holds, and how its vectors are searched."""
    with open_index(index, create=False) as library:
        stats = library.stats()
    _print_report(stats, "\n".join(_stats_lines(stats, index)), as_json=as_json)


def _stats_lines(stats: Stats, index: Path) -> Iterator[str]:
    yield f"{stats.path}: {stats.documents} documents, {stats.units} units, commit {stats.commit}"
    yield from _recipe_lines(stats.model, stats.recipe)
    parts = ", ".join(f"{name} {size:,}" for name, size in stats.bytes_by_part.items())
    yield f"on disk    {stats.bytes:,} bytes, {stats.bytes // max(stats.documents, 1):,} a document: {parts}"
    for name, dense, multi in (("segment", stats.dense, stats.multi), ("pages", stats.page_dense, stats.page_multi)):
        yield from (_segment_line(name, segment, _dense_form(segment)) for segment in dense)
        yield from (_segment_line(name, segment, _multi_form(segment)) for segment in multi)
    if stats.failures:
        yield f"failed     {stats.failures} documents; see: ragkit list {index} --failed"


def _recipe_lines(model: str, recipe: Metadata) -> Iterator[str]:
    chunk, encode, pages = recipe["chunk"], recipe["encode"], recipe["pages"]
    dims = f"first {encode['dims']} dims" if encode["dims"] else "all dims"
    yield f"model      {model}; task {encode['task'] or 'default'}, {dims}, {encode['dtype']}"
    switches = (("late_chunking", "late chunking"), ("contextual_headers", "contextual headers"))
    context = ", ".join(f"{name} {'on' if encode[field] else 'off'}" for field, name in switches)
    yield f"chunker    {chunk['chunker']}, {chunk['tokens']} tokens, overlap {chunk['overlap']}; {context}"
    if pages:
        pooled = f", pooled by {pages['pool']}" if pages["pool"] > 1 else ""
        background = "" if pages["background"] else ", one background"
        yield f"pages      {pages['which']}, by {pages['model']}{pooled}{background}"


def _segment_line(name: str, segment: Metadata, form: str) -> str:
    return f"{name:<10} {segment['live']:,} of {segment['rows']:,} rows, {form}"


def _dense_form(segment: Metadata) -> str:
    return f"{segment['structure']}, recall {segment['recall']:.4f}"


def _multi_form(segment: Metadata) -> str:
    coarse = f", {segment['coarse']:,} coarse ones" if segment["coarse"] else ""
    return f"{segment['tokens']:,} token vectors of {segment['dims']} dims, {segment['precision']}{coarse}"


def doctor(as_json: AsJson = False) -> None:
    """Print versions, devices, engines and licences, and what is missing."""
    from ragkit.care.doctor import examine, render

    findings = examine()
    if as_json:
        print_json(findings)
    else:
        print(render(findings))
