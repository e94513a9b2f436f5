"""The files that evaluation tools exchange: judgments (qrels) and rankings (runs). Errors name file and line.

A run is {query: {target: score}}, each query's targets best first: the order of the dict is the ranking.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

from ragkit.core.errors import LoadError

Qrels = dict[str, dict[str, int]]
Run = dict[str, dict[str, float]]


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the non-blank lines of a UTF-8 file with their numbers from 1. LoadError if the file cannot be read."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from ((number, line.rstrip("\r\n")) for number, line in enumerate(file, 1) if line.strip())
    except OSError as error:
        raise LoadError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise LoadError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start} of a block") from None


def read_qrels(path: str | Path) -> Qrels:
    """Read judgments: TREC's four columns (query, iteration, target, grade) or BEIR's three (query, target, grade).

    Columns are separated by tabs or blanks; a header line (its last column is not a number) may open the file.
    """
    path = Path(path)
    qrels: Qrels = {}
    first = True
    for number, line in lines_of(path):
        columns = line.split("\t") if "\t" in line else line.split()
        header, first = first and not _is_whole(columns[-1]), False
        if header:
            continue
        if len(columns) not in (3, 4) or not _is_whole(columns[-1]):
            raise LoadError(f"{path}, line {number}: a judgment is query, [iteration,] target, whole grade; got {line!r}")
        query, target = columns[0].strip(), columns[-2].strip()
        if qrels.setdefault(query, {}).setdefault(target, int(columns[-1])) != int(columns[-1]):
            raise LoadError(f"{path}, line {number}: {query} and {target} were judged before, with another grade")
    if not qrels:
        raise LoadError(f"{path} holds no judgments")
    return qrels


def read_run(path: str | Path) -> Run:
    """Read a TREC run of six columns: query, Q0, target, rank, score, tag. As in trec_eval, the score alone ranks, and equal
    scores rank by the target's name, the later one first."""
    path = Path(path)
    run: Run = {}
    for number, line in lines_of(path):
        columns = line.split()
        if len(columns) != 6:
            raise LoadError(f"{path}, line {number}: a run has six columns, query Q0 target rank score tag; got {line!r}")
        query, target = columns[0], columns[2]
        if target in run.setdefault(query, {}):
            raise LoadError(f"{path}, line {number}: {query} lists {target} twice")
        try:
            run[query][target] = float(columns[4])
        except ValueError:
            raise LoadError(f"{path}, line {number}: the score is {columns[4]!r}, which is not a number") from None
    return {
        query: dict(sorted(scores.items(), key=lambda pair: (pair[1], pair[0]), reverse=True)) for query, scores in run.items()
    }


def write_run(path: str | Path, run: Mapping[str, Mapping[str, float]], *, tag: str = "ragkit") -> None:
    """Write the six columns that `read_run` reads. If the scores do not descend, the file carries 1 / rank in their place."""
    with Path(path).open("w", encoding="utf-8") as file:
        for query, scores in run.items():
            file.writelines(_run_lines(query, scores, tag))


def _run_lines(query: str, scores: Mapping[str, float], tag: str) -> Iterator[str]:
    _check_name(query)
    descending = all(a > b for a, b in pairwise(scores.values()))
    for rank, (target, score) in enumerate(scores.items(), 1):
        _check_name(target)
        yield f"{query} Q0 {target} {rank} {float(score) if descending else 1 / rank!r} {tag}\n"


def _check_name(name: str) -> None:
    if not name or name.split() != [name]:
        raise ValueError(f"a TREC run separates by blanks, so it cannot hold the id {name!r}")


def _is_whole(column: str) -> bool:
    try:
        int(column)
    except ValueError:
        return False
    return True
