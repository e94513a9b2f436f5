"""Both stores keep the laws of the seam, and the contract notices a store that does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ragkit.core.space import Space
from ragkit.store.catalog.catalog import Catalog
from ragkit.store.local.store import Store
from ragkit.store.protocol import Reader
from ragkit.store.protocol import Store as AnyStore
from ragkit.store.values import CHUNK, Commit
from ragkit.testing import MemoryStore, assert_store_contract
from ragkit.testing.memory_store import MemoryWriter
from ragkit.testing.store_contract import LAWS, LAYOUT, RECIPE, Law, OpenStore, prepared, questions


def local(place: Path) -> OpenStore:
    place.mkdir()
    Store.create(place, {"recipe": RECIPE})
    return lambda: Store(place, Catalog(place / "catalog.db"), recall=1.0, layouts={CHUNK: LAYOUT})


def memory() -> OpenStore:
    store = MemoryStore({"recipe": RECIPE})
    return lambda: store


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_store_in_memory_keeps(law: Law) -> None:
    law(memory())


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_store_on_disk_keeps(law: Law, tmp_path: Path) -> None:
    law(local(tmp_path / "store"))


def test_the_store_on_disk_answers_as_the_one_in_memory(tmp_path: Path) -> None:
    stores: list[AnyStore] = [local(tmp_path / "store")(), memory()()]
    for step in range(6):
        for store in stores:
            with store.writer(timeout=10) as writer:
                names = ["abc", "de", "fgh", "a", "i", "b"][step]
                for name in names:
                    former = writer.reader().find([f"id:{name}"], by="identity")
                    writer.add(prepared(name, seed=step, replaces=former[0].id if former else None))
                if step == 4:
                    writer.delete(row.id for row in writer.reader().find(["id:d"], by="identity"))
                writer.commit("add", recipe_hash="r")
        first, second = (_by_text(store.reader()) for store in stores)
        assert first == second
    for store in stores:
        store.close()


def _by_text(reader: Reader) -> list[list[tuple[str, float]]]:
    """Return the answers of both vector spaces, by the texts of the units: the stores give out keys of their own."""
    rows = questions()
    ranked = [*reader.search(Space.DENSE, rows, 50, exact=True), *reader.search(Space.MULTI, [rows], 50, exact=True)]
    found = []
    for keys, scores in ranked:
        units = reader.units(keys.tolist())
        spans = [(units[key].document, units[key].span) for key in keys.tolist()]
        texts = [text for text, _ in reader.passages(spans)]
        found.append(sorted((text, round(float(score), 2)) for text, score in zip(texts, scores, strict=True)))
    return found


class Forgetful(MemoryWriter):
    """Ends no life."""

    def commit(self, kind: str, *, recipe_hash: str = "", settings: Mapping[str, Any] | None = None) -> Commit:
        self._deleted.clear()
        return super().commit(kind, recipe_hash=recipe_hash, settings=settings)


def test_the_contract_names_the_law_that_a_store_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_store_contract(memory)
    monkeypatch.setattr("ragkit.testing.memory_store.MemoryWriter", Forgetful)
    with pytest.raises(AssertionError, match="a_reader_never_changes"):
        assert_store_contract(memory)
