"""The vector and word spaces of an index: kinds of units (chunk, page) times forms (dense, lexical, multi)."""

from __future__ import annotations

DENSE = "chunk.dense"
LEXICAL = "chunk.lexical"
MULTI = "chunk.multi"
PAGE_DENSE = "page.dense"
PAGE_MULTI = "page.multi"


SCALES = {DENSE: "cosine", LEXICAL: "bm25", MULTI: "maxsim", PAGE_DENSE: "cosine", PAGE_MULTI: "maxsim"}
OF_PAGES = (PAGE_DENSE, PAGE_MULTI)
MODES = {
    "hybrid": (DENSE, LEXICAL, MULTI, *OF_PAGES),
    "text": (DENSE, LEXICAL, MULTI),
    "pages": OF_PAGES,
    "dense": (DENSE,),
    "lexical": (LEXICAL,),
    "multi": (MULTI,),
    **{space: (space,) for space in SCALES},
}
