"""Whole runs of tiny towers: what they leave, what they learn, what stays frozen; shipped recipes with tiny towers."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mclip_kit.cli import cli
from mclip_kit.config.recipe import Recipe, load
from mclip_kit.data.bitext import open_bitext
from mclip_kit.data.tokenizer import MODEL_FILE
from mclip_kit.errors import DataError
from mclip_kit.models.multilingual_clip import load as load_model
from mclip_kit.train.logging import read_log
from mclip_kit.train.run import Run
from tests import processes, tiny
from tests.train.runs import different, only_stage, recipe_of, train, weights

TOWERS = ("teacher", "encoder", "projector")
LOSSES = ("image-teacher_text", "teacher_text-student_text", "image-student_text")


@pytest.fixture(scope="module")
def finished(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A whole run of three stages."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = recipe_of(squares, folder)
    train(recipe, folder / "run")
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


def test_rows_of_later_stages_are_checked_before_the_first_step(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(recipe_of(squares, tmp_path, "stages.2.batch_size=1000"), tmp_path / "run")
    with pytest.raises(DataError, match=r"stage contrast: \d+ rows are too few for a batch of 1000"):
        run.go()
    assert not [row for row in read_log(tmp_path / "run") if "loss" in row]
    run.warn("lacks much")
    run.warn("lacks much")
    assert capsys.readouterr().out.count("lacks much") == 1


def test_training_learns_the_squares(squares: Path, tmp_path: Path) -> None:
    many = [f"stages.{stage}.epochs={epochs}" for stage, epochs in enumerate((40, 20, 4))]
    calm = ["evaluation.every_epochs=100", "stages.0.lr=0.005", "stages.1.lr=0.005"]
    made = train(recipe_of(squares, tmp_path, *many, *calm), tmp_path / "run")
    rows = read_log(tmp_path / "run")
    for stage, loss in zip(("teacher", "distill"), LOSSES, strict=False):
        losses = [row[loss] for row in rows if row["stage"] == stage and loss in row]
        assert losses[-1] < 0.8 * losses[0]
    assert rows[-1]["score"] > rows[0]["mean_t2i_r1"]
    assert made.model.trained_languages == ["de", "en", "fr"]


def test_a_stage_leaves_frozen_towers_as_they_were(squares: Path, tmp_path: Path) -> None:
    made = Run(recipe_of(squares, tmp_path, **only_stage(squares, 2)), tmp_path / "run")
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    made.go()
    after = made.model.state_dict()
    frozen = [name for name in before if name.startswith(("image.", "teacher_text."))]
    moved = [name for name in before if name.startswith(("encoder.", "projector."))]
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert any(not torch.equal(before[name], after[name]) for name in moved)
    assert all(parameter.grad is None for name, parameter in made.model.named_parameters() if name in frozen)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    finished: tuple[Recipe, Path], squares: Path, tmp_path: Path
) -> None:
    recipe, folder = finished
    train(recipe, tmp_path / "same")
    assert not different(weights(tmp_path / "same"), weights(folder))
    train(recipe_of(squares, tmp_path, "seed=2"), tmp_path / "other")
    name = "projector.head.1.weight"
    assert not torch.equal(weights(tmp_path / "other")[name], weights(folder)[name])


def test_init_from_starts_from_a_model_folder(finished: tuple[Recipe, Path], squares: Path, tmp_path: Path) -> None:
    _, folder = finished
    changes = [
        f"init_from={folder / 'model'}",
        f"data.captions={squares}",
        "stages.0.languages=[en,de]",
        "stages.0.split=train",
        "stages.0.train=[projector]",
        "evaluation={keep: last}",
        "stages.0.epochs=2",
        "stages.0.batch_size=16",
    ]
    made = train(load("multi30k_finetune", changes), tmp_path / "run")
    before, after = weights(folder), made.model.state_dict()
    assert not different(
        {n: t for n, t in after.items() if n.startswith("encoder")},
        {n: t for n, t in before.items() if n.startswith("encoder")},
    )
    assert not torch.equal(before["projector.head.1.weight"], after["projector.head.1.weight"])


def test_a_model_is_scored_while_another_one_trains_beside_it(
    finished: tuple[Recipe, Path], squares: Path, tmp_path: Path
) -> None:
    """Both fill one feature cache; neither changes what the other finds."""
    shutil.copytree(finished[1], tmp_path / "first")
    tree = tiny.recipe(squares) | {"init_from": str(tmp_path / "first" / "model"), "checkpoint_every": 5}
    tree["stages"] = [tree["stages"][2] | {"epochs": 6}]
    recipe = tiny.write_recipe({k: v for k, v in tree.items() if k not in TOWERS}, tmp_path / "tuned.yaml")
    processes.train(recipe, tmp_path / "alone")
    shutil.rmtree(tmp_path / "features")
    training = processes.start(processes.command, "train", str(recipe), "--out", str(tmp_path / "tuned"))
    found = []
    while training.poll() is None or not found:
        model, out = tmp_path / "first" / "model", tmp_path / f"scores{len(found)}"
        done = CliRunner().invoke(cli, ["eval", str(model), "--data", str(squares), "--out", str(out)])
        assert done.exit_code == 0, done.output
        found.append(json.loads((out / "results.json").read_text(encoding="utf-8"))["results"])
    assert training.wait().returncode == 0, training.stderr
    assert all(rows == found[0] for rows in found)
    assert not different(weights(tmp_path / "tuned"), weights(tmp_path / "alone"))


def test_a_folder_that_fairseq_preprocess_wrote_trains(squares: Path, tmp_path: Path) -> None:
    sides = open_bitext(squares / "bitext").read("train", "en", "fr")
    folder = tiny.fairseq_preprocess({side.language: list(side.texts) for side in sides}, squares / "bitext", tmp_path)
    shutil.copy(squares / "bitext" / MODEL_FILE, folder)  # the new encoder's vocabulary
    tree = tiny.recipe(squares) | only_stage(squares, 1) | {"evaluation": None}
    both = {}
    for name, bitext in (("fairseq", folder), ("ours", squares / "bitext")):
        path = tiny.write_recipe(tree | {"data": {"bitext": str(bitext)}}, tmp_path / f"{name}.yaml")
        train(load(path, ["stages.0.languages=[fr]"]), tmp_path / name)
        both[name] = weights(tmp_path / name)
    assert not different(both["fairseq"], both["ours"])


@pytest.mark.parametrize("name", ["altclip_full", "trikd_projectors"])
def test_shipped_recipes_run_on_the_embedded_corpus_with_small_towers(name: str, emoji: Path, tmp_path: Path) -> None:
    encoder = tiny.ENCODER | {"weights": "random"}
    stages = {"altclip_full": 2, "trikd_projectors": 1}[name]
    changes = [
        f"data={{captions: {emoji}, bitext: {emoji / 'bitext'}}}",
        f"teacher={{weights: random, model: {json.dumps(tiny.TEACHER)}}}",
        f"encoder={json.dumps(encoder)}",
        *(["projector.layers=1"] if name == "trikd_projectors" else []),
        "evaluation.languages=[en, zh, ar]",
        *(f"stages.{stage}.{key}" for stage in range(stages) for key in ("epochs=1", "warmup_steps=5")),
    ]
    arguments = [argument for change in changes for argument in ("--set", change)]
    processes.train(Path(f"recipes/{name}.yaml"), tmp_path / "run", 1, *arguments)
    rows = read_log(tmp_path / "run")
    assert len({row["stage"] for row in rows}) == stages
    assert load_model(tmp_path / "run" / "model").encode_text(["猫", "قط"]).shape[0] == 2


def test_the_recipe_of_m2m_reads_english_alone_and_leaves_one_map(squares: Path, tmp_path: Path) -> None:
    changes = [
        f"data={{captions: {squares}, bitext: {squares / 'bitext'}}}",
        f"teacher={{weights: random, model: {json.dumps(tiny.TEACHER)}}}",
        f"encoder={json.dumps(tiny.ENCODER | {'weights': 'random'})}",
        *("stages.0.epochs=1", "stages.0.batch_size=24", "stages.0.warmup_steps=2"),
    ]
    made = train(load("m2m", changes), tmp_path / "run")
    model = load_model(tmp_path / "run" / "model")
    assert model.trained_languages == ["en"]
    width = model.width
    assert [tuple(part.shape) for part in model.projector.parameters()] == [(width, model.encoder.width), (width,)]
    texts = ["red square", "carré rouge"]
    torch.testing.assert_close(model.encode_text(texts), made.model.encode_text(texts), rtol=0, atol=1e-5)


def test_the_recipe_of_trunk_calibration_starts_from_any_model_folder(squares: Path, tmp_path: Path) -> None:
    train(recipe_of(squares, tmp_path, "stages.0.epochs=1", **only_stage(squares, 1)), tmp_path / "start")
    changes = [f"init_from={tmp_path / 'start' / 'model'}", f"data.captions={squares}", "stages.0.epochs=1"]
    changes += ["stages.0.languages=[en, de, fr]", "evaluation.languages=[en, de]", "stages.0.batch_size=36"]
    train(load("calibrate", changes), tmp_path / "run")
    before, after = weights(tmp_path / "start"), weights(tmp_path / "run")
    changed = different(before, after)
    assert changed
    assert all(re.match(r"encoder\.model\.(embeddings|encoder\.layer\.0)\.", name) for name in changed)


def test_adapters_are_trained_alone_and_leave_a_standard_encoder(squares: Path, tmp_path: Path) -> None:
    kept = ["encoder.weights=random", "evaluation.keep=last"]
    lora = ["lora={rank: 2}", "stages.1.train=[lora, projector]", "stages.2.train=[lora]"]
    made = train(recipe_of(squares, tmp_path, *kept, *lora), tmp_path / "run")
    names = [name for name, _ in load_model(tmp_path / "run" / "model").named_parameters()]
    assert names == [name for name, _ in made.model.named_parameters()]
    assert not any("lora" in name for name in names)
    alone = [f"stages.{stage}.train=[projector]" for stage in (1, 2)]
    fresh = train(recipe_of(squares, tmp_path, *kept, *alone), tmp_path / "frozen")
    tuned, frozen = made.model.encoder.state_dict(), fresh.model.encoder.state_dict()
    changed = {name for name in tuned if not torch.equal(tuned[name], frozen[name])}
    assert changed == {name for name in tuned if re.search(r"(query|value)\.weight$", name)}
