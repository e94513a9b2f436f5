"""Which loader takes which file: a table by extension, and by name for files without one.

To add a loader: write a module of this package with

    def load(path: Path, options: Options) -> Iterator[Document | LoadError]: ...

and name it here. It leaves `Document.id` empty, or gives a record's own id where a file holds several; the rest
(child process, limits, identity) is done for it. A loader raises LoadError for a file it cannot read, and yields one for
a part that fails while others go on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of file: the module of `ragkit.load` that reads it, its MIME type, its programming language if any."""

    loader: str
    mime: str
    language: str = ""


_PLAIN = {
    ".pdf": Format("pdf", "application/pdf"),
    ".html": Format("html", "text/html"),
    ".htm": Format("html", "text/html"),
    ".xhtml": Format("html", "application/xhtml+xml"),
    ".md": Format("markdown", "text/markdown"),
    ".markdown": Format("markdown", "text/markdown"),
    ".mdown": Format("markdown", "text/markdown"),
    ".mkd": Format("markdown", "text/markdown"),
    ".txt": Format("text", "text/plain"),
    ".text": Format("text", "text/plain"),
    ".log": Format("text", "text/plain"),
    ".rst": Format("text", "text/x-rst"),
    ".adoc": Format("text", "text/asciidoc"),
    ".org": Format("text", "text/org"),
    ".tex": Format("text", "text/x-tex"),
    ".csv": Format("text", "text/csv"),
    ".tsv": Format("text", "text/tab-separated-values"),
    ".jsonl": Format("jsonl", "application/jsonl"),
    ".ndjson": Format("jsonl", "application/jsonl"),
}

_LANGUAGES = {
    "bash": ".sh .bash .zsh",
    "c": ".c .h",
    "clojure": ".clj .cljs",
    "cpp": ".cc .cpp .cxx .hpp .hh .hxx",
    "csharp": ".cs",
    "css": ".css .scss .less",
    "cuda": ".cu .cuh",
    "dart": ".dart",
    "elixir": ".ex .exs",
    "erlang": ".erl .hrl",
    "fortran": ".f .f90 .f95",
    "go": ".go",
    "haskell": ".hs",
    "ini": ".ini .cfg .conf",
    "java": ".java",
    "javascript": ".js .mjs .cjs .jsx",
    "json": ".json",
    "julia": ".jl",
    "kotlin": ".kt .kts",
    "lua": ".lua",
    "make": ".mk",
    "ocaml": ".ml .mli",
    "perl": ".pl .pm",
    "php": ".php",
    "protobuf": ".proto",
    "python": ".py .pyi",
    "r": ".r",
    "ruby": ".rb",
    "rust": ".rs",
    "scala": ".scala",
    "sql": ".sql",
    "swift": ".swift",
    "toml": ".toml",
    "typescript": ".ts .tsx",
    "xml": ".xml",
    "yaml": ".yaml .yml",
    "zig": ".zig",
}

_EXTENSIONS = _PLAIN | {
    extension: Format("source", f"text/x-{language}", language)
    for language, extensions in _LANGUAGES.items()
    for extension in extensions.split()
}

_NAMES = {
    "readme": Format("text", "text/plain"),
    "license": Format("text", "text/plain"),
    "licence": Format("text", "text/plain"),
    "copying": Format("text", "text/plain"),
    "notice": Format("text", "text/plain"),
    "authors": Format("text", "text/plain"),
    "changelog": Format("text", "text/plain"),
    "makefile": Format("source", "text/x-make", "make"),
    "dockerfile": Format("source", "text/x-dockerfile", "dockerfile"),
}


def format_of(path: str | PurePath) -> Format | None:
    """The format of a file by its name, or None where no loader takes it."""
    name = PurePath(path).name.lower()
    return _EXTENSIONS.get(PurePath(name).suffix) or _NAMES.get(name)


def supported() -> tuple[str, ...]:
    """The extensions that have a loader, sorted."""
    return tuple(sorted(_EXTENSIONS))
