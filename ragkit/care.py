"""The commands that keep an index whole, and change it. `ragkit.cli` adds them to its own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ragkit.terminal import FAILED, INTERRUPTED, PARTLY, AsJson, IndexPath, bar, opened, print_json, say

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def verify(index: IndexPath, quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Compare every checksum, and the parts of the index with each other. Changes nothing; exits 1 on findings."""
    with opened(index, create=False) as library, bar("verifying", quiet=quiet or as_json) as progress:
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
    with opened(index, create=False) as library:
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
    with opened(index, create=False) as library, bar("backing up", quiet=quiet or as_json) as progress:
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
    with opened(index, create=False) as library, bar("repairing", quiet=quiet or as_json) as progress:
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
            say(f"{len(report.lost)} documents must be added again: ragkit list {index} --failed names them")
    if report.lost or report.warnings:
        raise typer.Exit(PARTLY)


def migrate(
    index: IndexPath,
    model: Annotated[str | None, typer.Option(help="Another encoder, or the same where it became another.")] = None,
    task: Annotated[str | None, typer.Option(help="The encoder's task, where it has several.")] = None,
    dims: Annotated[int | None, typer.Option(help="Keep the first DIMS of each vector.")] = None,
    chunker: Annotated[str | None, typer.Option(help="sentences, structure, page or whole.")] = None,
    chunk_tokens: Annotated[int | None, typer.Option(help="Tokens per chunk, at most.")] = None,
    chunk_overlap: Annotated[int | None, typer.Option(help="Tokens shared by neighbouring chunks.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens the encoder takes, at most.")] = None,
    overflow: Annotated[str | None, typer.Option(help="What to do with longer units: error, truncate or window.")] = None,
    late_chunking: Annotated[bool | None, typer.Option("--late-chunking/--no-late-chunking")] = None,
    contextual_headers: Annotated[bool | None, typer.Option("--contextual-headers/--no-contextual-headers")] = None,
    multi: Annotated[str | None, typer.Option(help="A vector per token, too: int8, float16, float32, or off.")] = None,
    pool: Annotated[int | None, typer.Option(help="Tokens by this factor fewer, with --multi.")] = None,
    pages: Annotated[str | None, typer.Option(help="Pages as pictures, too: auto, figures, all, or none.")] = None,
    page_model: Annotated[str | None, typer.Option(help="The encoder that sees them, where it is another.")] = None,
    page_dims: Annotated[int | None, typer.Option(help="Keep the first DIMS of each page's vector.")] = None,
    page_multi: Annotated[str | None, typer.Option(help="A page's vectors per patch: int8, float16, float32, or off.")] = None,
    page_pixels: Annotated[int | None, typer.Option(help="Pixels of a page that the encoder sees, at most.")] = None,
    page_pool: Annotated[int | None, typer.Option(help="A page's patches by this factor fewer.")] = None,
    keep_sources: Annotated[
        bool | None, typer.Option("--keep-sources/--no-keep-sources", help="Keep a copy of every file added from here on.")
    ] = None,
    pdf_engine: Annotated[str | None, typer.Option(help="auto, pymupdf or pypdfium2.")] = None,
    ocr: Annotated[str | None, typer.Option(help="Read pages without text: off, auto, or languages as eng+deu.")] = None,
    recall: Annotated[float | None, typer.Option(help="The share of the best ten that a compressed search must find.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, …")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …")] = None,
    password: Annotated[
        str | None, typer.Option(envvar="RAGKIT_PASSWORD", help="For encrypted documents whose pages are seen.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Change what an index was built with, redoing only what the change reaches. Searches go on meanwhile."""
    changes: dict[str, Any] = {
        "model": model,
        "task": task,
        "dims": dims,
        "chunker": chunker,
        "chunk_tokens": chunk_tokens,
        "chunk_overlap": chunk_overlap,
        "max_tokens": max_tokens,
        "overflow": overflow,
        "late_chunking": late_chunking,
        "contextual_headers": contextual_headers,
        "multi": False if multi == "off" else multi,
        "pool": pool,
        "pages": pages,
        "page_model": page_model,
        "page_dims": page_dims,
        "page_multi": False if page_multi == "off" else page_multi,
        "page_pixels": page_pixels,
        "page_pool": page_pool,
        "keep_sources": keep_sources,
        "pdf_engine": pdf_engine,
        "ocr": ocr,
        "recall": recall,
        "dtype": dtype,
    }
    with opened(index, create=False, device=device) as library, bar("migrating", quiet=quiet or as_json) as progress:
        report = library.rebuild(**changes, password=password, progress=progress)
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
    with opened(index, create=False) as library, bar("exporting", quiet=quiet or as_json) as progress:
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
    from ragkit.index import Index

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
    from ragkit.selfcheck import crash as run

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
