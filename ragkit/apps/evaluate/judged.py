"""Read questions with known answers from BEIR folders and from folders of PDFs. Errors name file and line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ragkit.apps.evaluate.trec import Qrels, lines_of, read_qrels
from ragkit.core.errors import LoadError
from ragkit.core.types import Json, Metadata


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Judged:
    """Queries and the targets that answer them. `documents` is what `Index.add` takes: records, or a folder of files.

    qrels: {query: {target: grade}}, grade 0 means "judged, and not an answer". level: "document", targets are document ids; or
    "page", targets are "document#page" with pages from 1. Every query has judgments, and every judged query has a text.
    """

    name: str
    documents: Iterable[dict[str, str]] | Path
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    level: str = "document"


@dataclass(frozen=True, slots=True)
class Records:
    """A BEIR corpus as records. Each iteration reads the file again; it is never held in memory."""

    path: Path

    def __iter__(self) -> Iterator[dict[str, str]]:
        for number, row in _rows(self.path):
            title, text = str(row.get("title") or ""), row.get("text")
            if not isinstance(text, str):
                raise LoadError(f"{self.path}, line {number}: a document needs a text, got {text!r}")
            # BEIR's own evaluation embeds title and text as one text, and published numbers were measured so.
            yield {"id": _id(self.path, number, row), "title": title, "text": f"{title} {text}".strip()}


def read_beir(folder: str | Path, *, split: str | None = None) -> Judged:
    """Read corpus.jsonl, queries.jsonl and qrels/<split>.tsv (Thakur et al. 2021), with the queries that are judged in the split.

    split may be left out if there is only one, or one named test. LoadError for a malformed file.
    """
    folder = Path(folder)
    qrels = read_qrels(_split(folder, split))
    path = folder / "queries.jsonl"
    texts: dict[str, str] = {}
    for number, row in _rows(path):
        texts[_id(path, number, row)] = _text(path, number, row, "text")
    corpus = folder / "corpus.jsonl"
    if not corpus.is_file():
        raise LoadError(f"{corpus}: no such file")
    return _judged(folder, Records(corpus), texts, qrels, level="document")


def read_pages(folder: str | Path) -> Judged:
    """Read questions.jsonl with `_id`, `question` and `gold`, a list of {doc, page from 0}; the documents lie in pdfs/ beside it.

    LoadError for a malformed file.
    """
    folder = Path(folder)
    path = folder / "questions.jsonl"
    texts: dict[str, str] = {}
    qrels: Qrels = {}
    for number, row in _rows(path):
        query = _id(path, number, row)
        texts[query] = _text(path, number, row, "question")
        qrels[query] = dict.fromkeys(_gold_pages(path, number, row.get("gold")), 1)
    if not (folder / "pdfs").is_dir():
        raise LoadError(f"{folder / 'pdfs'}: no such folder")
    return _judged(folder, folder / "pdfs", texts, qrels, level="page")


def _gold_pages(path: Path, number: int, gold: object) -> Iterator[str]:
    """Yield the names of the pages in one line's gold."""
    for target in gold if isinstance(gold, list) and gold else [None]:
        document, page = (target.get("doc"), target.get("page")) if isinstance(target, dict) else (None, None)
        if not isinstance(document, str) or not isinstance(page, int) or page < 0:
            raise LoadError(f"{path}, line {number}: gold is a list of {{doc, page from 0}}, got {gold!r}")
        yield page_id(document, page + 1)


def page_id(document: str, page: int) -> str:
    """Return the name of a page as a target; pages from 1."""
    return f"{document}#{page}"


def _judged(folder: Path, documents: Records | Path, texts: dict[str, str], qrels: Qrels, *, level: str) -> Judged:
    missing = [query for query in qrels if query not in texts]
    if missing:
        raise LoadError(f"{folder}: {len(missing)} judged queries have no text, the first is {missing[0]!r}")
    queries = {query: texts[query] for query in qrels}
    return Judged(name=folder.resolve().name, documents=documents, queries=queries, qrels=qrels, level=level)


def _split(folder: Path, split: str | None) -> Path:
    splits = {path.stem: path for path in sorted((folder / "qrels").glob("*.tsv"))}
    chosen = split or ("test" if "test" in splits else next(iter(splits)) if len(splits) == 1 else None)
    if chosen in splits:
        return splits[chosen]
    names = ", ".join(splits) or "nothing"
    raise LoadError(f"{folder / 'qrels'} holds {names}; " + (f"there is no {split}.tsv" if split else "say which with split="))


def _rows(path: Path) -> Iterator[tuple[int, Json]]:
    for number, line in lines_of(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise LoadError(f"{path}, line {number}: not JSON: {error.msg} at column {error.colno}") from None
        if not isinstance(row, dict):
            raise LoadError(f"{path}, line {number}: each line is one JSON object, got {type(row).__name__}")
        yield number, row


def _id(path: Path, number: int, row: Metadata) -> str:
    value = row.get("_id")
    if not isinstance(value, (str, int)) or value == "":
        raise LoadError(f"{path}, line {number}: an _id is needed, got {value!r}")
    return str(value)


def _text(path: Path, number: int, row: Metadata, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise LoadError(f"{path}, line {number}: {name} must be a text, got {value!r}")
    return value
