"""`ragkit serve`, `ragkit mcp` and `ragkit keys`. `ragkit.apps.cli.main` adds them to its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ragkit.apps.cli.options import AsJson, open_index, print_json, say

if TYPE_CHECKING:
    from ragkit.apps.serve.keys import Key
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
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …")] = None,
    limit: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="What requests may ask (docs/server.md); may be repeated.")
    ] = None,
) -> None:
    """Serve indexes and models over HTTP, until Ctrl-C: embeddings, search, documents, pages, reranking."""
    from ragkit.apps.serve.jobs import Jobs
    from ragkit.apps.serve.limits import ServeLimits
    from ragkit.apps.serve.run import make_server
    from ragkit.apps.serve.service import Service
    from ragkit.apps.serve.urls import Fetcher

    if not indexes and not model:
        raise ValueError("name an index to serve, or a model: ragkit serve INDEX, or ragkit serve --model default")
    limits = ServeLimits.parse(limit or ())
    with ExitStack() as stack:
        found = open_indexes(indexes or (), device, stack)
        folders = {name: (state / name if state else index.path.with_name(f"{name}.serve")) for name, index in found.items()}
        service = Service(
            found,
            models=partial(_models, model or (), device),
            rerankers=partial(_rerankers, reranker or (), device),
            keys=_keys(keys),
            limits=limits,
            fetcher=Fetcher(most_bytes=limits.input_bytes) if fetch_urls else None,
            jobs={} if read_only else {name: Jobs(one, name, folders[name], limits=limits) for name, one in found.items()},
        )
        warning = "" if service.keys else "; without keys, for this machine only"

        def ready(address: str) -> None:
            say(f"serving {', '.join([*found, *service.models])} at {address}{warning}")

        server = make_server(service, host=host, port=port, on_ready=ready)
        with suppress(KeyboardInterrupt):  # uvicorn passes the signal on once it has stopped; to be told to stop is no failure
            server.run()


def mcp(
    indexes: Annotated[list[Path], typer.Argument(metavar="INDEX...", help="Folders of indexes.")],
    allow_writing: Annotated[bool, typer.Option("--allow-writing", help="With the tools add and delete.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …")] = None,
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
    """The indexes by the names of their folders, closed with the stack."""
    found = {path.absolute().name: stack.enter_context(open_index(path, create=False, device=device)) for path in paths}
    if len(found) < len(paths):
        raise ValueError("two of these indexes have the same folder name: rename one")
    return found


def _models(names: Any, device: str | None) -> dict[str, Encoder]:
    from ragkit.encode import load_encoder

    found = {}
    for one in names:
        name, given, folder = one.partition("=")
        encoder = load_encoder(folder if given else one, device=device)
        found[name if given else encoder.card.name] = encoder
    return found


def _rerankers(names: Any, device: str | None) -> dict[str, Any]:
    from ragkit.encode.models.cross_encoder import load_cross_encoder

    found = {}
    for one in names:
        name, given, folder = one.partition("=")
        found[name if given else Path(one).name] = load_cross_encoder(folder if given else one, device=device)
    return found


def _keys(path: Path | None) -> list[Key]:
    from ragkit.apps.serve.keys import key_from_secret, read_keys

    secret = os.environ.get("RAGKIT_KEY", "")
    return [*(read_keys(path) if path is not None else ()), *([key_from_secret(secret)] if secret else ())]


keys_app = typer.Typer(no_args_is_help=True, help="Keys of `ragkit serve`: make, list, remove.")
KeyFile = Annotated[Path, typer.Argument(metavar="FILE", help="The file of keys; it holds hashes, and no key.")]
KeyName = Annotated[str, typer.Option("--name", help="What the key is known by.")]


@keys_app.command("add")
def add_key(
    file: KeyFile,
    name: KeyName,
    scope: Annotated[str, typer.Option(help="read, write (adds and deletes, too) or admin (metrics, too).")] = "read",
    index: Annotated[str | None, typer.Option(help="The only index it is for, by its folder's name.")] = None,
    filters: Annotated[str | None, typer.Option("--filter", help="JSON: all it sees. Requests can only narrow it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once; the file keeps its hash."""
    from ragkit.apps.cli.options import parse_filters
    from ragkit.apps.serve.keys import SCOPES, add_key

    if scope not in SCOPES:
        raise ValueError(f"scope is one of {', '.join(SCOPES)}, got {scope!r}")
    secret = add_key(file, name=name, scope=scope, index=index, filters=parse_filters(filters))
    if as_json:
        print_json({"name": name, "key": secret})
    else:
        print(secret)
        say(f"{name}: {scope}; it is not shown again")


@keys_app.command("list")
def list_keys(file: KeyFile, as_json: AsJson = False) -> None:
    """The keys of a file, without the keys."""
    from ragkit.apps.serve.keys import read_keys

    rows = [key.model_dump(exclude={"sha256"}, exclude_none=True) for key in read_keys(file)]
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            print("\t".join(f"{name}={value}" for name, value in row.items()))


@keys_app.command("remove")
def remove_key(file: KeyFile, name: KeyName) -> None:
    """Take a key out of the file; a server that runs goes by it once it is started again."""
    from ragkit.apps.serve.keys import remove_key

    remove_key(file, name)
    say(f"removed {name}")


COMMANDS = (serve, mcp)
