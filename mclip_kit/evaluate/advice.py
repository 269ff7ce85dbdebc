"""The command that scores a model on the data that it was trained with."""

import shlex
from collections.abc import Collection
from pathlib import Path

from mclip_kit.config.recipe import Recipe
from mclip_kit.data.bitext import open_bitext
from mclip_kit.data.captions import read_captions
from mclip_kit.layout import BITEXT


def eval_command(model: Path, recipe: Recipe) -> str:
    """A command line that scores a recipe's model: on its pictures and captions, else on its parallel text.

    The split is test if there is one, else the one of the recipe's evaluation, else any that is held out.
    """
    if recipe.data.captions:
        captions = read_captions(recipe.data.captions)
        known = {*captions.splits.present(), *captions.uncaptioned} if len(captions.splits) else {"test"}
        words = ["--data", recipe.data.captions]
    else:
        folder = Path(next(iter(recipe.data.bitexts)))
        known = open_bitext(folder).splits
        words = ["--task", "bitext", "--data", str(folder.parent if folder.name == BITEXT else folder)]
    split = _held_out(known, recipe.evaluation.split if recipe.evaluation else "valid")
    return shlex.join(["mclip-kit", "eval", str(model), *words, *(["--split", split] if split != "test" else [])])


def _held_out(known: Collection[str], preferred: str) -> str:
    others = sorted(known, key=lambda split: (not split.startswith("test"), split.startswith("train"), split))
    return next((split for split in ("test", preferred) if split in known), others[0])
