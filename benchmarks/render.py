"""Rendering measured: pages/s against the bare engines in the same run, what the sandbox adds, memory over a long file.

    python benchmarks/render.py speed [FILE...]             # pages of 1.2 megapixels; generated ones where no file is named
    python benchmarks/render.py long [--pages 5000]         # one generated file through the sandbox, in windows of a tenth
    python benchmarks/render.py frames                      # a page's pixels through a pipe: raw, and as PNG

Processor time of one thread, the least of some rounds that take turns, so that other work on the machine changes the ratios
little. The bare engines round the size of the picture themselves; ours is exact.
"""

from __future__ import annotations

import argparse
import io
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from ragkit.core.errors import LoadError
from ragkit.load import Limits, Parser, RenderedPage, WantedPage, is_blank
from ragkit.load.limits import Options, cpu_of
from ragkit.load.pdf.pdf import ENGINES, open_pdf
from ragkit.load.render import drawn

ROUNDS = 3
PIXELS = 1_200_000
MOST = 8  # pages of a file
WORDS = ("wind", "over", "water", "promise", "longer", "than", "a", "map", "of", "the", "harbour", "and", "granite", "wall")


def generate(path: Path, pages: int, *, pictures: int = 10) -> Path:
    """A file of A4 pages of text, with a line drawing on each and a photograph's noise on every `pictures`th."""
    random = np.random.default_rng(0)
    canvas = Canvas(str(path), pageCompression=1)
    noise = [ImageReader(io.BytesIO(_png(random.integers(0, 256, (300, 400, 3), dtype=np.uint8)))) for _ in range(min(pages, 20))]
    for number in range(1, pages + 1):
        canvas.setFont("Times-Roman", 10)
        for line in range(50):
            words = random.choice(WORDS, 14)
            canvas.drawString(60, 780 - 13 * line, " ".join(words) if line else f"page {number}")
        points = 90 + 40 * random.random(30)
        for at in range(29):
            canvas.line(60 + 16 * at, points[at], 76 + 16 * at, points[at + 1])
        if number % pictures == 0:
            canvas.drawImage(noise[number // pictures % len(noise)], 300, 200, 200, 150)
        canvas.showPage()
    canvas.save()
    return path


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def wanted(path: Path, engine: str) -> list[WantedPage]:
    pdf = open_pdf(path, engine=engine)
    try:
        sizes = [pdf.size(index) for index in range(min(pdf.count(), MOST))]
    finally:
        pdf.close()
    scales = [math.sqrt(PIXELS / (width * height)) for width, height in sizes]
    return [
        WantedPage(number, round(width * scale), round(height * scale))
        for number, ((width, height), scale) in enumerate(zip(sizes, scales, strict=True), start=1)
    ]


def bare(path: Path, pages: Sequence[WantedPage], engine: str) -> None:
    if engine == "pymupdf":
        import pymupdf

        with pymupdf.open(path) as document:
            for page in pages:
                one = document[page.number - 1]
                scale = page.width / one.rect.width
                one.get_pixmap(matrix=pymupdf.Matrix(scale, scale), alpha=False)
        return
    import pypdfium2

    document = pypdfium2.PdfDocument(path)
    for page in pages:
        one = document[page.number - 1]
        one.render(scale=page.width / one.get_width(), rev_byteorder=True).to_numpy()
    document.close()


def ours(path: Path, pages: Sequence[WantedPage], engine: str) -> None:
    assert not any(isinstance(one, LoadError) for one in drawn(path, pages, Options(pdf_engine=engine)))


def speed(paths: Sequence[Path]) -> None:
    for engine in filter(find_spec, ENGINES):
        work = [(path, wanted(path, engine)) for path in paths]
        count = sum(len(pages) for _, pages in work)
        ways: dict[str, Callable[[Path, Sequence[WantedPage], str], None]] = {"bare": bare, "ours": ours}
        least = dict.fromkeys([*ways, "sandbox: child", "sandbox: parent"], float("inf"))
        with Parser(pdf_engine=engine, limits=Limits(documents_per_child=10**6)) as parser:
            list(parser.render_pages(paths[0], work[0][1][:1]))  # a child that has imported its engine
            for _ in range(ROUNDS):
                for name, way in ways.items():
                    began = time.process_time()
                    for path, pages in work:
                        way(path, pages, engine)
                    least[name] = min(least[name], time.process_time() - began)
                (child,) = parser.children()
                before, began = cpu_of(child), time.process_time()
                for path, pages in work:
                    assert all(isinstance(one, RenderedPage) for one in parser.render_pages(path, pages))
                least["sandbox: parent"] = min(least["sandbox: parent"], time.process_time() - began)
                least["sandbox: child"] = min(least["sandbox: child"], cpu_of(child) - before)
        for name, seconds in least.items():
            print(
                f"{engine}, {name}: {1000 * seconds / count:.1f} ms a page, {count / seconds:.0f} pages/s, "
                f"{seconds / least['bare']:.2f} of the bare engine's time"
            )


def long(count: int, folder: Path) -> None:
    path = generate(folder / "long.pdf", count)
    print(f"{count} pages, {path.stat().st_size / 1e6:.0f} MB")
    window = max(count // 10, 1)
    me = psutil.Process()
    for engine in filter(find_spec, ENGINES):
        with Parser(pdf_engine=engine) as parser:
            pages = [WantedPage(number, 700, 990) for number in range(1, count + 1)]
            results = parser.render_pages(path, pages)
            first = next(results)
            assert isinstance(first, RenderedPage), first
            (child,) = parser.children()
            for start in range(1, count, window):
                print(f"{engine}, pages {start}-{start + window - 1}: {_window(results, window, psutil.Process(child), me)}")


def _window(results: Iterator[RenderedPage | LoadError], window: int, child: psutil.Process, me: psutil.Process) -> str:
    before, most, done = cpu_of(child.pid), 0, 0
    for done, result in enumerate(results, start=1):
        assert isinstance(result, RenderedPage), result
        if done % 10 == 0:
            most = max(most, child.memory_info().rss)
        if done == window:
            break
    seconds = cpu_of(child.pid) - before
    return (
        f"{1000 * seconds / max(done, 1):.1f} ms of the child a page, at most {most / 2**20:.0f} MiB there, "
        f"{me.memory_info().rss / 2**20:.0f} MiB here"
    )


def frames(folder: Path) -> None:
    """What it costs to bring a page's pixels to the parent: packing and unpacking, for raw bytes and for PNG."""
    from PIL import Image

    path = generate(folder / "one.pdf", 1)
    engine = next(filter(find_spec, ENGINES))
    ((page,), options) = wanted(path, engine), Options(pdf_engine=engine)
    (pixels,) = drawn(path, [page], options)
    assert not isinstance(pixels, LoadError)
    image = Image.fromarray(pixels)
    for level in (1, 6):
        buffer = io.BytesIO()
        packing = _least(lambda level=level: image.save(io.BytesIO(), "PNG", compress_level=level))
        image.save(buffer, "PNG", compress_level=level)
        unpacking = _least(lambda buffer=buffer: Image.open(io.BytesIO(buffer.getvalue())).load())
        print(f"PNG {level}: {buffer.tell() / 1e6:.2f} MB, packed in {packing:.1f} ms and unpacked in {unpacking:.1f} ms")
    raw = pixels.tobytes()
    print(f"raw: {len(raw) / 1e6:.2f} MB, unpacked in {_least(lambda: Image.frombytes('RGB', image.size, raw)):.1f} ms")
    print(f"through a pipe of two processes: {_piped(len(raw)):.1f} ms")
    print(f"whether it is blank: {_least(lambda: is_blank(pixels)):.1f} ms")


def _least(do: Callable[[], object]) -> float:
    times = []
    for _ in range(7):
        began = time.process_time()
        do()
        times.append(time.process_time() - began)
    return 1000 * min(times)


def _piped(size: int) -> float:
    """Processor milliseconds, of both sides, to read so many bytes from another process."""
    import subprocess
    import sys

    code = f"import os\nd = memoryview(bytes({size}))\nfor _ in range(20):\n    v = d\n    while v: v = v[os.write(1, v):]"
    began = time.process_time()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout
        view = memoryview(bytearray(size))
        while process.stdout.readinto(view):  # type: ignore[attr-defined]
            pass
        child = psutil.Process(process.pid).cpu_times() if process.poll() is None else None
    mine = time.process_time() - began
    return 1000 * (mine + (child.user + child.system if child else 0)) / 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("speed", "long", "frames"), default="speed")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--pages", type=int, default=5000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.what == "speed":
            speed(given.files or [generate(Path(folder) / "text.pdf", MOST, pictures=4)])
        elif given.what == "long":
            long(given.pages, Path(folder))
        else:
            frames(Path(folder))


if __name__ == "__main__":
    main()
