"""Runs whose features are in object storage: the same weights, bit for bit, as runs whose features are here."""

from pathlib import Path
from typing import Any

import pytest

from mclip_kit.features import filling
from tests.storage.buckets import count_brought, in_memory, values_brought
from tests.train.runs import different, losses, only_stage, recipe_of, train, weights

CACHE = "cache.folder=memory://bucket/features"


@pytest.mark.parametrize("window", [None, 50])
def test_a_run_from_features_in_object_storage_is_that_from_features_here(
    window: int | None, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first machine computes and sends them, the second reads them."""
    tree = only_stage(squares, 2) | {"evaluation": None}
    changes = ["stages.0.epochs=1", f"stages.0.shuffle_window={window or 'null'}"]
    train(recipe_of(squares, tmp_path, *changes, **tree), tmp_path / "here")
    if window:
        (tmp_path / "other").mkdir()
        train(recipe_of(squares, tmp_path / "other", "stages.0.epochs=1", **tree), tmp_path / "other" / "run")
        assert losses(tmp_path / "other" / "run") != losses(tmp_path / "here")
    with in_memory(tmp_path, monkeypatch) as (bucket, machine):
        for name in ("first", "second"):
            machine(name)
            brought = count_brought(bucket, monkeypatch)
            train(recipe_of(squares, tmp_path, *changes, CACHE, **tree), tmp_path / f"run-{name}")
            assert losses(tmp_path / f"run-{name}") == losses(tmp_path / "here")
            assert not different(weights(tmp_path / f"run-{name}"), weights(tmp_path / "here"))
            monkeypatch.setattr(filling, "_write", _computes)
        assert len(values_brought(brought)) == 1
        assert len(bucket.glob("/bucket/features/rows-*/columns.json")) == 1


def test_a_bucket_that_cannot_be_written_gives_its_features(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They were computed by somebody else; what a run keeps beside them, it makes for itself."""
    recipe = recipe_of(squares, tmp_path, "stages.0.epochs=1", CACHE, **only_stage(squares, 2) | {"evaluation": None})
    with in_memory(tmp_path, monkeypatch) as (bucket, machine):
        train(recipe, tmp_path / "run-first")
        bucket.rm(bucket.glob("/bucket/features/rows-*"), recursive=True)
        there = {path: bucket.cat(path) for path in bucket.find("/bucket")}

        def denied(*_: Any, **__: Any) -> None:
            raise PermissionError("not yours")

        machine("second")
        for step in ("put_file", "pipe_file", "rm_file", "rm"):
            monkeypatch.setattr(bucket, step, denied)
        for number in range(2):  # the second finds what the first left on this machine
            train(recipe, tmp_path / f"run-second-{number}")
            assert losses(tmp_path / f"run-second-{number}") == losses(tmp_path / "run-first")
            said = capsys.readouterr().out
            assert "cannot be written (access denied: not yours)" in said
            assert "is made by every process for itself" in said
        assert {path: bucket.cat(path) for path in bucket.find("/bucket")} == there


def _computes(*_: Any) -> None:
    pytest.fail("features are computed again")


def test_a_window_of_all_rows_is_said(squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = only_stage(squares, 2) | {"evaluation": None}
    train(recipe_of(squares, tmp_path, "stages.0.epochs=1", "stages.0.shuffle_window=216", **tree), tmp_path / "run")
    assert "stage contrast: shuffle_window 216 has no effect: it has 216 rows" in capsys.readouterr().out
