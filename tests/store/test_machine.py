"""Any sequence of adding, changing, deleting, compacting, rebuilding and reopening, against a dictionary: what is in it is
found in every mode and under every filter, and nothing else is."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from ragkit import Index
from ragkit.testing import HashEncoder
from tests.index.test_maxsim_index import assert_snapshot_of_the_catalog

NAMES = st.sampled_from([f"d{n}" for n in range(8)])
WORDS = ("otter", "granite", "bread", "river", "salt", "tower", "whale", "arch")
TEXTS = st.lists(st.sampled_from(WORDS), min_size=0, max_size=5).map(" ".join)
LANGS = st.sampled_from(["en", "de", "fr"])


class Machine(RuleBasedStateMachine):
    """`known` is the oracle: name to (text, language). Each text is one chunk, so its vector is the encoder's of it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="ragkit-machine-"))
        self.known: dict[str, tuple[str, str]] = {}
        self.model = "hash:32"

    @initialize()
    def begin(self) -> None:
        self.index = Index.open(self.folder / "library", model="hash:32", chunk_tokens=16)

    def teardown(self) -> None:
        self.index.close()
        shutil.rmtree(self.folder)

    @rule(changes=st.dictionaries(NAMES, st.tuples(TEXTS, LANGS), min_size=1, max_size=4))
    def add(self, changes: dict[str, tuple[str, str]]) -> None:
        report = self.index.add([{"id": name, "text": text, "meta": {"lang": lang}} for name, (text, lang) in changes.items()])
        assert {one.source for one in report.added} == changes.keys() - self.known.keys()
        assert {one.source for one in report.unchanged} == {n for n, value in changes.items() if self.known.get(n) == value}
        self.known.update(changes)

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        assert self.index.delete(name) == (name in self.known)
        self.known.pop(name, None)

    @rule()
    def compact(self) -> None:
        self.index.compact()
        assert self.index.stats().segments <= 1

    @rule()
    def reopen(self) -> None:
        self.index.close()
        self.index = Index.open(self.folder / "library")

    @precondition(lambda self: len(self.known) > 2)
    @rule(model=st.sampled_from(["hash:32", "hash:32+seed4", "hash:16"]))
    def rebuild(self, model: str) -> None:
        assert self.index.rebuild(model=model).done == ("nothing" if model == self.model else "embedded")
        self.model = model

    @rule(words=TEXTS, lang=LANGS, k=st.sampled_from([1, 3, 50]))
    def search(self, words: str, lang: str, k: int) -> None:
        for filters in (None, {"lang": lang}):
            kept = {name: text for name, (text, of) in self.known.items() if text and (filters is None or of == lang)}
            self._check_dense(words, kept, filters, k)
            sharing = {name for name, text in kept.items() if set(text.split()) & set(words.split())}
            found = [hit.document_id for hit in self.index.search(words, k, mode="lexical", filters=filters)]
            assert len(found) == min(k, len(sharing))
            assert set(found) <= sharing
            both = [hit.document_id for hit in self.index.search(words, k, filters=filters)]
            assert len(both) == len(set(both)) == min(k, len(kept))

    def _check_dense(self, words: str, kept: dict[str, str], filters: Any, k: int) -> None:
        encoder = HashEncoder.from_name(self.model)
        hits = self.index.search(words, k, mode="dense", filters=filters)
        assert len(hits) == min(k, len(kept))
        assert all(kept[hit.document_id] == hit.text for hit in hits)
        if not kept:
            return
        rows = encoder.encode_document(list(kept.values())).dense
        query = encoder.encode_query([words]).dense
        assert rows is not None
        assert query is not None
        cosines = dict(zip(kept, (rows.astype(np.float64) @ query[0].astype(np.float64)).tolist(), strict=True))
        best = sorted(cosines.values(), reverse=True)[:k]
        np.testing.assert_allclose([hit.score for hit in hits], best, atol=2e-3)
        np.testing.assert_allclose([hit.score for hit in hits], [cosines[hit.document_id] for hit in hits], atol=2e-3)

    @invariant()
    def holds_what_the_catalog_says(self) -> None:
        if hasattr(self, "index"):
            assert_snapshot_of_the_catalog(self.index._store)

    @invariant()
    def holds_what_the_dictionary_holds(self) -> None:
        rows = {row.source: row for row in self.index.documents()} if hasattr(self, "index") else {}
        assert {name: dict(row.meta)["lang"] for name, row in rows.items()} == {n: lang for n, (_, lang) in self.known.items()}
        assert {name: self.index.document(name).text for name in rows} == {name: text for name, (text, _) in self.known.items()}


def _machine(examples: int, steps: int) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks)
    )


def test_any_sequence_of_changes_agrees_with_a_dictionary() -> None:
    _machine(4, 12)


@pytest.mark.slow
def test_many_long_sequences_of_changes_agree_with_a_dictionary() -> None:
    _machine(60, 40)
