"""Centroids of translations: what they are, what a stage makes of them, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mclip_kit.config.recipe import Recipe
from mclip_kit.config.yaml import parse
from mclip_kit.data.captions import read_captions
from mclip_kit.data.datasets import rows_from_captions
from mclip_kit.errors import CheckpointError, DataError, RecipeError
from mclip_kit.features import hashing
from mclip_kit.models.multilingual_clip import load as load_model
from mclip_kit.tasks import centroids
from mclip_kit.tasks.centroids import open_centroids, write_centroids
from mclip_kit.train import callbacks
from mclip_kit.train.build import build_model
from mclip_kit.train.checkpoint import TrainState
from mclip_kit.train.run import Run
from tests import tiny
from tests.train.runs import Killed, different, killed_at, train, weights

EDGES: dict[str, Any] = {
    "centroid-student_text": {"loss": "contrastive", "temperature": 0.1},
    "centroid-student_text+pull": {"loss": "cosine", "weight": 2.0},
}
TRUNK = ["encoder.*.layer.[0-0].*"]


@pytest.fixture(scope="module")
def start(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of random towers."""
    folder = tmp_path_factory.mktemp("start") / "model"
    tree = tiny.recipe(squares) | {"projector": {"kind": "linear", "pool": "mean"}}
    model = build_model(parse(tree | {"encoder": tree["encoder"] | {"dropout": 0.0}}, Recipe, "tiny")).eval()
    texts = read_captions(squares).texts[:].tolist()
    with torch.no_grad():  # a new encoder puts all texts near one point: that is 0 now
        raw_ND = model.embed_tokens(model.student_tokens(texts))
        model.projector.head[0].bias.sub_(raw_ND.mean(0))
    model.save(folder)
    return folder


def tree_of(squares: Path, start: Path, folder: Path, **stage: Any) -> dict[str, Any]:
    return {
        "about": "calibrate",
        "init_from": str(start),
        "data": {"captions": str(squares), "bitext": str(squares / "bitext")},
        "cache": {"folder": str(folder / "features")},
        "precision": "fp32",
        "checkpoint_every": 2,
        "stages": [
            {"name": "trunk", "train": TRUNK, "edges": EDGES, "data": "captions", "lr": 1e-3}
            | {"epochs": 1, "batch_size": 36}
            | stage
        ],
    }


def recipe_of(squares: Path, start: Path, folder: Path, **stage: Any) -> Recipe:
    return parse(tree_of(squares, start, folder, **stage), Recipe, "calibrate")


def test_a_centroid_is_the_mean_of_all_embeddings_of_its_group(
    squares: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(centroids, "GROUPS", 7)  # blocks end between groups
    model, captions = load_model(start), read_captions(squares)
    rows = tiny.rows_of(rows_from_captions(captions, "train", "all", "en", model.student_tokens))
    shuffled = rows.select(np.random.default_rng(0).permutation(len(rows)))
    table_ND = model.encode_text(captions.texts[captions.select("train", "all")].tolist())
    known = {tokens.tobytes(): row_D for tokens, row_D in zip(rows.tokens, table_ND, strict=True)}
    write_centroids(tmp_path, shuffled, lambda tokens: torch.stack([known[ids.tobytes()] for ids in tokens]))
    found = open_centroids(tmp_path)
    for group in np.unique(rows.groups_N):
        mean_D = table_ND.numpy()[np.flatnonzero(rows.groups_N == group)].mean(0)
        np.testing.assert_allclose(found.of(np.array([group]))[0], mean_D / np.linalg.norm(mean_D), atol=1e-6)


@pytest.mark.parametrize("data", ["captions", "bitext"])
def test_a_stage_trains_the_first_blocks_towards_the_centroids_of_its_start(
    data: str, squares: Path, start: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(squares, start, tmp_path, data=data, epochs=8, lr=3e-3)
    run = train(recipe, tmp_path / "run")
    before, after = load_model(start).state_dict(), weights(tmp_path / "run")
    changed = different(before, after)
    assert changed
    assert all(name.startswith("encoder.model.encoder.layer.0.") for name in changed)
    task = next(iter(run.tasks()))
    texts = [task.rows.tokens[row] for row in range(len(task.rows))]
    targets_ND = next(
        open_centroids(path) for path in (tmp_path / "features").glob("rows-*") if (path / "centroid.bin").is_file()
    ).of(task.rows.groups_N)
    cosines = []
    for folder in (start, tmp_path / "run" / "model"):
        task.context.model.load_state_dict(load_model(folder).state_dict())
        cosines.append(float((task._embed(texts) * targets_ND).sum(-1).mean()))
    assert cosines[0] + 0.02 < cosines[1]


def test_a_resumed_stage_has_the_centroids_of_its_start(
    squares: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(squares, start, tmp_path, epochs=2, wise_ft_alpha=0.5)
    train(recipe, tmp_path / "whole")
    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        killer = killed_at(0, 5, lambda: (_ for _ in ()).throw(Killed()))
        patch.setattr(callbacks, "CALLBACKS", [killer, *callbacks.CALLBACKS])
        patch.setattr("mclip_kit.train.run.CALLBACKS", callbacks.CALLBACKS)
        with pytest.raises(Killed):
            train(recipe, cut)
    for folder in (tmp_path / "features").glob("rows-*"):  # they are made again
        if (folder / "centroid.bin").is_file():
            tiny.flip(folder / "centroid.bin")
    train(recipe, cut, resume=True)
    assert not different(weights(tmp_path / "whole"), weights(cut))


def test_a_start_of_another_stage_is_refused(squares: Path, start: Path, tmp_path: Path) -> None:
    recipe = recipe_of(squares, start, tmp_path)
    run = Run(recipe, tmp_path / "run")
    run.save(TrainState(1, 0), tmp_path / "run" / "checkpoints" / "start.pt")
    at = run._begin(0, TrainState(0, 2))
    with pytest.raises(CheckpointError, match=r"is the start of stage 2, not of trunk, which needs it"):
        at.call("before_stage")


def test_parts_of_a_batch_have_their_rows_centroids(squares: Path, start: Path, tmp_path: Path) -> None:
    whole = train(recipe_of(squares, start, tmp_path), tmp_path / "whole").model.state_dict()
    parts = train(recipe_of(squares, start, tmp_path, micro_batch=7), tmp_path / "parts").model.state_dict()
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=1e-4, atol=1e-5)


def test_the_dry_run_needs_no_centroids(squares: Path, start: Path, tmp_path: Path) -> None:
    lines = list(Run(recipe_of(squares, start, tmp_path), tmp_path / "run").dry_run())
    assert lines[0].startswith("trunk: 216 rows, 6 steps of 36")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("loss", ["mse", "kl", "relational", "sigmoid"])
def test_every_loss_fits_the_edge(loss: str, squares: Path, start: Path, tmp_path: Path) -> None:
    edges = {"centroid-student_text": {"loss": loss, "dims": [8, "full"]}}
    recipe = recipe_of(squares, start, tmp_path, edges=edges)
    assert recipe.stages[0].vertices == {"centroid", "student_text"}  # type: ignore[attr-defined]
    train(recipe, tmp_path / "run")
    assert different(load_model(start).state_dict(), weights(tmp_path / "run"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"stages.0.languages": ["de"]},
            "stage trunk: centroid is the mean of translations: languages needs two or more",
        ),
        ({"parallel": "fsdp"}, "stage trunk: parallel: fsdp does not work with centroid; use ddp"),
        ({"stages.0.train": ["clip_projector"]}, "train names clip_projector, which is on none of the stage's edges"),
        ({"stages.0.edges": {"centroid-image": {"loss": "mse"}}}, "centroid-student_text"),
        (
            {"init_from": None},
            "stage trunk: centroid needs a student that is trained: set init_from to a model folder, or put a stage "
            "that trains the projector before it",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(
    change: dict[str, Any], words: str, squares: Path, start: Path, tmp_path: Path
) -> None:
    tree = tree_of(squares, start, tmp_path)
    for path, value in change.items():
        first, *rest = path.split(".")
        if rest:
            tree["stages"][0][rest[1]] = value
        else:
            tree[first] = value
    if "init_from" in change:
        own = tiny.recipe(squares)
        tree |= {"teacher": own["teacher"] | {"weights": "random"}, "encoder": own["encoder"]}
        tree["projector"] = own["projector"]
    with pytest.raises(RecipeError) as raised:
        parse(tree, Recipe, "calibrate")
    assert words in str(raised.value)


def test_a_glob_that_matches_no_block_is_refused(squares: Path, start: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train: 'encoder\.\*\.layer\.\[4-9\]\.\*' matches no parameter"):
        Run(recipe_of(squares, start, tmp_path, train=["encoder.*.layer.[4-9].*"]), tmp_path / "run")


def test_rows_without_translations_are_refused(squares: Path, start: Path, tmp_path: Path) -> None:
    recipe = recipe_of(squares, start, tmp_path, split={"de": "train", "fr": "valid"}, languages=["de", "fr"])
    with pytest.raises(DataError, match="no two rows in different languages have the same picture"):
        Run(recipe, tmp_path / "run").go()


def test_other_weights_have_other_centroids(squares: Path, start: Path, tmp_path: Path) -> None:
    model = load_model(start)
    before = hashing.hash_weights(model.projector)
    with torch.no_grad():
        model.projector.head[0].weight.add_(1e-3)
    assert hashing.hash_weights(model.projector) != before
