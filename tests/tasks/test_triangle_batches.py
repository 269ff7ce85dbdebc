"""Batches: rows of unreadable pictures are left out, and rows with the same text have the same number."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mclip_kit.config.recipe import Cache
from mclip_kit.config.stages import TriangleStage
from mclip_kit.data.captions import read_captions
from mclip_kit.data.datasets import rows_from_captions
from mclip_kit.errors import DataError
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.tasks.triangle_batches import TriangleBatches
from mclip_kit.train.build import CACHE_VARIABLE, build_model
from mclip_kit.train.logging import read_log
from mclip_kit.train.run import Run
from tests import tiny
from tests.tasks.frozen import BROKEN, EVALUATION, fresh, recipe_of, trained, tree, with_broken_files
from tests.tasks.test_grad_cache import with_duplicates


@pytest.fixture(autouse=True)
def no_cache_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)


@pytest.fixture
def broken(squares: Path, tmp_path: Path) -> Path:
    return with_broken_files(squares, tmp_path / "data")


def test_unreadable_pictures_are_left_out_and_reported_once(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tree(broken)
    stages = [whole["stages"][0] | {"name": name, "batch_size": 20} for name in ("first", "second")]
    cache = {"features": "auto", "max_bad_fraction": 0.05}
    recipe = recipe_of(broken, stages=stages, cache=cache, evaluation=EVALUATION)
    made, _ = trained(recipe, tmp_path / "runs" / "a")
    paths = [str(read_captions(broken).files[image]) for image in BROKEN]
    printed = capsys.readouterr().out
    whys = ("not a readable picture", "no such file", "not a readable picture")
    lines = [f"{path}: {why}; it is left out" for path, why in zip(paths, whys, strict=True)]
    assert [printed.count(line) for line in lines] == [1, 1, 1]
    assert (tmp_path / "runs" / "a" / "unreadable.txt").read_text(encoding="utf-8").splitlines() == sorted(paths)
    rows = read_log(tmp_path / "runs" / "a")
    assert {row["step"] for row in rows} >= {0, 10}  # 216 rows without nine are ten batches of twenty
    assert all(0 <= row["mean_t2i_r1"] <= 100 for row in rows if "mean_t2i_r1" in row)
    task = next(made.tasks())
    rows, batches = task.rows, task.batches
    assert set(rows.images_N) - set(batches.rows.images_N) == set(BROKEN)
    assert len(batches.rows) == len(rows) - 9
    batch = batches.batch(np.arange(len(batches.rows)))
    assert (batch.image_BE.norm(dim=1) > 0).all()
    expected = fresh(made.model, "images", read_captions(broken), batches.rows.images_N)
    assert torch.allclose(batch.image_BE, expected, atol=5e-3)
    trained(recipe, tmp_path / "runs" / "b")  # another run reports known ones again
    assert (tmp_path / "runs" / "b" / "unreadable.txt").is_file()


@pytest.mark.parametrize("augment", [None, {"shift": 1}])
def test_too_many_unreadable_pictures_end_the_run(augment: dict[str, int] | None, broken: Path, tmp_path: Path) -> None:
    stage = tree(broken)["stages"][0] | ({"augment": augment} if augment else {})
    recipe = recipe_of(broken, stages=[stage])
    with pytest.raises(DataError, match=r"of 72 pictures cannot be read, such as .*red-.*\.png.*max_bad_fraction"):
        trained(recipe, tmp_path / "run")


def test_an_unreadable_picture_of_a_live_tower_shows_another_of_its_batch(broken: Path, tmp_path: Path) -> None:
    stage = tree(broken)["stages"][0] | {"train": ["image", "projector"]}
    recipe = recipe_of(broken, stages=[stage], cache={"features": "auto", "max_bad_fraction": 0.05})
    made = Run(recipe, tmp_path / "run")
    task = next(made.tasks())
    columns, batches = task.rows, task.batches
    assert len(batches.rows) == len(columns) == 216
    rows = np.flatnonzero(np.isin(columns.images_N, [0, 5, 9, 2]))
    images = columns.images_N[rows]
    batch = vars(batches.batch(rows))
    bad = np.isin(images, BROKEN)
    good_again = np.resize(np.flatnonzero(~bad), bad.sum())
    for field in ("pixels_BCHW", "groups_B", "languages_B", "has_teacher_B", "mask_BT", "states_BTH"):
        if batch[field] is not None:
            assert torch.equal(batch[field][bad], batch[field][good_again]), field
    assert (batch["pixels_BCHW"].flatten(1).std(1) > 0).all()
    assert torch.equal(batch["groups_B"][~bad], torch.from_numpy(columns.groups_N[rows[~bad]]))
    made.go()
    named = (tmp_path / "run" / "unreadable.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(named) == sorted(str(read_captions(broken).files[image]) for image in BROKEN)


def test_rows_with_the_same_text_have_the_same_number(squares: Path) -> None:
    model = build_model(recipe_of(squares))
    twice = with_duplicates(read_captions(squares))
    edges = {"image-student_text": {"loss": "contrastive", "duplicates": "mask"}}
    stage = TriangleStage.model_validate(tree(squares)["stages"][0] | {"edges": edges})
    rows = tiny.rows_of(rows_from_captions(twice, "train", "all", "en", model.student_tokens))
    texts = twice.texts[:60]
    for live in (set(), {"image", "encoder"}):
        towers = FrozenTowers(model, FeatureCache())
        batch = TriangleBatches(towers, rows, stage, live, Cache.model_validate({}), twice).batch(np.arange(60))
        assert batch.texts_B is not None
        assert torch.equal(batch.texts_B[:, None] == batch.texts_B, torch.from_numpy(texts[:, None] == texts))
