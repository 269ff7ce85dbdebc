"""Fine-tuning for retrieval from a model folder: what is trained, when it ends, and the interpolated weights."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mclip_kit.cli import cli
from mclip_kit.config.recipe import Recipe, load
from mclip_kit.config.yaml import parse
from mclip_kit.data.captions import read_captions
from mclip_kit.evaluate.retrieval import evaluate
from mclip_kit.models.multilingual_clip import load as load_model
from mclip_kit.tasks.base import Scores
from mclip_kit.train import callbacks, checkpoint
from mclip_kit.train.build import build_model
from mclip_kit.train.callbacks.base import Callback
from mclip_kit.train.callbacks.logger import Logger
from mclip_kit.train.callbacks.wise_ft import WiseFt
from mclip_kit.train.logging import read_log
from mclip_kit.train.run import Run
from tests import tiny
from tests.train.runs import Killed, train

SHARE = 0.3


@pytest.fixture(scope="module")
def start(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a tiny mCLIP that was not trained."""
    tree = tiny.recipe(squares) | {"projector": {"kind": "transformer", "layers": 1, "pool": "eos"}}
    tree = tree | {"clip_projector": "linear"}
    folder = tmp_path_factory.mktemp("start") / "model"
    build_model(parse(tree, Recipe, "tiny")).save(folder)
    return folder


def tuning(start: Path, squares: Path, *changes: str) -> Recipe:
    """The shipped recipe on the squares, a few steps an epoch; the start scores chance, so scores can rise."""
    common = [
        f"init_from={start}",
        f"data.captions={squares}",
        "stages.0.languages=[en, de, fr]",
        "stages.0.split=train",
        "stages.0.batch_size=24",
        "stages.0.warmup_steps=2",
        "stages.0.epochs=4",
        "checkpoint_every=2",
        "precision=fp32",
        "cache={dtype: fp32}",
    ]
    return load("multi30k_finetune", [*common, *changes])


@pytest.fixture(scope="module")
def tuned(start: Path, squares: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A run that ended early, for its score did not rise."""
    recipe = tuning(start, squares, "evaluation.patience=2", "stages.0.epochs=12", f"stages.0.wise_ft_alpha={SHARE}")
    folder = tmp_path_factory.mktemp("tuned") / "run"
    train(recipe, folder)
    return recipe, folder


def changed(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    """Towers with a tensor that differs."""
    assert one.keys() == other.keys()
    return {name.split(".")[0] for name in one if not torch.equal(one[name], other[name])}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder).state_dict()


def test_projectors_alone_are_tuned_and_the_best_is_kept(start: Path, tuned: tuple[Recipe, Path]) -> None:
    _, folder = tuned
    rows = [row for row in read_log(folder) if "score" in row]
    assert rows[0]["step"] == 0
    assert all(row["score"] == row["mean_mean_recall"] for row in rows)
    assert max(row["score"] for row in rows) > rows[0]["score"]
    assert changed(weights(start), weights(folder / "model")) == {"projector", "clip_projector"}
    best = checkpoint.read(folder / "checkpoints" / "best.pt")
    own = weights(folder / "model")
    assert all(torch.equal(own[name], tensor) for name, tensor in best.model.items() if name in own)
    assert best.best
    assert best.best["score"] == max(row["score"] for row in rows)


def test_all_towers_are_tuned_on_pictures_that_are_augmented(start: Path, squares: Path, tmp_path: Path) -> None:
    every = ["stages.0.train=[image, teacher_text, student, clip_projector]", "stages.0.epochs=1", "evaluation=null"]
    scale = "stages.0.augment={shift: 1, colour: 0.1}"
    Run(tuning(start, squares, *every, scale, "stages.0.wise_ft_alpha=null"), tmp_path / "run").go()
    assert changed(weights(start), weights(tmp_path / "run" / "model")) == {
        "image",
        "teacher_text",
        "encoder",
        "projector",
        "clip_projector",
    }


def test_globs_tune_some_layers_in_one_language(start: Path, squares: Path, tmp_path: Path) -> None:
    some = ["stages.0.train=[encoder.model.encoder.layer.0.output.*]", "stages.0.languages=[de]", "evaluation=null"]
    Run(tuning(start, squares, *some, "stages.0.wise_ft_alpha=null"), tmp_path / "run").go()
    one, other = weights(start), weights(tmp_path / "run" / "model")
    moved = {name for name in one if not torch.equal(one[name], other[name])}
    assert moved
    assert all(name.startswith("encoder.model.encoder.layer.0.output.") for name in moved)


def test_patience_ends_the_stage_with_its_best_weights(tuned: tuple[Recipe, Path]) -> None:
    recipe, folder = tuned
    rows = [row for row in read_log(folder) if "score" in row]
    best = max(range(len(rows)), key=lambda number: rows[number]["score"])
    assert len(rows) - 1 - best == 2
    assert rows[-1]["step"] < 9 * recipe.stages[0].epochs
    assert checkpoint.read(folder / "checkpoints" / "last.pt").stage == 1


def test_wise_ft_weights_are_between_the_start_and_the_tuned_weights(start: Path, tuned: tuple[Recipe, Path]) -> None:
    _, folder = tuned
    before, after, mixed = weights(start), weights(folder / "model"), weights(folder / "model-wise_ft")
    assert changed(before, mixed) == {"projector", "clip_projector"}
    for name, tensor in mixed.items():
        if name.split(".")[0] in ("projector", "clip_projector"):
            assert torch.equal(tensor, torch.lerp(before[name], after[name], SHARE))
            torch.testing.assert_close(tensor, SHARE * after[name] + (1 - SHARE) * before[name])
        else:
            assert torch.equal(tensor, before[name])


def test_wise_ft_weights_are_scored_too(squares: Path, tuned: tuple[Recipe, Path]) -> None:
    _, folder = tuned
    rows = read_log(folder)
    (row,) = [row for row in rows if "wise_ft" in row]
    scores = [row["score"] for row in rows if "score" in row]
    assert (row["wise_ft"], row["start_score"], row["tuned_score"]) == (SHARE, scores[0], max(scores))
    found = evaluate(load_model(folder / "model-wise_ft"), read_captions(squares), "valid")
    recalls = [found[language].scores()["mean_recall"] for language in ("en", "de", "fr")]
    assert row["wise_ft_score"] == pytest.approx(sum(recalls) / 3)
    assert row["wise_ft_de_t2i_r1"] == pytest.approx(found["de"].scores()["t2i_r1"])


class AfterLastEvaluation(Callback):
    """The machine goes down after the evaluation that would end the stage, before a checkpoint is written."""

    last: int

    def after_evaluation(self, scores: Scores) -> None:
        if self.at.step == self.last:
            raise Killed


class AfterStage(Callback):
    """The machine goes down when the interpolated weights are written, before the stage's checkpoint is."""

    def after_stage(self) -> None:
        raise Killed


@contextmanager
def with_callback(callback: type[Callback], place: int) -> Iterator[None]:
    """Inside, stages have one more callback, at a place in their list."""
    callbacks.CALLBACKS.insert(place, callback)
    try:
        yield
    finally:
        callbacks.CALLBACKS.remove(callback)


@pytest.mark.parametrize("where", ["evaluation", "end"])
def test_a_killed_run_resumes_to_the_same_weights(where: str, tuned: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, folder = tuned
    AfterLastEvaluation.last = [row["step"] for row in read_log(folder) if "score" in row][-1]
    after = callbacks.CALLBACKS.index(Logger) + 1, callbacks.CALLBACKS.index(WiseFt) + 1
    killer = (AfterLastEvaluation, after[0]) if where == "evaluation" else (AfterStage, after[1])
    with with_callback(*killer), pytest.raises(Killed):
        train(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "model-wise_ft").exists() == (where == "end")
    state = checkpoint.read(tmp_path / "run" / "checkpoints" / "last.pt")
    assert (state.stage, state.step > 0) == (0, True)
    train(recipe, tmp_path / "run", resume=True)
    for name in ("model", "model-wise_ft"):
        assert not changed(weights(tmp_path / "run" / name), weights(folder / name))
    evaluations = [[row for row in read_log(run) if "loss" not in row] for run in (tmp_path / "run", folder)]
    assert evaluations[0] == evaluations[1]


def test_the_command_line_prints_when_and_where(
    tuned: tuple[Recipe, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tuned[1] / "recipe.yaml"
    with pytest.raises(SystemExit) as ended:
        cli(["train", str(recipe), "--out", str(tmp_path / "run")])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "2 evaluations without a better score; the stage ends with its best weights, of step" in printed
    assert f"wise_ft 0.3: in {tmp_path / 'run' / 'model-wise_ft'}; score " in printed


@pytest.mark.parametrize("name", ["coco_finetune", "multi30k_finetune"])
def test_fine_tuning_recipes_have_mclips_figures(name: str) -> None:
    recipe = load(name)
    (stage,) = recipe.stages
    assert (stage.optimizer, stage.lr, stage.weight_decay) == ("lamb_apex", 1e-2, 1e-3)
    assert (stage.batch_size, stage.epochs) == (128, 30)
    assert stage.edges["teacher_text-student_text"].temperature == 0.217
    assert all(edge.positives == "image" and edge.duplicates == "mask" for edge in stage.edges.values())
    assert recipe.evaluation
    assert (recipe.evaluation.keep, recipe.evaluation.metric) == ("best", "mean_recall")


def test_the_coco_recipe_runs_on_other_captions(start: Path, squares: Path, tmp_path: Path) -> None:
    changes = [f"init_from={start}", f"data.captions={squares}", "stages.0.languages=[fr]", "evaluation.languages=[fr]"]
    small = ["stages.0.batch_size=24", "stages.0.epochs=1", "stages.0.wise_ft_alpha=0.5"]
    train(load("coco_finetune", [*changes, *small]), tmp_path / "run")
    assert {"model", "model-wise_ft"} <= set(os.listdir(tmp_path / "run"))
    assert "fr_t2i_r1" in read_log(tmp_path / "run")[0]
    assert "en_t2i_r1" not in read_log(tmp_path / "run")[0]
