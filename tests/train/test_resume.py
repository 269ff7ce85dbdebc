"""What a run goes on from: the newest whole checkpoint, a recipe that may differ a little, the same data and towers."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mclip_kit.config.recipe import Recipe, load
from mclip_kit.data import batching
from mclip_kit.data.manifest import identity
from mclip_kit.errors import CheckpointError, DataError
from mclip_kit.evaluate.validation import evaluator
from mclip_kit.layout import LAST
from mclip_kit.train import callbacks, checkpoint
from mclip_kit.train.checkpoint import TrainState
from mclip_kit.train.resume import check_folder, find_start
from mclip_kit.train.run import Run
from tests import tiny
from tests.train.runs import Killed, different, killed_at, only_stage, recipe_of, train, weights


def stop_at(run: Run, step: int) -> None:
    """Train in this process until an error after a step of the first stage."""

    def fail() -> None:
        raise Killed

    callbacks.CALLBACKS.insert(0, killed_at(0, step, fail))
    try:
        with pytest.raises(Killed):
            run.go()
    finally:
        del callbacks.CALLBACKS[0]


@pytest.fixture(scope="module")
def one_stage(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path, Path]:
    """A recipe of one stage, its whole run, and one that was cut after step 9; checkpoints are of steps 8 and 6."""
    folder = tmp_path_factory.mktemp("one_stage")
    recipe = recipe_of(squares, folder, **only_stage(squares, 2))
    train(recipe, folder / "whole")
    stop_at(Run(recipe, folder / "cut", evaluator(recipe)), 9)
    return recipe, folder / "whole", folder / "cut"


@pytest.fixture
def cut(one_stage: tuple[Recipe, Path, Path], tmp_path: Path) -> Path:
    """A copy of the run that was cut."""
    return Path(shutil.copytree(one_stage[2], tmp_path / "run"))


def damage(path: Path, how: str) -> None:
    """Damage a checkpoint: cut it, empty it, or flip a bit of the largest tensor in it."""
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[: {"cut": 100, "empty": 0, "flipped": len(content)}[how]])


@pytest.mark.parametrize("how", ["cut", "empty", "flipped"])
def test_a_run_goes_on_from_the_newest_whole_checkpoint(
    how: str, cut: Path, one_stage: tuple[Recipe, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert [checkpoint.read(path).step for path in checkpoint.checkpoints(cut)] == [8, 6]
    damage(cut / LAST, how)
    train(one_stage[0], cut, resume=True)
    printed = capsys.readouterr().out
    assert "last.pt: damaged" in printed
    assert "last-1.pt: the run goes on from step 6 of stage 1" in printed
    assert not different(weights(cut), weights(one_stage[1]))


def test_an_epoch_that_is_kept_in_files_trains_and_resumes_the_same(
    cut: Path, one_stage: tuple[Recipe, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "SHARED", 1)
    for folder in (cut, cut.with_name("again")):
        train(one_stage[0], folder, resume=True)
        assert list((cut.parent / "features").glob("rows-*/epoch-*"))
        assert not different(weights(folder), weights(one_stage[1]))


def test_without_a_whole_checkpoint_the_advice_works(cut: Path, one_stage: tuple[Recipe, Path, Path]) -> None:
    for path in checkpoint.checkpoints(cut):
        damage(path, "cut")
    with pytest.raises(CheckpointError, match=r"last\.pt: damaged .* remove last\.pt, last-1\.pt from .*checkpoints"):
        Run(one_stage[0], cut, resume=True).go()
    for path in checkpoint.checkpoints(cut):
        path.unlink()
    train(one_stage[0], cut, resume=True)
    assert not different(weights(cut), weights(one_stage[1]))


def test_as_many_checkpoints_are_kept_as_the_recipe_says(tmp_path: Path) -> None:
    path = tmp_path / LAST
    for step in range(5):
        checkpoint.save(checkpoint.TrainState(0, step), path, keep=3)
    assert [checkpoint.read(file).step for file in checkpoint.checkpoints(tmp_path)] == [4, 3, 2]
    checkpoint.save(checkpoint.TrainState(0, 5), path, keep=1)
    assert [file.name for file in path.parent.iterdir()] == ["last.pt"]


def test_a_checkpoint_that_was_not_finished_leaves_the_newest(cut: Path, one_stage: tuple[Recipe, Path, Path]) -> None:
    os.replace(cut / LAST, cut / "checkpoints" / "last-1.pt")  # power went off between two renames
    train(one_stage[0], cut, resume=True)
    assert not different(weights(cut), weights(one_stage[1]))


def test_a_finished_run_says_that_its_data_has_changed(cut: Path) -> None:
    inputs, stages = checkpoint.read(cut / LAST).inputs, load(cut / "recipe.yaml").stages
    assert find_start(cut, stages, 1, inputs, [], lambda _: True)[1:] == (True, [])
    _, finished, lines = find_start(cut, stages, 1, {**inputs, next(iter(inputs)): "other"}, [], lambda _: True)
    assert finished
    assert [line.partition("has changed ")[2] for line in lines] == [
        "since the run started; to train on what is there now, choose another --out"
    ]


HARMLESS = {
    "about": "told otherwise",
    "checkpoint_every": "5",
    "checkpoints_kept": "1",
    "evaluation.every_steps": "100",
    "cache.dtype": "fp32",
    "trackers": "[]",
}


def test_harmless_changes_are_taken_and_said(
    cut: Path, one_stage: tuple[Recipe, Path, Path], squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [f"{key}={value}" for key, value in HARMLESS.items()]
    changed = recipe_of(squares, tmp_path, *changes, **only_stage(squares, 2))
    train(changed, cut, resume=True)
    printed = capsys.readouterr().out
    assert "goes on with checkpoint_every: 5, was 2" in printed
    for key in HARMLESS:
        assert f"goes on with {key}" in printed
    assert load(cut / "recipe.yaml").checkpoint_every == 5
    assert [file.name for file in checkpoint.checkpoints(cut)] == ["last.pt"]
    assert not different(weights(cut), weights(one_stage[1]))


@pytest.mark.parametrize("change", ["seed=3", "stages.0.lr=0.5", "evaluation.keep=last", "precision=bf16"])
def test_other_changes_are_refused_by_name(change: str, cut: Path, squares: Path, tmp_path: Path) -> None:
    changed = recipe_of(squares, tmp_path, "checkpoint_every=5", change, **only_stage(squares, 2))
    with pytest.raises(CheckpointError, match=f"different keys: {change.partition('=')[0]}; choose another --out"):
        check_folder(cut, changed, resume=True)


def test_entries_of_a_later_version_do_not_matter(cut: Path, one_stage: tuple[Recipe, Path, Path]) -> None:
    content = torch.load(cut / LAST, weights_only=True)
    torch.save(content | {"of_version_9": {"a": 1}}, cut / LAST)
    train(one_stage[0], cut, resume=True)
    assert not different(weights(cut), weights(one_stage[1]))


def test_other_versions_of_packages_are_said(
    cut: Path, one_stage: tuple[Recipe, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(cut / LAST, weights_only=True)
    assert content["versions"]["torch"] == torch.__version__.partition("+")[0]
    content["versions"]["torch"] = "1.0"
    torch.save(content, cut / LAST)
    train(one_stage[0], cut, resume=True)
    assert "goes on with what 1.0 began" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "state", "line"),
    [
        (
            "quickstart",
            TrainState(0, 8, processes=2),
            "4 processes instead of 2, each with 1/4 of a batch: the same rows",
        ),
        (
            "mte",
            TrainState(1, 8, processes=2),
            "batches are cut for 4 of them, so the rest of stage 2 has them in another",
        ),
        ("mte", TrainState(1, 8, processes=4), ""),
        ("mte", TrainState(1, 0, processes=2), ""),
        ("mte", TrainState(1, 8), ""),  # written before checkpoints had the number
    ],
)
def test_another_number_of_processes_is_logged(name: str, state: TrainState, line: str, tmp_path: Path) -> None:
    checkpoint.save(state, tmp_path / LAST)
    _, _, lines = find_start(tmp_path, load(name).stages, 4, {}, [], lambda state: False)
    assert len(lines) == 1 + bool(line)
    assert line in lines[0]


@pytest.mark.parametrize(
    "change",
    [{"stage": "0"}, {"model": {"a": 1}}, {"languages": "de"}, {"optimizer": []}, {"inputs": []}, {"processes": "2"}],
)
def test_a_checkpoint_of_other_kinds_is_damaged(change: dict[str, Any], cut: Path) -> None:
    torch.save(torch.load(cut / LAST, weights_only=True) | change, cut / LAST)
    with pytest.raises(CheckpointError, match=r"last\.pt: damaged \(its"):
        checkpoint.read(cut / LAST)


@pytest.fixture
def own_data(squares: Path, tmp_path: Path) -> tuple[Recipe, Path]:
    """A run, cut after step 5, on data of its own."""
    data = Path(shutil.copytree(squares, tmp_path / "data"))
    only = only_stage(data, 2)
    recipe = load(tiny.write_recipe(tiny.recipe(data) | only, tmp_path / "tiny.yaml"))
    stop_at(Run(recipe, tmp_path / "run", evaluator(recipe)), 5)
    return recipe, data


def test_data_that_changed_under_the_same_name_is_refused(own_data: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, data = own_data
    captions = data / "captions.arrow"
    captions.write_bytes(captions.read_bytes().replace(b"Quadrat", b"Quadrad", 1))
    with pytest.raises(DataError, match=r"captions\.arrow: damaged or edited"):
        Run(recipe, tmp_path / "run", resume=True)
    manifest = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
    del manifest["files"]["captions.arrow"]  # what the message says
    (data / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"{data} has changed since the run started"):
        Run(recipe, tmp_path / "run", resume=True).go()
    Run(recipe, tmp_path / "another")


def test_damaged_parallel_sentences_are_refused(own_data: tuple[Recipe, Path], tmp_path: Path) -> None:
    _, data = own_data
    file = next((data / "bitext").glob("train.*.bin"))
    tiny.flip(file, -4)
    distill = recipe_of(data, tmp_path, **only_stage(data, 1))
    with pytest.raises(DataError, match=f"{file}: damaged or edited"):
        Run(distill, tmp_path / "another").go()


def test_folders_of_fairseq_itself_have_an_identity(squares: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(squares / "bitext", tmp_path / "bitext"))
    before = identity(folder)
    assert identity(folder) == before
    (folder / "dict.de.txt").write_text("other 1\n", encoding="utf-8")
    assert identity(folder) != before


def test_a_teacher_that_changed_under_the_same_name_is_refused(squares: Path, tmp_path: Path) -> None:
    first = recipe_of(squares, tmp_path, **only_stage(squares, 2))
    train(first, tmp_path / "base")
    tree = tiny.recipe(squares) | only_stage(squares, 2) | {"init_from": str(tmp_path / "base" / "model")}
    for key in ("teacher", "encoder", "projector"):
        del tree[key]
    recipe = load(tiny.write_recipe(tree, tmp_path / "next.yaml"))
    stop_at(Run(recipe, tmp_path / "run", evaluator(recipe)), 5)
    other = recipe_of(squares, tmp_path, "seed=7", **only_stage(squares, 2))
    train(other, tmp_path / "other")
    shutil.rmtree(tmp_path / "base" / "model")
    shutil.copytree(tmp_path / "other" / "model", tmp_path / "base" / "model")
    with pytest.raises(CheckpointError, match=r"image .*base/model, .* have changed since the run started"):
        Run(recipe, tmp_path / "run", resume=True).go()


def test_the_gradient_scaler_resumes(squares: Path, tmp_path: Path) -> None:
    recipe = recipe_of(squares, tmp_path, **only_stage(squares, 2))

    def scaled(folder: Path) -> Run:
        run = Run(recipe, folder, evaluator(recipe), resume=True)
        run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
        return run

    whole, cut = scaled(tmp_path / "whole"), scaled(tmp_path / "cut")
    whole.go()
    stop_at(cut, 9)
    again = scaled(tmp_path / "cut")
    again.go()
    assert whole.accelerator.scaler.get_scale() > 8
    assert again.accelerator.scaler.state_dict() == whole.accelerator.scaler.state_dict()
    assert not different(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
