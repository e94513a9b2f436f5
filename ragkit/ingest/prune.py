"""Find the documents whose files are gone, for `prune` to delete. It only looks."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from ragkit.core.errors import StorageError
from ragkit.ingest.item import absolute_path
from ragkit.load import Source
from ragkit.store.local.reader import Reader
from ragkit.store.values import DocumentRow


def pruned_roots(targets: Sequence[str | Path | Source] | None) -> list[Path]:
    """Return the folders and files beneath which `prune` may delete, absolute; ValueError where the targets name none."""
    if targets is None:
        raise ValueError("prune=True is for files and folders: documents handed in from Python have no file that could be gone")
    roots = [absolute_path(target) for target in targets]
    for root in roots:
        if not root.exists():
            raise ValueError(f"prune=True is for folders and files, and {root} is a pattern: name the folder, with include=")
    return roots


def gone_documents(reader: Reader, root: Path, *, seen: Collection[str], read_whole: Collection[str]) -> list[DocumentRow]:
    """Return the documents beneath a root that are in the index and no longer on the disk.

    seen: identities met in this call, which are there. read_whole: files of which every record was read in this call, so that
    a record that was not met is gone. Documents that were only not asked for stay. StorageError where the root is empty.
    """
    beneath = [row for row in reader.find([str(root)], by="beneath") if row.identity not in seen]
    gone = [row for row in beneath if _is_gone(row, read_whole)]
    if gone and not any(Path(identity).is_relative_to(root) for identity in seen):
        raise StorageError(
            f"nothing was pruned: {root} holds no document any more, and the index has {len(gone)} from there. "
            f"If the disk is not mounted, mount it; to delete them, run: ragkit delete INDEX SOURCE..."
        )
    return gone


def _is_gone(row: DocumentRow, read_whole: Collection[str]) -> bool:
    """Whether a document's file is gone, or is there and was read in this call without meeting the document."""
    assert row.path is not None
    try:
        os.lstat(row.path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False  # the disk does not say
    return row.path in read_whole
