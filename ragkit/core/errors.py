"""What can go wrong, and what to do about it.

    RagkitError                   everything below; catch this to catch all of ragkit
    ├── LoadError                 a document could not be read; `reason` says why
    │   ├── EncryptedDocument     it needs a password
    │   ├── LimitExceeded         it went over a limit on time, memory, pages or bytes
    │   └── UnsupportedFormat     no loader takes it, or its extra is not installed
    ├── ChunkError                a chunker broke a law: out of range, out of order, over budget
    ├── EncodeError               a text or image could not be encoded
    │   ├── InputTooLong          beyond the model's limit, and truncation was not asked for
    │   ├── RemoteError           an embeddings service refused, failed, or could not be reached
    │   └── CheckpointError       a model's files are missing, damaged, misshapen or would run code
    ├── StorageError              the index on disk refuses
    │   ├── IndexLocked           another process is writing
    │   ├── RecipeMismatch        opened with settings that disagree with the stored recipe
    │   ├── FingerprintMismatch   this encoder is not the one that built the index
    │   ├── FormatTooNew          written by a newer ragkit
    │   ├── NotAnIndex            the folder holds something else
    │   └── Damaged               a checksum does not match; names the file and the command
    └── MissingExtra              an optional package is needed; names the pip command

Misuse of a function (a negative k, a wrong type) is ValueError or TypeError, as in the standard library.
Every message says what failed, where, the numbers, and the way out.
"""

from __future__ import annotations


class RagkitError(Exception):
    """The root of every error that ragkit raises on purpose."""


class LoadError(RagkitError):
    """A document could not be read. `str(error)` is the reason, without the document's name."""


class EncryptedDocument(LoadError):
    """The document is encrypted and no password, or a wrong one, was given."""


class LimitExceeded(LoadError):
    """The document went over one of the limits of `ragkit.load.Limits`."""


class UnsupportedFormat(LoadError):
    """No loader takes this kind of file."""


class ChunkError(RagkitError):
    """A chunker returned spans that break a law of `ragkit.chunk`."""


class EncodeError(RagkitError):
    """A text or an image could not be turned into vectors."""


class InputTooLong(EncodeError):
    """An input has more tokens than the model takes, and truncation was not asked for."""


class RemoteError(EncodeError):
    """An embeddings service refused, failed, or could not be reached.

    `status` is HTTP's, 0 without an answer; `code` is the service's; `again` says whether the same request may succeed later.
    """

    def __init__(self, message: str, *, status: int = 0, code: str = "", again: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.again = again


class CheckpointError(EncodeError):
    """A model's files are missing, damaged, misshapen, or ask to run code."""


class StorageError(RagkitError):
    """The index on disk refuses what was asked."""


class IndexLocked(StorageError):
    """Another process holds the index's writer lock."""


class RecipeMismatch(StorageError):
    """The settings given disagree with those the index was built with."""


class FingerprintMismatch(StorageError):
    """The encoder at hand is not the one that built the index."""


class FormatTooNew(StorageError):
    """The index was written by a newer version of ragkit."""


class NotAnIndex(StorageError):
    """The folder exists and holds something that is not an index."""


class Damaged(StorageError):
    """Bytes on disk do not match their checksum, or are not there. The message names the file and the command."""


class MissingExtra(RagkitError):
    """An optional package is not installed."""

    @classmethod
    def of(cls, package: str, extra: str, purpose: str) -> MissingExtra:
        """Return the error for a package that `purpose` needs, with the command that installs ragkit's extra."""
        return cls(f'{purpose} needs {package}, which is not installed. Run: pip install "ragkit[{extra}]"')
