"""A target (a file, a folder, a glob) becomes the sources beneath it, one at a time.

A source's name is its identity: its path relative to the root that was added. So roots stay absolute and as they were written:
symbolic links in them are not resolved.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ragkit.load.formats import format_of
from ragkit.load.sidecar import is_sidecar

OnSkip = Callable[[Path, str], None]
_MAGIC = re.compile(r"[*?\[]")
IGNORE_FILES = (".ragkitignore",)
_SKIPPED_FOLDERS = {"CVS", "_darcs", "__pycache__"}  # besides hidden ones, such as .git


@dataclass(frozen=True, slots=True)
class Source:
    """One file to load: where it is, the root it was found under, and its name, relative to the root with "/"."""

    path: Path
    root: Path
    name: str


def discover(
    target: str | Path | Source,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    ignore_files: Sequence[str] = IGNORE_FILES,
    on_skip: OnSkip | None = None,
) -> Iterator[Source]:
    """Yield the sources of a file, a folder (recursively, sorted within each folder), or a glob ("papers/**/*.pdf").

    No folder is listed before its files are taken, but a target that does not exist raises FileNotFoundError at once.
    A file named outright is a source whatever its kind. In folders and globs, files without a loader are left out and
    reported to `on_skip(path, reason)`, and so are folders that cannot be read. Hidden files, hidden and version-control
    folders are left out silently. Links that lead within the root are left out, since what they point at is found
    there; those that lead elsewhere are followed, no folder twice.

    `include` and `exclude` are globs over the name ("drafts/**", "*.pdf"); one without "/" speaks of the last part of
    the name, or of any folder. A file is taken if some `include` (or none is given) and no `exclude` matches.

    `ignore_files` are names of files with rules in the syntax of .gitignore, for the folder they stand in and all below;
    what they name is left out silently. Give (".ragkitignore", ".gitignore") to follow both. Sidecars, such as
    "a.pdf.meta.json", are not sources.
    """
    if isinstance(target, Source):  # a file under a name that its caller chose
        return iter((target,))
    if not str(target):
        raise ValueError("the target is empty. Name a file, a folder, or a glob such as 'papers/**/*.pdf'.")
    path = Path(os.path.abspath(os.path.expanduser(target)))  # noqa: PTH100, PTH111 - Path.resolve would follow links
    taken, refused = _matcher(include), _matcher(exclude)

    def keeps(name: str) -> bool:
        return (not include or taken(name)) and not refused(name)

    choice = _Choice(keeps, refused, ignore_files, on_skip)
    if path.is_dir():
        return _in_folder(path, choice)
    if path.exists():
        return iter([Source(path, path.parent, path.name)] if keeps(path.name) else [])
    if _MAGIC.search(str(target)):
        return _in_glob(path, choice)
    near = next(parent for parent in path.parents if parent.exists())
    where = "" if near == path.parent else f" (the nearest folder that exists is {near})"
    raise FileNotFoundError(f"{path} does not exist{where}. Name a file, a folder, or a glob such as 'papers/**/*.pdf'.")


@dataclass(frozen=True, slots=True)
class _Choice:
    """Which of the files beneath a folder are sources.

    `keeps` and `refused` are asked with names of files and of folders; `depth` is the deepest level of files, None for all.
    """

    keeps: Callable[[str], bool]
    refused: Callable[[str], bool]
    ignore_files: Sequence[str]
    on_skip: OnSkip | None
    depth: int | None = None

    def skip(self, path: Path, reason: str) -> None:
        if self.on_skip:
            self.on_skip(path, reason)


def _in_glob(path: Path, choice: _Choice) -> Iterator[Source]:
    fixed = next(i for i, part in enumerate(path.parts) if _MAGIC.search(part))
    root, pattern = Path(*path.parts[:fixed]), "/".join(path.parts[fixed:])
    if not root.is_dir():
        raise FileNotFoundError(f"{path} matches nothing: there is no folder {root}")
    depth = None if "**" in pattern else pattern.count("/") + 1
    matches = re.compile(_regex(pattern)).fullmatch
    skipped: list[Path] = []

    def on_skip(skipped_path: Path, reason: str) -> None:
        skipped.append(skipped_path)
        choice.skip(skipped_path, reason)

    def keeps(name: str) -> bool:
        return matches(name) is not None and choice.keeps(name)

    def walk() -> Iterator[Source]:
        empty = True
        for source in _in_folder(root, replace(choice, keeps=keeps, on_skip=on_skip, depth=depth)):
            empty = False
            yield source
        if empty and not skipped:
            raise FileNotFoundError(f"{path} matches no file beneath {root}")

    return walk()


@dataclass(frozen=True, slots=True)
class _Rules:
    """The rules of one ignore file: for names that begin with `prefix`, the folder it stands in."""

    prefix: str
    spec: Any  # pathspec.GitIgnoreSpec


def _ignored(name: str, rules: tuple[_Rules, ...]) -> bool:
    """Return whether a name, of a folder with "/" at its end, is ignored: the deepest rule that speaks of it decides."""
    for each in reversed(rules):
        verdict = each.spec.check_file(name.removeprefix(each.prefix))
        if verdict.include is not None:
            # "sub/**" speaks of all that is in the folder, and a later rule may take some of it back.
            whole = name.endswith("/") and str(each.spec.patterns[verdict.index].pattern).endswith("/**")
            return bool(verdict.include) and not whole
    return False


def _rules_of(folder: Path, prefix: str, choice: _Choice) -> Iterator[_Rules]:
    """Yield the rules that stand in a folder. A file of rules that cannot be read is reported: what it names is not left out."""
    for name in choice.ignore_files:
        try:
            lines = (folder / name).read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            continue
        except OSError as error:
            choice.skip(folder / name, f"its rules cannot be read: {error.strerror}")
            continue
        import pathspec

        yield _Rules(prefix, pathspec.GitIgnoreSpec.from_lines(lines))


def _in_folder(root: Path, choice: _Choice) -> Iterator[Source]:
    if isinstance(choice.ignore_files, str):
        raise TypeError(f"ignore_files is a sequence of names, got the string {choice.ignore_files!r}")
    return _Walk(root, choice).sources()


Entries = tuple[Iterator[os.DirEntry[str]], str, tuple[_Rules, ...]]  # of a folder: sorted, the prefix of their names, its rules


@dataclass(slots=True)
class _Walk:
    """One walk through a folder and all beneath it. `seen`: the folders that were entered, so that none is entered twice."""

    root: Path
    choice: _Choice
    seen: set[tuple[int, int]] = field(default_factory=set)

    def sources(self) -> Iterator[Source]:
        """Yield the sources, sorted within each folder."""
        real_root = Path(os.path.realpath(self.root))
        self.seen.add(_identity(real_root))
        stack = [self._listed(self.root, "", ())]  # a list of our own, so that depth costs no stack
        while stack:
            entries, prefix, rules = stack[-1]
            entry = next(entries, None)
            if entry is None:
                stack.pop()
                continue
            name = prefix + entry.name
            if entry.name.startswith(".") or (entry.is_symlink() and _leads_within(Path(entry.path), real_root)):
                continue
            if entry.is_dir():
                if self._enters(entry, name, rules):
                    stack.append(self._listed(Path(entry.path), name + "/", rules))
            elif entry.is_file() and self._takes(entry, name, rules):
                yield Source(Path(entry.path), self.root, name)

    def _listed(self, folder: Path, prefix: str, above: tuple[_Rules, ...]) -> Entries:
        """Return the entries of a folder, sorted, with the prefix of their names and the rules that hold for them."""
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self.choice.skip(folder, f"cannot be listed: {error.strerror}")
            return iter(()), prefix, above
        return iter(found), prefix, (*above, *_rules_of(folder, prefix, self.choice))

    def _enters(self, entry: os.DirEntry[str], name: str, rules: tuple[_Rules, ...]) -> bool:
        """Return whether a folder is to be entered, which it is only once."""
        if _is_index(Path(entry.path)) or entry.name in _SKIPPED_FOLDERS or self.choice.refused(name):
            return False
        depth = self.choice.depth
        if (depth and name.count("/") + 1 >= depth) or _ignored(name + "/", rules):
            return False
        try:
            identity = _identity(Path(entry.path))
        except OSError as error:  # it went, or was locked, since it was listed
            self.choice.skip(Path(entry.path), f"cannot be entered: {error.strerror}")
            return False
        if identity in self.seen:
            return False
        self.seen.add(identity)
        return True

    def _takes(self, entry: os.DirEntry[str], name: str, rules: tuple[_Rules, ...]) -> bool:
        """Return whether a file is a source. One that no loader takes is reported."""
        if not self.choice.keeps(name) or _ignored(name, rules) or is_sidecar(entry.path):
            return False
        if format_of(entry.name) is None:
            self.choice.skip(Path(entry.path), "no loader takes this kind of file")
            return False
        return True


def _is_index(folder: Path) -> bool:
    """Return whether a folder is an index: one that stands beside its documents must not read itself."""
    return (folder / "catalog.db").is_file() and (folder / "segments").is_dir()


def _identity(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def _leads_within(link: Path, root: Path) -> bool:
    """Return whether a link leads into the root, or to a folder around it: a loop."""
    target = Path(os.path.realpath(link))
    return target.is_relative_to(root) or root.is_relative_to(target)


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    if isinstance(patterns, str):
        raise TypeError(f"include and exclude are sequences of globs, got the string {patterns!r}")
    if not patterns:
        return lambda name: False
    # A glob without "/" speaks of the file's own name or of any folder on the way to it.
    parts = [_regex(p.strip("/")) if "/" in p.strip("/") else f"(?:.*/)?{_regex(p.strip('/'))}" for p in patterns]
    compiled = re.compile("|".join(f"(?:{part})(?:/.*)?" for part in parts))
    return lambda name: compiled.fullmatch(name) is not None


def _regex(pattern: str) -> str:
    """Return a glob as a regular expression: "*" and "?" stay within one folder, "**" crosses folders, "[a-c]" is a set."""
    out, at = [], 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            out.append("(?:.*/)?")
            at += 3
        elif pattern.startswith("**", at):
            out.append(".*")
            at += 2
        elif pattern[at] == "*":
            out.append("[^/]*")
            at += 1
        elif pattern[at] == "?":
            out.append("[^/]")
            at += 1
        elif pattern[at] == "[" and (end := pattern.find("]", at + 2)) > 0:
            inside = pattern[at + 1 : end].replace("\\", "\\\\")
            out.append("[" + ("^" + inside[1:] if inside[0] in "!^" else inside) + "]")
            at = end + 1
        else:
            out.append(re.escape(pattern[at]))
            at += 1
    return "".join(out)
