"""Triangle stages as runs: training on features is training on towers, and each input is computed once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mclip_kit.config.recipe import load
from mclip_kit.data.captions import read_captions
from mclip_kit.data.corpora import Content
from mclip_kit.data.prepare.prepare import write_prepared
from mclip_kit.errors import DataError
from mclip_kit.features import table
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.features.filling import NoRoom, check_room
from mclip_kit.train.build import CACHE_VARIABLE
from mclip_kit.train.callbacks import logger
from mclip_kit.train.logging import read_log
from mclip_kit.train.run import Run
from tests import tiny
from tests.tasks.frozen import EVALUATION, TRIKD, Watch, fresh, kinds, recipe_of, trained, tree
from tests.train import runs


@pytest.fixture(autouse=True)
def no_cache_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)


def test_too_few_rows_for_a_batch_are_refused(squares: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="stage teacher: 72 rows are too few for a batch of 100; lower batch_size"):
        Run(runs.recipe_of(squares, tmp_path, "stages.0.batch_size=100"), tmp_path / "run").go()


def test_edges_that_no_row_fits_are_refused(squares: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row has a text in en"):
        Run(runs.recipe_of(squares, tmp_path, "stages.0.languages=[de]"), tmp_path / "run").go()


# --- read or computed


@pytest.fixture(scope="module")
def computed(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The log of a run that computes everything in every step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logger, "LOG_EVERY", 1)
        folder = tmp_path_factory.mktemp("off")
        trained(recipe_of(squares, cache="off", evaluation=EVALUATION), folder / "run")
        assert not (folder / "features").exists()
        return read_log(folder / "run")


CACHES = {
    "tokens, fp32": ({"features": "tokens", "dtype": "fp32"}, 1e-6),
    "tokens, fp16": ({"features": "tokens", "dtype": "fp16"}, 1e-3),
    "tokens, int8": ({"features": "tokens", "dtype": "int8"}, 1e-2),
    "pooled, fp32": ({"features": "pooled", "dtype": "fp32"}, 1e-6),
    "auto": ("auto", 1e-3),
}


@pytest.mark.parametrize("kind", CACHES)
def test_training_on_kept_features_gives_the_same_losses(
    kind: str, squares: Path, tmp_path: Path, computed: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, allowed = CACHES[kind]
    monkeypatch.setattr(logger, "LOG_EVERY", 1)
    _, watch = trained(recipe_of(squares, cache=cache, evaluation=EVALUATION), tmp_path / "run")
    log = read_log(tmp_path / "run")
    steps = [row["step"] for row in computed if "loss" in row]
    assert steps == list(range(1, 11)) == [row["step"] for row in log if "loss" in row]
    for term in ("loss", *TRIKD):
        expected, found = ([row[term] for row in rows if term in row] for rows in (computed, log))
        assert found == pytest.approx(expected, rel=allowed)
    one = {"mean": 100 / 36, "teacher": 100 / 12}  # query of so many
    for name in (key for key in computed[0] if key.startswith(("mean_t2i", "mean_i2t", "teacher"))):
        expected, found = ([row[name] for row in rows if name in row] for rows in (computed, log))
        queries = 2 if name.startswith("mean_i2t") else 1  # pictures of the same square in two shades all but tie
        assert found == pytest.approx(expected, abs=queries * one[name.split("_")[0]] + 1e-6)
    assert max(watch.seen["teacher_text"].values()) == max(watch.seen["image"].values()) == 1
    assert "pooled" in kind or max(watch.seen["encoder"].values()) == 1


def test_losses_of_another_seed_differ_by_more_than_those_of_another_cache(squares: Path, tmp_path: Path) -> None:
    """The bounds above are tight: another seed's losses differ by more."""
    logs = []
    for number, seed in enumerate((1, 2)):
        trained(recipe_of(squares, f"seed={seed}", cache="off"), tmp_path / str(number))
        logs.append([row["loss"] for row in read_log(tmp_path / str(number)) if "loss" in row])
    assert logs[0] != pytest.approx(logs[1], rel=3e-2)


def test_a_projector_without_blocks_reads_pooled_states(squares: Path, tmp_path: Path) -> None:
    logs = {}
    for cache in ("off", "auto"):
        recipe = recipe_of(squares, cache=cache, projector={"kind": "mlp", "pool": "mean", "dropout": 0.1})
        _, watch = trained(recipe, tmp_path / cache / "run")
        logs[cache] = [row["loss"] for row in read_log(tmp_path / cache / "run") if "loss" in row]
    assert logs["auto"] == pytest.approx(logs["off"], rel=1e-2)
    assert max(watch.seen["encoder"].values()) == 1
    assert kinds(tmp_path / "auto" / "features") == ["image", "pooled_mean", "teacher"]


# --- once


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus in five languages: four pairs with English."""
    content, corpus = tiny.content(), tiny.declaration()
    rows = []
    for row in content.rows:
        english = dict(row.texts)["en"]
        rows.append(replace(row, texts=[*row.texts, ("es", f"el {english}"), ("it", f"il {english}")]))
    out = tmp_path_factory.mktemp("five") / "data"
    languages = {"languages": ["en", "de", "fr", "es", "it"]}
    write_prepared(lambda: Content(rows, content.pixels), corpus.model_copy(update=languages), out)
    return out


def test_each_english_sentence_goes_through_the_teacher_once(five: Path, tmp_path: Path) -> None:
    whole = tree(five)
    align = whole["stages"][0] | {
        "name": "align",
        "data": "bitext",
        "edges": {"teacher_text-student_text": {"loss": "mse"}},
        "train": ["projector"],
    }
    stages = [align | {"epochs": 2}, whole["stages"][0] | {"epochs": 2}]
    recipe = recipe_of(five, stages=stages, cache="tokens")
    made, watch = trained(recipe, tmp_path / "runs" / "a")
    captions = read_captions(five)
    english = {captions.texts[row] for row in captions.select("train", ["en"])}
    all_texts = {captions.texts[row] for row in captions.select("train")}
    ids = {tuple(np.trim_zeros(row.numpy(), "b").tolist()) for row in made.model.teacher_tokens(sorted(english))}
    assert len(ids) == len(english) == 72
    extra = watch.seen["teacher_text"].keys() - ids
    assert watch.seen["teacher_text"].keys() >= ids
    assert len(extra) <= 1  # the empty text, of rows without an English one
    assert set(watch.seen["teacher_text"].values()) == set(watch.seen["image"].values()) == {1}
    assert watch.counts() == {"image": 72, "teacher_text": 72 + len(extra), "encoder": len(all_texts)}
    _, watch = trained(recipe, tmp_path / "runs" / "b")
    assert watch.counts() == {"image": 0, "teacher_text": 0, "encoder": 0}
    assert kinds(tmp_path / "runs" / "features") == ["image", "teacher", "tokens"]
    for name in ("projector.safetensors", "clip/open_clip_model.safetensors"):
        a, b = ((tmp_path / "runs" / run / "model" / name).read_bytes() for run in "ab")
        assert a == b


def test_extract_fills_what_training_only_reads(five: Path, tmp_path: Path) -> None:
    recipe = recipe_of(five, cache={"features": "tokens", "dtype": "int8"}, evaluation=None)
    made = Run(recipe, tmp_path / "run")
    watch = Watch(made.model)
    made.extract()
    assert all(watch.counts().values())
    assert kinds(tmp_path / "features") == ["image", "teacher", "tokens"]
    assert not (tmp_path / "run").exists()
    _, watch = trained(recipe, tmp_path / "run")
    assert watch.counts() == {"image": 0, "teacher_text": 0, "encoder": 0}


def test_extract_leaves_out_what_a_stage_changes(squares: Path, tmp_path: Path) -> None:
    whole = tree(squares)
    stages = [whole["stages"][0] | {"name": "first", "train": ["encoder", "projector"]}, whole["stages"][0]]
    made = Run(recipe_of(squares, stages=stages), tmp_path / "run")
    watch = Watch(made.model)
    made.extract()
    assert watch.counts()["encoder"] == 0
    assert kinds(tmp_path / "features") == ["image", "teacher"]


def test_features_of_a_tower_that_was_trained_belong_to_its_new_weights(squares: Path, tmp_path: Path) -> None:
    whole = tree(squares)
    first = whole["stages"][0] | {"name": "first", "train": ["encoder", "projector"]}
    made, watch = trained(recipe_of(squares, stages=[first, whole["stages"][0]], cache="tokens"), tmp_path / "run")
    assert kinds(tmp_path / "features") == ["image", "teacher", "tokens"]
    rows = list(made.tasks())[1].rows
    watch.counts()
    kept = FrozenTowers(made.model, FeatureCache(tmp_path / "features")).token_states(rows.tokens, rows.lengths_N)
    assert watch.counts()["encoder"] == 0
    assert torch.allclose(kept.take(), fresh(made.model, "token_states", rows.tokens), atol=5e-3)


# --- where features are kept, and whether


def test_ways_to_write_the_cache_in_a_recipe(squares: Path, tmp_path: Path) -> None:
    path = tiny.write_recipe(tree(squares), tmp_path / "tiny.yaml")
    plain = path.read_text(encoding="utf-8")
    wanted = {
        "cache: off\n": ("off", "fp16"),
        "cache: on\n": ("auto", "fp16"),
        "cache: tokens\n": ("tokens", "fp16"),
        "cache:\n  features: pooled\n  dtype: fp32\n": ("pooled", "fp32"),
        "cache:\n  features: off\n": ("off", "fp16"),
        "cache:\n  dtype: int8\n": ("auto", "int8"),
    }
    for text, expected in wanted.items():
        path.write_text(plain + text, encoding="utf-8")
        cache = load(path).cache
        assert (cache.features, cache.dtype) == expected
    path.write_text(plain, encoding="utf-8")
    for change, features in (("cache=off", "off"), ("cache=tokens", "tokens"), ("cache.features=off", "off")):
        assert load(path, [change]).cache.features == features


def test_cache_off_keeps_nothing(squares: Path, tmp_path: Path) -> None:
    _, watch = trained(recipe_of(squares, "cache=off", evaluation=EVALUATION), tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert max(watch.seen["encoder"].values()) > 1


def test_where_features_are_kept(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def places(*changes: str) -> list[str]:
        made = Run(recipe_of(squares, *changes), tmp_path / "runs" / "run")
        made.extract()
        return sorted(str(path.parent.parent.relative_to(tmp_path)) for path in tmp_path.rglob("image-*/table.json"))

    assert places() == ["runs/features"]
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "named"))
    assert places() == ["named", "runs/features"]
    assert places(f"cache.folder={tmp_path / 'own'}") == ["named", "own", "runs/features"]


def test_features_without_room_are_computed_in_every_step_or_refused(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def small(folder: Path, name: str, size: int) -> int:
        if "tokens" in name:
            raise NoRoom(f"{name} would take 9 GB, and {folder} has 1 GB free")
        return check_room(folder, name, size)

    monkeypatch.setattr(table, "check_room", small)
    with pytest.raises(NoRoom, match=r"9 GB.*cache\.dtype=int8.*cache=auto"):
        trained(recipe_of(squares, cache="tokens"), tmp_path / "refused")
    capsys.readouterr()
    _, watch = trained(recipe_of(squares, "stages.0.epochs=2", cache="auto"), tmp_path / "auto")
    assert "1 GB free: computed in every step instead" in capsys.readouterr().out
    assert max(watch.seen["encoder"].values()) > 1
    assert kinds(tmp_path / "features") == ["image", "teacher", "tokens"]
