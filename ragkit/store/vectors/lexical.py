"""BM25 over chunks: texts and keys in, keys and scores out. Tantivy is imported here only; the terms are ours (tokens.py).

Every commit makes a new, immutable *generation*: a folder whose unchanged files are hard links into the one before.
Tantivy never writes to a file twice, save for the two small JSON files, which are copied. So a crash loses nothing, and
a reader keeps what it opened. The catalog decides what is visible: a search is told which documents to leave out.

Chunks of all languages share one field, each stemmed by its own language, and a query is stemmed by every language
present. One field per language looks tidier and ranks worse: Tantivy counts every document of the index into each
field's statistics, so that in a rare language every text is "long" and every word, "the" included, is "rare".

Scores are BM25 (k1 = 1.2, b = 0.75, idf = ln(1 + (N - n + 0.5) / (n + 0.5))) with lengths quantised as Lucene does.
Higher is better, ties break by the smaller key. Survivors' scores move a little when deletions are merged away.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ragkit.core.arrays import top_k
from ragkit.core.errors import Damaged
from ragkit.core.types import Floats, Ints, Mask
from ragkit.store.local.files import CheckedFolder, FileRecord, seal
from ragkit.store.vectors.tokens import document_terms, query_terms, stem_code

if TYPE_CHECKING:  # it is imported when it is used
    import tantivy

HEAP = 48_000_000  # bytes of the writer's arena; fuller, it becomes a segment
REWRITTEN = ("meta.json", ".managed.json")  # replaced by Tantivy with each commit; every other file is written once
LOCKS = (".tantivy-writer.lock", ".tantivy-meta.lock")
UNKNOWN = "xx"  # the language of chunks whose language is not known, or has no stemmer
NAMED = 1000  # allowed documents up to which they are part of the query; above, hits are fetched until enough are allowed
OS_ERROR = re.compile(r"(?:os error |code: )(\d+)")  # how Rust prints what the operating system said
NOISE = 1e-6  # relative; terms are summed in any order, so equal texts may differ by this much


def write_generation(
    previous: Path | None,
    folder: Path,
    *,
    add: Iterable[tuple[int, int, str, str | None]],
    delete_documents: Iterable[int],
    known: Callable[[str], FileRecord | None] = lambda name: None,
) -> list[FileRecord]:
    """Write the generation after `previous` to the new folder, sync it, and return the records of its files.

    add: key, document version, text and language tag of each chunk, streamed; delete_documents: document versions.
    `known` gives the records of the previous generation's files: linked files are not read again, and what a merge read
    is verified, so that damage is never copied under a fresh checksum. Damaged: the previous generation is. The folder is
    garbage until a commit records it.
    """
    folder.mkdir()
    linked = {} if previous is None else _link(previous, folder, known)
    with _guarded(folder if previous is None else previous):
        _write(folder, add, delete_documents, new=previous is None)
    live = _live_files(folder)
    for path in folder.iterdir():
        if path.name not in live:
            path.unlink(missing_ok=True)  # tantivy's locks come and go, in a thread of its own
    if previous is not None:
        consumed = [record for name, record in linked.items() if record and name not in live]
        _verify(previous, consumed)
    return seal(folder, known=lambda name: linked.get(name), ignore=LOCKS)


def _link(previous: Path, folder: Path, known: Callable[[str], FileRecord | None]) -> dict[str, FileRecord | None]:
    """Bring the previous generation's files into the folder; return the records of those that are links, by name."""
    _verify(previous, [record for name in REWRITTEN if (record := known(name))])
    linked = {}
    for name in sorted(_live_files(previous)):
        if name in REWRITTEN:
            shutil.copyfile(previous / name, folder / name)
            continue
        try:
            os.link(previous / name, folder / name)
        except FileNotFoundError:
            raise Damaged(f"{previous / name} is missing. Run: ragkit repair {previous.parent.parent}") from None
        except OSError:  # a file system without links
            shutil.copyfile(previous / name, folder / name)
        linked[name] = known(name)
    return linked


def _verify(folder: Path, records: list[FileRecord]) -> None:
    checked = CheckedFolder(folder, records, repair_command=f"ragkit repair {folder.parent.parent}")
    for record in records:
        checked.verify(record.name)


def _live_files(folder: Path) -> set[str]:
    """Return the names of the files that a generation's meta.json refers to, and of the two JSON files; others are obsolete."""
    meta = json.loads((folder / "meta.json").read_text())
    segments = {segment["segment_id"].replace("-", ""): segment["deletes"] for segment in meta["segments"]}
    live = set(REWRITTEN)
    for path in folder.iterdir():
        segment, _, rest = path.name.partition(".")
        deletes = segments.get(segment)
        if segment in segments and (not rest.endswith("del") or (deletes and rest == f"{deletes['opstamp']}.del")):
            live.add(path.name)
    return live


def _write(folder: Path, add: Iterable[tuple[int, int, str, str | None]], delete_documents: Iterable[int], *, new: bool) -> None:
    import tantivy

    index = tantivy.Index(_schema(), path=str(folder)) if new else tantivy.Index.open(str(folder))
    writer = index.writer(HEAP, 1)
    for document in delete_documents:
        writer.delete_documents_by_term("document", int(document))
    for key, document, text, language in add:
        row = tantivy.Document()
        row.add_integer("key", key)
        row.add_integer("document", document)
        row.add_text("language", stem_code(language) or UNKNOWN)
        row.add_text("body", " ".join(document_terms(text, language)))
        writer.add_document(row)
    writer.commit()
    writer.wait_merging_threads()


def _schema() -> tantivy.Schema:
    import tantivy

    schema = tantivy.SchemaBuilder()
    schema.add_integer_field("key", fast=True)
    schema.add_integer_field("document", indexed=True, fast=True)
    schema.add_text_field("language", tokenizer_name="raw", index_option="basic")
    # Terms joined by spaces say the same as a pre-tokenised string, without a Python object per term.
    schema.add_text_field("body", tokenizer_name="whitespace", index_option="freq")
    return schema.build()


@contextmanager
def _guarded(folder: Path) -> Iterator[None]:
    """Turn tantivy's complaints about files into Damaged, its panics included, which are not an Exception."""
    try:
        yield
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"
        if not panic and type(error) is not ValueError and not isinstance(error, OSError):
            raise
        if (code := OS_ERROR.search(str(error))) and int(code[1]) != errno.ENOENT:
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(folder)) from None
        raise Damaged(f"{folder} is damaged: tantivy says {error}. Run: ragkit repair {folder.parent.parent}") from None


class LexicalReader:
    """A generation, opened: it keeps what it sees when newer ones are written and this one is removed. Thread-safe."""

    def __init__(self, folder: CheckedFolder, *, pin: object = None) -> None:
        """pin: what keeps the folder on the disk; held for as long as this reader lives."""
        self._path = folder.path
        self._pin = pin
        for name in sorted(folder.records):
            folder.verify(name)
        with _guarded(folder.path):
            self._schema, self._searcher = _open_searcher(folder)
            languages = self._searcher.terms_with_prefix("language", "")
        self.languages = frozenset(language for language, _ in languages)

    @property
    def n(self) -> int:
        """Chunks held. Those of documents that are no longer visible count until they are deleted here."""
        return int(self._searcher.num_docs)

    @property
    def segments(self) -> int:
        return int(self._searcher.num_segments)

    def rows(self) -> tuple[Ints, Ints]:
        """Return the keys and document versions of all chunks held, (n,) int64 each, in no order."""
        import tantivy

        with _guarded(self._path):
            addresses, _ = self._fetch(tantivy.Query.all_query(), max(self.n, 1))
            return self._column("key", addresses), self._column("document", addresses)

    def search(
        self,
        query: str,
        k: int,
        *,
        allowed_documents: Ints | None = None,
        excluded_documents: Ints | None = None,
    ) -> tuple[Ints, Ints, Floats]:
        """Return the k best chunks: keys (k',), documents (k',) int64 and BM25 scores (k',) float32, best first, ties by key.

        k' is the smaller of k and the number of chunks that share a term with the query and may be returned.
        allowed_documents and excluded_documents: ascending document versions to answer from (None: all), and not.
        """
        if k < 0:
            raise ValueError(f"k must not be negative, got {k}")
        terms = query_terms(query, self.languages)
        if k == 0 or not terms or (allowed_documents is not None and len(allowed_documents) == 0):
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
        with _guarded(self._path):
            addresses, documents, scores = self._candidates(terms, k, allowed_documents, excluded_documents)
            keys = self._column("key", addresses)
        levelled = _levelled(scores)
        best = top_k(levelled, keys, k)
        return keys[best], documents[best], levelled[best]

    def _candidates(
        self, terms: list[str], k: int, allowed: Ints | None, excluded: Ints | None
    ) -> tuple[list[tantivy.DocAddress], Ints, Floats]:
        """Return the permitted chunks that may be among the k best, best first: addresses, documents and scores."""
        request = self._request(terms, allowed)
        limit = 2 * k + 16
        while True:
            limit = min(limit, max(self.n, 1))
            addresses, scores = self._fetch(request, limit)
            documents = self._column("document", addresses)
            at = np.flatnonzero(_permitted(documents, allowed, excluded))
            exhausted = len(scores) < limit or limit >= self.n
            # Equals of the last place may lie beyond what was fetched.
            if exhausted or (len(at) >= k and scores[at[k - 1]] * (1 - 2 * NOISE) > scores[-1]):
                break
            limit *= 4
        if len(at) > k:
            at = at[scores[at] >= scores[at[k - 1]] * (1 - NOISE)]
        return [addresses[position] for position in at.tolist()], documents[at], scores[at]

    def _request(self, terms: list[str], allowed: Ints | None) -> tantivy.Query:
        import tantivy

        any_term = tantivy.Query.boolean_query(
            [(tantivy.Occur.Should, tantivy.Query.term_query(self._schema, "body", term, "freq")) for term in terms]
        )
        if allowed is None or len(allowed) > NAMED:
            return any_term
        among = tantivy.Query.const_score_query(tantivy.Query.term_set_query(self._schema, "document", allowed.tolist()), 0.0)
        return tantivy.Query.boolean_query([(tantivy.Occur.Must, any_term), (tantivy.Occur.Must, among)])

    def _fetch(self, request: tantivy.Query, limit: int) -> tuple[list[tantivy.DocAddress], Floats]:
        hits = self._searcher.search(request, limit, count=False).hits
        return [address for _, address in hits], np.array([score for score, _ in hits], dtype=np.float32)

    def _column(self, name: str, addresses: list[tantivy.DocAddress]) -> Ints:
        return np.array(self._searcher.fast_field_values(name, addresses), dtype=np.int64)


def _open_searcher(folder: CheckedFolder) -> tuple[tantivy.Schema, tantivy.Searcher]:
    """Return the schema and a searcher over the folder's files. It holds them mapped, so neither folder needs to stay.

    Tantivy wants to write a lock file where it reads, which a sealed or read-only folder does not take: it is given
    symbolic links in a folder of its own.
    """
    import tantivy

    scratch = Path(tempfile.mkdtemp(prefix="ragkit-"))
    try:
        for name in folder.records:
            (scratch / name).symlink_to((folder.path / name).absolute())
        index = tantivy.Index.open(str(scratch))
        index.config_reader("manual")
        return index.schema, index.searcher()
    finally:
        _remove(scratch)


def _remove(scratch: Path) -> None:
    # A thread of tantivy's may still be making its lock file while the folder is emptied: then it is emptied again.
    for _ in range(100):
        shutil.rmtree(scratch, ignore_errors=True)
        if not scratch.exists():
            return
        time.sleep(0.01)


def _permitted(documents: Ints, allowed: Ints | None, excluded: Ints | None) -> Mask:
    permitted = np.ones(len(documents), dtype=np.bool_)
    if allowed is not None:
        permitted &= _among(documents, allowed)
    if excluded is not None and len(excluded):
        permitted &= ~_among(documents, excluded)
    return permitted


def _among(documents: Ints, ascending: Ints) -> Mask:
    at = np.minimum(np.searchsorted(ascending, documents), len(ascending) - 1)
    among: Mask = ascending[at] == documents
    return among


def _levelled(scores: Floats) -> Floats:
    """Return descending scores (m,) with those set equal that differ by rounding alone."""
    if len(scores) == 0:
        return scores
    falls = np.concatenate([[True], scores[1:] < scores[:-1] * np.float32(1 - NOISE)])
    levelled: Floats = scores[falls][np.cumsum(falls) - 1]
    return levelled
