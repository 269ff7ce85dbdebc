"""A kind of stage from outside of the package: masked language modelling on the encoder (Devlin et al. 2019).

One config section, one task, one registration; the run, its loop, its log, its dry run and resuming know nothing of it.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mclip_kit.config import stages
from mclip_kit.config.recipe import Recipe, load
from mclip_kit.config.yaml import Count
from mclip_kit.data.batching import Plan, pad
from mclip_kit.data.bitext import open_bitext
from mclip_kit.data.datasets import rows_from_bitexts
from mclip_kit.data.triangle_rows import TriangleRows
from mclip_kit.errors import RecipeError
from mclip_kit.tasks import base
from mclip_kit.tasks.base import StageModule, Task, Trial, register
from mclip_kit.tasks.stage_batches import StageBatches
from mclip_kit.train.logging import read_log
from mclip_kit.train.run import Run
from tests import tiny
from tests.train.runs import stamps

MASK_SHARE = 0.3


# The whole of the kind: what a user would write.


class MaskedStage(stages.Stage):
    """The encoder predicts masked tokens of the bitext."""

    kind: Literal["masked"] = "masked"
    data: Literal["bitext"] = "bitext"
    split: str = "train"
    steps: Count
    batch_size: Count


@dataclass
class MaskedBatch:
    ids_BT: Tensor
    mask_BT: Tensor

    def to(self, device: torch.device) -> "MaskedBatch":
        return MaskedBatch(self.ids_BT.to(device), self.mask_BT.to(device))

    def __len__(self) -> int:
        return len(self.ids_BT)

    @property
    def tokens(self) -> int:
        return int(self.mask_BT.sum())


class Masked(StageModule):
    """Cross-entropy of masked tokens; the head is the module's own, the word table the encoder's."""

    model: Any

    def __init__(self, model: nn.Module, trained: Collection[str]) -> None:
        super().__init__(model, trained)
        width = model.encoder.width
        self.head = nn.Linear(width, width)
        nn.init.eye_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: MaskedBatch) -> dict[str, Tensor]:
        encoder = self.model.encoder
        hidden_BT = (torch.rand(batch.ids_BT.shape) < MASK_SHARE) & batch.mask_BT.bool()
        ids_BT = batch.ids_BT.masked_fill(hidden_BT, encoder.tokenizer.vocabulary - 1)
        states_NH = self.head(encoder(ids_BT, batch.mask_BT)[hidden_BT])
        logits_NV = states_NH @ encoder.model.get_input_embeddings().weight.T
        return {"loss": F.cross_entropy(logits_NV, batch.ids_BT[hidden_BT])}


class MaskedBatches(StageBatches):
    def __init__(self, rows: TriangleRows, stage: MaskedStage, seed: int) -> None:
        self.rows, self.steps = rows, stage.steps
        self.plan = Plan(rows.languages_N, rows.lengths_N, stage.batch_size, seed=seed)

    def batch(self, rows: np.ndarray) -> MaskedBatch:
        return MaskedBatch(*pad([self.rows.tokens[row] for row in rows]))


class MaskedTask(Task):
    @cached_property
    def rows(self) -> TriangleRows:
        encoder, recipe = self.context.model.encoder, self.context.recipe
        how = {"include_teacher_language": True, "max_tokens": encoder.positions, "tokenize": encoder.tokenizer.encode}
        bitexts = [open_bitext(folder) for folder in recipe.data.bitexts]
        return tiny.rows_of(rows_from_bitexts(bitexts, "train", "all", "en", pieces=encoder.tokenizer.pieces(), **how))

    @cached_property
    def batches(self) -> MaskedBatches:
        return MaskedBatches(self.rows, self.stage, self.context.seed)

    def module(self) -> Masked:
        return Masked(self.context.model, self.context.trained)

    def trial(self) -> Trial:
        size = self.stage.batch_size
        take = lambda count: (self.batches.batch(np.arange(count)), [])  # noqa: E731
        return Trial(len(self.rows), self.stage.steps, f"{size}", size, size, take)


# What the package makes of it.


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """The kind is known inside a test only."""
    register(MaskedStage, MaskedTask)
    yield
    del stages.KINDS["masked"], base.TASKS[MaskedStage]
    Recipe.model_rebuild(force=True)


def recipe_of(squares: Path, folder: Path, **changes: Any) -> Recipe:
    """Masked language modelling, then teacher learning with a frozen encoder."""
    tree = tiny.recipe(squares)
    masked = {"kind": "masked", "name": "masked", "train": ["encoder"], "steps": 40, "batch_size": 24, "lr": 3e-3}
    distill = tree["stages"][1] | {"train": ["projector"], "epochs": 1}
    tree |= {"stages": [masked | changes, distill], "checkpoint_every": 7}
    tree["teacher"]["weights"] = "random"
    folder.mkdir(parents=True, exist_ok=True)
    return load(tiny.write_recipe(tree, folder / "recipe.yaml"))


def test_it_trains_logs_and_leaves_a_model(squares: Path, tmp_path: Path) -> None:
    recipe = recipe_of(squares, tmp_path)
    before = Run(recipe, tmp_path / "run").model.state_dict()["encoder.model.embeddings.word_embeddings.weight"].clone()
    out = Run(recipe, tmp_path / "run").go()
    losses = [row["loss"] for row in read_log(tmp_path / "run") if row["stage"] == "masked"]
    assert len(losses) == 4
    assert losses[-1] < losses[0] - 0.3
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["trained_languages"] == ["de", "en", "fr"]
    after = Run(recipe, tmp_path / "other").model.state_dict()["encoder.model.embeddings.word_embeddings.weight"]
    assert torch.equal(before, after)  # the run changed its own model alone


def test_it_resumes_to_the_same_weights(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Run(recipe_of(squares, tmp_path), tmp_path / "whole")
    whole.go()
    cut, steps = Run(recipe_of(squares, tmp_path), tmp_path / "cut"), iter(range(16))
    batch = MaskedBatches.batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaskedBatches, "batch", lambda self, rows: (next(steps), batch(self, rows))[1])
        with pytest.raises(RuntimeError, match="StopIteration"):
            cut.go()
    resumed = Run(recipe_of(squares, tmp_path), tmp_path / "cut", resume=True)
    assert torch.load(tmp_path / "cut" / "checkpoints" / "last.pt", weights_only=True)["step"] == 14
    resumed.go()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_it_has_a_dry_run_and_a_place_in_the_parameter_table(squares: Path, tmp_path: Path) -> None:
    run = Run(recipe_of(squares, tmp_path), tmp_path / "run")
    assert "masked: adamw at lr 0.003" in run.describe()
    lines = list(run.dry_run())
    assert any(line.startswith("masked: ") and "40 steps of 24" in line for line in lines)
    assert not (tmp_path / "run").exists()


def test_an_encoder_can_be_trained_alone(squares: Path, tmp_path: Path) -> None:
    tree = {
        "about": "continued pre-training",
        "encoder": dict(tiny.ENCODER),
        "data": {"bitext": str(squares / "bitext")},
        "precision": "fp32",
        "stages": [{"kind": "masked", "name": "x", "train": ["encoder"], "steps": 2, "batch_size": 8, "lr": 1e-3}],
    }
    recipe = load(tiny.write_recipe(tree, tmp_path / "alone.yaml"))
    out = Run(recipe, tmp_path / "run").go()
    before = stamps(tmp_path / "run")
    Run(recipe, tmp_path / "run", resume=True).go()
    assert stamps(tmp_path / "run") == before
    assert (out / "encoder" / "config.json").is_file()


def test_its_keys_are_checked(squares: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"stages.0.stepps: unknown key; did you mean steps\?"):
        recipe_of(squares, tmp_path, stepps=3)
