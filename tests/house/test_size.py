"""How large files and functions may become. The figures: python -m tests.house.measure"""

from __future__ import annotations

import pytest

pytest.importorskip("radon", reason="radon, of the extra dev, measures complexity")

from tests.house.measure import any_in_thousand_lines, functions, lines

# The public face, and one framework's interface: each reads best whole.
LONGER_FILES = {"ragkit.index.index": 471, "ragkit.integrations.haystack": 486}
# Commands, routes and methods whose keywords are what a user chooses from.
PUBLIC_FACES = (
    "ragkit.apps.cli.",
    "ragkit.apps.serve.documents:page",
    "ragkit.encode:load_encoder",
    "ragkit.index.index:Index.",
)


def test_no_file_is_long() -> None:
    longer = {module: count for module, count in lines().items() if count > LONGER_FILES.get(module, 450)}
    assert longer == {}


def test_no_function_is_complex_and_few_are_half_so() -> None:
    sizes = functions()
    assert [str(size) for size in sizes if size.complexity > 15] == []
    assert sum(size.complexity > 10 for size in sizes) < 0.03 * len(sizes)


def test_no_function_but_a_public_face_takes_more_than_eight_parameters() -> None:
    many = [size for size in functions() if size.parameters > 8]
    assert [str(size) for size in many if not f"{size.module}:{size.name}".startswith(PUBLIC_FACES)] == []


def test_hardly_anything_is_of_any_type() -> None:
    assert any_in_thousand_lines() < 10
