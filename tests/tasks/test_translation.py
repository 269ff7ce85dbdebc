"""Translation stages as runs: they learn, resume, share steps among processes, and pass an encoder on."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from mclip_kit.config.recipe import load
from mclip_kit.errors import DataError
from mclip_kit.interop.encoders import named_encoder
from mclip_kit.models.multilingual_clip import load as load_model
from mclip_kit.models.translator import load_translator
from mclip_kit.tasks import translation
from mclip_kit.train import checkpoint
from mclip_kit.train.logging import read_log
from mclip_kit.train.run import Run
from tests import processes, tiny
from tests.train.runs import different, stamps, train_until_killed

BOTH = ["encoder", "decoder"]


def recipe(squares: Path, **changes: Any) -> dict[str, Any]:
    """Translation, then translation and contrast with the word table frozen."""
    common = {"kind": "translate", "batch_tokens": 512, "lr": 3e-3, "max_tokens": 32}
    second = {"name": "contrast", "train": ["encoder.model.encoder.*", "decoder"], "steps": 12, "contrast": {}}
    return {
        "about": "tiny",
        "encoder": {**tiny.ENCODER, "width": 32, "dropout": 0.0, "positions": 48},
        "decoder": {"layers": 1, "dropout": 0.0},
        "data": {"bitext": str(squares / "bitext")},
        "precision": "fp32",
        "checkpoint_every": 5,
        "stages": [
            {**common, "name": "translation", "train": BOTH, "steps": 12, "language_linear": True},
            {**common, **second},
        ],
        **changes,
    }


def run(tree: dict[str, Any], folder: Path, **how: Any) -> Path:
    folder.parent.mkdir(exist_ok=True)
    return Run(load(tiny.write_recipe(tree, folder.parent / f"{folder.name}.yaml")), folder, **how).go()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_translator(folder / "model").state_dict()


def test_what_was_learnt_translates_held_out_sentences(squares: Path, tmp_path: Path) -> None:
    tree = recipe(squares, evaluation={"split": "valid", "every_steps": 100, "beams": 2})
    tree["stages"] = [{**tree["stages"][0], "directions": ["en-de", "de-en"], "steps": 200, "batch_tokens": 1024}]
    tree["stages"].append({**tree["stages"][0], "name": "contrast", "contrast": {}, "steps": 100})
    path = tiny.write_recipe(tree, tmp_path / "mte.yaml")
    printed = processes.train(path, tmp_path / "run")
    scored = [row for row in read_log(tmp_path / "run") if "bleu" in row]
    first, after, last = scored[0], [row for row in scored if row["stage"] == "translation"][-1], scored[-1]
    assert first["bleu"] < 5
    assert after["bleu"] > 20
    assert last["retrieval_error"] < min(first["retrieval_error"], after["retrieval_error"]) - 20
    assert "tok:13a" in last["bleu_signatures"]
    assert "nc:6" in last["chrf_signatures"]
    assert f"encoder: hf:{tmp_path / 'run' / 'model' / 'encoder'}" in printed
    made = load_translator(tmp_path / "run" / "model")
    assert made.trained_languages == ["de", "en"]
    encoder = named_encoder(f"hf:{tmp_path / 'run' / 'model' / 'encoder'}")
    assert all(torch.equal(tensor, made.encoder.state_dict()[name]) for name, tensor in encoder.state_dict().items())


def test_frozen_weights_stay_as_they_are(squares: Path, tmp_path: Path) -> None:
    tree = recipe(squares)
    tree["encoder"]["weights"] = "random"
    tree["stages"] = [{**tree["stages"][0], "train": ["decoder"]}]
    tree["cache"] = "off"
    run(tree, tmp_path / "run")
    made = weights(tmp_path / "run")
    start = Run(load(tmp_path / "run.yaml"), tmp_path / "again").model.state_dict()
    changed = {name for name in made if not torch.equal(made[name], start[name])}
    assert not [name for name in changed if name.startswith("encoder.")]
    assert [name for name in changed if "crossattention" in name]
    assert "decoder.languages.weight_LHH" in changed


def test_kept_states_give_the_same_losses(squares: Path, tmp_path: Path) -> None:
    tree = recipe(squares)
    tree["encoder"]["weights"] = "random"
    tree["stages"] = [{**tree["stages"][0], "train": ["decoder"]}]
    losses = {}
    for name, cache in (("off", "off"), ("kept", {"features": "tokens", "dtype": "fp32"})):
        run({**tree, "cache": cache}, tmp_path / name / "run")
        losses[name] = [row["loss"] for row in read_log(tmp_path / name / "run") if "loss" in row]
    assert losses["kept"] == pytest.approx(losses["off"], rel=1e-5)
    assert list((tmp_path / "kept" / "features").glob("tokens-*"))
    assert not (tmp_path / "off" / "features").exists()


def test_a_stage_that_sees_its_pairs_once_keeps_no_states(squares: Path, tmp_path: Path) -> None:
    tree = recipe(squares)
    tree["encoder"]["weights"] = "random"
    tree["stages"] = [{**tree["stages"][0], "train": ["decoder"], "steps": 2}]
    run(tree, tmp_path / "run")
    assert not list((tmp_path / "features").glob("tokens-*"))


@pytest.mark.parametrize(("stage", "step"), [(0, 7), (1, 11)])
def test_a_killed_run_resumes_to_the_same_weights(squares: Path, tmp_path: Path, stage: int, step: int) -> None:
    """The decoder's word table is the encoder's: a checkpoint has it once, or twice with the same bits."""
    tree = recipe(squares)
    tree["decoder"]["dropout"] = tree["encoder"]["dropout"] = 0.1
    tree["stages"][1]["ema"] = 0.8
    run(tree, tmp_path / "whole")
    killed = processes.run(train_until_killed, tmp_path / "whole.yaml", tmp_path / "cut", stage, step)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    state = checkpoint.read(tmp_path / "cut" / "checkpoints" / "last.pt")
    assert (state.stage, state.step) == (stage, 5 * (step // 5))
    Run(load(tmp_path / "whole.yaml"), tmp_path / "cut", resume=True).go()
    before = stamps(tmp_path / "cut")
    Run(load(tmp_path / "whole.yaml"), tmp_path / "cut", resume=True).go()
    assert stamps(tmp_path / "cut") == before  # a finished run is left as it is
    assert not different(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def train_as_for_two(*words: str) -> None:
    """`mclip-kit WORDS` with batches cut as for two processes, however many there are."""
    plan = translation.Plan

    def for_two(directions: Any, lengths: Any, processes: int, *others: Any, **more: Any) -> Any:
        return plan(directions, lengths, 2, *others, **more)

    translation.Plan = for_two
    processes.command(*words)


def test_two_processes_train_as_one(squares: Path, tmp_path: Path) -> None:
    path = tiny.write_recipe(recipe(squares), tmp_path / "mte.yaml")
    for name, ranks in (("one", 1), ("two", 2)):
        words = ["train", str(path), "--out", str(tmp_path / name / "run")]
        done = processes.run(train_as_for_two, *words, ranks=ranks)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = ([row for row in read_log(tmp_path / name / "run") if "loss" in row] for name in ("one", "two"))
    assert {row["stage"] for row in one} == {"translation", "contrast"}
    for a, b in zip(one, two, strict=True):
        for term in ("loss", "translation", "contrast"):
            assert (term in a) == (term in b)
            assert a.get(term, 0.0) == pytest.approx(b.get(term, 0.0), rel=1e-5)


def test_a_budget_without_room_for_a_pair_is_refused(squares: Path, tmp_path: Path) -> None:
    tree = recipe(squares)
    tree["stages"][0]["batch_tokens"] = 16
    with pytest.raises(DataError, match="batch_tokens 16 has no room for a pair of"):
        run(tree, tmp_path / "run")


def test_mclip_plus_runs_to_its_end_with_tiny_towers(squares: Path, tmp_path: Path) -> None:
    changes = [
        f"data={{captions: {squares}, bitext: {squares / 'bitext'}}}",
        f"teacher={{weights: random, model: {json.dumps(tiny.TEACHER)}}}",
        f"encoder={json.dumps(tiny.ENCODER | {'positions': 48})}",
        "decoder.layers=1",
        "projector.layers=1",
        "evaluation={split: valid, every_steps: 100, sentences: 3, beams: 2}",
        *(f"stages.{stage}.steps=4" for stage in (0, 1)),
        *(f"stages.{stage}.batch_tokens=512" for stage in (0, 1)),
        *("stages.2.batch_size=24", "stages.2.epochs=1"),
    ]
    options = [word for change in changes for word in ("--set", change)]
    printed = processes.train(Path("recipes/mclip_plus.yaml"), tmp_path / "run", 1, *options)
    assert "decoder" in printed
    rows = read_log(tmp_path / "run")
    assert [stage for stage in dict.fromkeys(row["stage"] for row in rows)] == ["translation", "contrast", "trikd"]
    model = load_model(tmp_path / "run" / "model")
    assert model.trained_languages == ["en"]
    assert not (tmp_path / "run" / "model" / "decoder").exists()
    assert model.encode_text(["rot"]).shape == (1, 16)
    shown = processes.train(Path("recipes/mclip_plus.yaml"), tmp_path / "dry", 1, "--dry-run", *options)
    assert "steps of 512 tokens" in shown
    assert not (tmp_path / "dry").exists()
