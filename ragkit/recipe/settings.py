"""The settings of an index, in one table: what each means, where the recipe keeps it, and how people write it.

`Settings` has one field per setting; the field's row says the rest. From the rows come the options of `ragkit add` and
`ragkit migrate`, the refusals of `Index.open`, and docs/settings.md (`python -m ragkit.recipe.settings` prints it). Nothing heavy
is imported here, since the command line reads the table before it knows what to do.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from ragkit.core.types import Document
    from ragkit.encode.contract import Encoder
    from ragkit.recipe.recipe import Recipe

PRECISIONS = ("int8", "float16", "float32")  # of multi-vectors; a test holds it to store/vectors/multi_layout.py


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What the table says of a setting.

    `name` is its keyword, `stage` and `field` where the recipe keeps it, `kind` its type on the command line. `default` is in
    words. `newcomer` marks the few that most people need, `loads` those that a model is loaded with. `agrees` tells whether a
    value that was chosen means the stored one, where that is more than being equal.
    """

    name: str = ""
    stage: str
    field: str
    kind: type
    default: str
    help: str
    choices: tuple[str, ...] = ()
    newcomer: bool = False
    loads: bool = False
    agrees: Callable[[object, object], bool] | None = None

    @property
    def option(self) -> str:
        """The option of the command line: --chunk-tokens, or --late-chunking/--no-late-chunking."""
        flag = self.name.replace("_", "-")
        return f"--{flag}/--no-{flag}" if self.kind is bool else f"--{flag}"

    @property
    def takes_off(self) -> bool:
        """Whether the command line writes False as "off"."""
        return self.field == "precision"

    def words(self, value: object) -> str:
        """The setting on the command line."""
        flag = self.name.replace("_", "-")
        if self.takes_off:
            value = {True: "int8", False: "off"}.get(value, value) if isinstance(value, bool) else value
        elif self.kind is not bool and isinstance(value, bool):
            value = "auto" if value else "none"
        if isinstance(value, bool):
            return f"--{'' if value else 'no-'}{flag}"
        return f"--{flag} {shlex.quote(str(value))}"


def _auto(stored: object, chosen: object) -> bool:
    return chosen == "auto"


def _switched(stored: object, chosen: object) -> bool:
    """True means any value, False means none."""
    return bool(stored) if chosen is True else not stored and chosen in (False, "none")


def _same_model(stored: object, chosen: object) -> bool:
    """A model that was opened with multi=True is stored with a suffix, which nobody needs to repeat."""
    from ragkit.encode.load_settings import MULTI_SUFFIX

    return stored == f"{chosen}{MULTI_SUFFIX}"


def _row(where: str, kind: type, default: str, help: str, **more: Any) -> Any:
    stage, _, name = where.partition(".")
    return field(default=None, metadata={"row": Row(stage=stage, field=name, kind=kind, default=default, help=help, **more)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a user chose; None leaves a setting open: its default in a new index, the stored value in an old one."""

    model: str | None = _row(
        "encode.model", str, "all-MiniLM-L6-v2, installed with ragkit",
        "The encoder: a name, a folder, or in Python an encoder object.", newcomer=True, agrees=_same_model,
    )  # fmt: skip
    task: str | None = _row("encode.task", str, "the model's own", "The encoder's task, if it has several.", loads=True)
    dims: int | None = _row(
        "encode.dims", int, "the model's", "Keep so many dimensions, the first, of each dense vector (Matryoshka)."
    )
    max_tokens: int | None = _row("encode.max_tokens", int, "the model's", "Tokens the encoder takes, at most.", loads=True)
    max_pixels: int | None = _row(
        "encode.max_pixels", int, "the model's", "Pixels of an image that the encoder sees, at most.", loads=True
    )
    overflow: str | None = _row(
        "encode.overflow", str, "`error`",
        "What to do with texts of the chunker `whole` beyond the model's limit: refuse them, embed the beginning (and count it), "
        "or average windows.", choices=("error", "truncate", "window"),
    )  # fmt: skip
    dtype: str | None = _row(
        "encode.dtype", str, "`auto`", "The numbers the encoder computes with: auto, float32, bfloat16, float16.",
        loads=True, agrees=_auto,
    )  # fmt: skip
    late_chunking: str | bool | None = _row(
        "encode.late_chunking", bool, "off", "Take each chunk's vector from the token states of its whole document.", agrees=_auto
    )
    contextual_headers: bool | None = _row(
        "encode.contextual_headers", bool, "off", "Embed each chunk behind the title and headings of its document."
    )
    chunker: str | None = _row(
        "chunk.chunker", str, "`sentences`", "How documents are cut: a name, or in Python a function from Document to spans.",
        choices=("sentences", "structure", "page", "whole"), newcomer=True,
    )  # fmt: skip
    chunk_tokens: int | None = _row("chunk.tokens", int, "128", "Tokens of a chunk, at most.", newcomer=True)
    chunk_overlap: int | None = _row("chunk.overlap", int, "0", "Tokens that neighbouring chunks share.")
    multi: str | bool | None = _row(
        "multi.precision", str, "off",
        "Keep a vector for each token, too, for late interaction. In Python True means int8.",
        choices=(*PRECISIONS, "off"), newcomer=True, agrees=_switched,
    )  # fmt: skip
    pool: int | None = _row("multi.pool", int, "1", "Keep fewer token vectors, by this factor. Needs --multi.")
    pages: str | bool | None = _row(
        "pages.which", str, "`none`",
        "Embed pages as images, too: those with a figure or hardly any text, those with a figure, or all that are not blank.",
        choices=("auto", "figures", "all", "none"), newcomer=True, agrees=_switched,
    )  # fmt: skip
    page_model: str | None = _row("pages.model", str, "the model", "The encoder of page images, if it is another.")
    page_dims: int | None = _row(
        "pages.dims", int, "the model's", "Keep so many dimensions, the first, of each page's dense vector."
    )
    page_multi: str | bool | None = _row(
        "pages.precision", str, "`int8` if the model has them", "Keep a vector for each patch of a page.",
        choices=(*PRECISIONS, "off"), agrees=_switched,
    )  # fmt: skip
    page_pixels: int | None = _row("pages.max_pixels", int, "the model's", "Pixels of a page that the encoder sees, at most.")
    page_pool: int | None = _row("pages.pool", int, "1", "Keep fewer patch vectors, by this factor.")
    page_background: bool | None = _row(
        "pages.background", bool, "on", "Keep all patches of a page. When off, patches that look alike are kept once."
    )
    coarse: int | None = _row(
        "store.coarse", int, "0",
        "Keep one more vector for so many token or patch vectors, for example 4: large indexes are searched faster.",
    )  # fmt: skip
    keep_sources: bool | None = _row(
        "store.keep_sources", bool, "off", "Keep a copy of every file, to show its pages when the file is gone."
    )
    pdf_engine: str | None = _row(
        "load.pdf_engine", str, "`auto`", "What reads PDF files.", choices=("auto", "pymupdf", "pypdfium2")
    )
    ocr: str | None = _row(
        "load.ocr", str, "`off`", "Read pages without text by Tesseract: off, auto, or languages such as eng+deu."
    )
    recall: float | None = _row(
        "store.recall", float, "0.99", "The share of the exact best ten that a compressed search must find."
    )

    @classmethod
    def of(cls, keywords: Mapping[str, Any]) -> Settings:
        """The settings in keywords of `Index.open`, with encoders and chunkers by their names."""
        from ragkit.encode import resolve_name

        if unknown := [name for name in keywords if name not in table()]:
            raise TypeError(f"{unknown[0]!r} is not a setting; the settings are {', '.join(table())}")
        chosen = dict(keywords)
        for name in ("model", "page_model"):
            if (model := chosen.get(name)) is not None:
                chosen[name] = resolve_name(model if isinstance(model, str) else model.card.name)
        if (chunker := chosen.get("chunker")) is not None:
            chosen["chunker"] = chunker_name(chunker)
        if chosen.get("pages") is False:
            chosen["pages"] = "none"
        return cls(**chosen)

    def chosen(self) -> dict[str, object]:
        """The settings that are not left open, by name."""
        return {name: value for name in table() if (value := getattr(self, name)) is not None}


class SettingsKeywords(TypedDict, total=False):
    """The keywords of `Index.open` that the recipe keeps: the fields of `Settings`, with what Python may pass for them."""

    model: str | Encoder | None
    task: str | None
    dims: int | None
    max_tokens: int | None
    max_pixels: int | None
    overflow: str | None
    dtype: str | None
    late_chunking: str | bool | None
    contextual_headers: bool | None
    chunker: str | Callable[[Document], Iterable[Any]] | None
    chunk_tokens: int | None
    chunk_overlap: int | None
    multi: str | bool | None
    pool: int | None
    pages: str | bool | None
    page_model: str | Encoder | None
    page_dims: int | None
    page_multi: str | bool | None
    page_pixels: int | None
    page_pool: int | None
    page_background: bool | None
    coarse: int | None
    keep_sources: bool | None
    pdf_engine: str | None
    ocr: str | None
    recall: float | None


@cache
def table() -> dict[str, Row]:
    """The rows of all settings, by name, in the order of `Settings`."""
    return {each.name: replace(each.metadata["row"], name=each.name) for each in fields(Settings)}


def chunker_name(chunker: str | Callable[..., Any]) -> str:
    """Return the name that a recipe keeps of a chunker: a built-in one's own, or callable:<module>.<qualified name>."""
    if isinstance(chunker, str):
        return chunker
    return f"callable:{chunker.__module__}.{getattr(chunker, '__qualname__', type(chunker).__qualname__)}"


def stored_value(recipe: Recipe, name: str) -> object:
    """Return the value of a setting in a recipe; None if the recipe has no such stage."""
    row = table()[name]
    return getattr(getattr(recipe, row.stage), row.field, None)


def stored_settings(recipe: Recipe) -> Settings:
    """Return the settings that make a recipe."""
    return Settings(**{name: stored_value(recipe, name) for name in table()})  # type: ignore[arg-type]


def disagreements(recipe: Recipe, settings: Settings) -> dict[str, str]:
    """Return the settings that were chosen otherwise than the recipe has them, by name, each as "stored X, given Y"."""
    differing = {}
    for name, value in settings.chosen().items():
        stored, agrees = stored_value(recipe, name), table()[name].agrees
        if stored != value and not (agrees is not None and agrees(stored, value)):
            differing[name] = f"stored {stored!r}, given {value!r}"
    return differing


def migrate_command(path: Path, changes: Mapping[str, object]) -> str:
    """Return the command line that changes settings of an index."""
    return " ".join([f"ragkit migrate {path}", *(table()[name].words(value) for name, value in changes.items())])


def reference() -> str:
    """Return docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "Every setting of an index: the keywords of `Index.open`, and the options of `ragkit add` and `ragkit migrate`. They",
        "make the index's recipe when it is created. Afterwards leave them out: a value that disagrees with the recipe is",
        "refused, and the message names the command that changes the index. This page is made from the table in",
        "`ragkit/recipe/settings.py`: `python -m ragkit.recipe.settings`.",
        "",
        "A newcomer needs five: " + ", ".join(f"`{row.name}`" for row in table().values() if row.newcomer) + ".",
        "",
        "| keyword | option | default | choices | meaning |",
        "|---|---|---|---|---|",
    ]
    for row in table().values():
        choices = ", ".join(f"`{choice}`" for choice in row.choices)
        option = row.option.replace("/", "`, `")
        lines.append(f"| `{row.name}` | `{option}` | {row.default} | {choices} | {row.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
