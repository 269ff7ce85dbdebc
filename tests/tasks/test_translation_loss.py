"""The losses of a translation stage, against slow computations of the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mclip_kit.config.recipe import Recipe
from mclip_kit.config.stages import TranslationStage
from mclip_kit.config.yaml import parse
from mclip_kit.features.cache import FeatureCache
from mclip_kit.models.translator import Translator, prompt
from mclip_kit.tasks.base import Context
from mclip_kit.tasks.translation import TranslationTask
from mclip_kit.tasks.translation_loss import NO_LABEL, Translation, TranslationBatch
from tests import tiny
from tests.models.test_translator import translator

ROWS = [2, 40, 7, 7, 61]


@pytest.fixture
def own(squares: Path) -> Translator:
    return translator(squares).eval()


def stage_of(**changes: Any) -> TranslationStage:
    """German to English, without label smoothing unless it is changed."""
    common = {"name": "s", "train": ["*"], "steps": 1, "batch_tokens": 512, "lr": 1e-3, "max_tokens": 40}
    return TranslationStage.model_validate({**common, "directions": ["de-en"], "label_smoothing": 0.0, **changes})


@pytest.fixture
def task(squares: Path, own: Translator) -> TranslationTask:
    stage = {**stage_of().model_dump(), "train": ["decoder"]}
    tree = {"about": "x", "encoder": {**tiny.ENCODER, "weights": "random"}, "stages": [stage]}
    recipe = parse({**tree, "data": {"bitext": str(squares / "bitext")}}, Recipe, "tiny")
    trained = frozenset(name for name, _ in own.named_parameters())
    return TranslationTask(stage_of(), Context(recipe, own, trained, FeatureCache()))


def batch_of(task: TranslationTask) -> TranslationBatch:
    return task.batches.batch(np.array(ROWS))


def terms(own: Translator, batch: TranslationBatch, **changes: Any) -> dict[str, Tensor]:
    names = {name for name, _ in own.named_parameters()}
    return Translation(own, stage_of(**changes), names).eval()(batch)  # type: ignore[no-any-return]


def test_a_batch_gives_the_language_code_and_asks_for_the_sentence(task: TranslationTask) -> None:
    batch, tokenizer = batch_of(task), task.context.model.encoder.tokenizer
    given = prompt(tokenizer, "en")
    assert batch.source == "de"
    for row, number in enumerate(ROWS):
        target = task.rows.targets[number].tolist()
        labels = [int(label) for label in batch.labels_BT[row] if label != NO_LABEL]
        inputs = batch.inputs_BT[row][batch.inputs_mask_BT[row].bool()].tolist()
        assert labels == target[1:]
        assert inputs == given + target[1:-1]
        first = int((batch.labels_BT[row] != NO_LABEL).nonzero()[0])
        assert first == len(given) - 1  # what comes after the code
    assert batch.tokens == sum(len(task.rows.sources[n]) + len(task.rows.targets[n]) for n in ROWS)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_translation_is_the_cross_entropy_of_every_target_token(
    own: Translator, task: TranslationTask, smoothing: float
) -> None:
    batch = batch_of(task)
    losses = []
    for number in ROWS:  # one pair, one token at a time, without padding
        source, target = (torch.tensor(ids[number][None]).long() for ids in (task.rows.sources, task.rows.targets))
        states = own.decoder.languages(own.encoder(source, torch.ones_like(source)), "de")
        written = prompt(own.encoder.tokenizer, "en")
        for label in target[0, 1:].tolist():
            inputs = torch.tensor([written])
            hidden = own.decoder(inputs, torch.ones_like(inputs), states, torch.ones_like(source))[0, -1]
            chances = F.log_softmax(own.decoder.words(hidden), -1)
            losses.append(-(1 - smoothing) * chances[label] - smoothing * chances.mean())
            written.append(label)
    found = terms(own, batch, label_smoothing=smoothing)
    torch.testing.assert_close(found["translation"], torch.stack(losses).mean(), rtol=1e-5, atol=1e-5)
    assert found["loss"] == found["translation"]
    assert "contrast" not in found


def test_contrast_is_between_the_mean_states_of_both_sides(own: Translator, task: TranslationTask) -> None:
    batch = task.batches.batch(np.array(sorted(set(ROWS))))
    means = []
    for side in (task.rows.sources, task.rows.targets):
        rows = [torch.tensor(side[number][None]).long() for number in sorted(set(ROWS))]
        means.append(torch.stack([own.encoder(ids, torch.ones_like(ids))[0].mean(0) for ids in rows]))
    a, b = (F.normalize(side, dim=-1) for side in means)
    logits, right = a @ b.T / 0.1, torch.arange(len(a))
    wanted = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    found = terms(own, batch, contrast={"weight": 2.0, "temperature": 0.1})
    torch.testing.assert_close(found["contrast"], wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["loss"], found["translation"] + 2 * found["contrast"])
    assert {"cosine", "matching"} <= found.keys()


def test_states_that_are_read_give_the_same_loss(own: Translator, task: TranslationTask) -> None:
    batch = batch_of(task)
    live = terms(own, batch, contrast={"weight": 2.0, "temperature": 0.1})
    batch.states_BTH = own.encoder(batch.ids_BT, batch.mask_BT).detach()
    read = terms(own, batch, contrast={"weight": 2.0, "temperature": 0.1})
    for name in live:
        torch.testing.assert_close(read[name], live[name])


def test_frozen_parts_get_no_gradient_and_no_dropout(own: Translator, task: TranslationTask) -> None:
    train = {name for name, _ in own.named_parameters() if name.startswith("decoder.")}
    stage = Translation(own, stage_of(), train).train()
    assert own.decoder.training
    assert not any(part.training for part in own.encoder.modules() if isinstance(part, torch.nn.Dropout))
    stage(batch_of(task))["loss"].backward()
    assert all(parameter.grad is None for parameter in own.encoder.parameters())
    assert all(parameter.grad is not None for name, parameter in own.named_parameters() if name in train)
