"""Tables, data, notebooks, subtitles, source texts with markup, images: what each keeps of its structure."""

from __future__ import annotations

import csv
import importlib
import io
import json
import sys
import zipfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragkit.core.errors import LimitExceeded, LoadError, UnsupportedFormat
from ragkit.core.types import Document
from ragkit.load import Limits, format_of, supported
from ragkit.load.limits import Options
from ragkit.load.member import EmbeddedFile
from ragkit.load.normalize import iso_date
from ragkit.load.records import check


def read(name: str, content: str | bytes, **limits: int) -> Document:
    kind = format_of(name)
    assert kind is not None
    data = content.encode() if isinstance(content, str) else content
    loader = importlib.import_module(kind.module)
    (document,) = loader.load(EmbeddedFile(name, data), Options(limits=Limits(**limits)))
    return check(document)


def blocks(document: Document) -> list[tuple[str, int, str]]:
    return [(b.kind, b.level, b.span.of(document.text)) for b in document.blocks]


def test_every_extension_has_a_loader_that_exists() -> None:
    for extension in supported():
        kind = format_of("name" + extension)
        assert kind is not None
        assert callable(importlib.import_module(kind.module).load), extension


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_a_table_is_found_by_its_delimiter_and_quotes_are_resolved(delimiter: str) -> None:
    rows = [["Bird", "Note"], ["Mallard", f'says "quack"{delimiter} twice'], ["Teal", "two\nlines"]]
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows(rows)
    document = read("a.csv", file.getvalue())
    assert [text for kind, _, text in blocks(document) if kind == "row"][::2] == ["Bird | Note", "Teal | two lines"]
    assert 'says "quack"' in document.text
    assert blocks(document)[1] == ("row", 1, "Bird | Note")


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (
            "Ducks of 2024\n\nBird;Weight, kg\nMallard;1,1\nTeal;0,3\nEider;2,2\n",
            ["Ducks of 2024", "Bird | Weight, kg", "Mallard | 1,1"],
        ),
        ("a,b,c\n1\n1,2,3,4\n5,6,7\n", ["a | b | c", "1", "1 | 2 | 3 | 4"]),
        ("sep=;\nBird;Note\nTeal;a, b\n", ["Bird | Note", "Teal | a, b"]),
        ("Hello, world\none line\nand another\nand so on\n", ["Hello, world", "one line", "and another"]),
    ],
)
def test_a_few_records_of_another_width_do_not_hide_the_delimiter(content: str, rows: list[str]) -> None:
    assert [text for kind, _, text in blocks(read("a.csv", content)) if kind == "row"][: len(rows)] == rows


@pytest.mark.parametrize(
    ("content", "header"),
    [
        ("Country,2019,2020\nChad,1.5,2\n", 1),
        (",2019,2020\nChad,1.5,2\n", 1),
        ("Chad,2019\nMali,2020\n", 0),
        ("2019,2020\n2,3\n", 0),
        ("Chad,1.5,2\nMali,2,3\n", 0),
    ],
)
def test_years_may_name_columns(content: str, header: int) -> None:
    assert [level for kind, level, _ in blocks(read("a.csv", content)) if kind == "row"] == [header, 0]


def test_a_table_of_numbers_has_no_header() -> None:
    assert [level for kind, level, _ in blocks(read("a.csv", "1,2\n3,4\n")) if kind == "row"] == [0, 0]


def test_json_values_stand_beside_their_names_and_none_is_lost() -> None:
    source = '{"name": "Teal", "size": {"cm": [35, 38.5], "x": {}}, "name": "again", "note": "two\\nlines", "none": null}'
    document = read("a.json", source)
    lines = ["name: Teal", "size:", "  cm:", "    - 35", "    - 38.5", "  x: {}", "name: again", "note: two lines", "none: null"]
    assert document.text.split("\n") == lines
    assert [text.split("\n")[0] for _, _, text in blocks(document)] == [line for line in lines if line[0] != " "]
    assert document.title == "again"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_any_json_keeps_all_its_words(value: Any) -> None:
    document = read("a.json", json.dumps(value))

    def words(one: Any) -> list[str]:
        inner = [*one.values(), *one] if isinstance(one, dict) else one if isinstance(one, list) else []
        own = one.split() if isinstance(one, str) and one.isprintable() else []
        return own + [word for each in inner for word in words(each)]

    assert all(word in document.text for word in words(value))


def test_json_with_a_value_on_each_line_is_a_list_of_them() -> None:
    lines = '{"title": "a"}\n\n{"title": "b", "n": [1]}\n'
    assert read("a.json", lines).text == read("a.json", '[{"title": "a"}, {"title": "b", "n": [1]}]').text
    with pytest.raises(LoadError, match="not JSON: Extra data: line 2"):
        read("a.json", '{"title": "a"}\n{"title": \n')


def test_json_that_is_none_or_too_deep_is_a_failure() -> None:
    for source in ("{", "[" * 100_000 + "]" * 100_000, ""):
        with pytest.raises(LoadError):
            read("a.json", source)


def test_yaml_is_its_own_text_and_never_unfolds() -> None:
    source = "# about\nname: Teal\nbomb: &a [*a, *a]\nlist:\n  - one\n\n  - two\n---\nother: 1\n"
    document = read("a.yaml", source)
    assert document.text == source
    assert [text for _, _, text in blocks(document)][2:4] == ["bomb: &a [*a, *a]", "list:\n  - one\n\n  - two\n---"]


def test_a_notebook_gives_prose_code_and_what_it_printed() -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Ducks\n", "They *quack*.\n"]},
        {
            "cell_type": "code",
            "source": "table",
            "outputs": [
                {"output_type": "stream", "text": ["\x1b[31m42\x1b[0m\n"]},
                {"output_type": "display_data", "data": {"text/html": "<table><tr><th>a</th></tr><tr><td>1</td></tr></table>"}},
                {"output_type": "error", "ename": "KeyError", "evalue": "'x'"},
                {"output_type": "display_data", "data": {"image/png": "aGVsbG8="}},
            ],
        },
        {"cell_type": "raw", "source": "raw"},
        "no cell",
    ]
    document = read("a.ipynb", json.dumps({"cells": cells, "metadata": {"kernelspec": {"language": "python"}}, "nbformat": 4}))
    assert (document.title, document.meta) == ("# Ducks", {"language": "python"})
    assert blocks(document) == [
        ("heading", 1, "# Ducks"),
        ("paragraph", 0, "They *quack*."),
        ("code", 0, "table"),
        ("code", 0, "42"),
        ("table", 0, "a\n1"),
        ("row", 1, "a"),
        ("row", 0, "1"),
        ("code", 0, "KeyError: 'x'"),
        ("paragraph", 0, "raw"),
    ]


SUBTITLES = """WEBVTT

NOTE nothing said here

1
00:01.000 --> 00:03.000 align:start
<v Ann>The duck &amp; <i>the</i>

00:03.100 --> 00:05.000
goose.

1:02:10.000 --> 1:02:12.500
Much later.
"""


def test_subtitles_are_what_is_said_with_a_page_per_minute() -> None:
    document = read("talk.vtt", SUBTITLES)
    pages = [(page.number, page.label, page.span.of(document.text)) for page in document.pages]
    assert pages == [(1, "00:00:00", "Ann: The duck & the goose."), (63, "01:02:00", "Much later.")]
    assert document.meta["seconds"] == 3732.5
    assert read("talk.srt", SUBTITLES.replace(".000", ",000")).text == document.text
    with pytest.raises(LoadError, match="no line of times"):
        read("talk.srt", "words\n")


def test_a_cue_without_words_lets_no_number_in() -> None:
    cues = [("", 1), ("42", 2), ("", 3), ("end", 4), ("7", 5)]
    lines = [f"{n}\n00:00:{n:02},000 --> 00:00:{n:02},900\n{words}\n" for words, n in cues]
    assert read("a.srt", "\n".join(lines)).text == "42 end 7"


def test_a_subtitle_file_says_its_language() -> None:
    head = "WEBVTT - Title\nKind: captions\nLanguage: de\n\n00:01.000 --> 00:02.000\n"
    assert read("a.vtt", head + "Hallo").meta["lang"] == "de"
    assert "lang" not in read("a.vtt", head.replace("Language: de\n", "") + "Language: en").meta


RST = """
=====
Birds
=====

:author: A. Wader

Ducks
-----

A duck says::

    quack()

* one
* two

  * deep

.. code-block:: python
   :linenos:

   def f(): pass

.. note::
   Mind the goose.

+---+----+
| A | B  |
+===+====+
| 1 | 2  |
+---+----+

== ==
x  y
== ==
3  4
== ==

.. [1] A note.
"""
ASCIIDOC = """= Birds
A. Wader <a@example.org>
v1, 2024-01-31

== Ducks

A duck.

.Sizes
|===
|Bird |cm

|Teal |35
|===

[source,python]
----
def f(): pass
----

* one
* two

____
Cited.
____

// never said
"""
LATEX = r"""\documentclass{article}
\title{Birds of the \emph{lake}}
\author{A. Wader \and B. Diver}
\begin{document}
\section{Ducks}
A duck.\footnote{It quacks.} % \section{no}

\begin{itemize}
\item one
\item two
\end{itemize}
\begin{tabular}{ll}
\hline
Bird & cm \\ \hline
Teal & 35
\end{tabular}
\subsection{Sounds}
\begin{verbatim}
\section{quack}
\end{verbatim}
"""


def test_restructured_text_keeps_its_source_and_tells_its_structure() -> None:
    document = read("a.rst", RST)
    assert (document.text, document.title, document.meta) == (RST, "Birds", {"author": "A. Wader"})
    assert blocks(document) == [
        ("heading", 1, "Birds"),
        ("heading", 2, "Ducks"),
        ("paragraph", 0, "A duck says::"),
        ("code", 0, "    quack()"),
        ("list", 0, "* one\n* two\n\n  * deep"),
        ("paragraph", 1, "* one"),
        ("paragraph", 1, "* two"),
        ("paragraph", 2, "* deep"),
        ("code", 0, "   def f(): pass"),
        ("quote", 0, "Mind the goose."),
        ("table", 0, "+---+----+\n| A | B  |\n+===+====+\n| 1 | 2  |\n+---+----+"),
        ("row", 1, "| A | B  |"),
        ("row", 0, "| 1 | 2  |"),
        ("table", 0, "== ==\nx  y\n== ==\n3  4\n== =="),
        ("row", 1, "x  y"),
        ("row", 0, "3  4"),
        ("footnote", 0, ".. [1] A note."),
    ]


def test_asciidoc_keeps_its_source_and_tells_its_structure() -> None:
    document = read("a.adoc", ASCIIDOC)
    assert (document.text, document.title, document.meta) == (ASCIIDOC, "Birds", {"author": "A. Wader", "created": "2024-01-31"})
    assert blocks(document) == [
        ("heading", 1, "Birds"),
        ("heading", 2, "Ducks"),
        ("paragraph", 0, "A duck."),
        ("caption", 0, "Sizes"),
        ("table", 0, "|Bird |cm\n\n|Teal |35"),
        ("row", 1, "|Bird |cm"),
        ("row", 0, "|Teal |35"),
        ("code", 0, "def f(): pass"),
        ("list", 0, "* one\n* two"),
        ("paragraph", 1, "* one"),
        ("paragraph", 1, "* two"),
        ("quote", 0, "Cited."),
    ]


def test_a_list_table_is_a_table() -> None:
    source = (
        ".. list-table:: Ducks\n   :header-rows: 1\n\n   * - Name\n     - Size\n   * - Teal\n     - 35\n\n       or so\n\nend\n"
    )
    assert blocks(read("a.rst", source)) == [
        ("table", 0, "* - Name\n     - Size\n   * - Teal\n     - 35\n\n       or so"),
        ("row", 1, "* - Name\n     - Size"),
        ("row", 0, "* - Teal\n     - 35\n\n       or so"),
        ("paragraph", 0, "end"),
    ]


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        ("|===\n|A |B\n\n|1\n|2\n\n|3 |4\n|===", [(1, "|A |B"), (0, "|1\n|2"), (0, "|3 |4")]),
        (
            '[cols="1,2",options="header"]\n|===\n|A\n|B\n|1\n|2, which\ngoes on\n|===',
            [(1, "|A\n|B"), (0, "|1\n|2, which\ngoes on")],
        ),
        ("[cols=2*]\n|===\n2+|both\na|x\n|y\n|===", [(0, "2+|both"), (0, "a|x\n|y")]),
        (",===\na,b\nc,d\n,===", [(0, "a,b"), (0, "c,d")]),
        ("|===\n|only\n|one each\n|===", [(0, "|only"), (0, "|one each")]),
    ],
)
def test_rows_of_asciidoc_have_all_their_cells(table: str, rows: list[tuple[int, str]]) -> None:
    found = blocks(read("a.adoc", f"= Title\nAnn One <a@b>; Bob Two\n\n{table}\n\nend"))
    assert [(level, text) for kind, level, text in found if kind == "row"] == rows


def test_asciidoc_may_have_several_authors() -> None:
    assert read("a.adoc", "= Title\nAnn One <a@b>; Bob Two\n\ntext").meta["author"] == "Ann One, Bob Two"


def test_latex_keeps_its_source_and_tells_its_structure() -> None:
    document = read("a.tex", LATEX)
    assert (document.text, document.title, document.meta) == (LATEX, "Birds of the lake", {"author": "A. Wader , B. Diver"})
    assert blocks(document) == [
        ("heading", 1, "Ducks"),
        ("paragraph", 0, "A duck.\\footnote{It quacks.} % \\section{no}"),
        ("footnote", 0, "It quacks."),
        ("list", 0, "\\item one\n\\item two"),
        ("paragraph", 1, "one"),
        ("paragraph", 1, "two"),
        ("table", 0, "{ll}\n\\hline\nBird & cm \\\\ \\hline\nTeal & 35"),
        ("row", 1, "Bird & cm"),
        ("row", 0, "Teal & 35"),
        ("heading", 2, "Sounds"),
        ("code", 0, "\\section{quack}"),
    ]


def test_a_latex_list_without_items_is_a_list() -> None:
    document = read("a.tex", "\\begin{itemize}\nwords\n\\end{itemize}\n")
    assert blocks(document) == [("list", 0, "words")]


@pytest.mark.parametrize("extension", ["rst", "adoc", "tex", "csv", "yaml", "vtt"])
@given(st.text(alphabet=st.sampled_from("=-|*.+:`~ \n\r\t\\{}[]&%,;\"'ab1<>_"), max_size=300))
def test_any_source_gives_a_lawful_document(extension: str, source: str) -> None:
    try:
        document = read(f"a.{extension}", source)
    except LoadError:
        return
    if extension in ("rst", "adoc", "tex", "yaml"):
        assert document.text == source


def picture(kind: str, *, size: tuple[int, int] = (192, 96), **options: Any) -> bytes:
    image = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    image.new("L", size).save(file, kind, **options)
    return file.getvalue()


def test_an_image_is_a_page_of_its_size_without_text() -> None:
    document = read("a.png", picture("PNG"))
    assert (document.text, document.blocks) == ("", ())
    assert [(page.number, page.width, page.height) for page in document.pages] == [(1, 144.0, 72.0)]  # 96 pixels an inch
    assert document.meta == {"width": 192, "height": 96, "pages": 1}
    assert read("a.jpg", picture("JPEG", dpi=(192, 192))).pages[0].width == 72.0


def test_a_turned_photograph_is_measured_as_it_is_seen() -> None:
    image = pytest.importorskip("PIL.Image")
    exif = image.Exif()
    exif[0x0112], exif[0x0132], exif[0x013B] = 6, "2024:01:31 12:00:00", "A. Wader"
    document = read("a.jpg", picture("JPEG", exif=exif, dpi=(96, 96)))
    assert (document.pages[0].width, document.pages[0].height) == (72.0, 144.0)
    assert (document.meta["created"], document.meta["author"]) == ("2024-01-31T12:00:00", "A. Wader")


def test_each_frame_of_a_tiff_is_a_page() -> None:
    image = pytest.importorskip("PIL.Image")
    frames = [image.new("L", (96, 96 * n)) for n in (1, 2, 3)]
    file = io.BytesIO()
    frames[0].save(file, "TIFF", save_all=True, append_images=frames[1:])
    assert [page.height for page in read("a.tiff", file.getvalue()).pages] == [72.0, 144.0, 216.0]


def test_a_picture_of_too_many_pixels_is_refused_by_its_header() -> None:
    with pytest.raises(LimitExceeded, match="pixels"):
        read("a.png", picture("PNG", size=(300, 200)), pixels=59_999)
    with pytest.raises(LoadError):
        read("a.png", picture("PNG")[:20])
    with pytest.raises(LoadError, match="not an image"):
        read("a.png", "words")


@pytest.mark.parametrize(
    ("name", "package"),
    [("a.docx", "lxml"), ("a.odt", "lxml"), ("a.xlsx", "python_calamine"), ("a.rtf", "striprtf"), ("a.png", "PIL")],
)
def test_without_the_extra_the_failure_says_what_to_install(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [one for one in sys.modules if one == package or one.startswith(package + ".")]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, package, None)
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("word/document.xml", "<x/>")
        file.writestr("content.xml", "<x/>")
    with pytest.raises(UnsupportedFormat, match=r'pip install "ragkit\[office\]"'):
        read(name, data.getvalue())


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2024", "2024"),
        ("2024-01-31T12:00:00.123456789", "2024-01-31T12:00:00"),
        ("Mon, 20 Jan 2025 10:00:00 +0100", "2025-01-20T10:00:00+01:00"),
        ("20240131", "20240131"),
        ("last week", ""),
        ("2024-13-01", ""),
        (7, ""),
    ],
)
def test_dates_become_what_filters_can_order(written: Any, expected: str) -> None:
    assert iso_date(written) == expected
