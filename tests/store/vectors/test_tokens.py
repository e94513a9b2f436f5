"""What text becomes before BM25 sees it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragkit.store.vectors.tokens import LONGEST, document_terms, query_terms


@pytest.mark.parametrize(
    ("language", "one", "two"),
    [
        ("en", "running shoes", "run shoe"),
        ("en", "the dog’s bowl", "the dog bowl"),
        ("en-GB", "Studies", "study"),
        ("de", "Die Bäume", "die Baum"),
        ("de", "Straße", "STRASSE"),
        ("fr", "l’élève", "l'eleve"),
        ("es", "canciones", "canción"),
        ("ru", "ёлка", "елка"),
        (None, "ﬁne ＡＢＣ", "fine abc"),
        (None, "Cafe\u0301", "café"),
        (None, "Ελλάδα", "ΕΛΛΑΔΑ"),
    ],
)
def test_forms_that_mean_the_same_are_one_term(language: str | None, one: str, two: str) -> None:
    assert document_terms(one, language) == document_terms(two, language)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("C++ (x", ["c++", "x"]),
        ("C# and a:b", ["c#", "and", "a", "b"]),
        ("3.14 is 1,000", ["3.14", "is", "1,000"]),
        ("snake_case", ["snake_case", "snake", "case"]),
        ("getHTTPResponse", ["gethttpresponse", "get", "http", "response"]),
        ("miRNA mRNAs NaCl pH IL-6", ["mirna", "mrnas", "nacl", "ph", "il", "6"]),
        ("__init__", ["init"]),
        ("_ __ …!?", []),
        ("naïve Øre", ["naive", "ore"]),
        ("हिन्दी", ["हिन्दी"]),
        ("首都", ["首", "都", "首都"]),
        ("ที่นี่", ["ที่", "นี่", "ที่นี่"]),
        ("GPT模型", ["gpt", "模", "型", "模型"]),
    ],
)
def test_terms_of(text: str, expected: list[str]) -> None:
    assert document_terms(text) == expected


def test_a_query_has_the_form_of_every_language_once() -> None:
    assert query_terms("Running Katzen katzen", {"de", "en", "xx"}) == ["running", "katzen", "katz", "run"]
    assert query_terms("首都はどこ", ()) == ["首都", "都は", "はど", "どこ"]
    assert query_terms("水", ()) == ["水"]


@given(st.text(), st.sampled_from([None, "en", "de", "ar", "tr", "xx", "pt_BR"]))
def test_every_query_term_is_a_term_of_the_same_text(text: str, language: str | None) -> None:
    terms = document_terms(text, language)
    assert all(term and not any(letter in " \t\n\r\f" for letter in term) and len(term) <= LONGEST for term in terms)
    if language is None:
        assert set(query_terms(text, ())) <= set(terms)
    else:
        assert set(query_terms(text, {language})) <= set(terms) | set(document_terms(text))


def test_stemming_from_many_threads_is_the_same() -> None:
    words = [f"{stem}{end}{number}" for number in range(50) for stem in ("connect", "nation") for end in ("ing", "ed", "ally")]
    words = [word.rstrip("0123456789") + "er" * (len(word) % 3) for word in words]
    expected = [document_terms(word, "en") for word in words]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda word: document_terms(word, "en"), words)) == expected
