"""What a Ray cluster of two nodes does is what one process does: every byte, every row, every error."""

import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mclip_kit.config.recipe import load
from mclip_kit.data.corpora.source import Source
from mclip_kit.data.prepare.fingerprints import PictureHasher
from mclip_kit.data.prepare.prepare import prepare
from mclip_kit.data.prepare.reading import PartCleaner
from mclip_kit.engine import actors, cluster
from mclip_kit.engine.base import Engine, Make
from mclip_kit.engine.cluster import Cluster, connect
from mclip_kit.errors import DataError
from mclip_kit.features import extract as features_of
from mclip_kit.features.table import Table
from mclip_kit.models.multilingual_clip import load as load_model
from mclip_kit.search import pictures
from mclip_kit.search.embed import embed_pictures
from mclip_kit.train.extractor import Extractor, extract
from tests import processes, tiny
from tests.data.prepare.test_prepare_workers import (
    content,
    pairs,
    small_blocks,  # noqa: F401  a fixture
)
from tests.engine.work import DiesInShard, DiesOnce, dies_at, fails_at, small_shards
from tests.interop.models import build
from tests.search.test_embed import contents

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

    patch = pytest.MonkeyPatch()
    node = {"num_cpus": 1, "object_store_memory": STORE}
    nodes = Nodes()
    patch.setenv("PYTHONPATH", str(processes.ROOT))  # for `tests`, in whatever folder a test works
    try:
        try:
            nodes.add_node(**node, include_dashboard=False)
            nodes.add_node(**node)
        except Exception as error:  # Ray raises many classes; each of its processes has 30 s to start
            pytest.skip(f"Ray's nodes do not start here: {error}")
        yield nodes.address
    finally:
        ray.shutdown()
        nodes.shutdown()
        patch.undo()


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


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What each `map` makes; one process is killed in the middle of its work."""
    made: list[Any] = []
    run = Cluster.map

    def dying(engine: Cluster, make: Make, *given: Any) -> Any:
        made.append(make)
        kind = DiesInShard if make is Extractor else DiesOnce
        return run(engine, kind, tmp_path / "killed", make, *given)

    monkeypatch.setattr(Cluster, "map", dying)
    yield made
    assert (tmp_path / "killed").exists()


@pytest.fixture
def small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, too, shards and batches are small."""
    monkeypatch.setattr(Table, "__init__", Table.__init__)  # what `small_shards` changes is undone
    for name in ("CPU_PICTURES", "TEXTS", "TOKENS"):
        monkeypatch.setattr(features_of, name, getattr(features_of, name))
    small_shards()


def test_two_nodes_give_results_in_order_take_few_items_ahead_and_fail_as_one_process(
    engine: Cluster, tmp_path: Path
) -> None:
    taken: list[int] = []
    found: list[int] = []

    def items() -> Iterator[int]:
        for number in range(60):
            taken.append(number)
            yield number

    def collect() -> None:
        with engine.map(partial, fails_at, 50, tmp_path) as run:
            for result in run(items()):
                found.append(result)
                assert len(taken) - len(found) <= cluster.AHEAD * engine.workers

    with pytest.raises(DataError) as raised:
        collect()
    assert str(raised.value) == f"{tmp_path}: no such file"
    assert engine.workers == 2
    assert found == list(range(50))


def test_work_that_kills_every_process_ends_with_a_line(engine: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "TRIES", 2)
    alone = replace(engine, workers=1, ahead=1)
    with (
        pytest.raises(DataError, match=r"2 processes .* killed at the same work"),
        alone.map(partial, dies_at, 3) as run,
    ):
        list(run(range(5)))


def test_prepared_folders_have_the_same_bytes(
    tmp_path: Path, engine: Engine, killed: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "from").mkdir()
    corpus, root = pairs(tmp_path / "from")
    prepare(corpus, tmp_path / "one", source=Source(root), workers=1)
    prepare(corpus, tmp_path / "ray", source=Source(root), workers=engine)
    assert {PartCleaner, PictureHasher} <= set(killed)
    one, ray = content(tmp_path / "one"), content(tmp_path / "ray")
    assert one.keys() == ray.keys()
    assert [name for name in one if one[name] != ray[name]] == []
    said = "".join(capfd.readouterr())
    assert "a process on the Ray cluster was killed" in said
    assert "(raylet)" not in said


def features(folder: Path) -> dict[str, bytes]:
    """The shards of a feature cache: file -> bytes."""
    return {name: held for name, held in content(folder).items() if (folder / name).with_name("shard.json").is_file()}


def test_extracted_features_are_the_same_shards(
    squares: Path,
    tmp_path: Path,
    engine: Cluster,
    killed: list[Any],
    small_tables: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    tree = tiny.recipe(squares)
    tree["teacher"]["weights"] = tree["encoder"]["weights"] = "random"
    tree |= {"projector": {"kind": "transformer", "layers": 1, "pool": "eos"}, "clip_projector": "linear"}
    tree |= {"stages": [tree["stages"][2] | {"train": ["projector", "clip_projector"]}]}
    tree |= {"cache": {"features": "tokens", "dtype": "fp32"}}
    recipe = load(tiny.write_recipe(tree, tmp_path / "tiny.yaml"))
    Extractor(recipe, tmp_path / "one" / "run")(0)
    said = [capfd.readouterr().out]
    place, refused = extract(recipe, tmp_path / "ray" / "run", replace(engine, ahead=1))
    said.append(capfd.readouterr().out)
    assert ["tokens features: 216 rows to compute" in out for out in said] == [True, True]
    assert (place, refused) == (str(tmp_path / "ray" / "features"), [])
    one, ray = features(tmp_path / "one" / "features"), features(tmp_path / "ray" / "features")
    assert len([name for name in one if name.endswith("shard.json")]) > 4
    assert one.keys() == ray.keys()
    assert [name for name in one if one[name] != ray[name]] == []


def test_vectors_are_the_same_files(
    squares: Path, tmp_path: Path, engine: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "BLOCK", 20)
    folder = tmp_path / "model"
    build(squares, {"kind": "mlp", "pool": "mean"}, "linear", 24, tiny.TEACHER).save(folder)
    for name, used in (("one", None), ("ray", replace(engine, workers=1))):
        found = embed_pictures(load_model(folder), squares, tmp_path / name, made_with=str(folder), engine=used)
        assert found.count == 96
    assert contents(tmp_path / "one") == contents(tmp_path / "ray")
    one, ray = features(tmp_path / "one" / "features"), features(tmp_path / "ray" / "features")
    assert one.keys() == ray.keys()
    assert [name for name in one if one[name] != ray[name]] == []
