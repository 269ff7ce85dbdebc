"""Checkpoints: a run that stops in the middle of a stage resumes to the same bits; damaged files are refused."""

import math
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mclip_kit.config.recipe import Recipe, load
from mclip_kit.errors import CheckpointError, DataError
from mclip_kit.evaluate.validation import evaluator
from mclip_kit.locks import hold
from mclip_kit.train import callbacks, checkpoint, loop
from mclip_kit.train.callbacks import Callback, Progress
from mclip_kit.train.logging import read_log
from mclip_kit.train.resume import check_folder
from mclip_kit.train.run import Run
from tests import processes, tiny
from tests.train.runs import (
    Killed,
    different,
    killed_at,
    losses,
    only_stage,
    recipe_of,
    stamps,
    train,
    train_until_killed,
    weights,
)


@pytest.fixture(scope="module")
def finished(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A whole run of three stages."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = recipe_of(squares, folder)
    train(recipe, folder / "run")
    return recipe, folder / "run"


def stop_at(run: Run, stage: int, step: int) -> None:
    """Train in this process until an error after a step of a stage, before that step is logged or saved."""

    def fail() -> None:
        raise Killed

    callbacks.CALLBACKS.insert(0, killed_at(stage, step, fail))
    try:
        with pytest.raises(Killed):
            run.go()
    finally:
        del callbacks.CALLBACKS[0]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_killed_run_resumes_to_the_same_weights(
    stage: int, finished: tuple[Recipe, Path], squares: Path, tmp_path: Path
) -> None:
    _, folder = finished
    path = tiny.write_recipe(tiny.recipe(squares), tmp_path / "tiny.yaml")
    stop = {0: 4, 1: 11, 2: 7}[stage]
    killed = processes.run(train_until_killed, path, tmp_path / "run", stage, stop)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "run" / "model").exists()
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert (state["stage"], state["step"]) == (stage, stop - 2 if stop % 2 == 0 else stop - 1)
    train(load(path), tmp_path / "run", resume=True)
    assert not different(weights(tmp_path / "run"), weights(folder))
    assert losses(tmp_path / "run") == losses(folder)


LEARNED = {"image-student_text": {"loss": "contrastive", "learned": True}}
TEACHER = {"teacher_text-student_text": {"loss": "contrastive", "weight": 0.1}}
SECOND_PARTS = {"micro_batch": 8, "checkpointing": True, "layer_decay": 0.8, "ema": 0.9}
CASES: dict[str, dict[int, dict[str, Any]]] = {
    "lamb, layer decay, average, learned temperature": {
        2: {"optimizer": "lamb", "layer_decay": 0.8, "ema": 0.8, "edges": LEARNED | TEACHER, "warmup_steps": 3}
    },
    "adamw, learned temperature, some layers": {
        2: {"edges": LEARNED, "train": ["encoder.*.layer.0.*", "projector"], "clip_norm": 0.5, "monolingual": True}
    },
    "a tower that is trained first and then frozen": {1: {}, 2: {"train": ["projector"], "clip_norm": 0.5}},
    "an average in parts, twice": {1: {"micro_batch": 8, "ema": 0.8}, 2: SECOND_PARTS},
    "adapters": {2: {"train": ["lora", "projector"], "edges": LEARNED}},
}
"""What a stage has that a checkpoint must keep: number of a stage of the tiny recipe -> changes of it."""


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_resumes_to_the_same_weights(case: str, squares: Path, tmp_path: Path) -> None:
    tree = tiny.recipe(squares)
    tree["teacher"]["weights"] = "random"
    tree["stages"] = [tree["stages"][index] | {"epochs": 1} | changes for index, changes in CASES[case].items()]
    tree |= {"checkpoint_every": 3, "clip_projector": "linear"}
    if case == "adapters":
        tree |= {"lora": {"rank": 2, "dropout": 0.1}, "encoder": tree["encoder"] | {"weights": "random"}}
    recipe = load(tiny.write_recipe(tree, tmp_path / "tiny.yaml"))
    train(recipe, tmp_path / "whole")
    for stage in range(len(recipe.stages)):
        stop_at(Run(recipe, tmp_path / "cut", evaluator(recipe), resume=True), stage, 5)
        state = checkpoint.read(tmp_path / "cut" / "checkpoints" / "last.pt")
        assert (state.stage, state.step) == (stage, 3)
    train(recipe, tmp_path / "cut", resume=True)
    assert not different(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert scalars(tmp_path / "whole") == scalars(tmp_path / "cut")


def scalars(folder: Path) -> list[dict[str, Any]]:
    """All that is logged but for the throughput."""
    pace = ("pairs_per_s", "tokens_per_s", "wait", "memory_gb")
    return [{name: value for name, value in row.items() if name not in pace} for row in read_log(folder)]


def as_version_0_1_0(path: Path, names: list[str]) -> None:
    """Rewrite a checkpoint as version 0.1.0 wrote it.

    Args:
        path: the checkpoint.
        names: parameters of the optimiser, in its order.
    """
    state = torch.load(path, weights_only=True)
    state["scales"] = {name.removeprefix("scales."): tensor for name, tensor in state.pop("module").items()}
    number = {name: index for index, name in enumerate(names)}
    optimizer = state["optimizer"]
    assert set(optimizer["state"]) <= set(number)
    groups = [group | {"params": [number[name] for name in group["params"]]} for group in optimizer["param_groups"]]
    assert [index for group in groups for index in group["params"]] == list(range(len(names)))
    moments = {number[name]: values for name, values in optimizer["state"].items()}
    torch.save({**state, "optimizer": {"state": moments, "param_groups": groups}}, path)


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_a_checkpoint_of_version_0_1_0_resumes_to_the_same_weights(
    optimizer: str, squares: Path, tmp_path: Path
) -> None:
    """It has learned temperatures under `scales`, and the optimiser's state by numbers of parameters."""
    only = only_stage(squares, 2)
    only["stages"][0] |= {"edges": LEARNED, "optimizer": optimizer, "layer_decay": 0.8, "ema": 0.8}
    recipe = recipe_of(squares, tmp_path, "checkpoint_every=3", **only)
    train(recipe, tmp_path / "whole")
    stop_at(Run(recipe, tmp_path / "cut", evaluator(recipe)), 0, 5)
    last = tmp_path / "cut" / "checkpoints" / "last.pt"
    content = torch.load(last, weights_only=True)
    assert set(content["module"]) == {"scales.image-student_text"}
    as_version_0_1_0(last, [name for group in content["optimizer"]["param_groups"] for name in group["params"]])
    assert set(torch.load(last, weights_only=True)["scales"]) == {"image-student_text"}
    train(recipe, tmp_path / "cut", resume=True)
    assert not different(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert scalars(tmp_path / "whole") == scalars(tmp_path / "cut")


def test_a_checkpoint_before_any_step_was_taken_resumes(squares: Path, tmp_path: Path) -> None:
    """Steps with a non-finite loss are skipped; the optimiser has no state then."""
    only = only_stage(squares, 1)
    recipe = recipe_of(squares, tmp_path, "checkpoint_every=1", "evaluation=null", **only)

    def first_steps_are_skipped(run: Run) -> Run:
        task_of = run._task

        def skipping(index: int, trained: frozenset[str]) -> Any:
            task = task_of(index, trained)
            gradients, number = task.gradients, [0]

            def poisoned(*arguments: Any) -> dict[str, torch.Tensor]:
                terms = gradients(*arguments)
                number[0] += 1
                return terms | {"loss": terms["loss"] * (float("nan") if number[0] <= 2 else 1.0)}

            task.gradients = poisoned
            return task

        run._task = skipping  # type: ignore[method-assign]
        return run

    first_steps_are_skipped(Run(recipe, tmp_path / "whole")).go()
    stop_at(first_steps_are_skipped(Run(recipe, tmp_path / "cut")), 0, 3)
    assert checkpoint.read(tmp_path / "cut" / "checkpoints" / "last.pt").step == 2
    Run(recipe, tmp_path / "cut", resume=True).go()
    assert not different(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_prints_how_to_resume(number: signal.Signals, squares: Path, tmp_path: Path) -> None:
    only = only_stage(squares, 2)
    path = tiny.write_recipe(tiny.recipe(squares) | only | {"checkpoint_every": 1000}, tmp_path / "tiny.yaml")
    long = ["--set", "stages.0.epochs=4000"]
    process = processes.start(processes.command, "train", str(path), "--out", str(tmp_path / "run"), *long)
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.is_file() and any(row["step"] >= 20 for row in read_log(log.parent))):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr
        time.sleep(0.05)
    process.send_signal(number)
    printed = process.wait(timeout=60).stderr
    assert process.returncode == 128 + number
    assert "--resume" in printed
    assert "Traceback" not in printed
    assert "--set stages.0.epochs=4000" in printed  # without it the recipe would be another
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert state["stage"] == 0
    assert state["step"] >= 20
    assert state["optimizer"] is not None


def test_a_folder_with_a_run_is_not_overwritten(finished: tuple[Recipe, Path], squares: Path, tmp_path: Path) -> None:
    recipe, folder = finished
    with pytest.raises(CheckpointError, match="--resume"):
        Run(recipe, folder)
    with pytest.raises(CheckpointError, match=r"different keys: stages\.0\.lr"):
        Run(recipe_of(squares, tmp_path, "stages.0.lr=0.5"), folder, resume=True)


def test_a_run_of_the_last_release_with_renamed_keys_resumes(finished: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, folder = finished
    shutil.copytree(folder, tmp_path / "run")
    written = tmp_path / "run" / "recipe.yaml"
    text = written.read_text(encoding="utf-8")
    for new, old in (("init_from", "start"), ("wise_ft_alpha", "wise_ft"), ("missing_teacher", "without_teacher")):
        assert new in text
        text = text.replace(f"{new}:", f"{old}:")
    written.write_text(text, encoding="utf-8")
    train(recipe, tmp_path / "run", resume=True)
    assert not different(weights(tmp_path / "run"), weights(folder))


def test_a_checkpoint_of_another_shape_is_named(finished: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, folder = finished
    shutil.copytree(folder, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    state = torch.load(last, weights_only=True)
    state["model"] = {name: tensor[:1] if tensor.dim() else tensor for name, tensor in state["model"].items()}
    torch.save(state, last)
    shutil.rmtree(tmp_path / "run" / "model")  # a finished run has nothing to load
    with pytest.raises(CheckpointError, match=r"last\.pt: does not fit"):
        Run(recipe, tmp_path / "run", resume=True).go()


def test_a_run_that_saved_nothing_starts_again(squares: Path, tmp_path: Path) -> None:
    wrong = recipe_of(squares, tmp_path, "stages.0.batch_size=100")
    with pytest.raises(DataError):
        Run(wrong, tmp_path / "run").go()
    Run(recipe_of(squares, tmp_path), tmp_path / "run")


def test_a_run_that_starts_again_writes_its_model_again(finished: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, folder = finished
    shutil.copytree(folder, tmp_path / "run")
    for path in checkpoint.checkpoints(tmp_path / "run"):
        path.unlink()
    (tmp_path / "run" / "model" / "projector.safetensors").write_bytes(b"of an earlier run")
    train(recipe, tmp_path / "run")
    assert not different(weights(tmp_path / "run"), weights(folder))


def test_resuming_a_finished_run_changes_nothing(finished: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, folder = finished
    shutil.copytree(folder, tmp_path / "run")
    before = stamps(tmp_path / "run")
    again = train(recipe, tmp_path / "run", resume=True)
    assert again.was_finished
    assert stamps(tmp_path / "run") == before
    shutil.rmtree(tmp_path / "run" / "model")
    assert not train(recipe, tmp_path / "run", resume=True).was_finished
    assert not different(weights(tmp_path / "run"), weights(folder))
    assert read_log(tmp_path / "run") == read_log(folder)


def test_a_run_folder_resumes_where_it_is_copied_to(
    finished: tuple[Recipe, Path], squares: Path, tmp_path: Path
) -> None:
    recipe, folder = finished
    stop_at(Run(recipe, tmp_path / "first" / "run", evaluator(recipe)), 2, 5)
    shutil.copytree(tmp_path / "first" / "run", tmp_path / "second" / "copy")
    shutil.rmtree(tmp_path / "first")
    train(recipe, tmp_path / "second" / "copy", resume=True)
    assert not (tmp_path / "first").exists()
    assert not different(weights(tmp_path / "second" / "copy"), weights(folder))
    assert losses(tmp_path / "second" / "copy") == losses(folder)


def test_a_callback_keeps_what_it_needs_to_resume(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StepCounter(Callback):
        """A callback that users write: it counts the steps of a stage."""

        def __init__(self, at: Progress, state: checkpoint.TrainState) -> None:
            super().__init__(at, state)
            self.count = state.callbacks.get("StepCounter", {}).get("count", 0)

        def after_step(self) -> None:
            self.count += 1
            self.at.values["count"] = self.count

        def add_to_checkpoint(self, state: checkpoint.TrainState) -> None:
            state.callbacks["StepCounter"] = {"count": self.count}

    monkeypatch.setattr(callbacks, "CALLBACKS", [StepCounter, *callbacks.CALLBACKS])
    monkeypatch.setattr("mclip_kit.train.run.CALLBACKS", callbacks.CALLBACKS)
    recipe = recipe_of(squares, tmp_path, "checkpoint_every=3", **only_stage(squares, 2))
    stop_at(Run(recipe, tmp_path / "run", evaluator(recipe)), 0, 5)
    train(recipe, tmp_path / "run", resume=True)
    last = [row for row in read_log(tmp_path / "run") if "count" in row][-1]
    assert last["count"] == last["step"]


def test_a_run_of_before_there_was_a_key_resumes(squares: Path, tmp_path: Path) -> None:
    recipe = recipe_of(squares, tmp_path, **only_stage(squares, 2))
    train(recipe, tmp_path / "run")
    written = tmp_path / "run" / "recipe.yaml"
    lines = written.read_text(encoding="utf-8").splitlines(keepends=True)
    assert sum("layer_decay" in line for line in lines) == 1
    written.write_text("".join(line for line in lines if "layer_decay" not in line), encoding="utf-8")
    check_folder(tmp_path / "run", recipe, resume=True)


def test_a_run_whose_adapters_had_the_earlier_default_resumes(squares: Path, tmp_path: Path) -> None:
    lora = ["lora={rank: 2}", "stages.0.train=[lora]", "encoder.weights=random", "stages.0.epochs=1"]
    recipe = recipe_of(squares, tmp_path, *lora, **only_stage(squares, 1))
    train(recipe, tmp_path / "run")
    written = tmp_path / "run" / "recipe.yaml"
    text = written.read_text(encoding="utf-8")
    assert "targets: null" in text
    written.write_text(text.replace("targets: null", "targets: [query, value]"), encoding="utf-8")
    check_folder(tmp_path / "run", recipe, resume=True)
    written.write_text(text.replace("targets: null", "targets: [query]"), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"different keys: lora\.targets"):
        check_folder(tmp_path / "run", recipe, resume=True)


def test_a_second_signal_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(loop, "SAME_REQUEST", math.inf)  # torchrun passes a signal on that has come already
    with loop.stop_requests() as asked:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert asked == [signal.SIGTERM]
        monkeypatch.setattr(loop, "SAME_REQUEST", -1.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before


def test_two_trainers_never_share_a_folder(squares: Path, tmp_path: Path) -> None:
    recipe = recipe_of(squares, tmp_path, **only_stage(squares, 2))
    first = Run(recipe, tmp_path / "run", evaluator(recipe))
    second = processes.start(processes.command, "train", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run"))
    with hold(first.folder, "run"):
        refused = second.wait()
    assert refused.returncode == 2
    assert re.search(r"Error: .*run: another process trains there \(process \d+ on .* since .*\); wait", refused.stderr)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    first.go()
    assert not list((tmp_path / "run").glob(".run.*"))
