"""Every shipped recipe, at tiny sizes, still computes what it computed: losses and weights within tolerances.

`python -m tests.golden_record compare FILE` compares bits, on the machine that wrote FILE.
"""

import json
from typing import Any

import pytest

from mclip_kit.config.yaml import shipped
from tests import golden_record

TOLERANCE = 1e-3  # relative, of losses and norms: other processors add in another order


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the runs of now give."""
    return golden_record.record(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", golden_record.RUNS)
def test_losses_and_weights_are_those_of_the_record(name: str, found: dict[str, Any]) -> None:
    known = json.loads(golden_record.RECORD.read_text(encoding="utf-8"))[name]
    now = found[name]
    assert [(row["stage"], row["step"]) for row in now["log"]] == [(row["stage"], row["step"]) for row in known["log"]]
    for before, after in zip(known["log"], now["log"], strict=True):
        assert after.keys() == before.keys()
        terms = [key for key in before if key in ("loss", "translation", "contrast", "lr") or "-" in key]
        if "loss" in before:
            assert {key: after[key] for key in terms} == pytest.approx({k: before[k] for k in terms}, rel=TOLERANCE)
    norms = {file: weights["norm"] for file, weights in known["weights"].items()}
    assert {file: w["norm"] for file, w in now["weights"].items()} == pytest.approx(norms, rel=TOLERANCE)


def test_every_shipped_recipe_is_in_the_record() -> None:
    assert {path.stem for path in shipped("recipes").glob("*.yaml")} == {
        recipe for recipe, _ in golden_record.RUNS.values()
    }
