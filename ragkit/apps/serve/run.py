"""A server behind uvicorn: where it may listen, and how it stops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ragkit.apps.serve.app import create_app
from ragkit.apps.serve.gate import is_loopback
from ragkit.apps.serve.service import Service
from ragkit.core.errors import MissingExtra

GRACE = 30  # seconds for what is running to end


def check_host(host: str, service: Service) -> None:
    """ValueError for an address that others reach, where there is no key."""
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
) -> Any:
    """A uvicorn.Server; `run()` returns once it was told to stop and what was running has ended.

    It listens at once, and answers 503 until the models are loaded; then on_ready(address) is called. Where they cannot be
    loaded, it ends, and `run()` raises why. grace: seconds for what is running.
    """
    check_host(host, service)
    try:
        import uvicorn
    except ImportError:
        raise MissingExtra.of("uvicorn", "server", "the HTTP server") from None

    class Server(uvicorn.Server):  # type: ignore[misc,unused-ignore]
        failure: BaseException | None = None
        told = False

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            self._tell_ready()

        def loaded(self, failure: BaseException | None) -> None:
            self.failure = failure
            if failure is not None:
                self.should_exit = True
            self._tell_ready()

        def _tell_ready(self) -> None:
            """Once it listens and the models are loaded, whichever comes last."""
            if on_ready is None or self.told or not (self.started and service.ready):
                return
            self.told = True
            at, found = self.servers[0].sockets[0].getsockname()[:2]
            on_ready(f"http://[{at}]:{found}" if ":" in at else f"http://{at}:{found}")

        def run(self, sockets: Any = None) -> None:
            super().run(sockets)
            if self.failure is not None:
                raise self.failure

        def handle_exit(self, sig: int, frame: Any) -> None:
            service.stopping.set()  # streams of events end, or they would hold the server up
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
