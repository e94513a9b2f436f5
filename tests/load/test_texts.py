"""HTML, Markdown, plain text, source code and JSON lines: their text, blocks, meta and encodings."""

from __future__ import annotations

import json
import random
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragkit.core.errors import LimitExceeded, LoadError
from ragkit.core.types import Block, Document, Span
from ragkit.load import Limits
from ragkit.load.builder import REPEATED, squeezed
from ragkit.load.decode import decode
from ragkit.load.language import recognise, with_language
from ragkit.load.limits import Options
from ragkit.load.readers import html, jsonl, markdown, source, table, text
from ragkit.load.records import check

OPTIONS = Options()


def blocks(document: Document) -> list[tuple[str, int, str]]:
    return [(b.kind, b.level, b.span.of(document.text)) for b in check(document).blocks]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


PAGE = """<!DOCTYPE html><html lang="en-GB"><head><title>Ducks &amp; geese</title>
<meta name="author" content="A. Wader"><meta name="description" content="On birds">
<meta name="Keywords" content="duck, goose"><style>p {color: red}</style></head>
<body><nav><a href="/">Home</a></nav><h1>Ducks</h1><script>alert("x")</script>
<p>Ducks are <b>birds</b>, and&nbsp;so are
geese&hellip;</p><ul><li>mallard</li><li>teal<ul><li>small</li></ul></li></ul>
<table><caption>Sizes</caption><thead><tr><th>Bird</th><th>cm</th></tr></thead>
<tbody><tr><td>Mallard</td><td><p>58</p></td></tr><tr><td></td><td>35</td></tr></tbody></table>
<pre>def quack():
    return "quack"
</pre><h2>More</h2><div hidden>secret</div><blockquote>Cited</blockquote></body></html>"""


def test_html_gives_what_a_reader_sees_with_its_structure() -> None:
    document = html.parse(PAGE)
    assert document.title == "Ducks & geese"
    assert document.meta == {"lang": "en-GB", "author": "A. Wader", "description": "On birds", "keywords": "duck, goose"}
    for hidden in ("alert", "color", "Home", "secret"):
        assert hidden not in document.text
    assert blocks(document) == [
        ("heading", 1, "Ducks"),
        ("paragraph", 0, "Ducks are birds, and\xa0so are geese…"),
        ("list", 0, "mallard\nteal\nsmall"),
        ("list", 1, "small"),
        ("table", 0, "Sizes\n\nBird | cm\nMallard | 58\n | 35"),
        ("caption", 0, "Sizes"),
        ("row", 1, "Bird | cm"),
        ("row", 0, "Mallard | 58"),
        ("row", 0, " | 35"),
        ("code", 0, 'def quack():\n    return "quack"'),
        ("heading", 2, "More"),
        ("quote", 0, "Cited"),
    ]


@pytest.mark.parametrize("head", ["<?xml version='1.0'?>\n<html>", '<html xmlns="http://www.w3.org/1999/xhtml">'])
def test_xhtml_closes_elements_as_xml_does(head: str) -> None:
    body = """<h1>Ducks<br/></h1><script src="a.js"/><p title='1 > 0'/><p>They <a id="p1"/>quack.</p><textarea
    rows="1" />end"""
    document = html.parse(f"{head}<head><title/><style /></head><body>{body}</body></html>")
    assert (document.text, document.title) == ("Ducks\n\nThey quack.\n\nend", "Ducks")


def test_texts_that_stand_in_attributes_are_read() -> None:
    source = (
        "<p>a<img alt='A duck,  swimming'>b<img alt=''><img src=x></p><p hidden><img alt='unseen'></p>"
        "<p>As <math alttext='E=mc^{2}'><mi>E</mi></math> says, <math><mi>x</mi><mo>+</mo><mn>1</mn>"
        "<annotation>x+1</annotation></math></p>"
    )
    assert html.parse(source).text == "a A duck, swimming b\n\nAs E=mc^{2} says, x+1"


def test_words_with_soft_hyphens_are_whole() -> None:
    assert html.parse("<p>Donau&shy;dampf\xadschiff</p>").text == "Donaudampfschiff"
    assert squeezed("Donau\xaddampf \xad schiff") == "Donaudampf schiff"


def test_items_have_the_numbers_that_are_seen() -> None:
    source = "<ol start=3><li>three<ul><li>in</ul><li><p>four</p><p>more</p><li value=9>nine</ol><ul><li>none</ul>"
    assert html.parse(source).text == "3. three\nin\n4. four\nmore\n9. nine\n\nnone"


@pytest.mark.parametrize("role", ["", " role=presentation"])
def test_a_table_that_only_lays_out_is_read_as_what_it_holds(role: str) -> None:
    inner = "<table><tr><th>A<th>B<tr><td>1<td>2</table>"
    document = html.parse(f"<table{role}><tr><td><h1>News</h1><p>one</p><p>two</p></td></tr><tr><td>{inner}<p>end</p></table>")
    assert blocks(document) == [
        ("heading", 1, "News"),
        ("paragraph", 0, "one"),
        ("paragraph", 0, "two"),
        ("table", 0, "A | B\n1 | 2"),
        ("row", 1, "A | B"),
        ("row", 0, "1 | 2"),
        ("paragraph", 0, "end"),
    ]
    assert html.parse("<table role=none><tr><td>left<td>right</table>").text == "left\n\nright"


def test_tables_of_great_depth_are_no_trouble() -> None:
    assert html.parse("<table><tr><td><p>x" * 20_000 + "end").text.endswith("end")


def test_cells_of_a_table_in_a_cell_are_words_apart() -> None:
    inner = "<table><tr><td>A1</td><td>B1</td><td>C1</td></tr><tr><td>D1</td><td>E1</td></tr></table>"
    assert html.parse(f"<table><tr><td>{inner}</td><td>2</td></tr></table>").text == "A1 B1 C1 D1 E1 | 2"


def test_html_leaves_out_what_is_for_other_programs() -> None:
    source = "<p>one</p><ul><?php echo 'no'; ?><li>two</li></ul><?xml version='1.0'?>three"
    assert html.parse(source).text == "one\n\ntwo\n\nthree"


def test_blocks_within_preformatted_text_end_with_their_words() -> None:
    document = html.parse("<pre>a\n<h2>b </h2><ul><li>c   </li></ul>   </pre>")
    assert document.text == "a\n\n\nb \n\nc"
    assert blocks(document) == [("code", 0, document.text), ("heading", 2, "b"), ("list", 0, "c")]


CELLS = st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 3), st.integers(1, 3))


@given(st.lists(st.lists(CELLS, min_size=1, max_size=4), min_size=1, max_size=5))
def test_a_cell_stands_in_every_column_and_row_it_covers(rows: list[list[tuple[str, int, int]]]) -> None:
    grid: dict[tuple[int, int], str] = {}
    for row, cells in enumerate(rows):
        column = 0
        for letter, wide, high in cells:
            while (row, column) in grid:
                column += 1
            grid |= {(row + down, column + across): letter for down in range(high) for across in range(wide)}
            column += wide
    expected = []
    for row in range(len(rows)):
        line: list[str] = []
        while (row, len(line)) in grid:
            line.append(grid[row, len(line)])
        expected.append(" | ".join(line))
    written = "".join(
        "<tr>" + "".join(f"<td colspan={wide} rowspan={high}>{letter}</td>" for letter, wide, high in cells) for cells in rows
    )
    assert html.parse(f"<table>{written}</table>").text.splitlines() == expected


def test_cells_that_cover_a_million_columns_are_repeated_for_no_more_than_the_file_is_worth() -> None:
    assert len(html.parse("<table><tr>" + "<td colspan=1000000 rowspan=1000000>x" * 5000).text) < 2 * REPEATED
    assert html.parse("<table>" + "<tr><td colspan=1000 rowspan=0>" * 300 + "<tr><td>end").text.endswith("end")


def test_html_of_great_depth_is_no_trouble() -> None:
    assert html.parse("<div>" * 20_000 + "deep" + "</div>" * 20_000).text.strip() == "deep"


@given(st.text(alphabet=st.sampled_from("<>/ptdrulih1 a&;\n\"'=!-"), max_size=200))
def test_any_html_gives_a_lawful_document(soup: str) -> None:
    check(html.parse(soup))


@pytest.mark.parametrize(
    "data",
    [
        "<p>Größe</p>".encode(),
        "<p>Größe</p>".encode("utf-8-sig"),
        '<meta charset="iso-8859-1"><p>Größe</p>'.encode("cp1252"),
        '<meta http-equiv="Content-Type" content="text/html; charset=windows-1252"><p>Größe</p>'.encode("cp1252"),
        '<?xml version="1.0" encoding="iso-8859-15"?><p>Größe</p>'.encode("iso-8859-15"),
        "<p>Größe</p>".encode("utf-16"),
        "<p>Größe</p>".encode("utf-16-le"),
        '<meta charset="nonsense"><p>Größe</p>'.encode(),
    ],
)
def test_html_encodings(tmp_path: Path, data: bytes) -> None:
    (document,) = html.load(write(tmp_path / "a.html", data), OPTIONS)
    assert document.text == "Größe"


MARKDOWN = """---
title: Field notes
author: [A. Wader, B. Diver]
date: 2024-05-06
tags: [birds, water]
---
# Ducks #

First paragraph,
second line.

* one
* two
  * nested

| Bird | cm |
|------|---:|
| Teal | 35 |

```python
quack()
```

> quoted

Sub
---
"""


def test_markdown_keeps_the_source_and_finds_its_blocks(tmp_path: Path) -> None:
    (document,) = markdown.load(write(tmp_path / "a.md", MARKDOWN), OPTIONS)
    assert document.text == MARKDOWN
    assert document.title == "Field notes"
    assert document.meta == {"author": "A. Wader, B. Diver", "created": "2024-05-06", "tags": ["birds", "water"]}
    assert [(kind, level, piece) for kind, level, piece in blocks(document) if kind != "paragraph"] == [
        ("heading", 1, "# Ducks #"),
        ("list", 0, "* one\n* two\n  * nested"),
        ("list", 1, "* nested"),
        ("table", 0, "| Bird | cm |\n|------|---:|\n| Teal | 35 |"),
        ("row", 1, "| Bird | cm |"),
        ("row", 0, "| Teal | 35 |"),
        ("code", 0, "```python\nquack()\n```"),
        ("quote", 0, "> quoted"),
        ("heading", 2, "Sub\n---"),
    ]
    assert "First paragraph,\nsecond line." in [piece for _, _, piece in blocks(document)]


def test_markdown_keeps_windows_line_ends_and_takes_its_title_from_the_heading(tmp_path: Path) -> None:
    source_text = MARKDOWN.split("---\n", 2)[2].replace("\n", "\r\n")
    (document,) = markdown.load(write(tmp_path / "a.md", source_text), OPTIONS)
    assert document.text == source_text
    assert document.title == "Ducks"
    assert ("heading", 2, "Sub\r\n---") in blocks(document)


@pytest.mark.parametrize("front", ["a: &x [1]\nb: *x", "- a list", "a: [", "!!python/object/apply:os.system ['true']"])
def test_front_matter_that_is_none_or_dangerous_is_left(tmp_path: Path, front: str) -> None:
    (document,) = markdown.load(write(tmp_path / "a.md", f"---\n{front}\n---\ntext"), OPTIONS)
    assert document.meta == {}


def test_front_matter_may_be_toml(tmp_path: Path) -> None:
    front = '+++\r\ntitle = "Ducks"\ndate = 2024-03-01T10:00:00Z\ntags = ["a", "b"]\n[params]\nauthors = ["A"]\n+++\n'
    (document,) = markdown.load(write(tmp_path / "a.md", front + "Text."), OPTIONS)
    assert document.title == "Ducks"
    assert document.meta == {"created": "2024-03-01 10:00:00+00:00", "tags": ["a", "b"], "params": {"authors": ["A"]}}
    assert blocks(document) == [("paragraph", 0, "Text.")]
    for broken in ("a = ", "a = nan", "no toml"):
        (document,) = markdown.load(write(tmp_path / "a.md", f"+++\n{broken}\n+++\ntext"), OPTIONS)
        assert document.meta == {}


def test_code_that_begins_beside_its_list_s_mark_begins_with_it() -> None:
    text = "  -     code\n"
    assert list(markdown.blocks_of(text)) == [Block("list", Span(2, 12), 0), Block("code", Span(2, 12), 1)]


@given(st.text(alphabet=st.sampled_from("#*-+>`|: \n\r\t1.ab\x0c\u2028\0"), max_size=120))
def test_any_markdown_gives_a_lawful_document(soup: str) -> None:
    check(Document(text=soup, blocks=tuple(markdown.blocks_of(soup))))


def test_text_has_paragraphs_between_blank_lines(tmp_path: Path) -> None:
    content = "\n  one\ntwo\n \t\nthree\r\n\r\nfour  \n"
    (document,) = text.load(write(tmp_path / "a.txt", content), OPTIONS)
    assert document.text == content
    assert [piece for _, _, piece in blocks(document)] == ["one\ntwo", "three", "four"]


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("utf-8", "naïve café"),
        ("utf-8-sig", "naïve café"),
        ("utf-16", "naïve café"),
        ("utf-16-be", "plain words in wide letters"),
        ("utf-32", "naïve café"),
        ("cp1252", "“Größe” und Maße – süß wie Öl, für Ärzte und Köche in Österreich und der Schweiz"),
        ("cp1251", "Широкая электрификация южных губерний даст мощный толчок подъёму сельского хозяйства. " * 3),
        ("shift_jis", "日本語の文書は多くの場合、この符号化で書かれていました。今でも時々見かけます。" * 3),
        ("koi8-r", "Привет, мир. Это русский текст, написанный в этой кодировке много лет назад."),
        ("cp1251", "И в дом, и в сад, и к реке"),
        ("cp1252", "Äpfel"),
        ("cp1252", "Jörg Müller"),
        ("gb18030", "使用Python编程，文件编码是GBK"),
        ("cp1252", "ÄÖÜ GRÖSSE"),
        ("cp1252", "ÉTÉ À PARIS"),
        ("cp1252", "„schön“ – 5 €"),
        ("big5", "這是一份以傳統中文編碼寫成的文件，內容足夠長，可以被正確地辨認出來。" * 3),
    ],
)
def test_encodings_are_found(encoding: str, content: str) -> None:
    assert decode(content.encode(encoding)) == content


@pytest.mark.parametrize("loader", [text, source, markdown, html, table])
def test_what_is_no_text_is_refused_whatever_its_name(tmp_path: Path, loader: Any) -> None:
    packed = zlib.compress(bytes(range(256)) * 50 + random.Random(0).randbytes(3000))
    with pytest.raises(LoadError, match=r"it is not text: [0-9]+ of its first [0-9]+ characters are control characters"):
        list(loader.load(write(tmp_path / "a.txt", packed), OPTIONS))
    with pytest.raises(LoadError, match="it is a PDF, not text"):
        list(loader.load(write(tmp_path / "a.txt", b"%PDF-1.4\nall of it in ASCII"), OPTIONS))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\0" * 5000 + "after a crash\n",
        "a\x1fb\x1ec\x1f" * 99,
        "8=FIX.4.4\x0135=A\x01\n" * 9,
        "\x1b[31mred\x1b[0m\x07 o\x08o\n" * 9,
    ],
)
def test_text_with_the_control_characters_that_texts_have_is_text(tmp_path: Path, content: str) -> None:
    assert [document.text for document in text.load(write(tmp_path / "a.txt", content), OPTIONS)] == [content]


@given(st.binary(max_size=300))
def test_any_bytes_become_text_that_can_be_stored(data: bytes) -> None:
    decode(data).encode()


def test_python_source_is_cut_at_its_definitions(tmp_path: Path) -> None:
    content = '"""Doc."""\n\nimport os\n\n\n# about f\n@cached\ndef f():\n    return 1\nX = 2\nclass C:\n    pass\n'
    (document,) = source.load(write(tmp_path / "a.py", content), OPTIONS)
    assert document.text == content
    assert document.meta == {"language": "python"}
    assert [piece for _, _, piece in blocks(document)] == [
        '"""Doc."""\n\nimport os',
        "# about f\n@cached\ndef f():\n    return 1",
        "X = 2",
        "class C:\n    pass",
    ]


def test_other_source_is_cut_at_blank_lines_before_the_margin(tmp_path: Path) -> None:
    content = "package main\n\nfunc a() {\n\n\tx()\n}\n\nfunc b() {\n}\n"
    (document,) = source.load(write(tmp_path / "a.go", content), OPTIONS)
    assert [piece for _, _, piece in blocks(document)] == ["package main", "func a() {\n\n\tx()\n}", "func b() {\n}"]


@pytest.mark.parametrize("name", ["a.py", "a.c"])
@given(content=st.text(alphabet=st.sampled_from("def f():\n \tx=1#\r\x0c)"), max_size=120))
def test_blocks_of_any_source_keep_every_visible_character(
    tmp_path_factory: pytest.TempPathFactory, name: str, content: str
) -> None:
    path = write(tmp_path_factory.mktemp("s") / name, content)
    (document,) = source.load(path, OPTIONS)
    spans = [b.span for b in check(document).blocks]
    assert all(a.end <= b.start for a, b in pairwise(spans))
    assert "".join("".join(s.of(document.text) for s in spans).split()) == "".join(document.text.split())


def test_json_lines_are_records_and_bad_lines_name_themselves(tmp_path: Path) -> None:
    lines = ['{"_id": "x", "text": "one", "title": "T", "year": 1999}', "", "not json", '{"id": "y"}', '{"text": "three"}', "[1]"]
    lines += ['{"text": "a", "n": NaN}', "[" * 100_000]
    results = list(jsonl.load(write(tmp_path / "a.jsonl", "\n".join(lines)), OPTIONS))
    good = [r for r in results if isinstance(r, Document)]
    bad = [str(r) for r in results if isinstance(r, LoadError)]
    assert [(d.id, d.text) for d in good] == [("x", "one"), ("sha256:aa2df5dee89d19bc", "three")]
    assert good[0].meta == {"year": 1999}
    assert [reason.split(":")[0] for reason in bad] == ["line 3", "line 4", "line 6", "line 7", "line 8"]


def test_a_line_beyond_the_limit_ends_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "a"}) + "\n" + json.dumps({"text": "b" * 500}) + "\n")
    results = jsonl.load(path, Options(limits=Limits(file_bytes=100)))
    assert next(results).text == "a"  # type: ignore[union-attr]
    with pytest.raises(LimitExceeded, match="line 2"):
        next(results)


@pytest.mark.parametrize(
    ("code", "content"),
    [
        (
            "en",
            "The committee met on Tuesday to discuss the budget and decided that more should go to schools. " * 2,
        ),
        (
            "de",
            "Der Ausschuss traf sich am Montag, um über den Haushalt zu beraten, und half den Schulen. " * 2,
        ),
        ("zh", "委员会星期二开会讨论年度预算，并决定把更多的钱用于学校建设和教师培训，居民们对此表示欢迎。" * 2),
        ("", "short"),
        ("", "The quick brown fox and the lazy dog"),
        ("", "12 34 56 78 90 " * 40),
    ],
)
def test_languages_are_recognised_where_there_is_enough_text(code: str, content: str) -> None:
    assert recognise(content) == code


def test_a_declared_language_is_believed() -> None:
    assert with_language({"lang": "pt-BR"}, "short") == {"lang": "pt"}
    assert with_language({"lang": "??", "a": 1}, "short") == {"a": 1}
