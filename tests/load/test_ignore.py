"""Rules in files: what a folder's own .ragkitignore leaves out, by the syntax of .gitignore; git itself is the oracle."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ragkit.load import discover


def tree(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("words")


def found(root: Path, **options: object) -> list[str]:
    return [source.name for source in discover(root, **options)]  # type: ignore[arg-type]


NAMES = ("a.txt", "b.md", "build/x.txt", "sub/build/y.txt", "sub/keep.txt", "sub/drop.txt", "sub/deep/drop.txt", "docs/z.txt")


def test_rules_hold_for_their_folder_and_below_and_the_deepest_decides(tmp_path: Path) -> None:
    tree(tmp_path, *NAMES)
    (tmp_path / ".ragkitignore").write_text("build/\n*.md\ndrop.txt\n# a comment\n\n/docs\n")
    (tmp_path / "sub" / ".ragkitignore").write_text("!drop.txt\n/keep.txt\n")
    assert found(tmp_path) == ["a.txt", "sub/deep/drop.txt", "sub/drop.txt"]


def test_other_names_of_rule_files_are_heeded_when_they_are_given(tmp_path: Path) -> None:
    tree(tmp_path, *NAMES)
    (tmp_path / ".gitignore").write_text("sub\n")
    assert len(found(tmp_path)) == len(NAMES)
    assert found(tmp_path, ignore_files=[".gitignore"]) == ["a.txt", "b.md", "build/x.txt", "docs/z.txt"]
    with pytest.raises(TypeError, match="sequence of names"):
        found(tmp_path, ignore_files=".gitignore")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is the oracle, and is not installed")
@pytest.mark.parametrize(
    "rules",
    [
        "*.txt",
        "sub/*",
        "sub/**\n!sub/keep.txt",
        "**/drop.txt",
        "/build",
        "build/",
        "*\n!*/\n!*.md",
        "d*p.txt",
        "[ab].*",
        "\\#x\nsub/deep/",
    ],
)
def test_rules_mean_what_git_takes_them_to_mean(tmp_path: Path, rules: str) -> None:
    tree(tmp_path, *NAMES)
    (tmp_path / ".gitignore").write_text(rules + "\n")
    here = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True, env=here)
    listed = ["git", "-C", str(tmp_path), "ls-files", "--others", "--exclude-standard"]
    expected = subprocess.run(listed, check=True, env=here, capture_output=True, text=True).stdout.split()
    assert sorted(found(tmp_path, ignore_files=[".gitignore"])) == sorted(set(expected) - {".gitignore"})


def test_sidecars_are_no_documents_unless_they_stand_alone(tmp_path: Path) -> None:
    tree(tmp_path, "a.txt", "a.txt.meta.json", "b.txt.meta.yaml", "c.meta.json")
    assert found(tmp_path) == ["a.txt", "b.txt.meta.yaml", "c.meta.json"]


def test_folders_deeper_than_any_stack_are_walked(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        deep = here
        for _ in range(1500):
            os.mkdir("d", dir_fd=deep)
            deeper = os.open("d", os.O_RDONLY, dir_fd=deep)
            if deep != here:
                os.close(deep)
            deep = deeper
        os.close(deep)
        skipped: list[str] = []
        assert found(tmp_path, on_skip=lambda path, reason: skipped.append(reason)) == []
    finally:
        os.close(here)
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)
