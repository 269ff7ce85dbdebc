"""The target of a frozen teacher in templates: the mean over them, kept under a key that has them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mclip_kit.config.recipe import Recipe
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.models.encoding import over_templates
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.train.build import CACHE_VARIABLE, build_model
from mclip_kit.train.logging import read_log
from mclip_kit.train.run import Run
from tests.tasks.frozen import Watch
from tests.train.runs import only_stage, recipe_of

TEMPLATES = ["{}", "a photo of a {}", "{} again"]
TEXTS = ["red square", "blue square", "a green one"]


@pytest.fixture(autouse=True)
def no_cache_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)


def recipe(data: Path, folder: Path, *changes: str) -> Recipe:
    """The tiny recipe's distillation, of a teacher that nothing trains, in templates."""
    templates = f"stages.0.templates={TEMPLATES}".replace("'", '"')
    return recipe_of(data, folder, "evaluation=null", templates, *changes, **only_stage(data, 1))


@pytest.fixture(scope="module")
def model(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> MultilingualClip:
    built = build_model(recipe(squares, tmp_path_factory.mktemp("recipe")))
    assert isinstance(built, MultilingualClip)
    return built.eval()


def slow(embed: Callable[[str], np.ndarray], texts: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """Text by text and template by template."""
    found = []
    for text in texts:
        each = [embed(template.replace("{}", text)).astype(np.float64) for template in templates]
        mean = sum(vector / np.sqrt(vector @ vector) for vector in each) / len(each)
        length = sum(np.sqrt(vector @ vector) for vector in each) / len(each)
        found.append(mean / np.sqrt(mean @ mean) * length)
    return np.stack(found)


def embedder(model: MultilingualClip) -> Callable[[str], np.ndarray]:
    def embed(text: str) -> np.ndarray:
        with torch.no_grad():
            vector: np.ndarray = model.teacher_text(model.teacher_tokens([text]))[0].numpy()
        return vector

    return embed


def test_the_mean_over_templates_is_that_of_float32() -> None:
    ids = torch.arange(24).reshape(2, 3, 4)
    table = torch.randn(24, 4, generator=torch.Generator().manual_seed(1)).bfloat16()
    found, wanted = (over_templates(lambda rows, own=own: own[rows[:, 0]], ids) for own in (table, table.float()))
    assert torch.equal(found, wanted)


def test_the_target_is_the_mean_over_templates(model: MultilingualClip) -> None:
    cache = FeatureCache()
    towers = FrozenTowers(model, cache)
    found = towers.teacher_texts(TEXTS, templates=TEMPLATES).take()
    np.testing.assert_allclose(found, slow(embedder(model), TEXTS, TEMPLATES), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        live = over_templates(model.teacher_text, model.teacher_tokens(TEXTS, TEMPLATES))
    torch.testing.assert_close(live, found)
    plain = towers.teacher_texts(TEXTS).take()
    assert not torch.allclose(plain, found, atol=1e-3)
    one = towers.teacher_texts(TEXTS, templates=["{}"]).take()
    torch.testing.assert_close(one, plain)


def test_other_templates_have_other_keys(model: MultilingualClip, tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        cache = FeatureCache(folder, "fp32")
        towers = FrozenTowers(model, cache)
        some = towers.teacher_texts(TEXTS, templates=TEMPLATES).take()
        others = towers.teacher_texts(TEXTS, templates=TEMPLATES[:2]).take()
        plain = towers.teacher_texts(TEXTS).take()
        assert len({float(part[0, 0]) for part in (some, others, plain)}) == 3
    watch, again = Watch(model), FrozenTowers(model, FeatureCache(tmp_path, "fp32"))
    assert torch.equal(again.teacher_texts(TEXTS, templates=TEMPLATES).take(), some)
    assert torch.equal(again.teacher_texts(TEXTS).take(), plain)
    assert watch.counts()["teacher_text"] == 0


def test_a_run_learns_the_mean_whether_it_is_kept_or_computed(squares: Path, tmp_path: Path) -> None:
    def losses(name: str, *changes: str) -> list[Any]:
        same = "encoder.dropout=0", "cache.dtype=fp32", "stages.0.epochs=1"
        run = Run(recipe(squares, tmp_path, *same, *changes), tmp_path / "runs" / name)
        run.go()
        return [row["loss"] for row in read_log(run.folder) if "loss" in row]

    kept, live = losses("kept"), losses("live", "cache=off", "stages.0.micro_batch=7")
    assert kept == pytest.approx(live, rel=1e-4)
    assert kept != pytest.approx(losses("plain", "stages.0.templates=[]"), rel=1e-2)


@pytest.mark.parametrize("features", ["auto", "off"])
def test_a_dry_run_counts_all_templates(features: str, squares: Path, tmp_path: Path) -> None:
    lines = list(Run(recipe(squares, tmp_path, f"cache={features}"), tmp_path / "run").dry_run())
    assert any("rows" in line for line in lines)
