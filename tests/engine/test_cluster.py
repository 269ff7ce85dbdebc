"""What a Ray cluster of two nodes does is what one process does: every byte, every row, every error."""

import os
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mclip_kit.data.corpora.source import Source
from mclip_kit.data.prepare.prepare import prepare
from mclip_kit.engine import actors, cluster
from mclip_kit.engine.base import Engine
from mclip_kit.engine.cluster import Cluster, connect
from mclip_kit.errors import DataError
from tests.data.prepare.test_prepare_workers import (
    Declared,
    bitext,
    content,
    pairs,
    shards,
    small_blocks,  # noqa: F401  a fixture
)

ROOM = 256 << 20  # bytes of shared memory that two nodes take
STORE = 80 << 20  # bytes of a node's objects; Ray takes no fewer
LIMIT = 240  # seconds of a test, on a busy machine


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The head of a cluster of two nodes, each with one core, on this machine."""
    if find_spec("ray") is None:
        pytest.skip("the extra `ray` is not installed")
    if Path("/dev/shm").is_dir() and shutil.disk_usage("/dev/shm").free < ROOM:
        pytest.skip("/dev/shm is too small for Ray's nodes")
    ray = actors.import_ray()
    from ray.cluster_utils import Cluster as Nodes

    node = {"num_cpus": 1, "object_store_memory": STORE}
    nodes = Nodes(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        nodes.add_node(**node)
        yield nodes.address
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture
def engine(address: str) -> Iterator[Cluster]:
    with connect(address) as connected:
        yield connected


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """A cluster that hangs fails the test."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"the cluster took more than {LIMIT} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class DiesOnce:
    """Work whose process is killed at its first item; the one that takes its place is not."""

    def __init__(self, mark: Path, make: Any, *given: Any) -> None:
        self._mark, self._work = mark, make(*given)

    def __call__(self, item: Any) -> Any:
        if not self._mark.exists():
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self._work(item)


@pytest.fixture
def one_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In each `map`, the process that starts first is killed in the middle of its work; the file says that it was."""
    mark, run = tmp_path / "killed", Cluster.map
    monkeypatch.setattr(Cluster, "map", lambda self, make, *given: run(self, DiesOnce, mark, make, *given))
    return mark


def power(base: int, mark: Path, exponent: int) -> int:
    if exponent == 7:
        raise DataError(f"{mark}: no such file")
    return base**exponent


def test_two_nodes_give_results_in_order_and_take_few_items_ahead(engine: Cluster) -> None:
    taken: list[int] = []
    found: list[int] = []

    def items() -> Iterator[int]:
        for number in range(60):
            taken.append(number)
            yield number

    with engine.map(partial, pow, 2) as power_of_two:
        for result in power_of_two(items()):
            found.append(result)
            assert len(taken) - len(found) <= cluster.AHEAD * engine.workers
    assert engine.workers == 2
    assert found == [2**number for number in range(60)]


def test_an_error_of_a_node_is_the_same_line(engine: Cluster, tmp_path: Path) -> None:
    found: list[int] = []
    with pytest.raises(DataError) as raised, engine.map(partial, power, 2, tmp_path) as run:
        found.extend(run(range(30)))
    assert str(raised.value) == f"{tmp_path}: no such file"


@pytest.mark.parametrize("declared", [bitext, pairs, shards])
def test_prepared_folders_have_the_same_bytes(
    tmp_path: Path, declared: Declared, engine: Engine, one_dies: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "from").mkdir()
    corpus, root = declared(tmp_path / "from")
    prepare(corpus, tmp_path / "one", source=Source(root), workers=1)
    prepare(corpus, tmp_path / "ray", source=Source(root), workers=engine)
    assert one_dies.exists()
    one, ray = content(tmp_path / "one"), content(tmp_path / "ray")
    assert one.keys() == ray.keys()
    assert [name for name in one if one[name] != ray[name]] == []
    said = "".join(capfd.readouterr())
    assert "a process on the Ray cluster was killed" in said
    assert "(raylet)" not in said
