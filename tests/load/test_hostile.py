"""Whatever a file does, it ends as a document, whole or in part, or as a reason; in time, in bounded memory, and alone.

The default suite reads 200 of them; `make hostile` reads 2,000, and says how long and how large the worst was.
"""

from __future__ import annotations

import os
import random
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import psutil
import pytest

from ragkit.core.errors import LoadError
from ragkit.core.types import Document
from ragkit.load import Limits, Parser, RenderedPage, WantedPage, can_render, office
from ragkit.load.pdf.pdf import ENGINES
from ragkit.load.records import check
from tests.load.conftest import source
from tests.load.hostile import Case, cases, families

LIMITS = Limits(
    seconds=12.0,
    page_seconds=8.0,
    cpu_seconds=2.0,  # what ends them, however busy the machine is
    page_cpu_seconds=1.0,
    memory=1536 << 20,
    characters=3_000_000,
    pages=5000,
    inflated_bytes=128 << 20,
    output_bytes=256 << 20,
)
OVER = 2.0  # seconds beyond the limit until it is noticed and the child is gone
# Seconds: a busy machine starts children slowly, which is no document's time, and each page that is lost needs one more.
START = 20.0 * (1 + LIMITS.lost_pages)
PARENT = 600 << 20  # bytes by which reading may let the parent grow: one answer, as it comes and as it is unpacked


def outcome(results: Sequence[Document | LoadError]) -> str:
    for result in results:
        if isinstance(result, Document):
            check(result)
        else:
            assert isinstance(result, LoadError)
            assert str(result).strip(), "a failure without a reason"
            assert str(result).isprintable()
    if not results:
        return "empty"
    if any(isinstance(result, LoadError) for result in results):
        return "failed" if len(results) == 1 else "partial"
    return "partial" if any("unread" in result.meta for result in results if isinstance(result, Document)) else "added"


def assert_survived(
    chosen: Sequence[Case], folder: Path, *, engine: str, capsys: pytest.CaptureFixture[str] | None = None
) -> None:
    me = psutil.Process()
    ends: Counter[str] = Counter()
    slowest, largest = ("", 0.0), ("", 0)
    with Parser(limits=LIMITS, pdf_engine=engine) as parser:
        for number, case in enumerate(chosen):
            path = folder / f"{number}{case.suffix}"
            path.write_bytes(case.data)
            before = me.memory_info().rss
            results, began, waited = [], time.monotonic(), 0.0
            for _, result in parser.parse([source(path)]):
                waited = max(waited, time.monotonic() - began)
                results.append(result)
                began = time.monotonic()
            grown = me.memory_info().rss - before
            path.unlink()
            assert waited < LIMITS.seconds + OVER + START, (case.name, case.suffix, waited)
            assert grown < PARENT, (case.name, case.suffix, grown)
            end = outcome(results)
            assert end != "empty" or case.suffix in (".jsonl", ".zip", ".mbox", ".eml") or ".tar" in case.suffix, case
            ends[end] += 1
            slowest, largest = (
                max(slowest, (case.name, waited), key=lambda pair: pair[1]),
                max(largest, (case.name, grown), key=lambda pair: pair[1]),
            )
        left = [path.name for path in folder.iterdir()]
    assert left == []
    if capsys is not None:
        with capsys.disabled():
            print(f"\n{engine}: {len(chosen)} files: {dict(ends)}")
            print(f"slowest: {slowest[0]}, {slowest[1]:.1f} s; the parent grew most by {largest[1] >> 20} MiB, at {largest[0]}")


@pytest.fixture(autouse=True)
def _quiet() -> None:
    warnings.filterwarnings("ignore", message="Duplicate name")  # of the generator's zip


def sample(count: int) -> list[Case]:
    """As many of the first 2,000, the small ones of every kind before all."""
    everything = [case for case in cases(2000) if len(case.data) < 1 << 20]
    return random.Random(20).sample(everything, count)


def test_two_hundred_hostile_files_end_with_a_result_each(tmp_path: Path) -> None:
    chosen = sample(200)
    for engine, part in zip(ENGINES, (chosen[:120], chosen[120:]), strict=True):
        pytest.importorskip(engine)
        assert_survived(part, tmp_path, engine=engine)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("engine_name", ENGINES)
def test_two_thousand_hostile_files_end_with_a_result_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], engine_name: str
) -> None:
    pytest.importorskip(engine_name)
    assert_survived(list(cases(int(os.environ.get("RAGKIT_HOSTILE", "2000")))), tmp_path, engine=engine_name, capsys=capsys)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("engine_name", ENGINES)
def test_the_pages_of_hostile_files_are_pictures_or_reasons(tmp_path: Path, engine_name: str) -> None:
    pytest.importorskip(engine_name)
    wanted = [WantedPage(number, 200, 300) for number in (1, 2, 3)]
    # Office files are LibreOffice's to read: seconds each, and no code of ours.
    drawable = [one for one in families() if can_render(f"a{one[1]}") and not office.convertible(f"a{one[1]}")]
    assert len(drawable) > 100
    with Parser(limits=LIMITS, pdf_engine=engine_name) as parser:
        for name, suffix, maker in drawable:
            path = tmp_path / f"a{suffix}"
            path.write_bytes(maker())
            results = list(parser.render_pages(path, wanted))
            assert len(results) == 3, name
            for result in results:
                assert isinstance(result, RenderedPage) or (str(result).strip() and str(result).isprintable()), (name, result)


def test_the_generator_gives_the_same_files_every_time() -> None:
    names = [name for name, _, _ in families()]
    first = list(islice(cases(400), len(names), 400))
    assert len(names) > 250
    assert first == list(islice(cases(400), len(names), 400))
