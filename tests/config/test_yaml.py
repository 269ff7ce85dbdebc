"""YAML as people write it: what is read otherwise than it looks is refused with its line or its key."""

from pathlib import Path

import pytest

from mclip_kit.config.recipe import load
from mclip_kit.config.yaml import read_yaml
from mclip_kit.config.yaml_loader import dump_yaml, parse_yaml
from mclip_kit.errors import RecipeError

READ = {
    "lr: 1e-3": 0.001,
    "lr: 1E+2": 100.0,
    "lr: 2.5e-4": 0.00025,
    "a: 1_000": 1000,
    "a: 0": 0,
    "a: 0x10": 16,
    "a: -0.5": -0.5,
    "a: '010'": "010",
    "a: 08": "08",
    "a: hf:x": "hf:x",
    "a: 'no'": "no",
}


@pytest.mark.parametrize("text", READ)
def test_what_is_read(text: str) -> None:
    (value,) = parse_yaml(text).values()
    assert value == READ[text]
    assert type(value) is type(READ[text])


REFUSED = {
    "a: 1\n\tb: 2": "not YAML: line 2: a tab",
    "a: 1\nb: x: y": "not YAML: line 2: a second `: ` in a line",
    "a: [1": "not YAML: line 1: ",
    "a: @x": "not YAML: line 1: ",
    "a: 1\nb: 2\na: 3": "line 3: the key a is given twice, first in line 1",
    "a:\n  b: 1\n  b: 1": "line 3: the key b is given twice, first in line 2",
    "- {a: 1, a: 2}": "line 1: the key a is given twice",
    "en: 1\nno: 2": "line 2: YAML reads the key no as false; write it in quotes",
    "on: 1": "line 1: YAML reads the key on as true; write it in quotes",
    "a: 1\nb: 010": "line 2: YAML reads 010 as octal, to the base of 8; if it is a text, write it in quotes, '010'",
    "001: cat": "line 1: YAML reads 001 as octal",
    "a: 2014-01-01": "line 1: YAML reads 2014-01-01 as a date",
    "a: 1:30": "line 1: YAML reads 1:30 as a number to the base of 60",
    "a: !!python/object:os.system x": "line 1: could not determine a constructor",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        read_yaml(path)
    assert str(error.value).startswith(f"{path}: {REFUSED[text]}")


def test_merged_keys_may_be_given_again() -> None:
    assert parse_yaml("x: &x {a: 1, b: 2}\ny: {<<: *x, a: 3}")["y"] == {"a": 3, "b": 2}


def test_texts_that_look_like_something_else_are_written_in_quotes() -> None:
    tree = {"a": ["1e3", "no", "010", "2014-01-01", "1:30", "x: y"], "1e-3": 1e-3}
    assert parse_yaml(dump_yaml(tree)) == tree


NO = "YAML reads no, off and false as false: write it in quotes, 'no'"
OVERRIDES = {
    "stages.0.languages=[en, no]": f"stages.0.languages.1: give a text; {NO}",
    "stages.0.languages=no": f"stages.0.languages: give a list or 'all'; {NO}",
    "evaluation.languages=[off]": f"evaluation.languages.0: give a text; {NO}",
    "stages.0.languages=[en, 5]": "stages.0.languages.1: give a text, not 5; write a text that looks like a number in",
    "stages.0.languages=de": "stages.0.languages: give a list or 'all', not 'de'",
    "stages.0.languages=[]": "quickstart.yaml: stages.0.languages: is empty; give at least one item",
    "stages=[]": "quickstart.yaml: stages: is empty; give at least one item",
    "stages.0.epochs=true": "stages.0.epochs: give a whole number, not true",
    "stages.0.lr=yes": "stages.0.lr: give a number, not true",
    "stages.0.betas=[no, 0.9]": "stages.0.betas.0: give a number, not false",
    "stages.0.ema=on": "stages.0.ema: give a number, not true",
    "data.bitext={a: yes}": "data.bitext.a: give a number, not true",
    "seed=false": "seed: give a whole number, not false",
    "seed=-1": "seed: Input should be greater than or equal to 0, not -1",
    "stages.0.languages=[en, de, en]": "stages.0.languages: en is given twice",
    "evaluation.languages=[en, en]": "evaluation.languages: en is given twice",
    "stages.0.split=off": "stages.0.split: give a text or a mapping of keys to values; YAML reads no, off",
    "stages.0.split={no: train}": "YAML reads the key no as false",
    "stages.0.split={5: train}": "stages.0.split.5: give a text, not 5",
    "data.bitext=5": "data.bitext: give a text or a mapping of keys to values, not 5",
    "data.bitext=[a]": "data.bitext: give a text or a mapping of keys to values, not a list",
    "data.bitext={a: x}": "data.bitext.a: give a number, not 'x'",
    "data.bitext={a: 1, a: 2}": "the key a is given twice",
    "stages.0.optimizer=adam": "stages.0.optimizer: give 'adamw', 'lamb', 'lamb_apex' or 'adam_fairseq'",
    "stages.0.lr=.inf": "stages.0.lr: ",
    "seed=010": "--set seed=010: line 1: YAML reads 010 as octal",
    "decoder={}": "quickstart.yaml: decoder is given, but no stage uses it",
    "encoder=5": "encoder: give a mapping of keys to values, not 5",
    "stages=5": "stages: give a list, not 5",
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_a_wrong_value_is_told_in_plain_words(override: str) -> None:
    with pytest.raises(RecipeError) as error:
        load("quickstart", [override])
    message = str(error.value)
    assert OVERRIDES[override] in message
    assert "Input should be a valid" not in message


def test_numbers_with_an_exponent_are_numbers() -> None:
    recipe = load("quickstart", ["stages.0.lr=1e-3", "stages.0.batch_size=1e2", "data.bitext={1e3x: 1e-2, b: 1}"])
    assert (recipe.stages[0].lr, recipe.data.bitexts["1e3x"]) == (0.001, 0.01)
