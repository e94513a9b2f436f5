"""What docling exports becomes a Document with its structure, pages and boxes; what it does not export is refused."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragkit import Index
from ragkit.core.errors import LimitExceeded, LoadError
from ragkit.core.types import Document
from ragkit.load import Limits
from ragkit.load.readers.docling import from_docling
from ragkit.load.records import check
from ragkit.testing import HashEncoder
from tests.load.conftest import FUZZ


def prov(left: float, top: float, right: float, bottom: float, *, span: tuple[int, int], page: int = 1) -> dict[str, Any]:
    """As docling writes it: from the lower left."""
    box = {"l": left, "t": top, "r": right, "b": bottom, "coord_origin": "BOTTOMLEFT"}
    return {"page_no": page, "bbox": box, "charspan": list(span)}


def cell(
    text: str, row: int, column: int, *, rows: int = 1, columns: int = 1, header: bool = False, **more: Any
) -> dict[str, Any]:
    ends = {"end_row_offset_idx": row + rows, "end_col_offset_idx": column + columns}
    return {"text": text, "start_row_offset_idx": row, "start_col_offset_idx": column, "column_header": header, **ends, **more}


def exported(texts: list[dict[str, Any]], body: list[str], **more: Any) -> dict[str, Any]:
    """The parts of a DoclingDocument's JSON (schema 1.10) that are read."""
    return {
        "schema_name": "DoclingDocument",
        "version": "1.10.0",
        "name": "x",
        "body": {"self_ref": "#/body", "children": [{"$ref": reference} for reference in body]},
        "groups": [],
        "texts": texts,
        "pictures": [],
        "tables": [],
        "pages": {str(n): {"size": {"width": 400.0, "height": 600.0}, "page_no": n} for n in (1, 2, 3)},
        **more,
    }


def paper() -> dict[str, Any]:
    long = "A paragraph that begins on one page and ends on the next."
    texts: list[dict[str, Any]] = [
        {
            "label": "page_header",
            "text": "Running title",
            "content_layer": "furniture",
            "prov": [prov(50, 590, 150, 580, span=(0, 13))],
        },
        {"label": "title", "text": "Wind and water", "prov": [prov(50, 560, 250, 540, span=(0, 14))]},
        {"label": "section_header", "level": 1, "text": "Methods", "prov": [prov(50, 520, 120, 505, span=(0, 7))]},
        {"label": "list_item", "text": "first", "prov": [prov(60, 490, 100, 480, span=(0, 5))]},
        {"label": "list_item", "text": "second", "prov": [prov(60, 475, 110, 465, span=(0, 6))]},
        {"label": "caption", "text": "Table 1", "prov": [prov(50, 450, 100, 440, span=(0, 7))]},
        {
            "label": "text",
            "text": long,
            "prov": [prov(50, 60, 350, 40, span=(0, 30)), prov(50, 590, 350, 570, span=(30, len(long)), page=2)],
        },
        {"label": "code", "text": "x = 1\ny = 2", "prov": [prov(50, 500, 200, 470, span=(0, 11), page=2)]},
        {"label": "page_footer", "text": "2", "prov": [prov(200, 20, 210, 10, span=(0, 1), page=2)]},
        {"label": "text", "text": "bold", "prov": []},
        {"label": "text", "text": "and plain", "prov": []},
    ]
    low = {"l": 200.0, "t": 170.0, "r": 300.0, "b": 185.0, "coord_origin": "TOPLEFT"}
    table = {
        "label": "table",
        "captions": [{"$ref": "#/texts/5"}],
        "children": [{"$ref": "#/texts/5"}],
        "prov": [prov(50, 430, 350, 380, span=(0, 0))],
        "data": {
            "num_rows": 2,
            "num_cols": 2,
            "table_cells": [
                cell("Region", 0, 0, rows=2, header=True),
                cell("2023", 0, 1, header=True, bbox=low),
                cell("5", 1, 1),
            ],
        },
    }
    groups = [
        {"label": "list", "children": [{"$ref": "#/texts/3"}, {"$ref": "#/texts/4"}]},
        {"label": "inline", "children": [{"$ref": "#/texts/9"}, {"$ref": "#/texts/10"}]},
    ]
    body = [
        "#/texts/0",
        "#/texts/1",
        "#/texts/2",
        "#/groups/0",
        "#/tables/0",
        "#/texts/6",
        "#/texts/7",
        "#/texts/8",
        "#/groups/1",
    ]
    return exported(texts, body, groups=groups, tables=[table], origin={"filename": "paper.pdf", "mimetype": "application/pdf"})


def boxes_of(document: Document, page: int) -> list[tuple[str, list[float]]]:
    words = document.pages[page - 1].words
    return [(document.text[a:b], box) for (a, b), box in zip(words.spans.tolist(), words.boxes.tolist(), strict=True)]


def test_structure_pages_and_boxes_survive() -> None:
    document = check(from_docling(paper(), id="paper"))
    assert (document.id, document.title) == ("paper", "Wind and water")
    assert document.meta == {"pages": 3, "origin": "paper.pdf"}
    assert [(b.kind, b.level, b.span.of(document.text)) for b in document.blocks] == [
        ("header", 0, "Running title"),
        ("heading", 1, "Wind and water"),
        ("heading", 2, "Methods"),
        ("list", 0, "first\nsecond"),
        ("caption", 0, "Table 1"),
        ("table", 0, "Region | 2023\nRegion | 5"),
        ("row", 1, "Region | 2023"),
        ("row", 0, "Region | 5"),
        ("paragraph", 0, "A paragraph that begins on one page and ends on the next."),
        ("code", 0, "x = 1\ny = 2"),
        ("footer", 1, "2"),
        ("paragraph", 0, "bold and plain"),
    ]
    first, second, third = document.pages
    assert first.span.of(document.text).endswith("A paragraph that begins on one")
    assert second.span.of(document.text).startswith(" page and ends on the next.")
    assert third.span.length == 0
    placed = dict(boxes_of(document, 1))
    assert placed["Methods"] == [50, 80, 120, 95]
    assert placed["2023"] == [200, 170, 300, 185]
    assert placed["Region | 5"] == [50, 170, 350, 220], "a row whose cells have no boxes has the table's"
    assert dict(boxes_of(document, 2))["x = 1\ny = 2"] == [50, 100, 200, 130]


def test_a_file_is_found_and_cited_by_page_and_box(tmp_path: Path) -> None:
    (tmp_path / "paper.docling.json").write_text(json.dumps(paper()), encoding="utf-8")
    with Index.open(tmp_path / "index", model=HashEncoder(dims=16)) as index:
        report = index.add(tmp_path / "paper.docling.json")
        assert [outcome.source for outcome in report.added] == ["paper.docling.json"]
        (hit,) = index.search("Region 2023", k=1, mode="lexical")
        assert hit.title == "Wind and water"
        document = index.document("paper.docling.json")
    assert dict(boxes_of(document, 1))["2023"] == [200, 170, 300, 185]
    assert hit.pages == (1, 2)
    assert any(box.page == 1 and box.box.y1 >= 185 and box.box.x1 >= 300 for box in hit.boxes)


def test_what_docling_core_builds_is_read(tmp_path: Path) -> None:
    core = pytest.importorskip("docling_core.types.doc")
    made = core.DoclingDocument(name="x")
    made.add_page(1, core.Size(width=400, height=600))

    def at(text: str, top: float) -> Any:
        box = core.BoundingBox(l=50, t=top, r=200, b=top - 10, coord_origin=core.CoordOrigin.BOTTOMLEFT)
        return core.ProvenanceItem(page_no=1, bbox=box, charspan=(0, len(text)))

    made.add_title("A title", prov=at("A title", 550))
    made.add_heading("A section", level=1, prov=at("A section", 520))
    group = made.add_list_group()
    made.add_list_item("one", parent=group, prov=at("one", 500))
    caption = made.add_text(core.DocItemLabel.CAPTION, "Table 1", prov=at("Table 1", 480))
    cells = [core.TableCell(**cell("Region", 0, 0, header=True)), core.TableCell(**cell("North", 1, 0))]
    made.add_table(core.TableData(num_rows=2, num_cols=1, table_cells=cells), caption=caption, prov=at("", 460))
    made.add_text(core.DocItemLabel.PARAGRAPH, "Words of the body.", prov=at("Words of the body.", 400))
    document = check(from_docling(made))
    assert document.text == "A title\n\nA section\n\none\n\nTable 1\n\nRegion\nNorth\n\nWords of the body."
    assert dict(boxes_of(document, 1))["Words of the body."] == [50, 200, 200, 210]
    assert [block.kind for block in document.blocks] == [
        *("heading", "heading", "list", "caption", "table", "row", "row", "paragraph"),
    ]


def test_what_is_no_export_of_docling_is_refused_with_a_reason() -> None:
    for wrong in ({}, [], {"schema_name": "DoclingDocument"}, exported([], ["#/texts/0"]), exported([], ["nonsense"])):
        with pytest.raises(LoadError, match="DoclingDocument"):
            from_docling(wrong)
    loop = exported([], ["#/groups/0"], groups=[{"label": "list", "children": [{"$ref": "#/groups/0"}]}])
    assert from_docling(loop).text == ""
    many = exported([{"label": "text", "text": "x" * 100}] * 50, [f"#/texts/{n}" for n in range(50)])
    with pytest.raises(LimitExceeded, match=r"Limits\.characters"):
        from_docling(many, limits=Limits(characters=1000))
    table = {"label": "table", "data": {"num_rows": 10**6, "num_cols": 10**6, "table_cells": []}}
    with pytest.raises(LimitExceeded, match="cells"):
        from_docling(exported([], ["#/tables/0"], tables=[table]))


NUMBERS = st.integers(-3, 40) | st.floats(allow_nan=True, allow_infinity=True)
PROVENANCE = st.builds(
    lambda page, a, b, c, d, low, high: prov(a, b, c, d, span=(low, high), page=page),
    *(st.integers(-1, 4), NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.integers(-2, 30), st.integers(-2, 30)),
)
TEXTS = st.fixed_dictionaries(
    {
        "label": st.sampled_from(["text", "title", "section_header", "list_item", "code", "page_footer", "formula", "picture"]),
        "text": st.text(max_size=20),
        "prov": st.lists(PROVENANCE, max_size=3),
        "children": st.lists(st.fixed_dictionaries({"$ref": st.sampled_from(["#/texts/0", "#/texts/1", "#/body"])}), max_size=2),
    }
)


@settings(max_examples=100 * FUZZ, deadline=None)
@given(st.lists(TEXTS, min_size=2, max_size=6))
def test_any_places_and_references_make_a_lawful_document_or_a_reason(texts: list[dict[str, Any]]) -> None:
    with contextlib.suppress(LoadError):
        check(from_docling(exported(texts, [f"#/texts/{number}" for number in range(len(texts))])))
