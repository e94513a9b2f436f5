"""What a target holds: files, folders, globs; order, names, links, what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragkit.load import Source, discover


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    names = [
        "b.md",
        "a.txt",
        "sub/c.pdf",
        "sub/deep/d.html",
        "sub/e.xyz",
        ".git/config.txt",
        "sub/.hidden.txt",
        "CVS/f.txt",
        "z.py",
    ]
    for name in names:
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(name)
    return tmp_path / "root"


def names(target: object, **options: object) -> list[str]:
    return [source.name for source in discover(target, **options)]  # type: ignore[arg-type]


def test_a_folder_is_walked_in_sorted_order(tree: Path) -> None:
    assert names(tree) == ["a.txt", "b.md", "sub/c.pdf", "sub/deep/d.html", "z.py"]


def test_a_source_knows_its_root(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree.parent)
    assert next(discover("root")) == Source(tree / "a.txt", tree, "a.txt")
    assert next(discover("root/sub/c.pdf")) == Source(tree / "sub/c.pdf", tree / "sub", "c.pdf")
    assert next(discover("root/sub/*/*.html")) == Source(tree / "sub/deep/d.html", tree / "sub", "deep/d.html")


def test_unsupported_files_are_told_not_yielded_unless_named(tree: Path) -> None:
    skipped: list[Path] = []
    list(discover(tree, on_skip=lambda path, reason: skipped.append(path)))
    assert skipped == [tree / "sub/e.xyz"]
    assert names(tree / "sub/e.xyz") == ["e.xyz"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.md", ["b.md"]),
        ("**/*.html", ["sub/deep/d.html"]),
        ("**", ["a.txt", "b.md", "sub/c.pdf", "sub/deep/d.html", "z.py"]),
        ("[ab].*", ["a.txt", "b.md"]),
        ("[!ab].*", ["z.py"]),
        ("?.py", ["z.py"]),
    ],
)
def test_globs(tree: Path, pattern: str, expected: list[str]) -> None:
    assert names(f"{tree}/{pattern}") == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include": ["*.md", "*.html"]}, ["b.md", "sub/deep/d.html"]),
        ({"include": ["sub/*"]}, ["sub/c.pdf", "sub/deep/d.html"]),
        ({"exclude": ["deep"]}, ["a.txt", "b.md", "sub/c.pdf", "z.py"]),
        ({"exclude": ["sub/"]}, ["a.txt", "b.md", "z.py"]),
        ({"include": ["*.md", "*.py"], "exclude": ["z*"]}, ["b.md"]),
    ],
)
def test_include_and_exclude(tree: Path, options: dict[str, list[str]], expected: list[str]) -> None:
    assert names(tree, **options) == expected


def test_a_string_of_patterns_is_refused(tree: Path) -> None:
    with pytest.raises(TypeError, match="sequences"):
        discover(tree, include="*.md")


def test_link_loops_end_and_links_out_are_followed_once(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "o.txt").write_text("o")
    (outside / "back").symlink_to(tree)
    (tree / "loop").symlink_to(tree)
    (tree / "up").symlink_to(tmp_path)
    (tree / "inner").symlink_to(tree / "sub")
    (tree / "broken.txt").symlink_to(tmp_path / "nothing.txt")
    (tree / "out1").symlink_to(outside)
    (tree / "out2").symlink_to(outside)
    assert names(tree) == ["a.txt", "b.md", "out1/o.txt", "sub/c.pdf", "sub/deep/d.html", "z.py"]


def test_what_does_not_exist_says_so_at_once(tree: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        discover(tree / "nothing" / "here.pdf")
    with pytest.raises(FileNotFoundError, match="no folder"):
        discover(f"{tree}/nothing/*.pdf")
    with pytest.raises(FileNotFoundError, match="matches no file"):
        list(discover(f"{tree}/*.docx"))


def test_discovery_streams(tree: Path) -> None:
    found = discover(tree)
    assert next(found).name == "a.txt"
    (tree / "zz.txt").write_text("late")
    (tree / "sub" / "late.txt").write_text("late")
    assert "sub/late.txt" in [source.name for source in found]
