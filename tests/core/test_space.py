"""Spaces are the strings that stand on disk, in JSON and in what users pass."""

from __future__ import annotations

import json
import pickle

import pytest

from ragkit.core.space import MODES, PAGE_SPACES, Space


def test_a_space_is_its_name_wherever_it_is_written() -> None:
    assert json.dumps({Space.DENSE: [Space.PAGE_MULTI]}) == '{"chunk.dense": ["page.multi"]}'
    assert {Space.LEXICAL: 1}["chunk.lexical"] == 1
    assert f"{Space.MULTI} {Space.MULTI!r} {(Space.MULTI,)}" == "chunk.multi 'chunk.multi' ('chunk.multi',)"
    assert pickle.loads(pickle.dumps(Space.PAGE_DENSE)) is Space.PAGE_DENSE


@pytest.mark.parametrize("space", Space)
def test_a_space_is_made_of_its_kind_and_form(space: Space) -> None:
    assert f"{space.kind}.{space.form}" == space
    assert Space.of(space.kind, space.form) is space
    assert space.scale == {"dense": "cosine", "lexical": "bm25", "multi": "maxsim"}[space.form]
    assert (space.kind == "page") == (space in PAGE_SPACES)
    assert MODES[space] == (space,)


def test_no_index_has_the_words_of_pages() -> None:
    with pytest.raises(ValueError, match=r"page\.lexical"):
        Space.of("page", "lexical")
