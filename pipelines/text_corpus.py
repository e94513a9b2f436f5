"""A corpus of records (JSONL, a database, an API) becomes an index, and is asked in three ways.

    python pipelines/text_corpus.py INDEX RECORDS.jsonl "a question"

What to take from it: records are streamed, not loaded; each keeps its id, so that running this again re-embeds only what
changed; metadata filters are exact.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ragkit import Index


def records(path: Path) -> Iterator[dict[str, Any]]:
    """One record a line. Replace this by a cursor over your database: only id and text are needed."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            fields = json.loads(line)
            yield {
                "id": str(fields.pop("id", fields.pop("_id", ""))),
                "title": fields.pop("title", ""),
                "text": fields.pop("text"),
                "meta": fields,
            }


def main(folder: str, corpus: str, question: str) -> None:
    with Index.open(folder, chunker="sentences", chunk_tokens=128) as index:
        print(index.add(records(Path(corpus))))
        for mode in ("hybrid", "dense", "lexical"):
            print(f"\n{mode}")
            for hit in index.search(question, k=3, mode=mode, group_by="document"):
                print(f"  {hit.score:.3f}  {hit.citation}  {' '.join(hit.text.split())[:90]}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
