"""A Ray cluster over S3 does what one process does on folders, also if a process is killed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from mclip_kit.config.recipe import load
from mclip_kit.engine.cluster import Cluster
from mclip_kit.train.extractor import Extractor, extract
from mclip_kit.urls import named
from tests import tiny
from tests.engine.test_cluster import address, engine, features, killed, limit, small_tables  # noqa: F401  fixtures
from tests.storage.buckets import contents
from tests.storage.test_commands import run
from tests.storage.test_prepare import hashes, local_files, shard
from tests.storage.test_s3 import BUCKET, s3, server  # noqa: F401  fixtures


def test_prepared_shards_have_the_same_bytes(
    s3: Any,  # noqa: F811
    address: str,  # noqa: F811
    killed: list[Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    for number in range(4):
        s3.pipe_file(f"{BUCKET}/tars/{number}.tar", shard(number))
        Path(f"{number}.tar").write_bytes(shard(number))
    run("prepare", "--webdataset", "{0..3}.tar", "--out", "local", "--workers", 1)
    url = f"s3://{BUCKET}/data"
    shards = f"s3://{BUCKET}/tars/{{0..3}}.tar"
    said = run("prepare", "--webdataset", shards, "--out", url, "--engine", "ray", "--address", address)
    assert said.count("a process on the Ray cluster was killed") == 1
    assert hashes(s3, f"{BUCKET}/data") == hashes(local_files(tmp_path), "local")


def test_extracted_features_are_the_same_shards(
    s3: Any,  # noqa: F811
    engine: Cluster,  # noqa: F811
    killed: list[Any],  # noqa: F811
    small_tables: None,  # noqa: F811
    squares: Path,
    tmp_path: Path,
) -> None:
    tree = tiny.recipe(squares)
    tree["teacher"]["weights"] = tree["encoder"]["weights"] = "random"
    tree |= {"stages": [tree["stages"][2] | {"train": ["projector"]}], "cache": {"features": "pooled", "dtype": "fp32"}}
    tree |= {"projector": {"kind": "linear", "pool": "mean"}}
    recipe = load(tiny.write_recipe(tree, tmp_path / "tiny.yaml"))
    Extractor(recipe, tmp_path / "one" / "run")(0)
    url = f"s3://{BUCKET}/features"
    recipe = load(str(tmp_path / "tiny.yaml"), [f"cache.folder={url}"])
    place, refused = extract(recipe, tmp_path / "ray" / "run", replace(engine, ahead=1))
    assert (named(place), refused) == (url, [])
    one, ray = features(tmp_path / "one" / "features"), contents(s3, f"{BUCKET}/features")
    assert len([name for name in one if name.endswith("shard.json")]) > 4
    assert [name for name in one if one[name] != ray.get(name)] == []
