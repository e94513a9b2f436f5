"""Code search: a sentence finds a function. Models trained for it have a task `code`; others are asked as for any passage.

python examples/tasks/code_search.py [MODEL]
"""

from __future__ import annotations

import sys

from ragkit import load_encoder

FUNCTIONS = {
    "fibonacci": "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a",
    "read_csv": "def read_csv(path):\n    with open(path) as file:\n        return [line.split(',') for line in file]",
    "is_palindrome": "def is_palindrome(text):\n    return text == text[::-1]",
    "download": "def download(url, path):\n    with urlopen(url) as reply:\n        Path(path).write_bytes(reply.read())",
    "median": "def median(numbers):\n    numbers = sorted(numbers)\n    return numbers[len(numbers) // 2]",
}
QUERIES = {
    "parse a table with comma separated values from a file": "read_csv",
    "save a web page to disk": "download",
    "does a word read the same backwards?": "is_palindrome",
    "the middle value of a list": "median",
    "compute an element of the Fibonacci sequence": "fibonacci",
}


def main(model: str = "default") -> dict[str, str]:
    """The name of the best function for each query."""
    encoder = load_encoder(model)
    task = "code" if "code" in encoder.card.tasks else "retrieval"
    queries = encoder.encode_query(list(QUERIES), task=task).dense
    scores = queries @ encoder.encode_document(list(FUNCTIONS.values()), task=task).dense.T
    found = {query: list(FUNCTIONS)[best] for query, best in zip(QUERIES, scores.argmax(axis=1), strict=True)}
    for query, name in found.items():
        print(f"{query}\n  {name}")
    return found


if __name__ == "__main__":
    main(*sys.argv[1:2])
