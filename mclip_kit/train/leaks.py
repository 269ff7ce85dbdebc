"""Which test sets a recipe trains on."""

from pathlib import Path

from mclip_kit import layout
from mclip_kit.config.recipe import Recipe
from mclip_kit.data.leakage import Leak, held_out_beside, leaks, read_json


def shared_with_tests(recipe: Recipe) -> list[Leak]:
    """Rows of test sets, prepared beside the recipe's data, that it trains on or that its start was trained on."""
    trained = training_splits(recipe)
    tests = {test for folder in trained for test in held_out_beside(folder)}
    before = read_json(Path(recipe.init_from).parent / layout.LEAKAGE) if recipe.init_from else []
    return list(dict.fromkeys([*before, *leaks(trained, tests)]))


def training_splits(recipe: Recipe) -> dict[Path, set[str]]:
    """Prepared folder -> the splits that some stage trains on."""
    trained: dict[Path, set[str]] = {}
    for stage in recipe.stages:
        bitexts = [Path(folder).parent for folder in recipe.data.bitexts]  # their manifests lie in the folder above
        splits = [stage.split] if isinstance(stage.split, str) else stage.split.values()
        for folder in bitexts if stage.data == "bitext" else [Path(str(recipe.data.captions))]:
            trained.setdefault(folder, set()).update(splits)
    return trained
