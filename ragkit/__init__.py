"""ragkit: an index of your documents, on your own disk, that answers with evidence that can be checked.

    from ragkit import Index

    index = Index.open("library")
    print(index.add("papers/"))
    for hit in index.search("what is late chunking?", k=5):
        print(f"{hit.score:.3f}", hit.citation, hit.text)

Importing this package imports nothing heavy: each name below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ragkit.core.arrays import MultiVectors
    from ragkit.core.errors import RagkitError
    from ragkit.core.types import AddReport, Box, Chunk, Citation, Document, Hit, Page, Span
    from ragkit.encode import load_encoder
    from ragkit.encode.contract import Encoder, EncoderCard, Encoding, TokenStates
    from ragkit.index.index import Index
    from ragkit.index.maxsim_index import MaxSimIndex
    from ragkit.load import Limits

__version__ = "0.1.0"

_HOMES = {
    "Index": "index.index",
    "MaxSimIndex": "index.maxsim_index",
    "Document": "core.types",
    "Page": "core.types",
    "Span": "core.types",
    "Box": "core.types",
    "Chunk": "core.types",
    "Hit": "core.types",
    "Citation": "core.types",
    "AddReport": "core.types",
    "MultiVectors": "core.arrays",
    "Limits": "load",
    "RagkitError": "core.errors",
    "load_encoder": "encode",
    "Encoder": "encode.contract",
    "EncoderCard": "encode.contract",
    "Encoding": "encode.contract",
    "TokenStates": "encode.contract",
}

__all__ = [
    "AddReport",
    "Box",
    "Chunk",
    "Citation",
    "Document",
    "Encoder",
    "EncoderCard",
    "Encoding",
    "Hit",
    "Index",
    "Limits",
    "MaxSimIndex",
    "MultiVectors",
    "Page",
    "RagkitError",
    "Span",
    "TokenStates",
    "__version__",
    "load_encoder",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ragkit' has no attribute {name!r}")
    return getattr(import_module(f"ragkit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
