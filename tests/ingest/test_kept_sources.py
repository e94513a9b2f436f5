"""Copies of source files in the index: whole or an error, one for the same bytes, and a page to draw when the file is gone."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ragkit import Index
from ragkit.apps.show import can_draw, evidence, page_png
from ragkit.core.errors import Damaged, LoadError, StorageError
from ragkit.load import file_hash
from ragkit.store.local import source_copies
from ragkit.testing import HashEncoder
from tests.care.damage import flip
from tests.load.pages import Text, draw


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> tuple[Path, str]:
    path = tmp_path / "a.bin"
    content = os.urandom(3_000_000)
    path.write_bytes(content)
    return path, digest_of(content)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    (tmp_path / "library").mkdir()
    return tmp_path / "library"


def test_a_copy_has_the_bytes_and_its_name_and_is_made_once(library: Path, file: tuple[Path, str]) -> None:
    path, digest = file
    assert source_copies.kept(library, digest) is None
    source_copies.keep(library, path, digest)
    copy = source_copies.kept(library, digest)
    assert copy == library / "sources" / digest
    assert copy.read_bytes() == path.read_bytes()
    before = copy.stat().st_ino
    source_copies.keep(library, path, digest)
    assert copy.stat().st_ino == before
    assert [one.name for one in copy.parent.iterdir()] == [digest]


def test_a_file_that_changed_meanwhile_is_not_kept(library: Path, file: tuple[Path, str]) -> None:
    path, digest = file
    flip(path, 2_000_000)
    with pytest.raises(LoadError, match="changed while it was copied"):
        source_copies.keep(library, path, digest)
    assert list((library / "sources").iterdir()) == []
    with pytest.raises(LoadError, match="cannot be kept: No such file"):
        source_copies.keep(library, path.with_name("gone"), digest)
    with pytest.raises(ValueError, match="sha256"):
        source_copies.keep(library, path, "../../etc")


def test_a_damaged_copy_says_so_and_half_a_copy_is_made_anew(library: Path, file: tuple[Path, str]) -> None:
    path, digest = file
    source_copies.keep(library, path, digest)
    copy = library / "sources" / digest
    flip(copy, 1_234_567)
    with pytest.raises(Damaged, match="is not what was kept"):
        source_copies.kept(library, digest)
    copy.write_bytes(b"half")
    source_copies.keep(library, path, digest)
    assert source_copies.kept(library, digest) == copy


def test_what_cannot_be_written_is_told_with_the_way_out(library: Path, file: tuple[Path, str]) -> None:
    (library / "sources").write_text("in the way")
    with pytest.raises(StorageError, match="sources cannot be written"):
        source_copies.keep(library, *file)


def test_copies_that_no_live_document_has_are_removed_and_nothing_else(library: Path, tmp_path: Path) -> None:
    digests = []
    for content in (b"one", b"three", b"fifteen"):
        (tmp_path / "x").write_bytes(content)
        digests.append(digest_of(content))
        source_copies.keep(library, tmp_path / "x", digests[-1])
    (library / "sources" / ".keeping-left").write_bytes(b"what a crash left")
    (library / "sources" / "README").write_bytes(b"somebody's")
    assert source_copies.remove_unused(library, [digests[1]]) == 3 + 7 + 17
    assert {one.name for one in (library / "sources").iterdir()} == {digests[1], "README"}
    assert source_copies.remove_unused(library / "none", []) == 0


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    (tmp_path / "papers").mkdir()
    draw(tmp_path / "papers" / "a.pdf", [[Text("granite bridge over the river", 60, 400, 20)], [Text("second", 60, 400, 20)]])
    with Index.open(tmp_path / "with", model=HashEncoder(dims=16), pdf_engine="pypdfium2") as index:
        index.add(tmp_path / "papers")
        yield index


def picture(index: Index) -> np.ndarray:
    found = evidence(index, "a.pdf", query="granite bridge")
    return np.asarray(Image.open(io.BytesIO(page_png(index, found, page=1, dpi=50))))


def test_a_page_is_drawn_from_the_kept_copy_when_its_file_changed_or_went(index: Index, tmp_path: Path) -> None:
    path = tmp_path / "papers" / "a.pdf"
    whole, expected = path.read_bytes(), picture(index)
    assert len(np.unique(expected.reshape(-1, 3), axis=0)) > 2
    path.write_bytes(whole + b"\n")
    with pytest.raises(StorageError, match=r"has changed since it was indexed.*keeps no copy"):
        picture(index)
    path.write_bytes(whole)
    source_copies.keep(index.path, path, file_hash(path))
    path.write_bytes(whole + b"\n")
    np.testing.assert_array_equal(picture(index), expected)
    path.unlink()
    index.backup(tmp_path / "backup")
    with Index.open(tmp_path / "backup") as copy:  # and the file is gone
        np.testing.assert_array_equal(picture(copy), expected)
        assert copy.verify() == []
    flip(index.path / "sources" / digest_of(whole), 50)
    with pytest.raises(Damaged, match="is not what was kept"):
        picture(index)
    with pytest.raises(Damaged, match="is not what was kept"):
        index.backup(tmp_path / "other")
    (finding,) = index.verify()
    assert "is not what was kept" in finding.problem
    assert finding.remedy == f"rm {index.path / 'sources' / digest_of(whole)}"
    assert not (tmp_path / "other").exists()


def test_a_backup_holds_the_copies_of_its_documents_only(index: Index, tmp_path: Path) -> None:
    path = tmp_path / "papers" / "a.pdf"
    (tmp_path / "stray").write_bytes(b"of no document")
    source_copies.keep(index.path, path, file_hash(path))
    source_copies.keep(index.path, tmp_path / "stray", file_hash(tmp_path / "stray"))
    report = index.backup(tmp_path / "backup")
    assert [one.name for one in (tmp_path / "backup" / "sources").iterdir()] == [file_hash(path)]
    assert report.bytes > path.stat().st_size


def test_a_picture_is_drawn_and_a_text_is_not(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (120, 80), "red").save(tmp_path / "in" / "a.png", dpi=(96, 96))
    (tmp_path / "in" / "b.txt").write_text("words")
    with Index.open(tmp_path / "library", model=HashEncoder(dims=16)) as index:
        index.add(tmp_path / "in")
        found = evidence(index, "a.png")
        assert can_draw(found.row)
        drawn = Image.open(io.BytesIO(page_png(index, found, page=1, dpi=48)))
        assert (drawn.size, drawn.getpixel((30, 20))) == ((60, 40), (255, 0, 0))
        text = evidence(index, "b.txt")
        assert not can_draw(text.row)
        with pytest.raises(StorageError, match="no pages that can be drawn"):
            page_png(index, text, page=1)


def test_a_flip_in_the_catalog_takes_no_copy_away(index: Index, tmp_path: Path) -> None:
    path = tmp_path / "papers" / "a.pdf"
    digest = file_hash(path)
    source_copies.keep(index.path, path, digest)
    index.close()
    body = (index.path / "catalog.db").read_bytes()
    places = [found.start() for found in re.finditer(digest.encode(), body)]
    assert len(places) > 1  # the document's row, and the index of contents
    for at in places:
        flip(index.path / "catalog.db", at)
        with Index.open(index.path) as again, suppress(Damaged):
            again.compact()
        assert (index.path / "sources" / digest).is_file()
        (index.path / "catalog.db").write_bytes(body)
