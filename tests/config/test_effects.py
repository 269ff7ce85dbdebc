"""A setting without effect is an error: which keys are read, by which kind of stage, and which are refused where."""

import sys
from collections import defaultdict
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from mclip_kit.config import effects, model, recipe, stages
from mclip_kit.config.recipe import dump, load
from mclip_kit.config.yaml import Section
from mclip_kit.errors import RecipeError
from mclip_kit.train.run import Run
from tests import tiny
from tests.train.runs import train

TRANSLATE: dict[str, Any] = {
    "kind": "translate",
    "name": "mt",
    "train": ["encoder", "decoder"],
    "steps": 2,
    "batch_tokens": 400,
    "lr": 1e-3,
}
UNREAD = {
    "Recipe": {"about"},
    "Data": {"bitext"},
    "Cache": {"max_bad_fraction"},
    "Mine": {"margin", "neighbours"},
    "TriangleStage": {"kind", "max_nonfinite"},
    "TranslationStage": {"kind", "max_nonfinite"},
}
"""Keys that are for people, that choose the class, that a property of their section reads (Data.bitexts), or that are
read when something goes wrong, or of an encoder that is not new (tests/tasks/test_mining.py)."""


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Class of a section -> its keys that code outside of config/ reads from now on."""
    found: dict[str, set[str]] = defaultdict(set)
    plain = BaseModel.__getattribute__

    def record(self: Section, name: str) -> Any:
        asks = sys._getframe(1).f_globals.get("__name__", "")
        if asks.startswith("mclip_kit.") and not asks.startswith("mclip_kit.config."):
            keys = set(type(self).model_fields)
            # taken as the arguments of a function, which knows them all; a run folder's whole recipe is only written
            whole = name == "model_dump" and asks != "mclip_kit.train.checkpoint"
            found[type(self).__name__] |= keys if whole else keys & {name}
        return plain(self, name)

    monkeypatch.setattr(Section, "__getattribute__", record)
    return found


def whole_tree(data: Path) -> dict[str, Any]:
    """A recipe that has every section and every kind of stage, a few steps each."""
    tree = tiny.recipe(data) | {"decoder": {"layers": 1}, "lora": {"rank": 2}}
    teacher, distill, contrast = (stage | {"epochs": 1, "batch_size": 36} for stage in tree["stages"])
    contrast |= {"train": ["lora", "projector"], "wise_ft_alpha": None, "ema": 0.5}
    sigmoid = {"loss": "sigmoid", "learned": True, "dims": [4, "full"]}
    contrast["edges"] = contrast["edges"] | {"image-student_text+sigmoid": sigmoid}
    mt = TRANSLATE | {"contrast": {"weight": 1.0}, "language_linear": True}
    tree["stages"] = [teacher, mt, distill, contrast]
    tree["evaluation"] |= {"beams": 1, "sentences": 2, "every_epochs": 9, "keep": "last"}
    return tree


def test_every_key_is_read_by_some_code(squares: Path, tmp_path: Path, read: dict[str, set[str]]) -> None:
    train(load(tiny.write_recipe(whole_tree(squares), tmp_path / "x.yaml")), tmp_path / "run")
    sections = {
        name: section
        for module in (model, recipe, stages)
        for name, section in vars(module).items()
        if isinstance(section, type) and issubclass(section, Section) and section not in (Section, stages.Stage)
    }
    unread = {name: set(own.model_fields) - read[name] - UNREAD.get(name, set()) for name, own in sections.items()}
    assert not {name: keys for name, keys in unread.items() if keys}


COMMON = {"name", "train", "checkpointing", "max_tokens", "optimizer", "lr", "weight_decay", "layer_decay", "betas"}
COMMON |= {"eps", "schedule", "warmup_steps", "clip_norm", "max_nonfinite", "ema", "wise_ft_alpha", "split", "kind"}
COMMON |= {"language_temperature", "warmup_init_lr", "shuffle_window"}
READS = {
    "triangle": COMMON
    | {"edges", "data", "languages", "include_english", "monolingual", "templates", "augment", "epochs"}
    | {"batch_size", "micro_batch", "mine"},
    "translate": COMMON | {"directions", "steps", "batch_tokens", "label_smoothing", "contrast", "language_linear"},
}
"""Kind of stage -> its keys. A key that only some stages of a kind read also has a rule in `config.effects`."""


def test_the_keys_of_each_kind_of_stage() -> None:
    assert {kind: set(stages.KINDS[kind].model_fields) for kind in READS} == READS


TRIANGLE = "stages.1"  # mse on bitext, of the student
EDGE = f"{TRIANGLE}.edges.teacher_text-student_text"
IDLE: dict[str, dict[str, Any]] = {
    f"{EDGE}.temperature": {EDGE: {"loss": "mse", "temperature": 0.05}},
    f"{EDGE}.temperature ": {EDGE: {"loss": "relational", "temperature": 0.05}},
    f"{EDGE}.bias": {EDGE: {"loss": "contrastive", "bias": -5.0}},
    f"{EDGE}.positives ": {EDGE: {"loss": "kl", "positives": "pair"}},
    f"{EDGE}.normalize ": {EDGE: {"loss": "cosine", "normalize": "both"}},
    f"{EDGE}.positives": {EDGE: {"loss": "mse", "positives": "pair"}},
    f"{EDGE}.duplicates": {EDGE: {"loss": "mse", "duplicates": "mask"}},
    f"{EDGE}.normalize": {EDGE: {"loss": "contrastive", "normalize": "both"}},
    f"{EDGE}.missing_teacher": {
        EDGE: {"loss": "mse", "missing_teacher": "image"},
        f"{TRIANGLE}.data": "captions",
        f"{TRIANGLE}.languages": ["en"],
    },
    "stages.0.layer_decay": {"stages.0.layer_decay": 0.5},
    "stages.2.checkpointing": {"stages.2.checkpointing": True, "stages.2.train": ["projector"]},
    f"{TRIANGLE}.templates": {f"{TRIANGLE}.templates": ["{}"]},
    "stages.0.max_tokens": {"stages.0.max_tokens": 20},
    "stages.2.include_english": {"stages.2.include_english": False},
    "stages.0.language_temperature": {"stages.0.language_temperature": 2},
    f"{TRIANGLE}.micro_batch": {f"{TRIANGLE}.micro_batch": 24},
    f"{TRIANGLE}.shuffle_window": {f"{TRIANGLE}.shuffle_window": 24},
    "stages.0.augment": {"stages.0.augment": {"shift": 0}},
    "stages.3.language_temperature": {"stages.3": TRANSLATE | {"directions": ["de-en"], "language_temperature": 5}},
    "projector.layers": {"projector.layers": 3},
    "projector.hidden": {"projector": {"kind": "transformer", "hidden": 8}},
    "projector.dropout": {"projector.dropout": 0.1},
    "projector.noise": {
        "projector": {"kind": "linear", "noise": 0.1},
        f"{TRIANGLE}.train": ["encoder"],
        "stages.2.train": ["encoder"],
    },
    "projector.init": {"projector.init": "ridge", "evaluation": None},
    "cache.features": {"cache": "tokens"},
    "cache.folder": {"cache": {"features": "off", "folder": "x"}},
    "cache.dtype": {"cache": {"features": "off", "dtype": "fp32"}},
    "cache.dtype ": {"cache": {"dtype": "int8"}},
    "cache.max_bad_fraction": {
        "cache": {"max_bad_fraction": 0.1},
        "evaluation": None,
        "data.captions": None,
        "stages.0": TRANSLATE,
        "stages.2": TRANSLATE | {"name": "more"},
        "teacher.weights": "random",
    },
    "evaluation.sentences": {"evaluation.sentences": 5},
    "evaluation.beams": {"evaluation.beams": 1},
    "evaluation.every_epochs": {"evaluation.every_epochs": 2, "evaluation.every_steps": 5},
}
"""A key without effect -> what makes it so in the tiny recipe."""


def changed(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for path, value in deepcopy(changes).items():
        part: Any = tree
        *parents, last = path.split(".")
        for key in parents:
            part = part[int(key)] if isinstance(part, list) else part[key]
        if isinstance(part, list) and int(last) == len(part):
            part.append(value)
        else:
            part[int(last) if isinstance(part, list) else last] = value
    return tree


@pytest.mark.parametrize("key", IDLE)
def test_a_key_without_effect_is_refused(key: str, squares: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        load(tiny.write_recipe(changed(tiny.recipe(squares), IDLE[key]), tmp_path / "x.yaml"))
    assert f"{key.strip()} has no effect; it is for " in str(error.value)


def test_every_rule_has_a_case() -> None:
    rules = {"EDGE": ".edges.", "STAGE": "stages.", "TRIANGLE": "stages.", "TRANSLATION": "stages.3"}
    rules |= {"PROJECTOR": "projector.", "CACHE": "cache.", "EVALUATION": "evaluation."}
    for table, where in rules.items():
        for key in getattr(effects, table):
            assert any(where in case and case.strip().endswith(f".{key}") for case in IDLE), (table, key)


WRONG = {
    "shares": ({"data.bitext": {"a": 1, "b": 2}, "stages.1.data": "captions"}, "data.bitext: shares have no effect"),
    "decoder": ({"stages.1.train": ["student", "decoder"]}, "stages.1: train names decoder, which is on none"),
    "lora": ({"stages.0.train": ["lora"], "lora": {}}, "stages.0: train names lora, which is on none"),
    "no weight": ({f"{EDGE}.weight": 0}, f"{EDGE}.weight: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_takes_no_part_is_refused(case: str, squares: Path, tmp_path: Path) -> None:
    changes, said = WRONG[case]
    with pytest.raises(RecipeError) as error:
        load(tiny.write_recipe(changed(tiny.recipe(squares), changes), tmp_path / "x.yaml"))
    assert said in str(error.value)


def test_defaults_that_are_written_out_are_no_settings(squares: Path, tmp_path: Path) -> None:
    found = load(tiny.write_recipe(whole_tree(squares), tmp_path / "x.yaml"))
    (tmp_path / "y.yaml").write_text(dump(found), encoding="utf-8")
    assert load(tmp_path / "y.yaml") == found


def test_globs_of_a_towers_name_train_it(squares: Path, tmp_path: Path) -> None:
    changes = {"stages.1.train": ["enc*", "proj*"], "stages.1.layer_decay": 0.5}
    found = load(tiny.write_recipe(changed(tiny.recipe(squares), changes), tmp_path / "x.yaml"))
    assert Run(found, tmp_path / "run").trained[1]
