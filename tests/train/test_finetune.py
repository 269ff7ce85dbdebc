"""Retrieval fine-tuning from a model folder: what is trained, what is masked, when it ends, and half way back."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from mclip_kit.cli import cli
from mclip_kit.config.recipe import Recipe, load
from mclip_kit.config.yaml import parse
from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.data.datasets import rows_from_captions
from mclip_kit.evaluate.retrieval import evaluate, log_values
from mclip_kit.evaluate.validation import evaluator
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.multilingual_clip import load as load_model
from mclip_kit.tasks import grad_cache
from mclip_kit.tasks.triangle import EdgeLoss, Triangle, TriangleBatch
from mclip_kit.tasks.triangle_batches import Feed, Needs
from mclip_kit.train import checkpoint
from mclip_kit.train.average import between
from mclip_kit.train.build import build_model
from mclip_kit.train.logging import read_log
from mclip_kit.train.optim import trainable
from mclip_kit.train.run import Run
from tests import tiny

SHARE = 0.3
EDGE = "image-student_text"


@pytest.fixture(scope="module")
def captions(squares: Path) -> Captions:
    return read_captions(squares)


@pytest.fixture(scope="module")
def start(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of an mCLIP in small, trained on nothing."""
    tree = tiny.recipe(squares) | {"projector": {"kind": "transformer", "layers": 1, "pool": "eos"}}
    tree = tree | {"clip_projector": "linear"}
    folder = tmp_path_factory.mktemp("start") / "model"
    build_model(parse(tree, Recipe, "tiny")).save(folder)
    return folder


def tuning(start: Path, squares: Path, *changes: str) -> Recipe:
    """The shipped recipe on the squares, a few steps an epoch; it scores chance, so it has many ways to go."""
    common = [
        f"start={start}",
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


def scored(recipe: Recipe, folder: Path, resume: bool = False) -> Run:
    """Trained with the evaluator that the command line gives."""
    made = Run(recipe, folder, evaluator(recipe), resume)
    made.go()
    return made


@pytest.fixture(scope="module")
def tuned(start: Path, squares: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A whole run that had no patience for the whole of it."""
    recipe = tuning(start, squares, "evaluation.patience=2", "stages.0.epochs=12", f"stages.0.wise_ft={SHARE}")
    folder = tmp_path_factory.mktemp("tuned") / "run"
    scored(recipe, folder)
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
    Run(tuning(start, squares, *every, scale, "stages.0.wise_ft=null"), tmp_path / "run").go()
    assert changed(weights(start), weights(tmp_path / "run" / "model")) == {
        "image",
        "teacher_text",
        "encoder",
        "projector",
        "clip_projector",
    }


def test_globs_tune_some_layers_in_one_language(start: Path, squares: Path, tmp_path: Path) -> None:
    some = ["stages.0.train=[encoder.model.encoder.layer.0.output.*]", "stages.0.languages=[de]", "evaluation=null"]
    Run(tuning(start, squares, *some, "stages.0.wise_ft=null"), tmp_path / "run").go()
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


def test_half_way_back_is_between_the_start_and_the_tuned_weights(start: Path, tuned: tuple[Recipe, Path]) -> None:
    _, folder = tuned
    before, after, mixed = weights(start), weights(folder / "model"), weights(folder / "model-wise_ft")
    assert changed(before, mixed) == {"projector", "clip_projector"}
    for name, tensor in mixed.items():
        if name.split(".")[0] in ("projector", "clip_projector"):
            assert torch.equal(tensor, torch.lerp(before[name], after[name], SHARE))
            torch.testing.assert_close(tensor, SHARE * after[name] + (1 - SHARE) * before[name])
        else:
            assert torch.equal(tensor, before[name])


def test_half_way_back_is_scored_beside_the_tuned_weights(squares: Path, tuned: tuple[Recipe, Path]) -> None:
    _, folder = tuned
    rows = read_log(folder)
    (row,) = [row for row in rows if "wise_ft" in row]
    scores = [row["score"] for row in rows if "score" in row]
    assert (row["wise_ft"], row["start_score"], row["tuned_score"]) == (SHARE, scores[0], max(scores))
    found = log_values(evaluate(load_model(folder / "model-wise_ft"), read_captions(squares), "valid"))
    assert row["wise_ft_score"] == pytest.approx(found["mean_mean_recall"])
    assert row["wise_ft_de_t2i_r1"] == pytest.approx(found["de_t2i_r1"])


def test_between_leaves_what_did_not_change_and_what_is_a_count() -> None:
    start = {"weight": torch.tensor([0.1, 1.0]), "same": torch.tensor([0.1, 0.7]), "count": torch.tensor(3)}
    end = {"weight": torch.tensor([0.2, 3.0]), "same": torch.tensor([0.1, 0.7]), "count": torch.tensor(8)}
    found = between(start, end, 0.3)
    torch.testing.assert_close(found["weight"], torch.tensor([0.13, 1.6]))
    assert torch.equal(found["same"], start["same"])
    assert int(found["count"]) == 8


class Killed(Exception):
    """The machine went down."""


@pytest.mark.parametrize("where", ["evaluation", "half way back"])
def test_killed_and_resumed_is_as_never_killed(
    where: str, tuned: tuple[Recipe, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, folder = tuned
    write, save, fell = Run._write, MultilingualClip.save, Killed(where)
    steps = [row["step"] for row in read_log(folder) if "score" in row]

    def failing_write(run: Run, index: int, step: int, values: dict[str, float]) -> None:
        write(run, index, step, values)
        if "score" in values and step == steps[-1]:  # the stage would end here
            raise fell

    def failing_save(model: MultilingualClip, out: Path) -> None:
        save(model, out)
        if out.name == "model-wise_ft":
            raise fell

    with monkeypatch.context() as patched:
        if where == "evaluation":
            patched.setattr(Run, "_write", failing_write)
        else:
            patched.setattr(MultilingualClip, "save", failing_save)
        with pytest.raises(Killed):
            scored(recipe, tmp_path / "run")
    state = checkpoint.read(tmp_path / "run" / "checkpoints" / "last.pt")
    assert state.stage == 0
    assert state.step > 0
    scored(recipe, tmp_path / "run", resume=True)
    for name in ("model", "model-wise_ft"):
        assert not changed(weights(tmp_path / "run" / name), weights(folder / name))
    told = [[row for row in read_log(run) if "loss" not in row] for run in (tmp_path / "run", folder)]
    assert told[0] == told[1]


def test_the_command_line_says_when_and_where(
    tuned: tuple[Recipe, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tuned[1] / "recipe.yaml"
    with pytest.raises(SystemExit) as ended:
        cli(["train", str(recipe), "--out", str(tmp_path / "run")])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "2 evaluations without a better score; the stage ends with its best weights, of step" in said
    assert f"wise_ft 0.3: in {tmp_path / 'run' / 'model-wise_ft'}; score " in said


def doubled(captions: Captions) -> Captions:
    """The same pictures, of which every second one has the captions of the one before."""
    number = captions.images
    texts = captions.texts.copy()
    for row in np.flatnonzero(number % 2):
        same = (number == number[row] - 1) & (captions.languages == captions.languages[row])
        texts[row] = captions.texts[same][0]
    return replace(captions, texts=texts, splits=np.full(len(texts), "train"))


def batch_of(model: MultilingualClip, captions: Captions, live: set[str]) -> TriangleBatch:
    examples = rows_from_captions(captions, "train", "all", "en", model.student_tokens)
    needs = Needs(frozenset({"image", "student_text"}), frozenset(live), duplicates=True)
    return TriangleBatch(**Feed(FrozenTowers(model, FeatureCache()), examples, needs, captions).batch(np.arange(60)))


def test_rows_with_the_same_text_have_the_same_number(start: Path, captions: Captions) -> None:
    model = load_model(start)
    twice = doubled(captions)
    texts_B = batch_of(model, twice, set()).texts_B
    assert texts_B is not None
    texts = twice.texts[:60]
    assert torch.equal(texts_B[:, None] == texts_B, torch.from_numpy(texts[:, None] == texts))
    assert torch.equal(texts_B, batch_of(model, twice, {"image", "encoder"}).texts_B)


@pytest.mark.parametrize("positives", ["image", "image_sum", "pair"])
def test_masked_duplicates_have_the_same_gradients_in_parts(start: Path, captions: Captions, positives: str) -> None:
    model = load_model(start)
    batch = batch_of(model, doubled(captions), {"encoder"})
    train = trainable(model, ["projector", "clip_projector"])
    found = {}
    for duplicates in ("mask", "negatives"):
        edges = {EDGE: EdgeLoss("contrastive", learned=True, positives=positives, duplicates=duplicates)}
        for name, how in (("whole", grad_cache.whole), ("parts", partial(grad_cache.cached, size=16))):
            triangle = Triangle(model, edges, train).eval()
            triangle.zero_grad()
            terms = how(Accelerator(cpu=True), triangle, batch, lambda part: None)
            slopes = {name: p.grad.clone() for name, p in triangle.named_parameters() if p.grad is not None}
            found[duplicates, name] = float(terms["loss"].detach()), slopes
    for duplicates in ("mask", "negatives"):
        (whole, slopes), (parts, others) = found[duplicates, "whole"], found[duplicates, "parts"]
        assert parts == pytest.approx(whole, rel=1e-5)
        torch.testing.assert_close(others, slopes, rtol=1e-3, atol=1e-5)
    assert found["mask", "whole"][0] < found["negatives", "whole"][0]


@pytest.mark.parametrize("name", ["coco_finetune", "multi30k_finetune"])
def test_fine_tuning_recipes_have_mclips_figures(name: str) -> None:
    recipe = load(name)
    (stage,) = recipe.stages
    assert (stage.optimizer, stage.lr, stage.weight_decay) == ("lamb", 1e-2, 1e-3)
    assert (stage.batch_size, stage.epochs) == (128, 30)
    assert stage.edges["teacher_text-student_text"].temperature == 0.217
    assert all(edge.positives == "image" and edge.duplicates == "mask" for edge in stage.edges.values())
    assert recipe.evaluation
    assert (recipe.evaluation.keep, recipe.evaluation.metric) == ("best", "mean_recall")


def test_the_coco_recipe_runs_on_other_captions(start: Path, squares: Path, tmp_path: Path) -> None:
    changes = [f"start={start}", f"data.captions={squares}", "stages.0.languages=[fr]", "evaluation.languages=[fr]"]
    small = ["stages.0.batch_size=24", "stages.0.epochs=1", "stages.0.wise_ft=0.5"]
    scored(load("coco_finetune", [*changes, *small]), tmp_path / "run")
    assert {"model", "model-wise_ft"} <= set(os.listdir(tmp_path / "run"))
    assert "fr_t2i_r1" in read_log(tmp_path / "run")[0]
    assert "en_t2i_r1" not in read_log(tmp_path / "run")[0]
