"""How fast each format is read, and in how much memory: files of about two megabytes of text, made here.

    python benchmarks/formats.py [--megabytes 2]

Each format is loaded in a process of its own. CPU time of the loader alone; memory is what the process grew by at its peak.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

WORDS = ["otter", "swims", "where", "river", "lake", "and", "bridge", "meet", "stone", "water", "bird", "while", "duck", "goose"]


def lines(size: int) -> list[str]:
    """Sentences of about a hundred characters, about `size` characters in all."""
    return [" ".join(WORDS[(n * 7 + k * k) % len(WORDS)] for k in range(20)) + f" {n}." for n in range(size // 100)]


def makers() -> dict[str, Callable[[Path, list[str]], object]]:
    from tests.load import packages

    def text(before: str, each: str, after: str = "") -> Callable[[Path, list[str]], object]:
        return lambda path, rows: path.write_text(before + "".join(each.replace("@", row) for row in rows) + after)

    def rows(values: list[str]) -> list[list[str | float | None]]:
        return [["name", "words", "number"], *([f"n{n}", value, float(n)] for n, value in enumerate(values))]

    def notebook(path: Path, values: list[str]) -> None:
        path.write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": value} for value in values]}))

    def mail(path: Path, values: list[str]) -> None:
        message = EmailMessage()
        message["Subject"] = "words"
        message.set_content("\n\n".join(values))
        path.write_bytes(message.as_bytes())

    def files(values: list[str]) -> list[tuple[str, bytes]]:
        return [(f"{n}.txt", "\n\n".join(values[n : n + 100]).encode()) for n in range(0, len(values), 100)]

    def zipped(path: Path, values: list[str]) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files(values):
                archive.writestr(name, data)

    def tarred(path: Path, values: list[str]) -> None:
        with tarfile.open(path, "w:gz") as archive:
            for name, data in files(values):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))

    slides = 50
    return {
        ".txt": text("", "@\n\n"),
        ".md": text("# Words\n\n", "- @\n\n"),
        ".html": text("<h1>Words</h1>", "<p>@</p>"),
        ".rst": text("Words\n=====\n\n", "@\n\n"),
        ".adoc": text("= Words\n\n", "@\n\n"),
        ".tex": text("\\section{Words}\n", "@\n\n"),
        ".csv": text("name,words\n", "n,@\n"),
        ".json": text("[", '{"words": "@"},\n', '{"words": ""}]'),
        ".yaml": text("", "words: '@'\n"),
        ".jsonl": text("", '{"text": "@"}\n'),
        ".ipynb": notebook,
        ".srt": text("", "00:00:01,000 --> 00:00:02,000\n@\n\n"),
        ".rtf": text("{\\rtf1\\ansi ", "@\\par\n", "}"),
        ".docx": lambda path, values: packages.docx(path, "".join(map(packages.paragraph, values))),
        ".pptx": lambda path, values: packages.pptx(
            path, [packages.shape(*values[n : n + slides]) for n in range(0, len(values), slides)]
        ),
        ".xlsx": lambda path, values: packages.xlsx(path, {"Words": rows(values)}),
        ".odt": lambda path, values: packages.odt(path, "".join(f"<text:p>{value}</text:p>" for value in values)),
        ".epub": lambda path, values: packages.epub(path, ["".join(f"<p>{value}</p>" for value in values)]),
        ".eml": mail,
        ".zip": zipped,
        ".tar.gz": tarred,
    }


def measure(path: Path) -> dict[str, float]:
    """What loading one file takes: CPU seconds, characters, and bytes of memory beyond what the loader itself needs."""
    from ragkit.load import format_of
    from ragkit.load.limits import Options

    kind = format_of(path)
    assert kind is not None
    loader = importlib.import_module(kind.module)
    small = path.with_name("small" + "".join(path.suffixes))
    list(loader.load(small, Options()))  # imports are no part of it
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    characters = sum(len(document.text) for document in loader.load(path, Options()))
    seconds = time.process_time() - start
    return {
        "seconds": seconds,
        "characters": characters,
        "memory": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--megabytes", type=float, default=2.0)
    arguments.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure)))
        return
    print("| format | file, MB | text, MB/s | file, MB/s | memory, MB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for suffix, make in makers().items():
            path = Path(folder) / f"large{suffix}"
            make(path, lines(int(given.megabytes * 1e6)))
            make(Path(folder) / f"small{suffix}", lines(2000))
            out = subprocess.run([sys.executable, __file__, "--measure", str(path)], capture_output=True, text=True, check=True)
            found = json.loads(out.stdout)
            size, seconds = path.stat().st_size / 1e6, found["seconds"]
            speed = found["characters"] / 1e6 / seconds
            print(f"| {suffix} | {size:.2f} | {speed:.1f} | {size / seconds:.1f} | {found['memory'] / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()
