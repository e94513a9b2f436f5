from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from ragkit.core.types import Document
from ragkit.load import Limits, Source
from ragkit.load.limits import Options
from ragkit.load.pdf.pdf import ENGINES, load
from ragkit.load.records import check

FUZZ = int(os.environ.get("RAGKIT_FUZZ", "1"))  # times as many random inputs as usual: `make fuzz-load`
if FUZZ > 1:
    settings.register_profile("fuzz", max_examples=100 * FUZZ, deadline=None)
    settings.load_profile("fuzz")

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param)
    return str(request.param)


@pytest.fixture
def read(engine: str) -> Callable[..., Document]:
    """Loads a PDF in this process, with the engine under test, and checks the laws of the values."""

    def load_one(path: Path, *, password: str | None = None, limits: Limits | None = None) -> Document:
        (document,) = load(path, Options(pdf_engine=engine, password=password, limits=limits or Limits()))
        return check(document)

    return load_one


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the shared documents are not beside the repository")
    return SHARED


def source(path: Path) -> Source:
    return Source(path, path.parent, path.name)
