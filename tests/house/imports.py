"""The imports of ragkit's modules, read from their source: at module level, within functions, and for type checkers only."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ragkit"
# A folder may import from the groups before its own. Folders of one group do not know each other.
ORDER = (
    ("core",),
    ("load", "chunk", "encode"),
    ("store",),
    ("recipe",),
    ("ingest", "search"),
    ("care",),
    ("index",),
    ("integrations", "testing"),
    ("apps",),
)
PUBLIC = ("integrations", "testing", "apps")  # these may import what `ragkit` itself offers
RANK = {folder: rank for rank, folders in enumerate(ORDER) for folder in folders}


@dataclass(frozen=True, slots=True, order=True)
class Import:
    """One module of ragkit that another imports, and the line where it does."""

    importer: str
    imported: str
    line: int


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """The modules of the package by dotted name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(files: Mapping[str, Path]) -> list[Import]:
    """Every import of one of these modules by another, sorted."""
    found = set()
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for target in _targets(node, files):
                if target != name:
                    found.add(Import(name, target, node.lineno))
    return sorted(found)


def _targets(node: ast.AST, files: Mapping[str, Path]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name in files]
    if isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
        submodules = [f"{node.module}.{alias.name}" for alias in node.names]
        if node.module not in files:
            return []
        found = [submodule for submodule in submodules if submodule in files]
        return found if len(found) == len(submodules) else [*found, node.module]
    return []


def folder_of(module: str) -> str:
    """The folder of the root that a module stands in; "" for the root itself."""
    return module.partition(".")[2].partition(".")[0]


def upward(found: list[Import]) -> list[Import]:
    """The imports that go from a folder to one that is not before it."""
    return [
        each
        for each in found
        if folder_of(each.importer)
        and folder_of(each.importer) != folder_of(each.imported)
        and not _may(folder_of(each.importer), folder_of(each.imported))
    ]


def _may(importer: str, imported: str) -> bool:
    """Whether a file in one folder may import from another; "" is the package itself, with its public names."""
    return importer in PUBLIC if imported == "" else RANK[imported] < RANK[importer]


def circles(found: list[Import]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others, each sorted (Tarjan 1972)."""
    graph: dict[str, set[str]] = {}
    for each in found:
        graph.setdefault(each.importer, set()).add(each.imported)
        graph.setdefault(each.imported, set())
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    result = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for neighbour in sorted(graph[module]):
            if neighbour not in index:
                visit(neighbour)
                low[module] = min(low[module], low[neighbour])
            elif neighbour in stack:
                low[module] = min(low[module], index[neighbour])
        if low[module] == index[module]:
            at = stack.index(module)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1:
                result.append(sorted(group))

    for module in sorted(graph):
        if module not in index:
            visit(module)
    return result
