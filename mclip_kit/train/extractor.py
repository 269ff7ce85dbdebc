"""Filling the feature cache of a recipe in the processes of an engine."""

from itertools import chain
from pathlib import Path

from mclip_kit.config.recipe import Recipe
from mclip_kit.engine.base import Engine
from mclip_kit.progress import is_quiet, tqdm
from mclip_kit.train.run import Run


class Extractor:
    """One of several processes that fill the cache together: each shard is filled by the one that claims it first.

    Args:
        recipe: the experiment.
        folder: of its run; the cache is where the recipe or the environment says, else beside it.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self._run = Run(recipe, folder, resume=True)

    def __call__(self, number: int) -> tuple[str, list[str]]:
        """Fill the cache; return when it is full, whoever has filled it.

        Args:
            number: of this process; the first one describes the run.
        Returns:
            The cache's folder; features for which the disk has no room, a line each.
        """
        if number == 0 and self._run.is_main:
            for line in self._run.warnings() if is_quiet() else [self._run.describe()]:
                tqdm.write(line)
        self._run.extract()
        return str(self._run.cache.root), self._run.cache.refused


def extract(recipe: Recipe, folder: Path, engine: Engine) -> tuple[str, list[str]]:
    """Fill the cache of a recipe by all processes of an engine; arguments and result as of `Extractor`."""
    with engine.map(Extractor, recipe, folder) as fill:
        places, refused = zip(*fill(range(engine.workers)), strict=True)
    return places[0], list(dict.fromkeys(chain(*refused)))
