"""Office files and e-books: their text, structure, pages and metadata, and what broken or hostile ones end in."""

from __future__ import annotations

import importlib
import zipfile
from pathlib import Path

import pytest

from ragkit.core.errors import EncryptedDocument, LimitExceeded, LoadError
from ragkit.core.types import Document
from ragkit.load import Limits, format_of
from ragkit.load.limits import Options
from ragkit.load.records import check
from tests.load import packages
from tests.load.packages import numbered, paragraph, shape


def read(path: Path, **limits: int) -> Document:
    kind = format_of(path)
    assert kind is not None
    (document,) = importlib.import_module(kind.module).load(path, Options(limits=Limits(**limits)))
    return check(document)


def blocks(document: Document) -> list[tuple[str, int, str]]:
    return [(b.kind, b.level, b.span.of(document.text)) for b in document.blocks]


def pages(document: Document) -> list[tuple[int, str | None, str]]:
    return [(page.number, page.label, page.span.of(document.text).strip()) for page in document.pages]


STYLES = (
    '<w:style w:styleId="H1"><w:name w:val="heading 1"/></w:style>'
    '<w:style w:styleId="Mine"><w:name w:val="Mine"/><w:basedOn w:val="H1"/></w:style>'
    '<w:style w:styleId="Deep"><w:name w:val="Deep"/><w:pPr><w:outlineLvl w:val="2"/></w:pPr></w:style>'
    '<w:style w:styleId="T"><w:name w:val="Title"/></w:style>'
    '<w:style w:styleId="Cap"><w:name w:val="caption"/></w:style>'
)
NUMBERING = (
    '<w:abstractNum w:abstractNumId="7">'
    '<w:lvl w:ilvl="0"><w:start w:val="1"/><w:numFmt w:val="decimal"/><w:lvlText w:val="%1."/></w:lvl>'
    '<w:lvl w:ilvl="1"><w:start w:val="1"/><w:numFmt w:val="lowerLetter"/><w:lvlText w:val="%1.%2)"/></w:lvl></w:abstractNum>'
    '<w:abstractNum w:abstractNumId="8"><w:lvl w:ilvl="0"><w:numFmt w:val="bullet"/><w:lvlText w:val="o"/></w:lvl>'
    "</w:abstractNum>"
    '<w:num w:numId="1"><w:abstractNumId w:val="7"/></w:num><w:num w:numId="2"><w:abstractNumId w:val="8"/></w:num>'
)


def test_word_headings_numbers_lists_and_title(tmp_path: Path) -> None:
    body = (
        paragraph("Ducks", style="T")
        + paragraph("Kinds", style="Mine")
        + paragraph("Sizes", style="Deep")
        + numbered("first", 0)
        + numbered("inner", 1)
        + numbered("second", 0)
        + numbered("inner again", 1)
        + paragraph("between")
        + numbered("bullet", 0, "2")
        + paragraph("A picture of ducks", style="Cap")
    )
    document = read(packages.docx(tmp_path / "a.docx", body, styles=STYLES, numbering=NUMBERING))
    assert document.title == "Ducks of the lake"
    assert document.meta == {"author": "A. Wader", "lang": "en-GB", "created": "2024-01-31T12:00:00Z", "keywords": "birds"}
    assert blocks(document) == [
        ("heading", 1, "Ducks"),
        ("heading", 1, "Kinds"),
        ("heading", 3, "Sizes"),
        ("list", 0, "1. first\n1.a) inner\n2. second\n2.a) inner again"),
        ("paragraph", 1, "1. first"),
        ("list", 1, "1.a) inner"),
        ("paragraph", 2, "1.a) inner"),
        ("paragraph", 1, "2. second"),
        ("list", 1, "2.a) inner again"),
        ("paragraph", 2, "2.a) inner again"),
        ("paragraph", 0, "between"),
        ("list", 0, "bullet"),
        ("paragraph", 1, "bullet"),
        ("caption", 0, "A picture of ducks"),
    ]


def cell(text: str, properties: str = "") -> str:
    return f"<w:tc><w:tcPr>{properties}</w:tcPr>{paragraph(text)}</w:tc>"


def test_word_tables_keep_header_and_merged_cells_and_nested_text(tmp_path: Path) -> None:
    rows = (
        "<w:tr><w:trPr><w:tblHeader/></w:trPr>" + cell("Bird") + cell("Size", '<w:gridSpan w:val="2"/>') + "</w:tr>",
        "<w:tr>" + cell("Mallard", '<w:vMerge w:val="restart"/>') + cell("58") + cell("cm") + "</w:tr>",
        "<w:tr>" + cell("", "<w:vMerge/>") + cell("23") + cell("in") + "</w:tr>",
    )
    inner = f"<w:tbl><w:tr>{cell('a')}{cell('b')}</w:tr></w:tbl>"
    nested = f"<w:tr><w:tc>{inner}{paragraph('after')}</w:tc>{cell('')}{cell('x')}</w:tr>"
    document = read(packages.docx(tmp_path / "a.docx", f"<w:tbl>{''.join(rows)}{nested}</w:tbl>{paragraph('end')}"))
    assert blocks(document) == [
        ("table", 0, "Bird | Size | Size\nMallard | 58 | cm\nMallard | 23 | in\na b after |  | x"),
        ("row", 1, "Bird | Size | Size"),
        ("row", 0, "Mallard | 58 | cm"),
        ("row", 0, "Mallard | 23 | in"),
        ("row", 0, "a b after |  | x"),
        ("paragraph", 0, "end"),
    ]


def test_word_notes_follow_their_paragraph_and_deletions_and_field_codes_are_left_out(tmp_path: Path) -> None:
    text = (
        '<w:p><w:r><w:t>Ducks quack</w:t><w:footnoteReference w:id="2"/></w:r>'
        "<w:del><w:r><w:delText>gone</w:delText></w:r></w:del>"
        "<w:ins><w:r><w:t>, loudly</w:t></w:r></w:ins><w:r><w:instrText>PAGE</w:instrText><w:tab/><w:t>now.</w:t></w:r></w:p>"
    )
    notes = f'<w:footnote w:type="separator" w:id="0"/><w:footnote w:id="2">{paragraph("Not all of them.")}</w:footnote>'
    document = read(packages.docx(tmp_path / "a.docx", text + paragraph("Next."), footnotes=notes))
    assert blocks(document) == [
        ("paragraph", 0, "Ducks quack[2], loudly now."),
        ("footnote", 0, "[2] Not all of them."),
        ("paragraph", 0, "Next."),
    ]


def test_word_code_is_one_block_with_its_indentation(tmp_path: Path) -> None:
    styles = '<w:style w:styleId="C"><w:name w:val="HTML Preformatted"/></w:style>'
    lines = ("for duck in flock:", "    quack()", "end")
    body = paragraph("Before") + "".join(paragraph(line, style="C") for line in lines) + paragraph("After")
    document = read(packages.docx(tmp_path / "a.docx", body, styles=styles))
    assert blocks(document) == [("paragraph", 0, "Before"), ("code", 0, "\n".join(lines)), ("paragraph", 0, "After")]


def test_opendocument_code_is_one_block_with_its_indentation(tmp_path: Path) -> None:
    styles = '<style:style style:name="P1" style:parent-style-name="Preformatted_20_Text"/>'
    lines = ("for duck in flock:", '<text:s text:c="4"/>quack()')
    content = "".join(f'<text:p text:style-name="P1">{line}</text:p>' for line in lines) + "<text:p>After</text:p>"
    document = read(packages.odt(tmp_path / "a.odt", content, styles=styles))
    assert blocks(document) == [("code", 0, "for duck in flock:\n    quack()"), ("paragraph", 0, "After")]


def test_word_hidden_runs_and_readings_above_characters_are_left_out(tmp_path: Path) -> None:
    def run(text: str, properties: str = "") -> str:
        return f"<w:r><w:rPr>{properties}</w:rPr><w:t>{text}</w:t></w:r>"

    ruby = f"<w:r><w:ruby><w:rt>{run('かも')}</w:rt><w:rubyBase>{run('鴨')}</w:rubyBase></w:ruby></w:r>"
    body = run("seen ") + run("unseen", "<w:vanish/>") + run("too ", '<w:vanish w:val="0"/>') + ruby
    assert read(packages.docx(tmp_path / "a.docx", f"<w:p>{body}</w:p>")).text == "seen too 鴨"


def test_word_text_boxes_once_alternative_texts_and_formulas(tmp_path: Path) -> None:
    box = f"<w:txbxContent>{paragraph('In a box')}</w:txbxContent>"
    twice = f"<AlternateContent><Choice>{box}</Choice><Fallback>{box}</Fallback></AlternateContent>"
    picture = '<w:drawing><docPr name="p.png" descr="Two ducks"/></w:drawing>'
    maths = (
        "<m:oMath><m:sSup><m:e><m:r><m:t>a</m:t></m:r></m:e><m:sup><m:r><m:t>2</m:t></m:r></m:sup></m:sSup><m:r><m:t>=</m:t></m:r>"
        "<m:f><m:num><m:r><m:t>1</m:t></m:r></m:num><m:den><m:r><m:t>b</m:t></m:r></m:den></m:f></m:oMath>"
    )
    body = f"<w:p><w:r><w:t>Before</w:t>{twice}{picture}</w:r></w:p><w:p>{maths}</w:p>"
    document = read(packages.docx(tmp_path / "a.docx", body))
    assert document.text == "Before Two ducks\n\nIn a box\n\n$a^{2}=\\frac{1}{b}$"


def test_word_pages_are_where_word_saw_them_also_within_a_paragraph(tmp_path: Path) -> None:
    mark = "<w:lastRenderedPageBreak/>"
    body = (
        paragraph("First page.")
        + f"<w:p><w:r><w:t>It runs </w:t></w:r><w:r>{mark}<w:t>on to the second.</w:t></w:r></w:p>"
        + f"<w:p><w:r>{mark}<w:t>Third.</w:t></w:r></w:p>"
        + '<w:sectPr><w:pgSz w:w="11906" w:h="16838"/></w:sectPr>'
    )
    document = read(packages.docx(tmp_path / "a.docx", body))
    assert document.text == "First page.\n\nIt runs on to the second.\n\nThird."
    assert pages(document) == [(1, None, "First page.\n\nIt runs"), (2, None, "on to the second."), (3, None, "Third.")]
    assert (document.pages[0].width, document.pages[0].height) == (595.3, 841.9)


def test_slides_are_pages_with_title_lists_tables_and_notes(tmp_path: Path) -> None:
    def row(*texts: str) -> str:
        cells = "".join(f"<a:tc><p:txBody><a:p><a:r><a:t>{t}</a:t></a:r></a:p></p:txBody></a:tc>" for t in texts)
        return f"<a:tr>{cells}</a:tr>"

    table = f'<a:tbl><a:tblPr firstRow="1"/>{row("Bird", "cm")}{row("Teal", "35")}</a:tbl>'
    frame = f"<p:graphicFrame><a:graphic><a:graphicData>{table}</a:graphicData></a:graphic></p:graphicFrame>"
    slides = [
        shape("one", "two", role="body") + shape("Ducks", role="title") + shape("7", role="sldNum"),
        frame + shape("first", "second", bullets='<a:buAutoNum type="arabicPeriod"/>'),
    ]
    document = read(packages.pptx(tmp_path / "a.pptx", slides, notes={1: "Say hello"}))
    assert blocks(document) == [
        ("heading", 1, "Ducks"),
        ("list", 0, "one\ntwo"),
        ("paragraph", 1, "one"),
        ("paragraph", 1, "two"),
        ("footnote", 0, "Say hello"),
        ("table", 0, "Bird | cm\nTeal | 35"),
        ("row", 1, "Bird | cm"),
        ("row", 0, "Teal | 35"),
        ("list", 0, "1. first\n2. second"),
        ("paragraph", 1, "1. first"),
        ("paragraph", 1, "2. second"),
    ]
    assert [number for number, _, _ in pages(document)] == [1, 2]
    assert (document.pages[1].width, document.pages[1].height) == (720.0, 540.0)


def test_shapes_are_read_from_top_to_bottom_wherever_the_author_made_them(tmp_path: Path) -> None:
    def at(x: int, y: int, text: str) -> str:
        return shape(text).replace("<p:txBody>", f'<p:spPr><a:xfrm><a:off x="{x}" y="{y}"/></a:xfrm></p:spPr><p:txBody>')

    document = read(packages.pptx(tmp_path / "a.pptx", [at(9, 70, "low") + at(90, 20, "right") + at(10, 20, "left")]))
    assert document.text == "left\n\nright\n\nlow"


def test_sheets_are_pages_labelled_by_name_with_tables_and_headers(tmp_path: Path) -> None:
    sheets: dict[str, list[list[str | float | None]]] = {
        "Ducks": [["All ducks"], [None], ["Bird", "cm"], ["Mallard", 58.0], ["Teal", 35.5]],
        "Empty": [],
        "Numbers": [[1.0, 2.0], [3.0, 4.0]],
    }
    document = read(packages.xlsx(tmp_path / "a.xlsx", sheets))
    assert [(number, label) for number, label, _ in pages(document)] == [(1, "Ducks"), (2, "Empty"), (3, "Numbers")]
    assert blocks(document) == [
        ("heading", 1, "Ducks"),
        ("paragraph", 0, "All ducks"),
        ("table", 0, "Bird | cm\nMallard | 58\nTeal | 35.5"),
        ("row", 1, "Bird | cm"),
        ("row", 0, "Mallard | 58"),
        ("row", 0, "Teal | 35.5"),
        ("heading", 1, "Empty"),
        ("heading", 1, "Numbers"),
        ("table", 0, "1 | 2\n3 | 4"),
        ("row", 0, "1 | 2"),
        ("row", 0, "3 | 4"),
    ]


def test_a_merged_cell_stands_in_all_it_covers(tmp_path: Path) -> None:
    rows: dict[str, list[list[str | float | None]]] = {"S": [["x", "y"], ["Teal", 1.0], [None, 2.0]]}
    document = read(packages.xlsx(tmp_path / "a.xlsx", rows, merged="A2:A3"))
    assert document.text.endswith("x | y\nTeal | 1\nTeal | 2")


def test_a_merged_cell_that_begins_before_the_first_value_is_empty(tmp_path: Path) -> None:
    rows: dict[str, list[list[str | float | None]]] = {"S": [[None] * 3, [None, "x", None], [None, None, "y"]]}
    document = read(packages.xlsx(tmp_path / "a.xlsx", rows, merged="A1:C3"))
    assert document.text == "S\n\nx\n\n | y"


def test_opendocument_text_has_headings_numbered_lists_tables_and_notes(tmp_path: Path) -> None:
    styles = (
        '<text:list-style style:name="L"><text:list-level-style-number text:level="1" style:num-format="1" style:num-suffix="."/>'
        "</text:list-style>"
    )
    content = (
        '<text:tracked-changes><text:p>gone</text:p></text:tracked-changes><text:h text:outline-level="2">Kinds</text:h>'
        "<text:p>Ducks<text:s/>quack<text:note><text:note-citation>1</text:note-citation><text:note-body>"
        "<text:p>Not all.</text:p></text:note-body></text:note>.</text:p>"
        '<text:list text:style-name="L"><text:list-item><text:p>one</text:p><text:list><text:list-item><text:p>deep</text:p>'
        "</text:list-item></text:list></text:list-item><text:list-item><text:p>two</text:p></text:list-item></text:list>"
        "<table:table><table:table-header-rows><table:table-row><table:table-cell><text:p>Bird</text:p></table:table-cell>"
        "<table:table-cell><text:p>cm</text:p></table:table-cell></table:table-row></table:table-header-rows><table:table-row>"
        '<table:table-cell table:number-columns-repeated="2"><text:p>x</text:p></table:table-cell>'
        '<table:table-cell table:number-columns-repeated="16000"/></table:table-row></table:table>'
        "<text:p><draw:frame><draw:image/><svg:desc>Two ducks</svg:desc></draw:frame></text:p>"
    )
    document = read(packages.odt(tmp_path / "a.odt", content, styles=styles))
    assert document.title == "Ducks of the lake"
    assert blocks(document) == [
        ("heading", 2, "Kinds"),
        ("paragraph", 0, "Ducks quack[1]."),
        ("footnote", 0, "[1] Not all."),
        ("list", 0, "1. one\ndeep\n2. two"),
        ("paragraph", 1, "1. one"),
        ("list", 1, "deep"),
        ("paragraph", 2, "deep"),
        ("paragraph", 1, "2. two"),
        ("table", 0, "Bird | cm\nx | x"),
        ("row", 1, "Bird | cm"),
        ("row", 0, "x | x"),
        ("caption", 0, "Two ducks"),
    ]


def test_a_merged_cell_of_an_opendocument_stands_in_all_it_covers(tmp_path: Path) -> None:
    def cell(text: str, *, columns: int = 1, rows: int = 1) -> str:
        spans = f'table:number-columns-spanned="{columns}" table:number-rows-spanned="{rows}"'
        return f"<table:table-cell {spans}><text:p>{text}</text:p></table:table-cell>"

    covered = "<table:covered-table-cell/>"
    rows = [
        cell("both", columns=2) + covered + cell("c"),
        cell("tall", rows=2) + cell("x") + cell("y"),
        covered + cell("block", columns=2, rows=2) + covered,
        cell("z") + '<table:covered-table-cell table:number-columns-repeated="2"/>',
    ]
    body = "".join(f"<table:table-row>{row}</table:table-row>" for row in rows)
    document = read(packages.odt(tmp_path / "a.odt", f"<table:table>{body}</table:table>"))
    assert document.text.split("\n") == ["both | both | c", "tall | x | y", "tall | block | block", "z | block | block"]


def test_opendocument_slides_are_pages(tmp_path: Path) -> None:
    def frame(text: str, role: str = "") -> str:
        role = f' presentation:class="{role}"' if role else ""
        return f"<draw:frame{role}><draw:text-box><text:p>{text}</text:p></draw:text-box></draw:frame>"

    def page(name: str, title: str, text: str) -> str:
        notes = f"<presentation:notes>{frame('Say ' + title, 'notes')}</presentation:notes>"
        return f'<draw:page draw:name="{name}">{frame(text)}{frame(title, "title")}{notes}</draw:page>'

    content = page("p1", "Ducks", "They quack.") + page("p2", "Geese", "They honk.")
    document = read(packages.odt(tmp_path / "a.odp", content, kind="presentation"))
    assert pages(document) == [
        (1, "p1", "Ducks\n\nThey quack.\n\nSay Ducks"),
        (2, "p2", "Geese\n\nThey honk.\n\nSay Geese"),
    ]


def test_books_are_read_in_the_order_of_the_spine(tmp_path: Path) -> None:
    document = read(
        packages.epub(tmp_path / "a.epub", ["<h1>One</h1><p>First.</p>", "<h1>Two</h1><ul><li>a</li><li>b</li></ul>"])
    )
    assert (document.title, document.meta) == ("Ducks", {"author": "A. Wader", "lang": "en"})
    assert blocks(document) == [
        ("heading", 1, "One"),
        ("paragraph", 0, "First."),
        ("heading", 1, "Two"),
        ("list", 0, "a\nb"),
    ]


def test_rich_text_keeps_letters_of_its_code_page_tables_and_title(tmp_path: Path) -> None:
    source = (
        r"{\rtf1\ansi\ansicpg1252{\info{\title Gr\'f6\'dfe}{\author A. Wader}{\creatim\yr2024\mo1\dy31\hr12\min5}}"
        r"Enten und G\'e4nse \u9731?.\par\trowd Art\cell cm\cell\row\trowd Teal\cell 35\cell\row\pard Ende.\par}"
    )
    path = tmp_path / "a.rtf"
    path.write_text(source)
    document = read(path)
    assert (document.title, document.meta) == ("Größe", {"author": "A. Wader", "created": "2024-01-31T12:05:00"})
    assert document.text == "Enten und Gänse ☃.\n\nArt | cm\nTeal | 35\n\nEnde."


def test_rich_text_keeps_headings_footnotes_and_letters_beyond_sixteen_bits(tmp_path: Path) -> None:
    source = (
        r"{\rtf1\ansi{\stylesheet{\s0 Normal;}{\s1\fs48\b heading 1;}{\s2\sbasedon1 Heading 2;}}"
        r"\pard\plain \s1 {\b Ducks}\par\pard Quack{\super\chftn{\*\footnote\pard\plain \s9 \chftn Not all{\i  do}, \{so\}.}}"
        r" loudly{\super\chftn{\footnote Or not.}}.\par\pard \outlinelevel1 Teal\par\pard \u-10179?\u-8704?\par"
        r"\trowd a{\footnote In a cell.}\cell b\cell\row\pard\outlinelevel9 body\par}"
    )
    (tmp_path / "a.rtf").write_text(source)
    document = read(tmp_path / "a.rtf")
    assert document.title == "Ducks"
    assert blocks(document) == [
        ("heading", 1, "Ducks"),
        ("paragraph", 0, "Quack[1] loudly[2]."),
        ("footnote", 0, "[1] Not all do, {so}."),
        ("footnote", 0, "[2] Or not."),
        ("heading", 2, "Teal"),
        ("paragraph", 0, "😀"),
        ("table", 0, "a[3] | b"),
        ("row", 0, "a[3] | b"),
        ("footnote", 0, "[3] In a cell."),
        ("paragraph", 0, "body"),
    ]


@pytest.mark.parametrize("body", [r"{\footnote " * 30_000 + "end", r"\pard\s1 " * 30_000 + "end", "}" * 9 + r"{\footnote x}" * 9])
def test_rich_text_that_never_closes_is_read(tmp_path: Path, body: str) -> None:
    (tmp_path / "a.rtf").write_text(r"{\rtf1{\stylesheet{\s1 heading 1;}}start " + body)
    assert read(tmp_path / "a.rtf").text.startswith("start")


MAKERS = {
    "docx": lambda path: packages.docx(path, paragraph("words " * 50)),
    "pptx": lambda path: packages.pptx(path, [shape("words " * 50)]),
    "xlsx": lambda path: packages.xlsx(path, {"S": [["a", "b"], [1.0, 2.0]]}),
    "odt": lambda path: packages.odt(path, "<text:p>words</text:p>"),
    "epub": lambda path: packages.epub(path, ["<p>words</p>"]),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_package_cut_short_anywhere_is_a_failure_with_a_reason(tmp_path: Path, kind: str) -> None:
    whole = MAKERS[kind](tmp_path / f"whole.{kind}").read_bytes()
    path = tmp_path / f"cut.{kind}"
    for size in range(0, len(whole), max(len(whole) // 40, 1)):
        path.write_bytes(whole[:size])
        with pytest.raises(LoadError):
            read(path)


@pytest.mark.parametrize("kind", MAKERS)
def test_bytes_are_counted_while_they_are_inflated(tmp_path: Path, kind: str) -> None:
    path = MAKERS[kind](tmp_path / f"a.{kind}")
    read(path)
    with zipfile.ZipFile(path) as package:
        total = sum(one.file_size for one in package.infolist())
    with pytest.raises(LimitExceeded, match="unpacks to more than"):
        read(path, inflated_bytes=total // 4)


@pytest.mark.parametrize("kind", ["docx", "odt"])
def test_entities_are_refused_not_unfolded(tmp_path: Path, kind: str) -> None:
    laughs = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;"><!ENTITY c "&b;&b;">]>'
    path = MAKERS[kind](tmp_path / f"a.{kind}")
    bomb = tmp_path / f"bomb.{kind}"
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(bomb, "w") as package:
        for name in whole.namelist():
            body = whole.read(name).decode()
            package.writestr(name, laughs + body if name in ("word/document.xml", "content.xml") else body)
    with pytest.raises(LoadError, match="entities"):
        read(bomb)


def test_encrypted_office_files_are_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "a.docx"
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500) + "EncryptedPackage".encode("utf-16-le"))
    with pytest.raises(EncryptedDocument):
        read(path)
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500))
    with pytest.raises(LoadError, match="before 2007"):
        read(path)


def test_too_many_pages_and_characters_stop_at_once(tmp_path: Path) -> None:
    path = packages.pptx(tmp_path / "a.pptx", [shape("words")] * 5)
    with pytest.raises(LimitExceeded, match="pages"):
        read(path, pages=4)
    with pytest.raises(LimitExceeded, match="characters"):
        read(path, characters=12)
