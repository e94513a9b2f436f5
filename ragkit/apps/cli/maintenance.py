"""The commands that keep an index whole, and change it. `ragkit.apps.cli.main` adds them to its own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ragkit.apps.cli.options import (
    FAILED,
    INTERRUPTED,
    PARTLY,
    AsJson,
    IndexPath,
    app,
    bar,
    keywords,
    open_index,
    print_json,
    say,
    with_recipe,
)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def verify(index: IndexPath, quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Compare every checksum, and the parts of the index with each other. Changes nothing; exits 1 on findings."""
    with open_index(index, create=False) as library, bar("verifying", quiet=quiet or as_json) as progress:
        findings = library.verify(progress=progress)
    if as_json:
        print_json([asdict(one) for one in findings])
    else:
        for one in findings:
            print(f"{one.problem}\n    remedy: {one.remedy}")
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
    with open_index(index, create=False) as library, bar("backing up", quiet=quiet or as_json) as progress:
        report = library.backup(target, progress=progress)
    if as_json:
        print_json(asdict(report))
    else:
        print(f"{report.path}: commit {report.commit}, {report.documents} documents, {report.bytes:,} bytes")


def repair(
    index: IndexPath,
    embed: Annotated[
        bool, typer.Option("--embed/--no-embed", help="Embed documents that lost vectors again, from their stored texts.")
    ] = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Make a damaged index whole from what of it is intact, and say what must be added again. Exits 3 where something is lost."""
    with open_index(index, create=False) as library, bar("repairing", quiet=quiet or as_json) as progress:
        report = library.repair(embed=embed, progress=progress)
    if as_json:
        print_json(asdict(report))
    elif not report.problems:
        print("whole: nothing to repair")
    else:
        for problem in report.problems:
            print(f"found       {problem}")
        print(f"kept        {report.salvaged:,} vectors of damaged segments")
        for source in report.embedded:
            print(f"embedded    {source}, again, from its stored text")
        for warning in report.warnings:
            print(f"without     {warning}")
        if report.lexical:
            print("rebuilt     the lexical index")
        for folder in report.quarantined:
            print(f"quarantined {folder}: remove it when you need it no more")
        for one in report.lost:
            print(f"lost        {one.source or one.identity}: {one.reason}")
        if report.lost:
            say(f"{len(report.lost)} documents must be added again: ragkit list {index} --failed has their names, if any is left")
    if report.lost or report.warnings:
        raise typer.Exit(PARTLY)


@with_recipe
def migrate(
    index: IndexPath,
    *,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …")] = None,
    password: Annotated[
        str | None, typer.Option(envvar="RAGKIT_PASSWORD", help="For encrypted documents whose pages are seen.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    **settings: Any,
) -> None:
    """Change what an index was built with, redoing only what the change reaches. Searches go on meanwhile."""
    with open_index(index, create=False, device=device) as library, bar("migrating", quiet=quiet or as_json) as progress:
        report = library.rebuild(**keywords(settings), password=password, progress=progress)
    if as_json:
        print_json(asdict(report))
        return
    told = {
        "nothing": "nothing to do: the index is as asked for",
        "settings": "done: no vector had to change",
        "rows": "done: the stored vectors were rewritten, and nothing was embedded",
        "embedded": f"done: {report.documents} documents were made again, as {report.units} units",
    }
    print(told[report.done])
    for warning in report.warnings:
        print(f"  {warning}")
    if report.to_parse:
        print(f"{report.to_parse} documents are parsed anew when their files are next added: ragkit add {index} FILES")


def export(
    index: IndexPath,
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to make; it must not be there yet.")],
    documents: Annotated[str, typer.Option(help="How documents and units are written: jsonl or parquet.")] = "jsonl",
    vectors: Annotated[str, typer.Option(help="How vectors are written: npy or parquet.")] = "npy",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write documents, units and all vectors to FOLDER, for other tools or `ragkit import`."""
    forms: Any = {"documents": documents, "vectors": vectors}
    with open_index(index, create=False) as library, bar("exporting", quiet=quiet or as_json) as progress:
        report = library.export(target, **forms, progress=progress)
    if as_json:
        print_json(asdict(report))
    else:
        vectors = f"{report.vectors} vectors" + (f", {report.tokens} of tokens" if report.tokens else "")
        print(f"{report.path}: {report.documents} documents, {report.units} units, {vectors}")


def import_(
    index: IndexPath,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `ragkit export` wrote.")],
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Bring an exported FOLDER into INDEX, new or built by the same recipe, with its chunks and vectors: nothing is embedded."""
    from ragkit.index.index import Index

    try:
        with bar("importing", quiet=quiet or as_json) as progress:
            report = Index.import_from(index, folder, progress=progress)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json({kind: [asdict(one) for one in getattr(report, kind)] for kind in ("added", "updated", "unchanged")})
    else:
        print(report)


def selfcheck(
    crash: Annotated[int, typer.Option(min=1, help="How many processes to kill.")] = 100,
    folder: Annotated[Path, typer.Option(help="A folder on the disk to try; the current one if left out.")] = Path(),
    seed: Annotated[int, typer.Option(help="Which random moments.")] = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Kill processes that write to a small index on your own disk, and see that nothing is lost. Exits 1 if something is."""
    from ragkit.testing.crash_test import crash as run

    try:
        with bar("crashing", quiet=quiet or as_json) as progress:
            report = run(folder.absolute(), crash, seed=seed, progress=progress)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json(asdict(report))
    else:
        print(
            f"{report.killed} processes killed, {report.finished} were quicker; {report.changes} changes were said to be done "
            f"and all of them found; every checksum compared {report.verified} times ({report.seconds:.0f} s)"
            if not report.problems
            else f"broken: {report.problems[0]}\nthe index is left in {report.folder}"
        )
    if report.problems:
        raise typer.Exit(FAILED)


COMMANDS = (verify, repair, compact, backup, migrate, export, import_, selfcheck)


@app.command()
def stats(index: IndexPath, as_json: AsJson = False) -> None:
    """What the index holds, and how its vectors are searched."""
    with open_index(index, create=False) as opened:
        found = opened.stats()
    if as_json:
        print_json(asdict(found))
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
    from ragkit.care.doctor import examine, render

    findings = examine()
    if as_json:
        print_json(findings)
    else:
        print(render(findings))
