"""A server on uvicorn: the addresses where it may listen, and how it stops."""

from __future__ import annotations

from collections.abc import Callable
from socket import socket
from types import FrameType
from typing import TYPE_CHECKING

from ragkit.apps.serve.app import create_app
from ragkit.apps.serve.gate import is_loopback
from ragkit.apps.serve.service import Service
from ragkit.core.errors import MissingExtra

if TYPE_CHECKING:
    import uvicorn

GRACE = 30  # seconds that running requests have to end


def check_host(host: str, service: Service) -> None:
    """ValueError for an address that other machines reach, if the server has no key."""
    if not service.keys and not is_loopback(host):
        raise ValueError(
            f"{host} can be reached from other machines, and there is no key. Make one, and name its file: "
            "ragkit keys add keys.json --name NAME, then --keys keys.json; or set RAGKIT_KEY"
        )


def make_server(
    service: Service,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    grace: int = GRACE,
    on_ready: Callable[[str], None] | None = None,
) -> uvicorn.Server:
    """Return a server; its `run()` returns after a signal to stop, once the running requests have ended.

    It listens at once, and answers 503 until the models are loaded; then it calls on_ready(address). If they cannot be loaded,
    it ends, and `run()` raises the error. grace: the seconds that running requests have to end.
    """
    check_host(host, service)
    try:
        import uvicorn
    except ImportError:
        raise MissingExtra.of("uvicorn", "server", "the HTTP server") from None

    class Server(uvicorn.Server):  # type: ignore[misc,unused-ignore]
        failure: BaseException | None = None
        ready_said = False

        async def startup(self, sockets: list[socket] | None = None) -> None:
            await super().startup(sockets)
            self._say_ready()

        def loaded(self, failure: BaseException | None) -> None:
            self.failure = failure
            if failure is not None:
                self.should_exit = True
            self._say_ready()

        def _say_ready(self) -> None:
            """Call on_ready once the server listens and the models are loaded."""
            if on_ready is None or self.ready_said or not (self.started and service.ready):
                return
            self.ready_said = True
            address, port = self.servers[0].sockets[0].getsockname()[:2]
            on_ready(f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}")

        def run(self, sockets: list[socket] | None = None) -> None:
            super().run(sockets)
            if self.failure is not None:
                raise self.failure

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            service.stopping.set()  # ends the streams of events, which would hold the server up
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        create_app(service, on_loaded=lambda failure: server.loaded(failure)),
        host=host,
        port=port,
        timeout_graceful_shutdown=grace,
        log_level="warning",
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=64 * 1024,
        ws="none",
    )
    server = Server(config)
    return server
