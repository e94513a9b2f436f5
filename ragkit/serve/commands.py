"""`ragkit serve`, `ragkit mcp` and `ragkit keys`. `ragkit.cli` adds them to its own."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ragkit.terminal import AsJson, opened, print_json, say

if TYPE_CHECKING:
    from ragkit.encode.contract import Encoder
    from ragkit.serve.keys import Key

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
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …")] = None,
) -> None:
    """Serve indexes and models over HTTP: /v1/embeddings, until Ctrl-C."""
    from ragkit.serve.run import make_server
    from ragkit.serve.service import Service

    if not indexes and not model:
        raise ValueError("name an index to serve, or a model: ragkit serve INDEX, or ragkit serve --model default")
    with ExitStack() as stack:
        found = {path.absolute().name: stack.enter_context(opened(path, create=False, device=device)) for path in indexes or ()}
        if len(found) < len(indexes or ()):
            raise ValueError("two of these indexes have the same folder name: rename one")
        service = Service(found, models=_models(model or (), device), keys=_keys(keys))
        server = make_server(service, host=host, port=port)
        say(
            f"serving {', '.join([*found, *service.models])} at http://{host}:{port}" + ("" if service.keys else ", without keys")
        )
        server.run()


def _models(names: Any, device: str | None) -> dict[str, Encoder]:
    from ragkit.encode import load_encoder

    found = {}
    for one in names:
        name, given, folder = one.partition("=")
        encoder = load_encoder(folder if given else one, device=device)
        found[name if given else encoder.card.name] = encoder
    return found


def _keys(path: Path | None) -> list[Key]:
    from ragkit.serve.keys import key_from_secret, read_keys

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
    from ragkit.cli import _filters
    from ragkit.serve.keys import SCOPES, add_key

    if scope not in SCOPES:
        raise ValueError(f"scope is one of {', '.join(SCOPES)}, got {scope!r}")
    secret = add_key(file, name=name, scope=scope, index=index, filters=_filters(filters))
    if as_json:
        print_json({"name": name, "key": secret})
    else:
        print(secret)
        say(f"{name}: {scope}; it is not shown again")


@keys_app.command("list")
def list_keys(file: KeyFile, as_json: AsJson = False) -> None:
    """The keys of a file, without the keys."""
    from ragkit.serve.keys import read_keys

    rows = [key.model_dump(exclude={"sha256"}, exclude_none=True) for key in read_keys(file)]
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            print("\t".join(f"{name}={value}" for name, value in row.items()))


@keys_app.command("remove")
def remove_key(file: KeyFile, name: KeyName) -> None:
    """Take a key out of the file; a server that runs goes by it once it is started again."""
    from ragkit.serve.keys import remove_key

    remove_key(file, name)
    say(f"removed {name}")


COMMANDS = (serve,)
