"""Files become Documents: they are found, read in a sandbox, and given an identity.

    with Parser(workers=2) as parser:
        for source, result in parser.parse(discover("papers/")):
            ...                                  # a Document, or a LoadError whose str() is the reason

Paths and records go in, Documents (`ragkit.core.types`) come out. Rules: a file is only ever parsed in a child process;
a failed document is a value, not an exception, and never takes others with it; loaders know nothing of what comes after
them. To add a loader, read `ragkit.load.formats`.
"""

from ragkit.load.discover import IGNORE_FILES, Source, discover
from ragkit.load.formats import format_of, supported
from ragkit.load.limits import Limits
from ragkit.load.records import content_hash, file_hash, record
from ragkit.load.render import RenderedPage, WantedPage, can_render, is_blank
from ragkit.load.sandbox.parser import Parser
from ragkit.load.sidecar import fields, sidecar

__all__ = [
    "IGNORE_FILES",
    "Limits",
    "Parser",
    "RenderedPage",
    "Source",
    "WantedPage",
    "can_render",
    "content_hash",
    "discover",
    "fields",
    "file_hash",
    "format_of",
    "is_blank",
    "record",
    "sidecar",
    "supported",
]
