"""Remove what no reader can see any more: folders on disk, and then the rows of dead documents in the catalog.

Only the holder of LOCK may call anything here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ragkit.core.types import Ints
from ragkit.store.catalog.catalog import Catalog
from ragkit.store.local.files import writing
from ragkit.store.local.locks import remove_unused
from ragkit.store.local.reader import Reader
from ragkit.store.values import Commit

FORGET = 16  # folders gone before the catalog forgets them, where no text is to be forgotten with them


@dataclass(frozen=True, slots=True, eq=False)
class Swept:
    """The folders of which the catalog has records now, and the document versions that were purged, where any could be."""

    recorded: set[str]
    purged: Ints | None = None


def sweep(
    path: Path,
    catalog: Catalog,
    latest: Commit,
    reader: Reader | None,
    *,
    recorded: set[str],
    open_reader: Callable[[], Reader],
) -> Swept:
    """Remove the folders that the latest commit does not see and nobody reads; then forget them and the documents they held.

    reader: of the latest commit, where it is open already; open_reader opens it. recorded: the folders of which the catalog has
    records. Where no text goes with the folders, the catalog forgets FORGET of them at a time: that takes a transaction.
    """
    rows = catalog.segments(latest.number) if reader is None else [segment.row for segment in reader.segments]
    live = {row.id for row in rows} | ({latest.lexical} - {""})
    kept = live | _remove_folders(path, catalog, live, recorded)
    # All that is recorded and not there, so that what a crash kept this from forgetting is forgotten now.
    gone = sorted(recorded - kept)
    if len(gone) < (1 if latest.lexical else FORGET):
        return Swept(recorded)
    # Without lexical generations no folder stands for a commit, and an open reader reads no document here any more.
    before = 0 if latest.lexical else latest.number
    keep = _still_in_segments(catalog, latest, reader, open_reader)
    return Swept(recorded.difference(gone), catalog.forget(gone, commits_before=before, keep=keep))


def _remove_folders(path: Path, catalog: Catalog, live: set[str], recorded: set[str]) -> set[str]:
    """Remove the folders that are not live and that nobody reads; return the names of those that are still read."""
    with writing(path):
        folders = [*(path / "segments").iterdir(), *(path / "lexical").iterdir()]
    if {folder.name for folder in folders} - recorded:
        # A commit that failed at its sync may have left its frames in the write-ahead log, and a crash of the machine
        # would revive them, without their folders. This writes over them.
        catalog.reserve(documents=1, units=1)
    held = set()
    for folder in folders:
        with writing(folder):
            if folder.name not in live and folder.is_dir() and not remove_unused(folder):
                held.add(folder.name)
    return held


def _still_in_segments(catalog: Catalog, latest: Commit, reader: Reader | None, open_reader: Callable[[], Reader]) -> Ints:
    """Return the deleted document versions of which a live segment still holds rows: their tombstones must stay."""
    if len(catalog.deleted_documents(latest.number) if reader is None else reader.deleted) == 0:
        return np.empty(0, dtype=np.int64)
    reader = reader or open_reader()
    dead = [np.asarray(segment.documents)[~reader.live(at)] for at, segment in enumerate(reader.segments)]
    return np.unique(np.concatenate(dead)) if dead else np.empty(0, dtype=np.int64)
