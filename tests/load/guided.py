"""Fuzzing guided by coverage: atheris mutates inputs towards lines of ragkit that no input has reached. `make fuzz-guided`.

    python -m tests.load.guided              # every target for RAGKIT_SECONDS (60); exit code 1 on a find
    python -m tests.load.guided docx FILE    # one input, as atheris writes it to crash-…

A target is a loader on the bytes of a file (of a package: on its main XML part), or what reads a child's answers. Allowed ends
are a lawful document and ragkit's own errors; anything else is a find. What a parser of others raises is one too: the worker
would tell it as that file's failure, but without a reason that helps.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.load import packages

SECONDS = int(os.environ.get("RAGKIT_SECONDS", "60"))
LONGEST = 4096  # bytes of an input
TEXTS = {
    "html": "<h1>A</h1><p>b<b>c</b><table><tr><th rowspan=2>d<td>e</table><pre>f</pre><ul><li>g<ul><li>h</ul></ul><img alt=i>",
    "md": "# A\n\n- b\n  - c\n\n| d | e |\n|---|---|\n| f | g |\n\n```x\nh\n```\n[^1]\n\n[^1]: i\n\n> j\n",
    "rst": "A\n=\n\n* b\n\n.. code:: x\n\n   c\n\n+--+--+\n|d |e |\n+--+--+\n\n.. [1] f\n",
    "adoc": "= A\n\n== B\n\n* c\n\n|===\n|d |e\n|===\n\n----\nf\n----\n",
    "tex": "\\title{A}\\begin{document}\\section{B}c\\footnote{d}\\begin{tabular}{ll}e & f\\\\\\end{tabular}\\end{document}",
    "csv": 'a,b\n1,"c ""d"" e"\n',
    "json": '{"a": [1, {"b": "c"}], "d": null}',
    "yaml": "a:\n  - b\n  - c: |\n      d\n",
    "vtt": "WEBVTT\n\n00:01.000 --> 00:02.000\n<v A>b\n",
    "srt": "1\n00:00:01,000 --> 00:00:02,000\na\n",
    "rtf": "{\\rtf1\\ansi{\\fonttbl\\f0 A;}\\f0 b\\par \\'e9 \\u233?\\trowd c\\cell\\row}",
    "ipynb": '{"nbformat": 4, "cells": [{"cell_type": "markdown", "source": ["# A"]}, {"cell_type": "code", "source": "b"}]}',
    "jsonl": '{"id": "a", "text": "b"}\n{"text": "c", "meta": {"d": [1]}}\n',
    "eml": (
        "From: a@b.c\nSubject: =?utf-8?b?w6k=?=\nContent-Type: multipart/mixed; boundary=x\n\n--x\n"
        "Content-Type: text/html\n\n<p>d</p>\n--x\nContent-Disposition: attachment; filename=e.txt\n\nf\n--x--\n"
    ),
    "mbox": "From a Thu Jan  1 00:00:00 1970\nFrom: a@b.c\nSubject: d\n\ne\n\nFrom f\n\ng\n",
    "docling.json": (
        '{"schema_name": "DoclingDocument", "version": "1.0.0", "name": "a", "body": {"self_ref": "#/body", "children": '
        '[{"$ref": "#/texts/0"}]}, "texts": [{"self_ref": "#/texts/0", "label": "title", "text": "b", "prov": []}], "pages": {}}'
    ),
}
PARTS = {
    "docx": "word/document.xml",
    "pptx": "ppt/slides/s1.xml",
    "xlsx": "xl/worksheets/s1.xml",
    "odt": "content.xml",
    "ods": "content.xml",
    "epub": "book/c 0.xhtml",
}


def package(kind: str, folder: Path) -> dict[str, bytes]:
    """The parts of a sound package."""
    path = folder / f"a.{kind}"
    if kind == "docx":
        packages.docx(path, packages.paragraph("A", style="Heading1") + packages.numbered("b", 1))
    elif kind == "pptx":
        packages.pptx(path, [packages.shape("A", "b", role="title")])
    elif kind == "xlsx":
        packages.xlsx(path, {"A": [["b", 1.5], [None, "c"]]}, merged="A1:B1")
    elif kind in ("odt", "ods"):
        packages.odt(path, "<text:h>A</text:h><text:p>b</text:p>", kind="text" if kind == "odt" else "spreadsheet")
    else:
        packages.epub(path, ["<h1>A</h1><p>b</p>"])
    with zipfile.ZipFile(path) as parts:
        return {name: parts.read(name) for name in parts.namelist()}


def targets(folder: Path) -> dict[str, tuple[Callable[[bytes], None], bytes]]:
    """What takes the bytes, and a first input."""
    found: dict[str, tuple[Callable[[bytes], None], bytes]] = {
        name: (partial(load, f"a.{name}"), text.encode()) for name, text in TEXTS.items()
    }
    for kind, name in PARTS.items():
        parts = package(kind, folder)
        found[kind] = partial(load_part, f"a.{kind}", parts, name), parts[name]
    found["zip"] = partial(load, "a.zip"), packages.zipped(folder / "a.zip", {"a.md": "# A\n", "b/c.csv": "d,e\n"}).read_bytes()
    found["frame"] = answer, b"\0" * 16 + b'{"kind": "document", "text": 3}'
    return found


def load_part(name: str, parts: dict[str, bytes], part: str, data: bytes) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as written:
        for other, body in parts.items():
            written.writestr(other, data if other == part else body)
    load(name, out.getvalue())


def load(name: str, data: bytes) -> None:
    from ragkit.core.errors import RagkitError
    from ragkit.core.types import Document
    from ragkit.load import Limits
    from ragkit.load.formats import format_of
    from ragkit.load.limits import Options
    from ragkit.load.member import EmbeddedFile
    from ragkit.load.records import check

    kind = format_of(name)
    assert kind is not None
    loader = importlib.import_module(kind.module)
    with contextlib.suppress(RagkitError):
        for one in loader.load(EmbeddedFile(name, data), Options(limits=Limits(inflated_bytes=1 << 24))):
            if isinstance(one, Document):
                check(one)


def answer(data: bytes) -> None:
    from ragkit.core.errors import LimitExceeded
    from ragkit.load import Limits
    from ragkit.load.records import check
    from ragkit.load.sandbox import wire

    head, body = data[: wire.PREFIX.size].ljust(wire.PREFIX.size, b"\0"), data[wire.PREFIX.size :]
    for read in (
        lambda: wire.sizes(head, limits=Limits()),
        lambda: check(wire.unpack_document(wire.header_of(body), memoryview(head), limits=Limits())),
    ):
        with contextlib.suppress(wire.BrokenFrame, LimitExceeded):
            read()


def run(name: str, arguments: list[str]) -> None:
    """In a process of its own, as libFuzzer asks: it does not return."""
    import atheris

    with tempfile.TemporaryDirectory() as folder, atheris.instrument_imports(include=["ragkit.load", "ragkit.core.types"]):
        take, first = targets(Path(folder))[name]
        take(first)  # imports what it needs while the instruments are listening
    atheris.Setup(["guided", *arguments], take)
    atheris.Fuzz()


def main() -> int:
    if len(sys.argv) > 1:
        run(sys.argv[1], sys.argv[2:])
        return 0
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, (_, first) in targets(Path(folder)).items():
            corpus = Path(folder) / f"corpus-{name}"
            corpus.mkdir()
            (corpus / "first").write_bytes(first)
            finds = f"-artifact_prefix={os.environ.get('RAGKIT_FINDS', '.')}/{name}-"
            told = [
                f"-max_total_time={SECONDS}",
                f"-max_len={LONGEST}",
                "-timeout=20",
                "-rss_limit_mb=4096",
                "-print_final_stats=1",
                finds,
            ]
            ended = subprocess.run(
                [sys.executable, "-m", "tests.load.guided", name, str(corpus), *told], capture_output=True, text=True, check=False
            )
            said = ended.stdout + ended.stderr
            runs = re.search(r"number_of_executed_units:\s*(\d+)", said)
            reached = re.findall(r"cov: (\d+)", said)
            print(f"{name}: {runs[1] if runs else '?'} inputs, {reached[-1] if reached else '?'} edges", flush=True)
            if ended.returncode:
                failed += 1
                print(said[-3000:], flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
