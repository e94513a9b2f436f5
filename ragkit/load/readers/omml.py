"""Formulas of office files (Office MathML) as linear text with the names of LaTeX, which models and people read."""

from __future__ import annotations

from ragkit.load.readers.zip_xml import Element, attribute, child, children, local

_BIG = {"∑": "\\sum", "∏": "\\prod", "∫": "\\int", "⋃": "\\bigcup", "⋂": "\\bigcap"}
_PROPERTIES = {"rPr", "ctrlPr", "sSupPr", "sSubPr", "sSubSupPr", "fPr", "radPr", "naryPr", "dPr", "mPr", "funcPr", "accPr"}
_LOWER = {"sSub": "sub", "sSubSup": "sub", "limLow": "lim"}  # elements with something below their base, and its name
_UPPER = {"sSup": "sup", "sSubSup": "sup", "limUpp": "lim"}


def formula(element: Element) -> str:
    """Return a formula between dollar signs: "$a^{2}+b^{2}=c^{2}$"; "" for an empty one."""
    text = _linear(element).strip()
    return f"${text}$" if text else ""


def _linear(element: Element | None) -> str:
    return "" if element is None else "".join(map(_written, element))


def _written(element: Element) -> str:
    name = local(element)
    if name == "t":
        return element.text or ""
    if name in _LOWER or name in _UPPER:
        return _with_scripts(element, name)
    if name in _WRITERS:
        return _WRITERS[name](element)
    return "" if name in _PROPERTIES else _linear(element)


def _with_scripts(element: Element, name: str) -> str:
    lower = f"_{_braced(element, _LOWER[name])}" if name in _LOWER else ""
    upper = f"^{_braced(element, _UPPER[name])}" if name in _UPPER else ""
    return _linear(child(element, "e")) + lower + upper


def _fraction(element: Element) -> str:
    return f"\\frac{_braced(element, 'num')}{_braced(element, 'den')}"


def _root(element: Element) -> str:
    degree = _linear(child(element, "deg"))
    return f"\\sqrt{f'[{degree}]' if degree else ''}{_braced(element, 'e')}"


def _operator(element: Element) -> str:
    """Write a sum, an integral or the like, with its bounds; the integral is the default sign."""
    sign = child(element, "naryPr", "chr")
    operator = "∫" if sign is None else attribute(sign, "val")
    lower, upper = (_linear(child(element, part)) for part in ("sub", "sup"))
    bounds = (f"_{{{lower}}}" if lower else "") + (f"^{{{upper}}}" if upper else "")
    return f"{_BIG.get(operator, operator)}{bounds} {_linear(child(element, 'e'))}"


def _delimited(element: Element) -> str:
    marks = [child(element, "dPr", part) for part in ("begChr", "endChr")]
    opening, closing = (default if mark is None else attribute(mark, "val") for mark, default in zip(marks, "()", strict=True))
    return opening + ", ".join(map(_linear, children(element, "e"))) + closing


def _matrix(element: Element) -> str:
    return "; ".join(", ".join(map(_linear, children(row, "e"))) for row in children(element, "mr"))


def _braced(element: Element, part: str) -> str:
    return "{" + _linear(child(element, part)) + "}"


_WRITERS = {"f": _fraction, "rad": _root, "nary": _operator, "d": _delimited, "m": _matrix}
