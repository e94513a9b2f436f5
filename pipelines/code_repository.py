"""A source tree becomes an index that answers with files and line numbers.

    python pipelines/code_repository.py INDEX REPOSITORY "where is the retry handled?"

What to take from it: `structure` keeps functions and classes whole where they fit; line numbers are counted from a hit's
span, which is exact; filters narrow to a language.
"""

from __future__ import annotations

import sys

from ragkit import Hit, Index

GENERATED = ["*/node_modules/*", "*/build/*", "*.min.js", "*.lock"]


def lines_of(index: Index, hit: Hit) -> tuple[int, int]:
    """The first and last line of a hit, from 1."""
    before = index.document(hit.source).text[: hit.span.start]
    first = before.count("\n") + 1
    return first, first + hit.text.count("\n")


def main(folder: str, repository: str, question: str, language: str | None = None) -> None:
    with Index.open(folder, chunker="structure", chunk_tokens=200) as index:
        print(index.add(repository, exclude=GENERATED))
        filters = {"language": language} if language else None
        for hit in index.search(question, k=5, filters=filters):
            first, last = lines_of(index, hit)
            print(f"\n{hit.source}:{first}-{last}  {hit.score:.3f}")
            print("\n".join("    " + line for line in hit.text.splitlines()[:6]))


if __name__ == "__main__":
    main(*sys.argv[1:5])
