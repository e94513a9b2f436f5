"""Which loader takes which file: a table by extension, and by name for files without one.

To add a loader: write a module with

    def load(path: Path, options: Options) -> Iterator[Document | LoadError]: ...

in `ragkit.load.readers` and name it here. It leaves `Document.id` empty, or gives a record's own id where a file holds several;
the rest (child process, limits, identity) is done for it. A loader raises LoadError for a file it cannot read, and yields one for
a part that fails while others go on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of file: the loader that reads it, its MIME type, its programming language if any, and whether it holds many
    documents, each with its own identity."""

    loader: str
    mime: str
    language: str = ""
    container: bool = False

    @property
    def module(self) -> str:
        """The dotted name of the module that reads such files."""
        return "ragkit.load.pdf.pdf" if self.loader == "pdf" else f"ragkit.load.readers.{self.loader}"


_OOXML = "application/vnd.openxmlformats-officedocument."


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
    ".org": Format("text", "text/org"),
    ".rst": Format("rst", "text/x-rst"),
    ".adoc": Format("asciidoc", "text/asciidoc"),
    ".asciidoc": Format("asciidoc", "text/asciidoc"),
    ".tex": Format("latex", "text/x-tex"),
    ".csv": Format("table", "text/csv"),
    ".tsv": Format("table", "text/tab-separated-values"),
    ".tab": Format("table", "text/tab-separated-values"),
    ".json": Format("data", "application/json", "json"),
    ".docling.json": Format("docling", "application/vnd.docling+json"),
    ".yaml": Format("data", "application/yaml", "yaml"),
    ".yml": Format("data", "application/yaml", "yaml"),
    ".ipynb": Format("notebook", "application/x-ipynb+json"),
    ".srt": Format("subtitles", "application/x-subrip"),
    ".vtt": Format("subtitles", "text/vtt"),
    ".docx": Format("docx", _OOXML + "wordprocessingml.document"),
    ".docm": Format("docx", "application/vnd.ms-word.document.macroEnabled.12"),
    ".dotx": Format("docx", _OOXML + "wordprocessingml.template"),
    ".pptx": Format("pptx", _OOXML + "presentationml.presentation"),
    ".pptm": Format("pptx", "application/vnd.ms-powerpoint.presentation.macroEnabled.12"),
    ".ppsx": Format("pptx", _OOXML + "presentationml.slideshow"),
    ".xlsx": Format("sheet", _OOXML + "spreadsheetml.sheet"),
    ".xlsm": Format("sheet", "application/vnd.ms-excel.sheet.macroEnabled.12"),
    ".xlsb": Format("sheet", "application/vnd.ms-excel.sheet.binary.macroEnabled.12"),
    ".xls": Format("sheet", "application/vnd.ms-excel"),
    ".ods": Format("sheet", "application/vnd.oasis.opendocument.spreadsheet"),
    ".odt": Format("odf", "application/vnd.oasis.opendocument.text"),
    ".odp": Format("odf", "application/vnd.oasis.opendocument.presentation"),
    ".epub": Format("epub", "application/epub+zip"),
    ".rtf": Format("rtf", "application/rtf"),
    ".png": Format("image", "image/png"),
    ".jpg": Format("image", "image/jpeg"),
    ".jpeg": Format("image", "image/jpeg"),
    ".gif": Format("image", "image/gif"),
    ".bmp": Format("image", "image/bmp"),
    ".tif": Format("image", "image/tiff"),
    ".tiff": Format("image", "image/tiff"),
    ".webp": Format("image", "image/webp"),
}

_CONTAINERS = {
    ".jsonl": Format("jsonl", "application/jsonl", container=True),
    ".ndjson": Format("jsonl", "application/jsonl", container=True),
    ".eml": Format("mail", "message/rfc822", container=True),
    ".mbox": Format("mail", "application/mbox", container=True),
    ".zip": Format("archive", "application/zip", container=True),
    ".tar": Format("archive", "application/x-tar", container=True),
    ".tgz": Format("archive", "application/gzip", container=True),
    ".tar.gz": Format("archive", "application/gzip", container=True),
    ".tar.bz2": Format("archive", "application/x-bzip2", container=True),
    ".tar.xz": Format("archive", "application/x-xz", container=True),
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
    "zig": ".zig",
}

_EXTENSIONS = (
    _PLAIN
    | _CONTAINERS
    | {
        extension: Format("source", f"text/x-{language}", language)
        for language, extensions in _LANGUAGES.items()
        for extension in extensions.split()
    }
)

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
    """Return the format of a file by its name, or None where no loader takes it."""
    name = PurePath(path).name.lower()
    last = PurePath(name).suffix
    return _EXTENSIONS.get(PurePath(name.removesuffix(last)).suffix + last) or _EXTENSIONS.get(last) or _NAMES.get(name)


def supported() -> tuple[str, ...]:
    """Return the extensions that have a loader, sorted."""
    return tuple(sorted(_EXTENSIONS))
