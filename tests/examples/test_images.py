"""The examples with pictures, on tiny checkpoints: their answers are the oracle's."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.encode.checkpoints.jina_clip import write_clip_v1
from tests.encode.checkpoints.jina_v4 import write_v4
from tests.encode.oracles.jina_clip import ClipOracle
from tests.encode.test_images import picture

IMAGES = Path(__file__).parents[2] / "examples" / "images"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", IMAGES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    folder = tmp_path / "gallery"
    (folder / "more").mkdir(parents=True)
    for seed in range(4):
        picture(90, 70, seed=seed).save(folder / f"{seed}.png")
    picture(90, 70, seed=2).resize((180, 140)).save(folder / "more" / "two.jpg", quality=95)
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip_v1(tmp_path / "clip")


def test_probabilities_are_the_models_own(clip: Path, gallery: Path) -> None:
    labels, paths = ["cat", "dog", "page of text"], [gallery / "0.png", gallery / "more" / "two.jpg"]
    found = example("classify").main(str(clip), labels, paths)
    pictures = [Image.open(path).copy() for path in paths]
    logits = ClipOracle(clip).logits(pictures, [f"a photo of a {label}" for label in labels])
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    shares = np.array([list(found[str(path)].values()) for path in paths])
    assert np.abs(shares - expected).max() < 0.03  # in bfloat16, where the processor has it


def test_the_same_picture_comes_first_and_its_copy_second(clip: Path, gallery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = example("similar").main(str(clip), gallery, str(gallery / "2.png"))
    assert [name for name, _ in found[:2]] == ["2.png", "more/two.jpg"]
    assert len(found) == 5
    assert "broken.png is left out" in capsys.readouterr().err
    oracle = ClipOracle(clip)
    words = example("similar").main(str(clip), gallery, "a lighthouse", k=3)
    for name, score in words:
        expected = oracle.image_vector(Image.open(gallery / name)) @ oracle.text_vector("a lighthouse")
        assert score == pytest.approx(expected, abs=1e-2)  # bfloat16, where the processor has it


def test_it_runs_as_a_program_with_v4_too(gallery: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(IMAGES / "similar.py"), str(write_v4(tmp_path / "v4")), str(gallery), str(gallery / "1.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines()[0] == "1.000  1.png"
