"""The shape of ragkit's code in figures: python -m tests.house.measure [PACKAGE]

Lines a file, lines and cyclomatic complexity (McCabe 1976, by radon) and parameters of each function, and how often `Any` stands
in 1,000 lines. Lines of a function are those of its body, docstrings, comments and blank lines included.
"""

from __future__ import annotations

import ast
import re
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from radon.complexity import cc_visit
from radon.visitors import Class, Function

from tests.house.imports import PACKAGE, circles, imports, modules, upward


@dataclass(frozen=True, slots=True)
class FunctionSize:
    """One function or method: where it stands, its lines, complexity and parameters, `self` and `cls` left out."""

    module: str
    name: str
    lines: int
    complexity: int
    parameters: int

    def __str__(self) -> str:
        return f"{self.module}:{self.name} ({self.lines} lines, complexity {self.complexity}, {self.parameters} parameters)"


def functions(package: Path = PACKAGE) -> list[FunctionSize]:
    """Every function and method of a package, nested functions with the one around them."""
    found = []
    for module, path in modules(package).items():
        source = path.read_text(encoding="utf-8")
        parameters = {node.lineno: _parameters(node) for node in ast.walk(ast.parse(source)) if _is_function(node)}
        for block in _blocks(cc_visit(source)):
            name = f"{block.classname}.{block.name}" if block.classname else block.name
            lines = block.endline - block.lineno + 1
            found.append(FunctionSize(module, name, lines, block.complexity, parameters.get(block.lineno, 0)))
    return found


def _is_function(node: ast.AST) -> bool:
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))


def _parameters(node: ast.AST) -> int:
    assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    arguments = node.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args)]
    return len(names) - (names[:1] in (["self"], ["cls"])) + len(arguments.kwonlyargs) + (arguments.kwarg is not None)


def _blocks(blocks: list[Function | Class]) -> Iterator[Function]:
    return (block for block in blocks if isinstance(block, Function))


def lines(package: Path = PACKAGE) -> dict[str, int]:
    """The lines of each module."""
    return {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in modules(package).items()}


def any_in_thousand_lines(package: Path = PACKAGE) -> float:
    """How often the name `Any` stands in 1,000 lines of code, imports of it left out."""
    total = sum(lines(package).values())
    uses = 0
    for path in modules(package).values():
        source = re.sub(r"^(\s*)from typing import .*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        uses += sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(ast.parse(source)))
    return 1000 * uses / total


def main() -> None:
    """Print the table."""
    package = Path(sys.argv[1]).resolve() if sys.argv[1:] else PACKAGE
    sizes, files = functions(package), lines(package)
    length, complexity = [size.lines for size in sizes], [size.complexity for size in sizes]
    branchy = sum(each > 10 for each in complexity)
    found = imports(modules(package))
    rows = {
        "modules in the root": sum(1 for path in package.glob("*.py")) - 1,
        "folders in the root": sum(1 for path in package.iterdir() if (path / "__init__.py").exists()),
        "files over 450 lines": sum(count > 450 for count in files.values()),
        "longest file, lines": max(files.values()),
        "functions": len(sizes),
        "lines of a function, median and p90": f"{statistics.median(length):g} and {statistics.quantiles(length, n=10)[-1]:g}",
        "functions with a complexity over 15": sum(each > 15 for each in complexity),
        "functions with a complexity over 10": f"{branchy} ({100 * branchy / len(sizes):.1f} %)",
        "functions with over 8 parameters": sum(size.parameters > 8 for size in sizes),
        "Any in 1,000 lines": f"{any_in_thousand_lines(package):.1f}",
        "circles of imports": len(circles(found)),
    }
    if {each.name for each in package.iterdir() if each.is_dir()} >= {"core", "apps"}:
        rows["imports that run up"] = len(upward(found))
    for name, value in rows.items():
        print(f"{name:40} {value}")


if __name__ == "__main__":
    main()
