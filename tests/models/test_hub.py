"""Whether the hub answers is asked once; a hub that does not answer is not asked for files."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub.constants as hub
import pytest

from mclip_kit.interop.encoders import named_encoder
from mclip_kit.models.clip import build_clip
from mclip_kit.models.hub import MissingWeights, _reachable, hub_answers, offline_unless_hub_answers


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Online mode, the hub not asked yet, and no proxy in between."""
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("mclip_kit.models.hub.PATIENCE", 10.0)
    _reachable.cache_clear()
    yield
    _reachable.cache_clear()


@contextmanager
def answering(monkeypatch: pytest.MonkeyPatch, status: int) -> Iterator[list[str]]:
    """A hub that answers every request with a status; the paths that it was asked for."""
    paths: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            paths.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None:
            """Silence."""

    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(hub, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield paths
        server.shutdown()


@pytest.mark.parametrize(("status", "answers"), [(200, True), (404, True), (503, False)])
def test_a_hub_that_answers_is_asked_once(monkeypatch: pytest.MonkeyPatch, status: int, answers: bool) -> None:
    with answering(monkeypatch, status) as paths:
        assert [hub_answers() for _ in range(3)] == [answers] * 3
        with offline_unless_hub_answers():
            assert hub.HF_HUB_OFFLINE is not answers
    assert len(paths) == 1
    assert not hub.HF_HUB_OFFLINE


def test_a_hub_that_is_down_is_not_asked_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(monkeypatch, 503) as paths:
        for _ in range(2):
            with pytest.raises(MissingWeights, match="hf:tests/absent"):
                named_encoder("hf:tests/absent")
            with pytest.raises(MissingWeights, match="hf-hub:tests/absent"):
                build_clip("hf-hub:tests/absent")
    assert [path for path in paths if "absent" in path] == []
    assert not hub.HF_HUB_OFFLINE


@pytest.mark.parametrize(("listens", "offline", "calls"), [(True, False, 1), (False, False, 0), (True, True, 0)])
def test_a_silent_hub_is_called_once(monkeypatch: pytest.MonkeyPatch, listens: bool, offline: bool, calls: int) -> None:
    monkeypatch.setattr("mclip_kit.models.hub.PATIENCE", 0.2)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", offline)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()
        monkeypatch.setattr(hub, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert [hub_answers() for _ in range(3)] == [False] * 3
        assert connections(server, listens) == calls


def connections(server: socket.socket, listens: bool) -> int:
    """How many clients called."""
    server.setblocking(False)
    count = 0
    while listens:
        try:
            server.accept()[0].close()
        except BlockingIOError:
            break
        count += 1
    return count


BARS = """
from mclip_kit import progress
progress.set_quiet({quiet}, downloads={downloads})
from mclip_kit.models.hub import DOWNLOADS, quiet_transformers
from huggingface_hub.utils.tqdm import are_progress_bars_disabled
from transformers.utils import logging
for _ in range(2):
    with quiet_transformers():
        pass
    with quiet_transformers():
        print(*(not are_progress_bars_disabled(name) for name in (*DOWNLOADS, None)), logging.is_progress_bar_enabled())
"""


@pytest.mark.parametrize(("quiet", "downloads", "drawn"), [(False, True, True), (True, True, False)])
def test_downloads_alone_have_bars_where_they_are_wanted(quiet: bool, downloads: bool, drawn: bool) -> None:
    code = BARS.format(quiet=quiet, downloads=downloads)
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines() == [f"{drawn} {drawn} False False"] * 2
