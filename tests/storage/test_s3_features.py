"""Features and claims in a real S3, see test_s3."""

import json
from pathlib import Path
from typing import Any

import pytest

from mclip_kit import locks
from mclip_kit.errors import BusyError
from mclip_kit.storage import claims, hold, place
from tests.features.tables import NAMES, Tower, assert_right, filled
from tests.storage.buckets import new_machine
from tests.storage.test_s3 import BUCKET, s3, server  # noqa: F401  fixtures
from tests.train.runs import different, losses, only_stage, recipe_of, train, weights

URL = f"s3://{BUCKET}/features/made-up"


def test_machines_share_a_table(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    filled(place(URL), Tower(NAMES[:60]))
    new_machine(tmp_path / "second", monkeypatch)
    tower = Tower(NAMES)
    table, rows = filled(place(URL), tower)
    assert tower.count == 40
    assert_right(table, rows, NAMES)
    new_machine(tmp_path / "third", monkeypatch)
    tower = Tower(NAMES)
    table, rows = filled(place(URL), tower)
    assert tower.count == 0
    assert not list(place(URL).glob("*/values.bin"))
    assert_right(table, rows[:1], NAMES[:1])
    assert len(list(place(URL).glob("*/values.bin"))) == 1


def test_a_run_from_features_in_s3_is_that_from_features_here(
    s3: Any,  # noqa: F811
    squares: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tree, changes = only_stage(squares, 2) | {"evaluation": None}, ("stages.0.epochs=1", "stages.0.shuffle_window=60")
    train(recipe_of(squares, tmp_path, *changes, **tree), tmp_path / "here")
    for name in ("first", "second"):
        new_machine(tmp_path / name, monkeypatch)
        recipe = recipe_of(squares, tmp_path, *changes, f"cache.folder=s3://{BUCKET}/features", **tree)
        train(recipe, tmp_path / f"run-{name}")
        assert losses(tmp_path / f"run-{name}") == losses(tmp_path / "here")
        assert not different(weights(tmp_path / f"run-{name}"), weights(tmp_path / "here"))
    assert len(s3.glob(f"{BUCKET}/features/image-*/*/shard.json")) == 1


def test_the_second_machine_is_told_who_writes(
    s3: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S3 creates the claim in one step: who comes at the same moment finds it there."""
    monkeypatch.setattr(claims, "RENEW", 0.05)
    run = f"s3://{BUCKET}/runs/mine"
    with hold(place(run), "run", "trains there"):
        claim = f"{BUCKET}/runs/.mine.run.claim"
        assert json.loads(s3.cat(claim))["pid"] == locks.os.getpid()
        with pytest.raises(FileExistsError):
            s3.pipe_file(claim, b"{}", mode="create")
        new_machine(tmp_path / "second", monkeypatch)
        monkeypatch.setattr(locks, "place", lambda: "0123abcd")
        message = rf"^{run}: another process trains there \(process \d+ on "
        with pytest.raises(BusyError, match=message), hold(place(run), "run", "trains there"):
            pass
    s3.invalidate_cache()
    assert not s3.find(f"{BUCKET}/runs")
