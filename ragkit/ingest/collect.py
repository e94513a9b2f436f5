"""Find the documents that an `add` names, and load them: targets to files, files and records to candidates.

It knows nothing of the index. What a file is, and what it holds, follows from the disk and the options alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ragkit.core.errors import LoadError, RagkitError, UnsupportedFormat
from ragkit.core.types import Document, Metadata
from ragkit.ingest.item import (
    CHANGED,
    USER_FIELDS,
    AddOptions,
    Candidate,
    FileState,
    Item,
    Target,
    file_stamp,
    is_container,
    is_unchanged,
)
from ragkit.ingest.report import Report
from ragkit.load import Limits, Parser, Source, content_hash, discover, fields, file_hash, record, sidecar
from ragkit.load.language import language_of
from ragkit.recipe.recipe import Recipe
from ragkit.store.values import DocumentRow, Failure, Origin


def paths_of(target: Target) -> list[str | Path | Source] | None:
    """Return the paths and globs that a target names, or None where it is documents. TypeError for bytes.

    None of them is looked for on the disk: see `check_paths`.
    """
    if isinstance(target, (bytes, bytearray)):
        raise TypeError("add() takes a path, a glob, or an iterable of paths, documents and dicts; not bytes")
    if isinstance(target, (str, Path, Source)):
        return [target]
    if isinstance(target, (list, tuple)) and target and all(isinstance(path, (str, Path, Source)) for path in target):
        return list(target)
    return None


def check_paths(target: Target) -> None:
    """Raise FileNotFoundError where a path that the target names does not exist, and TypeError for bytes."""
    for path in paths_of(target) or ():
        discover(path)


def source_of(failure: Failure) -> Source | None:
    """Return the file that failed, or that holds what failed, under the name it is known by; None for a record from Python."""
    parts = failure.identity.split("#")
    paths = [Path("#".join(parts[:end])) for end in range(len(parts), 0, -1)]
    path = next((path for path in paths if path.is_file()), Path(failure.identity))
    if not path.is_absolute():
        return None
    names = (failure.source, failure.source.split("#")[0])
    name = next((name for name in names if str(path).endswith("/" + name)), path.name)
    return Source(path, Path(str(path).removesuffix("/" + name) or "/"), name)


def refusal(source: Source, limits: Limits) -> str:
    """Return the reason why a file is not even opened, or ""."""
    try:
        str(source.path).encode()
        size = source.path.stat().st_size
    except UnicodeEncodeError:
        return "its name is not valid UTF-8; rename it"
    except OSError as error:
        return error.strerror or str(error)
    if not source.path.is_file():
        return "it is not a regular file"
    limit = limits.file_bytes
    return f"it has {size:,} bytes, over the limit of {limit:,} (Limits.file_bytes)" if size > limit else ""


def examine(source: Source, options: AddOptions) -> FileState:
    """Hash a file and ask for the user's fields of it. LoadError says what cannot be read."""
    try:
        stamp, user_fields = file_stamp(source.path), _user_fields(source, options)
        return FileState("" if is_container(source) else file_hash(source.path), stamp, user_fields)
    except OSError as error:
        raise LoadError(error.strerror or str(error)) from error


def _user_fields(source: Source, options: AddOptions) -> Metadata:
    """Return the fields of a file's sidecar, and over them those of the callback. LoadError says what is wrong with either."""
    beside = sidecar(source.path)
    if options.metadata is None:
        return beside
    try:
        return beside | fields(dict(options.metadata(source.path) or {}))
    except Exception as error:  # the callback is the user's own, and may raise anything
        raise LoadError(f"the metadata callback failed: {type(error).__name__}: {error}") from error


class SourceReader:
    """Loads files in the parser's sandbox, a few at a time."""

    def __init__(self, recipe: Recipe, options: AddOptions, report: Report, *, office_pages: bool) -> None:
        """office_pages: whether Office documents are laid out, so that they have pages."""
        self._recipe = recipe
        self._options = options
        self._report = report
        self._office_pages = office_pages
        self._bad_records = 0
        self._broken: set[str] = set()
        self.read_whole: set[str] = set()  # files of many records, each of which was read

    def read(self, files: Iterable[tuple[Source, FileState]]) -> Iterator[Candidate | Failure]:
        """Load files: one candidate for each document, or the failure of a document, in their order."""
        options, load = self._options, self._recipe.load
        states: dict[Path, FileState] = {}

        def sources() -> Iterator[Source]:
            for source, state in files:
                states[source.path] = state
                yield source

        with Parser(
            workers=options.workers,
            limits=options.limits,
            pdf_engine=load.pdf_engine,
            ocr=load.ocr,
            password=options.password,
            office_pages=self._office_pages,
        ) as parser:
            for source, loaded in parser.parse(sources()):
                if not is_container(source):
                    yield _file(source, loaded, states.pop(source.path))
                elif (result := self._record(source, loaded, states[source.path])) is not None:
                    yield result

    def _record(self, source: Source, loaded: Document | LoadError, state: FileState) -> Candidate | Failure | None:
        """One record of a file that holds many: it has an identity and a hash of its own. None where the file is skipped."""
        self._note_read(source, loaded)
        if isinstance(loaded, UnsupportedFormat):
            self._report.skip(source.path, str(loaded))
            return None
        if isinstance(loaded, LoadError):
            self._bad_records += 1
            return Failure(f"{source.path}#bad {self._bad_records}", source.name, "", str(loaded))
        identity = str(source.path) + loaded.id.removeprefix(source.name)
        digest = str(loaded.meta.get("sha256") or content_hash(loaded))
        return Candidate(identity, loaded.id, digest, loaded, source, state)

    def _note_read(self, source: Source, loaded: Document | LoadError) -> None:
        """Remember whether every record of a file could be read: one that could not may be any of them."""
        path = str(source.path)
        if path in self.read_whole or path in self._broken:
            self._report.extra_records += 1
        if isinstance(loaded, LoadError) and not isinstance(loaded, UnsupportedFormat):
            self._broken.add(path)
        self.read_whole.add(path)
        self.read_whole -= self._broken


def _file(source: Source, loaded: Document | LoadError, state: FileState) -> Candidate | Failure:
    """A file that is one document. It fails where it is not what it was when it was hashed: nobody knows what was read then."""
    if not isinstance(loaded, RagkitError) and not is_unchanged(source.path, state.digest, state.stamp):
        loaded = LoadError(CHANGED)
    if isinstance(loaded, RagkitError):
        return Failure(str(source.path), source.name, state.digest, str(loaded))
    return Candidate(str(source.path), source.name, state.digest, loaded, source, state)


def read_records(records: Iterable[object]) -> Iterator[Candidate | Failure]:
    """Check records from Python, Documents and dicts: a candidate for each, or its failure. TypeError for a path among them."""
    for number, value in enumerate(records):
        if isinstance(value, (str, Path)):
            raise TypeError(f"item {number} is a {type(value).__name__} among documents; add paths and documents apart")
        try:
            document = record(value, vectors=True)  # type: ignore[arg-type]  # it names the types it takes
        except (RagkitError, ValueError, TypeError) as error:
            name = str(value.get("id") or "") if isinstance(value, Mapping) else ""
            identity = f"id:{name}" if name else f"record:{number}"
            yield Failure(identity, name or f"record {number}", "", str(error))
            continue
        digest = content_hash(document)
        name = document.id or f"sha256:{digest[:16]}"
        yield Candidate(f"id:{name}", name, digest, document)


def as_item(candidate: Candidate, former: DocumentRow | None = None) -> Item:
    """Bring a candidate on its way, under the name it had before, if it had one: names stay, whichever folder it is added by."""
    source, state, document = candidate.source, candidate.state, candidate.document
    if state is not None:
        document = with_user_fields(document, state.user_fields, sha256=state.digest)
    root = None if source is None else str(source.root)
    origin = Origin(
        identity=candidate.identity,
        source=candidate.name if former is None else former.source,
        content_hash=candidate.content_hash,
        lang=language_of(document),
        root=root if former is None else former.root,
        path=None if source is None else str(source.path),
    )
    return Item(origin, document, former, stamp=None if state is None else state.stamp)


def with_user_fields(document: Document, user_fields: Metadata, *, sha256: str = "") -> Document:
    """Return a document with the hash of its file, and with the user's fields over its own metadata."""
    meta = {"sha256": sha256, **document.meta} if sha256 else dict(document.meta)
    if not user_fields:
        return replace(document, meta=meta)
    title = user_fields.get("title")
    return replace(
        document,
        title=title if isinstance(title, str) else document.title,
        meta={
            **meta,
            **{name: value for name, value in user_fields.items() if name != "title"},
            USER_FIELDS: dict(user_fields),
        },
    )
