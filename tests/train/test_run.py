"""Whole runs of tiny towers: resumed, interrupted, killed; what is frozen stays; the shipped recipes in small."""

import json
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mclip_kit.config.recipe import Recipe, load
from mclip_kit.data.bitext import open_bitext
from mclip_kit.data.tokenizer import MODEL_FILE
from mclip_kit.errors import CheckpointError, DataError, RecipeError
from mclip_kit.evaluate.validation import evaluator
from mclip_kit.models.multilingual_clip import load as load_model
from mclip_kit.train.logging import read_log
from mclip_kit.train.run import Run
from tests import processes, tiny

LOSSES = ("image-teacher_text", "teacher_text-student_text", "image-student_text")


def run(recipe: Recipe, folder: Path, resume: bool = False) -> Run:
    """Train with the evaluator that the command line gives."""
    made = Run(recipe, folder, evaluator(recipe), resume)
    made.go()
    return made


def recipe_of(data: Path, folder: Path, *changes: str, **tree: Any) -> Recipe:
    return load(tiny.write_recipe(tiny.recipe(data) | tree, folder / "tiny.yaml"), changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder / "model").state_dict()


@pytest.fixture(scope="module")
def finished(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A whole run of three stages."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = recipe_of(squares, folder)
    run(recipe, folder / "run")
    return recipe, folder / "run"


def test_a_run_leaves_what_it_promises(finished: tuple[Recipe, Path]) -> None:
    recipe, folder = finished
    assert load(folder / "recipe.yaml") == recipe
    rows = read_log(folder)
    assert {row["stage"] for row in rows} == {"teacher", "distill", "contrast"}
    assert all(any(loss in row for row in rows) for loss in LOSSES)
    assert [row["step"] for row in rows if "score" in row and row["stage"] == "distill"] == [0, 9, 18]
    assert list((folder / "tensorboard").iterdir())
    model = load_model(folder / "model")
    assert model.trained_languages == ["de", "en", "fr"]
    assert model.encode_text(["red square left", "Quadrat rot"]).shape == (2, 16)


def test_training_learns_the_squares(squares: Path, tmp_path: Path) -> None:
    many = [f"stages.{stage}.epochs={epochs}" for stage, epochs in enumerate((40, 20, 4))]
    calm = ["evaluation.every_epochs=100", "stages.0.lr=0.005", "stages.1.lr=0.005"]
    made = run(recipe_of(squares, tmp_path, *many, *calm), tmp_path / "run")
    rows = read_log(tmp_path / "run")
    for stage, loss in zip(("teacher", "distill"), LOSSES, strict=False):
        losses = [row[loss] for row in rows if row["stage"] == stage and loss in row]
        assert losses[-1] < 0.8 * losses[0]
    assert rows[-1]["score"] > rows[0]["mean_t2i_r1"]
    assert made.model.trained_languages == ["de", "en", "fr"]


def test_a_stage_leaves_frozen_towers_as_they_were(squares: Path, tmp_path: Path) -> None:
    tree = tiny.recipe(squares)
    recipe = recipe_of(squares, tmp_path, stages=tree["stages"][1:], teacher=tree["teacher"] | {"weights": "random"})
    made = Run(recipe, tmp_path / "run")
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    made.go()
    after = made.model.state_dict()
    frozen = [name for name in before if name.startswith(("image.", "teacher_text."))]
    moved = [name for name in before if name.startswith(("encoder.", "projector."))]
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert any(not torch.equal(before[name], after[name]) for name in moved)
    assert all(parameter.grad is None for name, parameter in made.model.named_parameters() if name in frozen)


def test_the_same_seed_gives_the_same_weights_and_another_others(
    finished: tuple[Recipe, Path], squares: Path, tmp_path: Path
) -> None:
    recipe, folder = finished
    run(recipe, tmp_path / "same")
    assert_same(weights(tmp_path / "same"), weights(folder))
    run(recipe_of(squares, tmp_path, "seed=2"), tmp_path / "other")
    name = "projector.head.1.weight"
    assert not torch.equal(weights(tmp_path / "other")[name], weights(folder)[name])


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_killed_and_resumed_is_as_never_killed(
    stage: int, finished: tuple[Recipe, Path], squares: Path, tmp_path: Path
) -> None:
    _, folder = finished
    path = tiny.write_recipe(tiny.recipe(squares), tmp_path / "tiny.yaml")
    stop = {0: 4, 1: 11, 2: 7}[stage]
    script = (
        "import os, signal, sys\n"
        "from mclip_kit.train import loop\n"
        "loop_postfix = loop._postfix\n"
        "steps = [0]\n"
        "def count(values):\n"
        "    steps[0] += 1\n"
        f"    if steps[0] == {[0, 6, 24][stage] + stop}:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return loop_postfix(values)\n"
        "loop._postfix = count\n"
        "from mclip_kit.cli import cli\n"
        f"cli(['train', {str(path)!r}, '--out', {str(tmp_path / 'run')!r}, '--resume'])\n"
    )
    killed = processes.run(processes.script, script)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "run" / "model").exists()
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert (state["stage"], state["step"]) == (stage, stop - 2 if stop % 2 == 0 else stop - 1)
    run(load(path), tmp_path / "run", resume=True)
    assert_same(weights(tmp_path / "run"), weights(folder))
    assert losses(tmp_path / "run") == losses(folder)


def test_ctrl_c_saves_and_says_how_to_go_on(squares: Path, tmp_path: Path, finished: tuple[Recipe, Path]) -> None:
    path = tiny.write_recipe(tiny.recipe(squares) | {"checkpoint_every": 1000}, tmp_path / "tiny.yaml")
    long = ["--set", "stages.0.epochs=4000"]
    process = processes.start(processes.command, "train", str(path), "--out", str(tmp_path / "run"), *long)
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.is_file() and any(row["step"] >= 20 for row in read_log(log.parent))):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.wait(timeout=60).stderr
    assert process.returncode == 130
    assert "--resume" in said
    assert "Traceback" not in said
    assert "--set stages.0.epochs=4000" in said  # without it the recipe would be another
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert state["stage"] == 0
    assert state["step"] >= 20
    assert state["optimizer"] is not None


def test_a_folder_with_a_run_is_not_overwritten(finished: tuple[Recipe, Path], squares: Path, tmp_path: Path) -> None:
    recipe, folder = finished
    with pytest.raises(CheckpointError, match="--resume"):
        Run(recipe, folder)
    with pytest.raises(CheckpointError, match=r"what differs: stages\.0\.lr"):
        Run(recipe_of(squares, tmp_path, "stages.0.lr=0.5"), folder, resume=True)


def test_a_damaged_checkpoint_is_named(finished: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, folder = finished
    shutil.copytree(folder, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    for kept in (100, 0):
        last.write_bytes(last.read_bytes()[:kept])
        with pytest.raises(CheckpointError, match=r"last\.pt: damaged"):
            Run(recipe, tmp_path / "run", resume=True).go()


def test_a_checkpoint_of_another_shape_is_named(finished: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, folder = finished
    shutil.copytree(folder, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    state = torch.load(last, weights_only=True)
    state["model"] = {name: tensor[:1] if tensor.dim() else tensor for name, tensor in state["model"].items()}
    torch.save(state, last)
    with pytest.raises(CheckpointError, match=r"last\.pt: does not fit"):
        Run(recipe, tmp_path / "run", resume=True).go()


def test_a_run_that_saved_nothing_may_be_mended(squares: Path, tmp_path: Path) -> None:
    wrong = recipe_of(squares, tmp_path, "stages.0.batch_size=100")
    with pytest.raises(DataError):
        Run(wrong, tmp_path / "run").go()
    Run(recipe_of(squares, tmp_path), tmp_path / "run")


def test_a_run_started_anew_writes_its_model_anew(finished: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, folder = finished
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "last.pt").unlink()
    (tmp_path / "run" / "model" / "projector.safetensors").write_bytes(b"of an earlier run")
    run(recipe, tmp_path / "run")
    assert_same(weights(tmp_path / "run"), weights(folder))


def test_edges_that_no_row_can_feed_are_refused(squares: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row has a text in en"):
        Run(recipe_of(squares, tmp_path, "stages.0.languages=[de]"), tmp_path / "run").go()


def test_resuming_a_finished_run_changes_nothing(finished: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, folder = finished
    shutil.copytree(folder, tmp_path / "run")
    run(recipe, tmp_path / "run", resume=True)
    assert_same(weights(tmp_path / "run"), weights(folder))
    assert read_log(tmp_path / "run") == read_log(folder)


def test_too_few_rows_for_a_batch(squares: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="72 rows make no batch of 100"):
        Run(recipe_of(squares, tmp_path, "stages.0.batch_size=100"), tmp_path / "run").go()


def test_losses_that_are_not_finite_are_skipped_then_stop_the_run(squares: Path, tmp_path: Path) -> None:
    wild = ["stages.0.lr=1.0e+30", "stages.0.epochs=50", "stages.0.max_nonfinite=3"]
    with pytest.raises(DataError, match=r"stage 1/3 teacher: not a finite number in 3 steps up to .*nonfinite\.jsonl"):
        Run(recipe_of(squares, tmp_path, *wild), tmp_path / "run").go()
    skipped = [json.loads(line) for line in (tmp_path / "run" / "nonfinite.jsonl").read_text().splitlines()]
    assert len(skipped) >= 3
    assert all(len(row["rows"]) == 24 and row["stage"] == "teacher" for row in skipped)


def test_start_goes_on_from_a_model_folder(finished: tuple[Recipe, Path], squares: Path, tmp_path: Path) -> None:
    _, folder = finished
    changes = [
        f"start={folder / 'model'}",
        f"data.captions={squares}",
        "stages.0.languages=[en,de]",
        "stages.0.split=train",
        "stages.0.train=[projector]",
        "evaluation={keep: last}",
        "stages.0.epochs=2",
        "stages.0.batch_size=16",
    ]
    made = run(load("multi30k_finetune", changes), tmp_path / "run")
    before, after = weights(folder), made.model.state_dict()
    assert_same(
        {n: t for n, t in after.items() if n.startswith("encoder")},
        {n: t for n, t in before.items() if n.startswith("encoder")},
    )
    assert not torch.equal(before["projector.head.1.weight"], after["projector.head.1.weight"])


def test_a_folder_that_fairseq_preprocess_wrote_trains(squares: Path, tmp_path: Path) -> None:
    sides = open_bitext(squares / "bitext").read("train", "en", "fr")
    folder = tiny.fairseq_preprocess({side.language: list(side.texts) for side in sides}, squares / "bitext", tmp_path)
    shutil.copy(squares / "bitext" / MODEL_FILE, folder)  # the new encoder's vocabulary
    tree = tiny.recipe(squares)
    tree |= {"stages": tree["stages"][1:2], "teacher": tree["teacher"] | {"weights": "random"}, "evaluation": None}
    both = {}
    for name, bitext in (("fairseq", folder), ("ours", squares / "bitext")):
        path = tiny.write_recipe(tree | {"data": {"bitext": str(bitext)}}, tmp_path / f"{name}.yaml")
        run(load(path, ["stages.0.languages=[fr]"]), tmp_path / name)
        both[name] = weights(tmp_path / name)
    assert_same(both["fairseq"], both["ours"])


@pytest.mark.parametrize("name", ["altclip_full", "trikd_projectors"])
def test_shipped_recipes_run_on_the_embedded_corpus_with_small_towers(name: str, emoji: Path, tmp_path: Path) -> None:
    encoder = tiny.ENCODER | {"weights": "random"}
    stages = {"altclip_full": 2, "trikd_projectors": 1}[name]
    changes = [
        f"data={{captions: {emoji}, bitext: {emoji / 'bitext'}}}",
        f"teacher={{weights: random, model: {json.dumps(tiny.TEACHER)}}}",
        f"encoder={json.dumps(encoder)}",
        "projector.layers=1",
        "evaluation.languages=[en, zh, ar]",
        *(f"stages.{stage}.{key}" for stage in range(stages) for key in ("epochs=1", "warmup_steps=5")),
    ]
    arguments = [argument for change in changes for argument in ("--set", change)]
    processes.train(Path(f"recipes/{name}.yaml"), tmp_path / "run", 1, *arguments)
    rows = read_log(tmp_path / "run")
    assert len({row["stage"] for row in rows}) == stages
    assert load_model(tmp_path / "run" / "model").encode_text(["猫", "قط"]).shape[0] == 2


def losses(folder: Path) -> list[tuple[Any, ...]]:
    """Every logged loss, with its place."""
    return [(row["stage"], row["step"], row["loss"]) for row in read_log(folder) if "loss" in row]


def assert_same(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert some.keys() == others.keys()
    assert [name for name in some if not torch.equal(some[name], others[name])] == []


PARTS = ["stages.2.micro_batch=8", "stages.1.micro_batch=8", "stages.2.checkpointing=true", "stages.0.layer_decay=0.8"]


def test_a_run_in_parts_with_an_average_resumes_to_the_same_weights(squares: Path, tmp_path: Path) -> None:
    changes = [*PARTS, "stages.1.ema=0.8", "stages.2.ema=0.9", "checkpoint_every=3"]
    recipe = recipe_of(squares, tmp_path, *changes)
    run(recipe, tmp_path / "whole")
    for stage, step in ((1, 5), (2, 5)):
        code = f"""
import os, sys
from tests.train.test_run import *
import mclip_kit.train.run as module
before = module.Run._write
def write(self, index, step, values):
    before(self, index, step, values)
module.LOG_EVERY = 1
def stop(self, index, step, values):
    write(self, index, step, values)
    if (index, step) == ({stage}, {step}):
        os._exit(9)
module.Run._write = stop
run(load(sys.argv[1]), Path(sys.argv[2]), resume=True)
"""
        (tmp_path / "tiny.yaml").write_text((tmp_path / "whole" / "recipe.yaml").read_text())
        cut = processes.run(processes.script, code, str(tmp_path / "tiny.yaml"), str(tmp_path / "cut"))
        assert cut.returncode == 9, cut.stderr
    run(load(tmp_path / "tiny.yaml"), tmp_path / "cut", resume=True)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_adapters_are_trained_alone_and_leave_a_standard_encoder(squares: Path, tmp_path: Path) -> None:
    kept = ["encoder.weights=random", "evaluation.keep=last"]
    lora = ["lora={rank: 2}", "stages.1.train=[lora, projector]", "stages.2.train=[lora]"]
    made = run(recipe_of(squares, tmp_path, *kept, *lora), tmp_path / "run")
    names = [name for name, _ in load_model(tmp_path / "run" / "model").named_parameters()]
    assert names == [name for name, _ in made.model.named_parameters()]
    assert not any("lora" in name for name in names)
    alone = [f"stages.{stage}.train=[projector]" for stage in (1, 2)]
    fresh = run(recipe_of(squares, tmp_path, *kept, *alone), tmp_path / "frozen")
    tuned, frozen = made.model.encoder.state_dict(), fresh.model.encoder.state_dict()
    changed = {name for name in tuned if not torch.equal(tuned[name], frozen[name])}
    assert changed == {name for name in tuned if re.search(r"(query|value)\.weight$", name)}


def test_evaluation_by_steps_and_by_a_named_metric(squares: Path, tmp_path: Path) -> None:
    run(recipe_of(squares, tmp_path, "evaluation.every_steps=4", "evaluation.metric=de_t2i_r1"), tmp_path / "run")
    scored = [row for row in read_log(tmp_path / "run") if "score" in row and row["stage"] == "distill"]
    assert [row["step"] for row in scored] == [0, 4, 8, 12, 16, 18]
    assert all(row["score"] == row["de_t2i_r1"] for row in scored)
    with pytest.raises(RecipeError, match=r"evaluation\.metric: there is no beauty; there are mean_t2i_r1"):
        run_with_metric("beauty", squares, tmp_path)


def run_with_metric(name: str, squares: Path, folder: Path) -> None:
    recipe = recipe_of(squares, folder, f"evaluation.metric={name}")
    Run(recipe, folder / "other", evaluator(recipe)).go()


def test_a_score_that_falls_far_ends_the_run(squares: Path, tmp_path: Path) -> None:
    recipe = recipe_of(squares, tmp_path, "evaluation.stop_below_start=5")
    scores = iter([50.0, 47.0, 44.0])
    falling = Run(recipe, tmp_path / "run", lambda model, store, stage: {"score": next(scores)})
    with pytest.raises(DataError, match=r"fell from 50\.0 at step 0 to 44\.0.* of step 0, are in .*best\.pt"):
        falling.go()


def test_a_dry_run_estimates_every_stage_and_writes_nothing(squares: Path, tmp_path: Path) -> None:
    lines = list(Run(recipe_of(squares, tmp_path), tmp_path / "run").estimate())
    assert [line.split(":")[0] for line in lines if not line.startswith(" ")] == ["teacher", "distill", "contrast"]
    assert sum("what 24 rows keep for the backward pass" in line for line in lines) == 3
    assert any("features, teacher texts" in line for line in lines)
    assert not (tmp_path / "run").exists()
