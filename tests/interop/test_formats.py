"""Each format takes each kind of student exactly, or refuses it and says what to train instead."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mclip_kit.cli.export import OPTIONS, export
from mclip_kit.interop.export import FORMATS, find, misfits
from mclip_kit.models.multilingual_clip import MultilingualClip
from tests.interop.matrix import CLIP_PROJECTORS, HEADS, POOLS, Cell, students, tried

EXACT: dict[str, Callable[[Cell], bool]] = {
    "open-clip": lambda cell: (
        cell.pool != "eos" and cell.head != "mlp with noise" and (cell.head != "altclip" or cell.pool == "cls")
    ),
    "sentence-transformers": lambda cell: True,
    "onnx": lambda cell: True,
    "diffusers": lambda cell: cell.head == "altclip",
    "transformers": lambda cell: cell.head in ("altclip", "linear", "transformer") and cell.pool == "cls",
}
"""Format -> whether it takes a kind of student."""
STEP = {"onnx": 7}
"""Format -> of how many kinds of student one is tried here, where each takes seconds: every pool and CLIP
projector; test_onnx.py has every head with every pool. docs/make_exports.py tries all of them."""


@pytest.fixture(scope="module")
def models(squares: Path) -> dict[Cell, MultilingualClip]:
    """Every head with every pool, every head and every pool with either CLIP projector."""
    heads, pools, projectors = list(HEADS), list(POOLS), list(CLIP_PROJECTORS)
    return {
        cell: model
        for cell, model in students(squares).items()
        if (heads.index(cell.head) + pools.index(cell.pool)) % 2 == projectors.index(cell.clip_projector)
    }


@pytest.mark.parametrize("name", FORMATS)
def test_every_kind_of_student_is_exact_or_refused_with_the_reason(name, models, tmp_path):
    form = find(name)
    for package in form.packages:
        pytest.importorskip(package, reason=f"the extra `{form.extra}` is not installed")
    cells = list(models)[:: STEP.get(name, 1)]
    found = tried(name, {cell: models[cell] for cell in cells}, tmp_path)
    assert {cell for cell, outcome in found.items() if outcome.reason is None} == set(filter(EXACT[name], cells))
    for cell, outcome in found.items():
        if outcome.reason is None:
            assert outcome.differences["texts"] <= 1e-5, cell
        else:
            assert "\n" not in outcome.reason


@pytest.mark.parametrize("name", FORMATS)
def test_the_command_of_a_format_has_its_options(name):
    chosen = export.commands[name].make_context(name, ["MODEL"]).params
    assert {key: value for key, value in chosen.items() if key not in ("model", "out", "push_to_hub")} == find(
        name
    ).options
    assert set(OPTIONS) <= set(FORMATS)


def test_all_formats_are_asked_whether_a_model_fits(models):
    cell = Cell("linear", "eos", "none")
    assert misfits(models[cell]) == {name: find(name).misfit(models[cell], find(name).options) for name in FORMATS}
    assert "pool: eos" in str(misfits(models[cell])["open-clip"])
