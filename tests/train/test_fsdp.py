"""FSDP: sharded weights train as whole ones do, with any number of processes before and after a checkpoint."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from mclip_kit.config.recipe import load
from mclip_kit.models.multilingual_clip import load as load_model
from mclip_kit.tasks.base import Scores
from mclip_kit.train import checkpoint
from mclip_kit.train.logging import read_log
from mclip_kit.train.run import Run
from tests import processes, tiny
from tests.models.kinds import ENCODERS, save
from tests.train.runs import only_stage
from tests.train.test_processes import stages

KEPT = ("model", "model-wise_ft")


def assert_close(one: Path, other: Path, kept: Iterable[str] = KEPT) -> None:
    """The same logged steps and weights, but for rounding."""
    rows = [[row for row in read_log(folder) if "loss" in row] for folder in (one, other)]
    for a, b in zip(*rows, strict=True):
        assert (a["stage"], a["step"]) == (b["stage"], b["step"])
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)
    for kind in kept:
        weights, others = (load_model(folder / kind).state_dict() for folder in (one, other))
        assert weights.keys() == others.keys()
        for name, tensor in weights.items():
            torch.testing.assert_close(others[name], tensor, rtol=1e-3, atol=2e-4)  # Adam magnifies rounding


@pytest.fixture(scope="module")
def recipe(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages with a moving average; the second trains sharded weights alone, and has WiSE-FT."""
    tree = tiny.recipe(squares)
    tree["teacher"]["weights"] = "random"
    tree["encoder"] |= {"dropout": 0.0, "layers": 2}
    tree["stages"] = [stage | {"layer_decay": 0.8, "ema": 0.7, "epochs": 2} for stage in stages()[1:3]]
    tree["stages"][1] |= {"train": ["encoder.model.encoder.layer.1"], "wise_ft_alpha": 0.5}
    tree["evaluation"]["keep"] = "last"
    tree |= {"cache": {"dtype": "fp32"}, "parallel": "fsdp", "checkpoint_every": 3}
    return tiny.write_recipe(tree, tmp_path_factory.mktemp("fsdp") / "tiny.yaml")


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    """The run in one process, in which nothing is sharded."""
    processes.train(recipe, recipe.parent / "one" / "run")
    return recipe.parent / "one" / "run"


def test_a_checkpoint_of_one_process_resumes_in_two(recipe: Path, whole: Path, tmp_path: Path) -> None:
    scores = iter(range(2))

    def fail_later(*_: Any) -> Scores:
        return Scores(float(next(scores)), {})

    with pytest.raises(StopIteration):
        Run(load(recipe), tmp_path / "run", fail_later).go()
    state = checkpoint.read(tmp_path / "run" / "checkpoints" / "last.pt")
    assert state.stage == 0
    assert state.step > 0
    assert state.optimizer
    assert state.average
    processes.train(recipe, tmp_path / "run", 2, "--resume")
    assert_close(whole, tmp_path / "run")


def stop_in_two(recipe: Path, folder: Path) -> None:
    """Train until an error in the middle of the first stage, in all processes."""
    from mclip_kit.train import callbacks
    from tests.train.runs import killed_at, train

    def fail() -> None:
        raise SystemExit(9)

    callbacks.CALLBACKS.insert(0, killed_at(0, 5, fail))
    train(load(recipe), folder)


def test_a_checkpoint_of_two_processes_resumes_in_one(recipe: Path, whole: Path, tmp_path: Path) -> None:
    stopped = processes.run(stop_in_two, recipe, tmp_path / "run", ranks=2)
    assert stopped.returncode == 9, stopped.stderr[-3000:]
    state = checkpoint.read(tmp_path / "run" / "checkpoints" / "last.pt")
    assert (state.stage, state.step) == (0, 3)
    assert all(type(tensor) is torch.Tensor for tensor in [*state.model.values(), *state.average.values()])
    processes.train(recipe, tmp_path / "run", 1, "--resume")
    assert_close(whole, tmp_path / "run")


def test_every_layer_of_an_xlmr_xl_is_sharded_alone_and_trains_as_a_whole_one(squares: Path, tmp_path: Path) -> None:
    tree = tiny.recipe(squares) | {"encoder": f"hf:{save(ENCODERS['xlm-roberta-xl'], tmp_path / 'xl')}"}
    tree |= {"projector": {"kind": "altclip", "pool": "cls"}, "parallel": "fsdp", "checkpoint_every": 1000}
    tree["data"]["max_unknown"] = 1.0
    del tree["evaluation"]
    tree |= only_stage(squares, 1)
    tree["stages"][0] |= {"epochs": 1, "eps": 1e-4}  # Adam divides gradients that are rounding alone by themselves
    recipe = tiny.write_recipe(tree, tmp_path / "xl.yaml")
    processes.train(recipe, tmp_path / "one" / "run")
    processes.train(recipe, tmp_path / "two" / "run", 2)
    assert_close(tmp_path / "one" / "run", tmp_path / "two" / "run", ["model"])


def test_the_parts_that_are_sharded_are_layers() -> None:
    with torch.device("meta"):
        model = ENCODERS["xlm-roberta-xl"]()
    assert {"XLMRobertaXLLayer", "XLMRobertaXLEmbeddings"} <= set(model._no_split_modules)
