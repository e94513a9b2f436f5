"""Commands that run a server, `serve` and `mcp`, and `keys`, which manages a server's keys."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ragkit.apps.cli.options import AsJson, Device, open_index, parse_filters, print_json, say

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

    from ragkit.apps.serve.jobs import Jobs
    from ragkit.apps.serve.keys import Key
    from ragkit.apps.serve.limits import ServeLimits
    from ragkit.encode.contract import Encoder
    from ragkit.index.index import Index

Model = Annotated[
    list[str] | None, typer.Option("--model", help="Another model for /v1/embeddings, by name or folder; NAME=FOLDER names it.")
]


def serve(
    indexes: Annotated[list[Path] | None, typer.Argument(metavar="[INDEX]...", help="Folders of indexes.")] = None,
    model: Model = None,
    host: Annotated[str, typer.Option(help="The address to listen at; others than loopback need a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
    keys: Annotated[
        Path | None, typer.Option(help="A file of keys, as `ragkit keys add` makes it. Or RAGKIT_KEY: one key.")
    ] = None,
    reranker: Annotated[
        list[str] | None, typer.Option(help="A cross-encoder for /v1/rerank, by name or folder; or NAME=FOLDER.")
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Whatever the key: nothing is added or deleted.")] = False,
    state: Annotated[Path | None, typer.Option(help="Where additions and sent files lie; INDEX.serve if left out.")] = None,
    fetch_urls: Annotated[bool, typer.Option("--fetch-urls", help="Fetch images by https from public addresses.")] = False,
    device: Device = None,
    limit: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="What requests may ask (docs/server.md); may be repeated.")
    ] = None,
) -> None:
    """Serve indexes and models over HTTP, until Ctrl-C: embeddings, search, documents, pages, reranking."""
    from ragkit.apps.serve.limits import ServeLimits
    from ragkit.apps.serve.run import make_server
    from ragkit.apps.serve.service import Service
    from ragkit.apps.serve.urls import Fetcher

    if not indexes and not model:
        raise ValueError("name an index to serve, or a model: ragkit serve INDEX, or ragkit serve --model default")
    limits = ServeLimits.parse(limit or ())
    with ExitStack() as stack:
        opened = open_indexes(indexes or (), device, stack)
        service = Service(
            opened,
            models=partial(_models, model or (), device),
            rerankers=partial(_rerankers, reranker or (), device),
            keys=_keys(keys),
            limits=limits,
            fetcher=Fetcher(most_bytes=limits.input_bytes) if fetch_urls else None,
            jobs={} if read_only else _jobs(opened, state, limits),
        )
        warning = "" if service.keys else "; without keys, for this machine only"

        def on_ready(address: str) -> None:
            say(f"serving {', '.join([*opened, *service.models])} at {address}{warning}")

        server = make_server(service, host=host, port=port, on_ready=on_ready)
        with suppress(KeyboardInterrupt):  # uvicorn passes the signal on once it has stopped; a server that stops has not failed
            server.run()


def mcp(
    indexes: Annotated[list[Path], typer.Argument(metavar="INDEX...", help="Folders of indexes.")],
    allow_writing: Annotated[bool, typer.Option("--allow-writing", help="With the tools add and delete.")] = False,
    device: Device = None,
) -> None:
    """Serve indexes as MCP tools over standard input and output, for the client that started this."""
    from ragkit.core.errors import MissingExtra

    try:
        from ragkit.apps.serve.mcp import run_stdio
    except ImportError as error:
        raise MissingExtra.of(str(error.name), "mcp", "serving MCP") from None
    with ExitStack() as stack:
        run_stdio(open_indexes(indexes, device, stack), writable=allow_writing)


def open_indexes(paths: Sequence[Path], device: str | None, stack: ExitStack) -> dict[str, Index]:
    """Return the open indexes by the names of their folders; the stack closes them. ValueError for two of one name."""
    indexes = {path.absolute().name: stack.enter_context(open_index(path, create=False, device=device)) for path in paths}
    if len(indexes) < len(paths):
        raise ValueError("two of these indexes have the same folder name: rename one")
    return indexes


def _jobs(indexes: Mapping[str, Index], state: Path | None, limits: ServeLimits) -> dict[str, Jobs]:
    """Return what adds documents to each index; its files lie in `state`, or beside the index."""
    from ragkit.apps.serve.jobs import Jobs

    folders = {name: (state / name if state else index.path.with_name(f"{name}.serve")) for name, index in indexes.items()}
    return {name: Jobs(index, name, folders[name], limits=limits) for name, index in indexes.items()}


def _models(options: Sequence[str], device: str | None) -> dict[str, Encoder]:
    """Load the encoders that --model names, by the names that requests give."""
    from ragkit.encode import load_encoder

    models = {}
    for name, model in map(_named, options):
        encoder = load_encoder(model, device=device)
        models[name or encoder.card.name] = encoder
    return models


def _rerankers(options: Sequence[str], device: str | None) -> dict[str, CrossEncoder]:
    """Load the cross-encoders that --reranker names, by the names that requests give."""
    from ragkit.encode.models.cross_encoder import load_cross_encoder

    return {name or Path(model).name: load_cross_encoder(model, device=device) for name, model in map(_named, options)}


def _named(option: str) -> tuple[str, str]:
    """Return (name, model) of "NAME=FOLDER", and ("", model) of a model alone."""
    name, separator, folder = option.partition("=")
    return (name, folder) if separator else ("", option)


def _keys(path: Path | None) -> list[Key]:
    """Return the keys of a file and the one in RAGKIT_KEY."""
    from ragkit.apps.serve.keys import key_from_secret, read_keys

    secret = os.environ.get("RAGKIT_KEY", "")
    return [*(read_keys(path) if path is not None else ()), *([key_from_secret(secret)] if secret else ())]


KeyFile = Annotated[Path, typer.Argument(metavar="FILE", help="The file of keys; it holds their hashes only.")]
KeyName = Annotated[str, typer.Option("--name", help="What the key is known by.")]


def add_key(
    file: KeyFile,
    name: KeyName,
    scope: Annotated[str, typer.Option(help="read, write (adds and deletes, too) or admin (metrics, too).")] = "read",
    index: Annotated[str | None, typer.Option(help="The only index it is for, by its folder's name.")] = None,
    filters: Annotated[
        str | None, typer.Option("--filter", help="JSON: the documents it sees. Requests can only narrow it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it once; the file keeps only its hash."""
    from ragkit.apps.serve.keys import SCOPES, add_key

    if scope not in SCOPES:
        raise ValueError(f"scope is one of {', '.join(SCOPES)}, got {scope!r}")
    secret = add_key(file, name=name, scope=scope, index=index, filters=parse_filters(filters))
    if as_json:
        print_json({"name": name, "key": secret})
    else:
        print(secret)
        say(f"{name}: {scope}; it is not shown again")


def list_keys(file: KeyFile, as_json: AsJson = False) -> None:
    """List the names, scopes and bounds of a file's keys; the keys themselves are not in the file."""
    from ragkit.apps.serve.keys import read_keys

    rows = [key.model_dump(exclude={"sha256"}, exclude_none=True) for key in read_keys(file)]
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            print("\t".join(f"{name}={value}" for name, value in row.items()))


def remove_key(file: KeyFile, name: KeyName) -> None:
    """Remove a key from the file; a running server accepts it until it is started again."""
    from ragkit.apps.serve.keys import remove_key

    remove_key(file, name)
    say(f"removed {name}")
