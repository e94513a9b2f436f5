"""Keys of a server: each has a scope, and may be bound to an index or to a filter.

A key is 32 random bytes, shown once when it is made; the file holds only its sha256. A fast hash is enough for a secret that
cannot be guessed; slow hashes are for passwords. Every stored hash is compared, in constant time, whichever matches.

    {"keys": [{"name": "reader", "sha256": "…", "scope": "read", "index": "library", "filters": {"team": "a"}}]}
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ragkit.search.filters import Filters, parse
from ragkit.store.filter import UNIT_FIELDS, fields_of

Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "write", "admin")  # each includes those before it
PREFIX = "rk_"
SHORTEST = 24  # characters of a key from the environment


class Key(BaseModel):
    """A key as it is stored. `index`: the only one it may use. `filters`: every search and listing is narrowed by it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=100)
    sha256: str = Field(pattern="^[0-9a-f]{64}$", repr=False)
    scope: Scope = "read"
    index: str | None = None
    filters: Filters | None = None

    @model_validator(mode="after")
    def _a_filter_is_for_reading(self) -> Key:
        if self.filters is not None:
            if passages := fields_of(parse(self.filters)) & UNIT_FIELDS:
                raise ValueError(f"a key is bound to documents, and {', '.join(sorted(passages))} are fields of passages")
            if self.scope != "read":
                raise ValueError(
                    "a key bound to a filter has the scope read: what it adds or deletes could lie beyond the filter"
                )
        return self

    def allows(self, scope: Scope) -> bool:
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


ANYBODY = Key(name="anybody on this machine", sha256="0" * 64, scope="admin")  # the caller of a server without keys


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def key_of(secret: str, keys: Sequence[Key]) -> Key | None:
    """Return the key with this secret; None if there is none."""
    sha256, match = digest(secret), None
    for key in keys:
        if hmac.compare_digest(sha256, key.sha256):
            match = key
    return match


def key_from_secret(secret: str, *, name: str = "environment") -> Key:
    """Return the key for a secret that somebody chose, with every scope. ValueError if it is short enough to be guessed."""
    if len(secret) < SHORTEST:
        raise ValueError(
            f"the key has {len(secret)} characters, and needs {SHORTEST}. Make one: ragkit keys add FILE --name NAME"
        )
    return Key(name=name, sha256=digest(secret), scope="admin")


def read_keys(path: Path) -> list[Key]:
    """Return the keys of a file. ValueError says what is wrong with it, and repeats none of its values."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))["keys"]
        keys = [Key.model_validate(fields) for fields in stored]
    except ValidationError as error:
        complaints = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ValueError(f"{path} holds an invalid key: {complaints}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a file of keys ({type(error).__name__}). Make one: ragkit keys add {path}") from None
    if not keys:
        raise ValueError(f"{path} holds no key. Make one: ragkit keys add {path}")
    names = [key.name for key in keys]
    if len(set(names)) < len(names):
        raise ValueError(
            f"{path} has two keys of one name: {', '.join(sorted({name for name in names if names.count(name) > 1}))}"
        )
    return keys


def add_key(path: Path, *, name: str, scope: Scope = "read", index: str | None = None, filters: Filters | None = None) -> str:
    """Make a key, write its hash to the file, and return the key itself, which is stored nowhere."""
    keys = read_keys(path) if path.exists() else []
    if any(key.name == name for key in keys):
        raise ValueError(f"{path} has a key named {name!r} already. Remove it first: ragkit keys remove {path} --name {name}")
    secret = PREFIX + secrets.token_urlsafe(32)
    _write(path, [*keys, Key(name=name, sha256=digest(secret), scope=scope, index=index, filters=filters)])
    return secret


def remove_key(path: Path, name: str) -> None:
    """Remove a key from a file. ValueError if the file has none of that name."""
    keys = read_keys(path)
    others = [key for key in keys if key.name != name]
    if len(others) == len(keys):
        raise ValueError(f"{path} has no key named {name!r}: it has {', '.join(key.name for key in keys)}")
    _write(path, others)


def _write(path: Path, keys: Sequence[Key]) -> None:
    """Write the file whole or not at all; only its owner may read it."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    content = json.dumps({"keys": [key.model_dump(exclude_none=True) for key in keys]}, indent=2)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content + "\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
