"""What the documents show is run: Python blocks, links, commands and the words they use."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    for block in blocks(page):
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_no_page_holds_a_placeholder() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert len(text) > 200, page
        assert not re.search(r"\b(TODO|FIXME|XXX|[A-Z]+_OUTPUT|lorem)\b", text), page


def test_every_command_in_the_readme_exists() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "README.md", ROOT / "docs" / "quickstart.md"))
    named = set(re.findall(r"^\s+ragkit (\w+)", text, re.M))
    command_line = [sys.executable, "-m", "ragkit.apps.cli.main", "--help"]
    shown = subprocess.run(command_line, capture_output=True, text=True, check=True).stdout
    assert named
    for command in named:
        assert re.search(rf"\b{command}\b", shown), command
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^\s+make (\w+)", text, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_every_folder_of_the_package_has_its_heading_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for folder in (ROOT / "ragkit").iterdir():
        if folder.is_dir() and folder.name != "__pycache__":
            assert f"## ragkit/{folder.name}/" in text


def test_the_format_page_names_every_table_and_column() -> None:
    from ragkit.store.catalog.schema import FORMAT, metadata

    text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    assert f"format {FORMAT}" in text
    for table in metadata.tables.values():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{table.name}` |"))
        for column in table.columns:
            assert column.name in ("sum", "life_sum") or f"`{column.name}`" in row, f"{table.name}.{column.name}"
