"""Small office files and e-books, made of the XML that the formats' standards name; every byte is ours."""

from __future__ import annotations

import zipfile
from pathlib import Path

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
M = 'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math"'
R = 'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
A = 'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'
P = 'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main"'
TYPES = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/"
ODF = " ".join(
    f'xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"' for name in ("office", "text", "table", "style", "meta")
)
ODF += ' xmlns:draw="urn:oasis:names:tc:opendocument:xmlns:drawing:1.0"'
ODF += ' xmlns:presentation="urn:oasis:names:tc:opendocument:xmlns:presentation:1.0"'
ODF += ' xmlns:svg="urn:oasis:names:tc:opendocument:xmlns:svg-compatible:1.0" xmlns:dc="http://purl.org/dc/elements/1.1/"'
CORE = (
    '<cp:coreProperties xmlns:cp="c" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:dcterms="http://purl.org/dc/terms/">'
    "<dc:title>Ducks of the lake</dc:title><dc:creator>A. Wader</dc:creator><dc:language>en-GB</dc:language>"
    "<dcterms:created>2024-01-31T12:00:00Z</dcterms:created><cp:keywords>birds</cp:keywords></cp:coreProperties>"
)


def zipped(path: Path, parts: dict[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as package:
        for name, body in parts.items():
            package.writestr(name, body)
    return path


def relations(**targets: str) -> str:
    """A .rels part: type=target, ids are the types; a number at a type's end only keeps two of one type apart."""
    rows = "".join(
        f'<Relationship Id="{name}" Type="{TYPES}{name.rstrip("0123456789")}" Target="{target}"/>'
        for name, target in targets.items()
    )
    return f"<Relationships>{rows}</Relationships>"


def docx(path: Path, body: str, **parts: str) -> Path:
    """A Word document; parts are the inner XML of styles, numbering, footnotes."""
    names = {name: f"{name}.xml" for name in parts}
    files: dict[str, str | bytes] = {
        "_rels/.rels": relations(officeDocument="word/document.xml"),
        "docProps/core.xml": CORE,
        "word/_rels/document.xml.rels": relations(**names),
        "word/document.xml": f"<w:document {W} {M} {R} {A}><w:body>{body}</w:body></w:document>",
    }
    for name, inner in parts.items():
        files[f"word/{name}.xml"] = f"<w:{name} {W}>{inner}</w:{name}>"
    return zipped(path, files)


def paragraph(text: str, *, style: str = "", properties: str = "") -> str:
    style = f'<w:pStyle w:val="{style}"/>' if style else ""
    return f"<w:p><w:pPr>{style}{properties}</w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>"


def numbered(text: str, level: int, number: str = "1") -> str:
    return paragraph(text, properties=f'<w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="{number}"/></w:numPr>')


def pptx(path: Path, slides: list[str], *, notes: dict[int, str] | None = None) -> Path:
    """A presentation of slides, each the inner XML of its shape tree; notes by the slide's number."""
    ids = "".join(f'<p:sldId id="{255 + n}" r:id="slide{n}"/>' for n in range(1, len(slides) + 1))
    root = f"<p:presentation {P} {R}><p:sldIdLst>{ids}</p:sldIdLst>"
    files: dict[str, str | bytes] = {
        "_rels/.rels": relations(officeDocument="ppt/presentation.xml"),
        "ppt/presentation.xml": root + '<p:sldSz cx="9144000" cy="6858000"/></p:presentation>',
        "ppt/_rels/presentation.xml.rels": relations(**{f"slide{n}": f"slides/s{n}.xml" for n in range(1, len(slides) + 1)}),
    }
    for n, tree in enumerate(slides, start=1):
        files[f"ppt/slides/s{n}.xml"] = f"<p:sld {P} {A} {R}><p:cSld><p:spTree>{tree}</p:spTree></p:cSld></p:sld>"
        if notes and n in notes:
            files[f"ppt/slides/_rels/s{n}.xml.rels"] = relations(notesSlide=f"../n{n}.xml")
            files[f"ppt/n{n}.xml"] = (
                f"<p:notes {P} {A}><p:cSld><p:spTree>{shape(notes[n], role='body')}</p:spTree></p:cSld></p:notes>"
            )
    return zipped(path, files)


def shape(*lines: str, role: str = "", bullets: str = "") -> str:
    placeholder = f'<p:ph type="{role}"/>' if role else ""
    text = "".join(f"<a:p><a:pPr>{bullets}</a:pPr><a:r><a:t>{line}</a:t></a:r></a:p>" for line in lines)
    return f"<p:sp><p:nvSpPr><p:cNvPr/><p:cNvSpPr/><p:nvPr>{placeholder}</p:nvPr></p:nvSpPr><p:txBody>{text}</p:txBody></p:sp>"


def xlsx(path: Path, sheets: dict[str, list[list[str | float | None]]], *, merged: str = "") -> Path:
    """A workbook of inline strings and numbers."""
    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    kinds = "application/vnd.openxmlformats-officedocument.spreadsheetml."
    overrides = "".join(
        f'<Override PartName="/xl/worksheets/s{n}.xml" ContentType="{kinds}worksheet+xml"/>' for n in range(1, len(sheets) + 1)
    )
    names = "".join(f'<sheet name="{name}" sheetId="{n}" r:id="worksheet{n}"/>' for n, name in enumerate(sheets, start=1))
    files: dict[str, str | bytes] = {
        "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        f'<Override PartName="/xl/workbook.xml" ContentType="{kinds}sheet.main+xml"/>{overrides}</Types>',
        "_rels/.rels": relations(officeDocument="xl/workbook.xml"),
        "xl/workbook.xml": f"<workbook {main} {R}><sheets>{names}</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": relations(**{f"worksheet{n}": f"worksheets/s{n}.xml" for n in range(1, len(sheets) + 1)}),
    }
    for n, rows in enumerate(sheets.values(), start=1):
        data = "".join(
            f'<row r="{y}">{"".join(_cell(x, y, v) for x, v in enumerate(row))}</row>' for y, row in enumerate(rows, 1)
        )
        cells = f'<mergeCells><mergeCell ref="{merged}"/></mergeCells>' if merged else ""
        files[f"xl/worksheets/s{n}.xml"] = f"<worksheet {main}><sheetData>{data}</sheetData>{cells}</worksheet>"
    return zipped(path, files)


def _cell(x: int, y: int, value: str | float | None) -> str:
    if value is None:
        return ""
    name = f"{chr(65 + x)}{y}"
    if isinstance(value, str):
        return f'<c r="{name}" t="inlineStr"><is><t>{value}</t></is></c>'
    return f'<c r="{name}"><v>{value}</v></c>'


def odt(path: Path, content: str, *, kind: str = "text", styles: str = "") -> Path:
    """An OpenDocument of the given kind, with the inner XML of its body and of its automatic styles."""
    head = f"<office:document-content {ODF}><office:automatic-styles>{styles}</office:automatic-styles>"
    meta = "<dc:title>Ducks of the lake</dc:title><dc:creator>A. Wader</dc:creator><dc:date>2024-01-31T12:00:00.123</dc:date>"
    return zipped(
        path,
        {
            "content.xml": f"{head}<office:body><office:{kind}>{content}</office:{kind}></office:body></office:document-content>",
            "meta.xml": f"<office:document-meta {ODF}><office:meta>{meta}</office:meta></office:document-meta>",
        },
    )


def epub(path: Path, chapters: list[str]) -> Path:
    items = "".join(f'<item id="c{n}" href="c%20{n}.xhtml" media-type="application/xhtml+xml"/>' for n in range(len(chapters)))
    spine = "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters)))
    meta = "<dc:title>Ducks</dc:title><dc:creator>A. Wader</dc:creator><dc:language>en</dc:language>"
    meta = f'<metadata xmlns:dc="d">{meta}</metadata>'
    files: dict[str, str | bytes] = {
        "META-INF/container.xml": '<container><rootfiles><rootfile full-path="book/b.opf"/></rootfiles></container>',
        "book/b.opf": f"<package>{meta}<manifest>{items}</manifest><spine>{spine}</spine></package>",
    }
    return zipped(path, files | {f"book/c {n}.xhtml": f"<html><body>{body}</body></html>" for n, body in enumerate(chapters)})
