"""A real S3: moto's server on this machine, read and written by s3fs; the same as on folders."""

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import yaml

from mclip_kit.errors import StorageError
from mclip_kit.files import check_writable, write_text
from mclip_kit.models.multilingual_clip import load
from mclip_kit.storage import copies, fetch, objects, place
from mclip_kit.train.callbacks.logger import Logger
from tests import tiny
from tests.storage.buckets import contents, new_machine
from tests.storage.test_commands import check_no_paths, put, run
from tests.storage.test_prepare import hashes, local_files, shard

BUCKET = "bucket"


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, int]]:
    """Host and port of an S3 without buckets."""
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    started = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    yield started.get_host_and_port()
    started.stop()


def connect(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The file system of s3:// at an address, as the environment names it."""
    environment = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**environment, "AWS_ENDPOINT_URL": "http://{}:{}".format(*address)}.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    objects._system.cache_clear()
    return objects._system("s3", os.getpid())


@pytest.fixture
def s3(server: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """S3 with an empty bucket, and a machine without copies."""
    monkeypatch.chdir(tmp_path)
    new_machine(tmp_path / "copies", monkeypatch)
    system = connect(server, monkeypatch)
    system.mkdir(BUCKET)
    yield system
    system.invalidate_cache()
    system.rm(BUCKET, recursive=True)
    copies._seen.clear()
    objects._system.cache_clear()


def _stop_at(step: int) -> Callable[[Logger], None]:
    """A callback's method that asks the run to stop, as Ctrl-C does, in a step; the next step is its last."""

    def after_step(self: Logger) -> None:
        if self.at.step == step:
            signal.raise_signal(signal.SIGINT)

    return after_step


def test_the_same_as_on_folders(s3: Any, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    put(s3, squares, f"{BUCKET}/data/squares")
    tree = tiny.recipe(squares)
    tree["teacher"]["weights"] = "random"
    tree["stages"] = [tree["stages"][2] | {"epochs": 1}]
    local = tiny.write_recipe(tree, tmp_path / "local.yaml")
    run("train", local, "--out", "runs/local")
    tree["data"] = {"captions": f"s3://{BUCKET}/data/squares", "bitext": f"s3://{BUCKET}/data/squares/bitext"}
    s3.pipe_file(f"{BUCKET}/tiny.yaml", yaml.safe_dump(tree).encode())
    words = ("train", f"s3://{BUCKET}/tiny.yaml", "--out", f"s3://{BUCKET}/runs/tiny")
    with monkeypatch.context() as patched:
        patched.setattr(Logger, "after_step", _stop_at(4))
        said = run(*words, code=130)
    assert f"stopped after step 5 of 9; resume with: mclip-kit {' '.join(words)} --resume" in said
    assert not s3.exists(f"{BUCKET}/runs/tiny/model")
    new_machine(tmp_path / "second", monkeypatch)
    assert f"{words[-1]}/checkpoints/last.pt: the run goes on from step 5 of stage 1" in run(*words, "--resume")
    new_machine(tmp_path / "third", monkeypatch)
    said = run(*words, "--resume")
    assert "this run had finished; nothing was changed" in said
    assert f"{words[-1]}/model: done; score it with: mclip-kit eval {words[-1]}/model" in said
    ours, theirs = load(f"{words[-1]}/model").state_dict(), load("runs/local/model").state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    names = {path.relative_to("runs/local").as_posix() for path in Path("runs/local").rglob("*") if path.is_file()}
    found = {name for name in contents(s3, f"{BUCKET}/runs/tiny") if "tfevents" not in name}
    assert found == {name for name in names if "tfevents" not in name and not Path(name).name.startswith(".")}
    scores = []
    for data, model, out in (
        (str(squares), "runs/local/model", "scores"),
        (f"s3://{BUCKET}/data/squares", f"{words[-1]}/model", f"s3://{BUCKET}/scores"),
    ):
        run("eval", model, "--data", data, "--out", out)
        rows = json.loads((fetch(place(out)) / "results.json").read_text())["results"]
        scores.append([{key: value for key, value in row.items() if key not in ("model", "dataset")} for row in rows])
    assert scores[0] == scores[1]
    check_no_paths(s3, BUCKET)


def test_shards_are_prepared_trained_on_and_searched(
    s3: Any, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        s3.pipe_file(f"{BUCKET}/tars/{number}.tar", shard(number))
        Path(f"{number}.tar").write_bytes(shard(number))
    run("prepare", "--webdataset", f"s3://{BUCKET}/tars/*.tar", "--out", f"s3://{BUCKET}/own", "--workers", 2)
    run("prepare", "--webdataset", "{0..2}.tar", "--out", "local", "--workers", 1)
    assert hashes(s3, f"{BUCKET}/own") == hashes(local_files(tmp_path), "local")
    new_machine(tmp_path / "second", monkeypatch)
    tree = tiny.recipe(squares) | {"evaluation": None}
    tree["data"] = {"captions": f"s3://{BUCKET}/own", "bitext": str(squares / "bitext")}
    tree["teacher"]["weights"] = "random"
    tree["stages"] = [tree["stages"][2] | {"epochs": 1, "batch_size": 8}]
    run("train", tiny.write_recipe(tree, tmp_path / "tiny.yaml"), "--out", f"s3://{BUCKET}/runs/tars")
    vectors = f"s3://{BUCKET}/vectors"
    run("embed", f"s3://{BUCKET}/runs/tars/model", "--images", f"s3://{BUCKET}/tars/*.tar", "--out", vectors)
    run("index", vectors, "--out", f"s3://{BUCKET}/index")
    assert f"s3://{BUCKET}/tars/" in run("search", f"s3://{BUCKET}/index", "Bild 1 1", "--top", 1)
    check_no_paths(s3, BUCKET)


class Flaky(threading.Thread):
    """A proxy in front of a server that breaks its first connections after some bytes of an answer."""

    def __init__(self, server: tuple[str, int], breaks: list[int]) -> None:
        super().__init__(daemon=True)
        self._server, self.breaks = server, breaks
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._socket.getsockname()[:2]

    def run(self) -> None:
        """Serve each connection in a thread."""
        while True:
            client, _ = self._socket.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._server) as server:
            left = self.breaks.pop(0) if self.breaks else 1 << 40
            threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()
            while left and (content := server.recv(min(left, 1 << 16))):
                client.sendall(content)
                left -= len(content)
            for end in (client, server):  # closing alone does not wake the thread that reads from it
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _pass_on(source: socket.socket, to: socket.socket) -> None:
        with suppress(OSError):  # the other end was broken
            while content := source.recv(1 << 16):
                to.sendall(content)


def test_a_connection_that_breaks_is_tried_again(
    s3: Any, server: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.pipe_file(f"{BUCKET}/x", b"x" * 100_000)
    proxy = Flaky(server, [0, 0, 50_000])
    proxy.start()
    connect(proxy.address, monkeypatch)
    assert fetch(place(f"s3://{BUCKET}/x")).read_bytes() == b"x" * 100_000
    assert not proxy.breaks
    proxy.breaks += [0, 0]
    connect(proxy.address, monkeypatch)
    write_text(place(f"s3://{BUCKET}/y"), "y")
    assert (s3.cat_file(f"{BUCKET}/y"), proxy.breaks) == (b"y", [])


def test_errors_of_s3(s3: Any, server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match=r"^s3://none/x: cannot be read \(The specified bucket does not exist\);"):
        fetch(place("s3://none/x"))
    with pytest.raises(StorageError, match=r"^s3://none/x: cannot be written \(The specified bucket does not exist\)"):
        check_writable(place("s3://none/x"))
    assert not fetch(place(f"s3://{BUCKET}/none")).exists()
    s3.pipe_file(f"{BUCKET}/pairs.tsv", b"image\tcaption\na.png\ta dog\n")
    prepared = ("prepare", "--pairs", f"s3://{BUCKET}/pairs.tsv", "--out", f"s3://{BUCKET}")
    for words in (prepared, (*prepared, "--again")):
        said = run(*words, code=2)
        assert f"{BUCKET}: exists and is not a prepared corpus; name a folder in it: --out s3://{BUCKET}/NAME" in said
    for pattern in ("{0..3}.tar", "*.tar"):
        said = run("prepare", "--webdataset", f"s3://none/{pattern}", "--out", "data", code=2)
        assert "s3://none: there is no such bucket; correct its name, or check your access to it" in said
        said = run("prepare", "--webdataset", f"s3://{BUCKET}/{pattern}", "--out", "data", code=2)
        assert f"tar: there is no such shard of s3://{BUCKET}/{pattern}; correct the name" in said
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    closed = socket.create_server(("127.0.0.1", 0))
    address = closed.getsockname()[:2]
    closed.close()
    connect(address, monkeypatch)
    host = "{}:{}".format(*address)
    said = rf'^s3://bucket/x: cannot be read \(Could not connect to the endpoint URL: "http://{host}/bucket"\); check'
    with pytest.raises(StorageError, match=said):
        fetch(place(f"s3://{BUCKET}/x"))
