"""Page images beside the text: what they do to the ranking, which pages are seen, what they cost, and long files.

    python benchmarks/pages.py hybrid FOLDER       # questions.jsonl and pdfs/; pages seen by noise, by colours, by a small model
    python benchmarks/pages.py drawn [--pages 100] [--each 2]      # on pages of examples/visual, captioned with their words
    python benchmarks/pages.py kept FOLDER         # which pages "auto" and "figures" see, and which of the gold ones
    python benchmarks/pages.py cost FOLDER         # pages a second, where the time goes, bytes
    python benchmarks/pages.py long [--sizes 500 5000]             # one PDF of so many pages: memory, and its last pages' speed

--encoder names another model than that of examples/visual. Times compare only within a run; those of the processor count when
the machine is shared.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ragkit import Index
from ragkit.apps.evaluate import compare, evaluate, read_pages, table
from ragkit.apps.evaluate.judged import Judged, page_id
from ragkit.core.arrays import MultiVectors, unit_rows
from ragkit.core.types import Document
from ragkit.encode import load_encoder
from ragkit.encode.contract import Encoding, Patches
from ragkit.ingest.page_images import FIGURE, SCANT, figure_share
from ragkit.load import Parser, RenderedPage, WantedPage, discover
from ragkit.store.local.writer import Writer
from ragkit.testing import HashEncoder

ROOT = Path(__file__).parents[1]
ENCODER = ROOT / "examples" / "visual" / "encoder"
MODES = ("lexical", "dense", "text", "pages", "hybrid")
MEASURES = ("hit@1", "hit@5", "RR@10", "nDCG@10")
WEIGHTS = (0.0, 0.1, 0.25, 0.5, 1.0)
DIMS, MULTI_DIMS = 64, 32
SIZES = (72_128, 200_704, 602_112)  # pixels of a page: examples/visual, the test encoder, jina-embeddings-v4


class Noise:
    """An encoder that sees nothing: every content has random vectors of its own, the same each time."""

    def __init__(self) -> None:
        self._sizes = HashEncoder(DIMS, multi_dims=MULTI_DIMS, images=True)
        self.card = replace(self._sizes.card, name="noise of 64 and 32 dims")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sizes, name)

    def image_size(self, width: float, height: float) -> tuple[int, int]:
        return self._sizes.image_size(width, height)

    def patches(self, width: int, height: int) -> Patches:
        return self._sizes.patches(width, height)

    def encode_query(self, items: Sequence[Any], **_: Any) -> Encoding:
        return self._encode(items, "query")

    def encode_document(self, items: Sequence[Any], **_: Any) -> Encoding:
        return self._encode(items, "document")

    def encode(self, items: Sequence[Any], *, task: str, **_: Any) -> Encoding:
        return self._encode(items, task.rpartition(".")[2])

    def _encode(self, items: Sequence[Any], role: str) -> Encoding:
        rows = [self._rows(item, role) for item in items]
        dense = np.stack([dense for dense, _ in rows]) if rows else np.empty((0, DIMS), dtype=np.float32)
        return Encoding(dense=unit_rows(dense), multi=MultiVectors.pack([unit_rows(multi) for _, multi in rows]))

    def _rows(self, item: Any, role: str) -> tuple[Any, Any]:
        text = isinstance(item, str)
        count = 16 if text else int(self.patches(item.width, item.height).tokens.max()) + 1
        draw = np.random.default_rng(xxhash.xxh3_64_intdigest(role.encode() + (item.encode() if text else item.tobytes())))
        return draw.normal(size=DIMS).astype(np.float32), draw.normal(size=(count, MULTI_DIMS)).astype(np.float32)


def page_encoders(folder: Path) -> dict[str, Any]:
    """The encoders of pages that are compared, by name."""
    found = {"noise": Noise(), "colours": HashEncoder(DIMS, multi_dims=MULTI_DIMS, images=True)}
    return found | ({"trained": load_encoder(folder)} if folder.is_dir() else {})


# --- the ranking ---------------------------------------------------------------------------------------------------------


def judge(judged: Judged, encoder: Any, name: str, scratch: Path, cache: Path) -> None:
    """Modes, hybrid against its best branch and against the text alone, and the weight of pages."""
    path = scratch / f"{judged.name}-{name}"
    with Index.open(path, pages="all", page_model=encoder, cache=cache) as index:
        report = index.add(judged.documents)
        print(f"\n{judged.name}, pages seen by {name}: {report}")
        runs = {mode: evaluate(index, judged, mode=mode, measures=MEASURES, k=10) for mode in MODES}
        print(table(list(runs.values())))
        for measure in ("RR@10", "nDCG@10"):
            branches = [run for mode, run in runs.items() if mode != "hybrid"]
            best = max(branches, key=lambda run: run.measures[measure])
            print(f"hybrid - {best.mode}, its best branch: {compare(runs['hybrid'], best, measure=measure)}")
            print(f"hybrid - text: {compare(runs['hybrid'], runs['text'], measure=measure)}")
        fused: dict[str, dict[str, Any]] = {
            f"weight {weight}": {"weights": {"page.dense": weight, "page.multi": weight}} for weight in WEIGHTS
        }
        fused |= {f"without {space}": {"weights": {space: 0}} for space in ("page.dense", "page.multi")}
        for label, options in (fused | {"by reciprocal ranks": {"rrf": 15.0}}).items():
            run = evaluate(index, judged, mode="hybrid", measures=MEASURES, k=10, **options)
            print(f"{label}: " + "  ".join(f"{measure} {run.measures[measure]:.3f}" for measure in MEASURES))


def hybrid(folder: Path, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for name, encoder in page_encoders(options.encoder).items():
            judge(read_pages(folder), encoder, name, Path(scratch), options.cache or Path(scratch) / "embeddings.db")


def drawn(options: argparse.Namespace) -> None:
    """Pages of which the text tells the words, and the picture everything."""
    with tempfile.TemporaryDirectory() as scratch:
        judged = captioned(Path(scratch) / "pdfs", options.pages, each=options.each)
        for name, encoder in page_encoders(options.encoder).items():
            judge(judged, encoder, name, Path(scratch), options.cache or Path(scratch) / "embeddings.db")


def captioned(folder: Path, count: int, *, each: int) -> Judged:
    """`count` drawn pages, four to a PDF, each as a picture with its words set beneath as text; `each` queries a page, and all
    the pages that each is true of."""
    sys.path.insert(0, str(ROOT / "examples" / "visual"))
    from pages import draw_page, make_page, queries_of  # type: ignore[import-not-found]
    from reportlab.lib.utils import ImageReader
    from reportlab.pdfgen.canvas import Canvas

    folder.mkdir()
    pages = [make_page(2_000_000 + n) for n in range(count)]  # seeds that training does not use
    names = [(f"{n // 4:03}.pdf", n % 4 + 1) for n in range(count)]
    for first in range(0, count, 4):
        canvas = Canvas(str(folder / names[first][0]))
        for page in pages[first : first + 4]:
            high = page.height * 1.9
            canvas.setPageSize((page.width * 1.9, high + 20))
            canvas.drawImage(ImageReader(draw_page(page, scale=2)), 0, 20, page.width * 1.9, high)
            canvas.setFont("Helvetica", 6)
            canvas.drawString(8, 8, "Words: " + ", ".join(one.word for one in page.elements if one.word))
            canvas.showPage()
        canvas.save()
    queries, qrels = {}, {}
    for number, (_, query) in enumerate(queries_of(pages, seed=2_000_000, each=each)):
        queries[str(number)] = query.text
        qrels[str(number)] = {page_id(*names[n]): 1 for n, page in enumerate(pages) if query.true_of(page)}
    return Judged(name="drawn", documents=folder, queries=queries, qrels=qrels, level="page")


# --- which pages are seen ------------------------------------------------------------------------------------------------


def kept(folder: Path) -> None:
    gold: dict[tuple[str, int], str] = {}
    for line in (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        gold |= {(one["doc"], one["page"] + 1): row["kind"] for one in row["gold"]}
    for pixels in SIZES:
        rows = [
            (path.name, number, share, letters)
            for path in sorted((folder / "pdfs").glob("*.pdf"))
            for number, share, letters in shares(path, pixels)
        ]
        print(f"\nrendered at up to {pixels:,} pixels")
        for name, number, share, letters in sorted(rows, key=lambda row: row[2]):
            print(f"{name:32} {number:3}  {share:.4f}  {letters:6} characters  {gold.get((name, number), '')}")
        for least in (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1):
            drawn = {(name, number) for name, number, share, _ in rows if share >= least}
            auto = drawn | {(name, number) for name, number, _, letters in rows if letters < SCANT}
            by_kind = {kind: [key in auto for key, one in gold.items() if one == kind] for kind in sorted(set(gold.values()))}
            told = ", ".join(f"{kind} {sum(own)}/{len(own)}" for kind, own in by_kind.items())
            here = " (as it is)" if least == FIGURE else ""
            print(f"FIGURE {least}{here}: figures {len(drawn)}, auto {len(auto)} of {len(rows)} pages; gold in auto: {told}")


def shares(path: Path, pixels: int) -> Iterator[tuple[int, float, int]]:
    """Of each page its number, the share that is no text, and the characters of its text."""
    encoder = HashEncoder(images=True, max_pixels=pixels)
    with Parser() as parser:
        _, document = next(iter(parser.parse(discover(path))))
        assert isinstance(document, Document), document
        wanted = [WantedPage(page.number, *encoder.image_size(page.width, page.height)) for page in document.pages]
        for page, one in zip(document.pages, parser.render_pages(path, wanted), strict=True):
            assert isinstance(one, RenderedPage), one
            yield page.number, figure_share(one.image, page), len(page.span.of(document.text).strip())


# --- what it costs -------------------------------------------------------------------------------------------------------


class Meter:
    """Seconds within calls, on the wall and on this process's processor, by name."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {}

    def wrapped(self, name: str, call: Any) -> Any:
        def timed(*args: Any, **options: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                return call(*args, **options)
            finally:
                own = self.spent.setdefault(name, [0.0, 0.0])
                own[0] += time.perf_counter() - wall
                own[1] += time.process_time() - cpu

        return timed


def children() -> float:
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime


@contextmanager
def committing(meter: Meter) -> Iterator[None]:
    former, Writer.commit = Writer.commit, meter.wrapped("write", Writer.commit)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Writer.commit = former  # type: ignore[method-assign]


def cost(folder: Path, options: argparse.Namespace) -> None:
    """Adding the PDFs with pages and without: what differs is what pages cost."""
    for name, encoder in page_encoders(options.encoder).items():
        if name == "noise":
            continue
        with tempfile.TemporaryDirectory() as scratch:
            added(Path(scratch) / "text", folder / "pdfs", f"{name}: text alone", {})
            for pool in (1, 2, 4):
                settings = {"pages": "all", "page_model": encoder, "page_pool": pool}
                added(Path(scratch) / f"pages-{pool}", folder / "pdfs", f"{name}: all pages, page_pool={pool}", settings)


def added(path: Path, documents: Path, name: str, settings: Mapping[str, Any]) -> None:
    meter = Meter()
    with Index.open(path, model=HashEncoder(), **settings) as index, committing(meter):
        for encoder in filter(None, (index.page_encoder,)):
            encoder.encode_document = meter.wrapped("encode pages", encoder.encode_document)  # type: ignore[method-assign]
        wall, cpu, below = time.perf_counter(), time.process_time(), children()
        report = index.add(documents)
        wall, cpu, below = time.perf_counter() - wall, time.process_time() - cpu, children() - below
        stats = index.stats()
        for encoder in filter(None, (index.page_encoder,)):
            del encoder.encode_document
    print(f"\n{name}: {report}")
    parts = ", ".join(f"{part} {own[0]:.2f} s ({own[1]:.2f} CPU)" for part, own in meter.spent.items())
    print(f"  {wall:.2f} s on the wall, {cpu:.2f} CPU s here, {below:.2f} CPU s in children (reading and drawing); here: {parts}")
    if report.pages:
        size = stats.bytes_by_part.get("pages", 0)
        print(f"  {report.pages / wall:.2f} pages/s, {size / report.pages:,.0f} bytes a page in pages: {stats.page_multi}")


# --- long files ----------------------------------------------------------------------------------------------------------


def long(sizes: Sequence[int]) -> None:
    """A fresh process for each size."""
    for size in sizes:
        subprocess.run([sys.executable, __file__, "long-of", "--pages", str(size)], check=True)


def write_long(path: Path, count: int) -> Path:
    """A PDF of `count` pages, each with a line of text and a coloured square at another place."""
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(path), pagesize=(480, 640), pageCompression=1)
    for n in range(count):
        canvas.setFont("Helvetica", 12)
        canvas.drawString(60, 580, f"Sheet {n} of the inventory, shelf {n % 97}")
        canvas.setFillColorRGB(n % 2, n // 2 % 2, n // 4 % 2 or not (n % 2 or n // 2 % 2))
        canvas.rect(60 + n % 200, 200 + n % 150, 120, 120, stroke=0, fill=1)
        canvas.setFillColorRGB(0, 0, 0)
        canvas.showPage()
    canvas.save()
    return path


def long_of(count: int) -> None:
    times: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        path = write_long(Path(scratch) / "long.pdf", count)
        encoder = HashEncoder(DIMS, multi_dims=MULTI_DIMS, images=True, max_pixels=64 * 28 * 28)  # what is measured is ours
        with Index.open(Path(scratch) / "index", model=HashEncoder(), pages="all", page_model=encoder) as index:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

            def noted(progress: Any) -> None:
                if progress.stage == "pages":
                    times.append((progress.done, time.process_time()))

            started = time.perf_counter()
            report = index.add(path, progress=noted)
            wall = time.perf_counter() - started
    peak, child = (resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"{count} pages in {wall:.0f} s: {report}")
    print(f"  peak memory here {peak:.0f} MiB, {peak - before:.0f} over the start; of a child {child:.0f} MiB")
    print(f"  {children():.1f} CPU s in children")
    part = min(1000, count // 2)
    for name, first, last in (("first", 0, part), ("last", count - part, count)):
        inside = [at for done, at in times if first < done <= last]
        print(f"  {name} {part} pages: {inside[-1] - inside[0]:.2f} CPU s here")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("hybrid", "drawn", "kept", "cost", "long", "long-of"))
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--encoder", type=Path, default=ENCODER)
    parser.add_argument("--cache", type=Path, help="a file of embeddings to keep, so that another run need not make them")
    parser.add_argument("--pages", type=int, default=100)
    parser.add_argument("--each", type=int, default=2, help="queries a page, of drawn")
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 5000])
    options = parser.parse_args()
    if options.what in ("hybrid", "kept", "cost") and options.folder is None:
        parser.error(f"{options.what} needs the folder with questions.jsonl and pdfs/")
    match options.what:
        case "hybrid":
            hybrid(options.folder, options)
        case "drawn":
            drawn(options)
        case "kept":
            kept(options.folder)
        case "cost":
            cost(options.folder, options)
        case "long":
            long(options.sizes)
        case _:
            long_of(options.pages)


if __name__ == "__main__":
    main()
