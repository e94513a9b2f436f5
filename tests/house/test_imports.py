"""What a file may import follows from where it stands."""

from __future__ import annotations

from pathlib import Path

from tests.house.imports import ORDER, PACKAGE, Import, circles, imports, modules, upward

FOLDERS = {folder for folders in ORDER for folder in folders}


def test_the_root_has_thirteen_folders_and_its_init() -> None:
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == FOLDERS
    assert [path.name for path in PACKAGE.glob("*.py")] == ["__init__.py"]
    assert len(FOLDERS) == 13


def test_no_import_runs_up() -> None:
    assert upward(imports(modules())) == []


def test_no_modules_import_each_other() -> None:
    assert circles(imports(modules())) == []


def test_an_arrow_up_and_a_circle_are_found_wherever_they_stand(tmp_path: Path) -> None:
    package = tmp_path / "ragkit"
    sources = {
        "core/a.py": "def f() -> None:\n    from ragkit.store import b\n",
        "store/b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ragkit.store.c import d\n",
        "store/c.py": "import ragkit.store.b\nd = 1\n",
        "load/e.py": "from ragkit.chunk.f import g\n",
        "chunk/f.py": "from ragkit import __version__ as g\n",
    }
    for name, source in {"__init__.py": "__version__ = ''\n", "store/__init__.py": "", **sources}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(source)
    found = imports(modules(package))
    assert upward(found) == [
        Import("ragkit.chunk.f", "ragkit", 1),
        Import("ragkit.core.a", "ragkit.store.b", 2),
        Import("ragkit.load.e", "ragkit.chunk.f", 1),
    ]
    assert circles(found) == [["ragkit.store.b", "ragkit.store.c"]]
