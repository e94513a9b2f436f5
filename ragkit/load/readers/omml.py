"""Formulas of office files (Office MathML) as linear text with the names of LaTeX, which models and people read."""

from __future__ import annotations

from typing import Any

from ragkit.load.readers.zip_xml import attribute, child, children, local

_BIG = {"∑": "\\sum", "∏": "\\prod", "∫": "\\int", "⋃": "\\bigcup", "⋂": "\\bigcap"}
_PROPERTIES = {"rPr", "ctrlPr", "sSupPr", "sSubPr", "sSubSupPr", "fPr", "radPr", "naryPr", "dPr", "mPr", "funcPr", "accPr"}


def formula(element: Any) -> str:
    """A formula between dollar signs: "$a^{2}+b^{2}=c^{2}$"."""
    text = _linear(element).strip()
    return f"${text}$" if text else ""


def _linear(element: Any) -> str:
    return "" if element is None else "".join(map(_one, element))


def _one(element: Any) -> str:
    name = local(element)
    if name == "t":
        return element.text or ""
    if name == "f":
        return f"\\frac{_braced(element, 'num')}{_braced(element, 'den')}"
    if name in ("sSup", "sSub", "sSubSup", "limLow", "limUpp"):
        lower = _braced(element, "lim" if name == "limLow" else "sub")
        upper = _braced(element, "lim" if name == "limUpp" else "sup")
        base = _linear(child(element, "e"))
        below = f"_{lower}" if name in ("sSub", "sSubSup", "limLow") else ""
        return base + below + (f"^{upper}" if name in ("sSup", "sSubSup", "limUpp") else "")
    if name == "rad":
        degree = _linear(child(element, "deg"))
        return f"\\sqrt{f'[{degree}]' if degree else ''}{_braced(element, 'e')}"
    if name == "nary":
        sign = child(element, "naryPr", "chr")
        operator = "∫" if sign is None else attribute(sign, "val")
        lower, upper = (_linear(child(element, part)) for part in ("sub", "sup"))
        bounds = (f"_{{{lower}}}" if lower else "") + (f"^{{{upper}}}" if upper else "")
        return f"{_BIG.get(operator, operator)}{bounds} {_linear(child(element, 'e'))}"
    if name == "d":
        marks = [child(element, "dPr", part) for part in ("begChr", "endChr")]
        opening, closing = (
            default if mark is None else attribute(mark, "val") for mark, default in zip(marks, "()", strict=True)
        )
        return opening + ", ".join(map(_linear, children(element, "e"))) + closing
    if name == "m":
        return "; ".join(", ".join(map(_linear, children(row, "e"))) for row in children(element, "mr"))
    return "" if name in _PROPERTIES else _linear(element)


def _braced(element: Any, part: str) -> str:
    return "{" + _linear(child(element, part)) + "}"
