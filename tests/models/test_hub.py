"""Whether a hub answers is found out once and soon."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub.constants as hub
import pytest

from mclip_kit.models.hub import look


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody has looked yet, and no proxy stands between."""
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("mclip_kit.models.hub.PATIENCE", 0.2)
    look.cache_clear()
    yield
    look.cache_clear()


@pytest.mark.parametrize(("status", "offline"), [(200, False), (404, False), (503, True)])
def test_a_hub_that_answers_is_asked(monkeypatch: pytest.MonkeyPatch, status: int, offline: bool) -> None:
    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Silence."""

    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(hub, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr("mclip_kit.models.hub.PATIENCE", 10.0)
        look()
        server.shutdown()
    assert offline is hub.HF_HUB_OFFLINE


@pytest.mark.parametrize("listens", [True, False])
def test_a_hub_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, listens: bool) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()
        monkeypatch.setattr(hub, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        start = time.monotonic()
        look()
    assert hub.HF_HUB_OFFLINE
    assert time.monotonic() - start < 5
