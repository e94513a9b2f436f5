"""A real server on a free port, and applications without one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ragkit.apps.serve.app import create_app
from ragkit.apps.serve.service import Service

uvicorn = pytest.importorskip("uvicorn")
testclient = pytest.importorskip("starlette.testclient")


@contextmanager
def served(service: Service) -> Iterator[str]:
    """The address of a running server, told to stop at the end."""
    from ragkit.apps.serve.run import make_server

    server = make_server(service, port=0, grace=5)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not (server.started and service.ready) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.started
    assert service.ready
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


@contextmanager
def application(service: Service) -> Iterator[Any]:
    """A client of the application, without a socket."""
    with testclient.TestClient(create_app(service), base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def client_of() -> Iterator[Callable[..., Any]]:
    """client_of(Service(...)) -> a client whose application is closed with the test."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda service: stack.enter_context(application(service))
