"""A first recipe for what a folder has: projectors on frozen towers, with comments that say what to change."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mclip_kit.data.languages import TEACHER_LANGUAGE
from mclip_kit.doctor.found import Data, Found
from mclip_kit.errors import DataError

TEMPLATE = "starter.yaml.jinja"
CLIP, WEIGHTS = "ViT-B-32", "openai"  # of open_clip's names, if the folder has no CLIP
ENCODER = "hf:xlm-roberta-base"  # if it has no encoder
MOST = 20  # lines about what is not in the recipe
SMALLEST, LARGEST = 8, 256  # rows of a batch
NOTHING = (
    "nothing to train on: no table with columns image and caption, no pictures with captions beside them "
    "(NAME.txt, NAME.de.txt), no shards, no parallel text (train.en, train.de)"
)


@dataclass(frozen=True)
class Starter:
    """A recipe, and what was chosen for it.

    Attributes:
        captions: captioned pictures to train on.
        bitext: parallel text to train on.
        clip: the recipe's `teacher.model`; none: one of open_clip's.
        encoder: the recipe's `encoder`; none: one of the hub.
    """

    captions: Data | None
    bitext: Data | None
    clip: str | None
    encoder: str | None

    def recipe(self) -> str:
        """The YAML text."""
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            autoescape=False,  # YAML; values go through `quoted`
        )
        environment.filters["quoted"] = quoted
        return environment.get_template(TEMPLATE).render(**self._facts())

    def _facts(self) -> dict[str, Any]:
        captions, bitext = self.captions, self.bitext
        languages = {data.kind: data.languages for data in (captions, bitext) if data}
        return {
            "captions": captions,
            "bitext": bitext,
            "clip": self.clip or CLIP,
            "weights": None if self.clip else WEIGHTS,
            "encoder": self.encoder or ENCODER,
            "on_hub": self.encoder is None,
            "english": TEACHER_LANGUAGE in languages.get("captions", []),
            "only_english": languages.get("captions") == [TEACHER_LANGUAGE],
            "batch": {data.kind: batch_size(data.rows) for data in (captions, bitext) if data},
        }

    def commands(self, recipe: Path) -> list[str]:
        """What to run next."""
        prepared = dict.fromkeys(data.words for data in (self.captions, self.bitext) if data and data.words)
        model = Path("runs", recipe.stem, "model")
        file = f"./{recipe}" if str(recipe).startswith("-") else str(recipe)  # it is no option
        score = ["mclip-kit", "eval", str(model)]
        if self.captions:
            score += ["--data", self.captions.folder]
        elif self.bitext:
            score += ["--task", "bitext", "--data", str(Path(self.bitext.folder).parent)]
        lines = [["mclip-kit", "prepare", *words] for words in prepared]
        return [shlex.join(words) for words in [*lines, ["mclip-kit", "train", file], score]]


def choose(found: Found, root: Path) -> tuple[Starter, list[str]]:
    """What a recipe takes of a folder, and lines about what it does not take.

    Raises:
        DataError: the folder has nothing to train on.
    """
    captions = found.first("captions")
    usable = [data for data in found.data if data.kind == "bitext" and TEACHER_LANGUAGE in data.languages]
    bitext = usable[0] if usable else None
    if captions is None and bitext is None:
        raise DataError("; ".join([f"{root}: {NOTHING}", *_some(found.others)]))
    clips, encoders = ([*names, None] for names in (found.clips, found.encoders))
    left = [f"{data.what}: not in the recipe ({_why(data)})" for data in found.data if data not in (captions, bitext)]
    left += [f"{name}: not in the recipe, which has {clips[0]}" for name in found.clips[1:]]
    left += [f"{name}: not in the recipe, which has {encoders[0]}" for name in found.encoders[1:]]
    return Starter(captions, bitext, clips[0], encoders[0]), _some([*left, *found.others])


def _some(lines: list[str]) -> list[str]:
    """Lines about what is left out; of many, the first ones and the number of the others."""
    return [*lines[:MOST], *([f"and {len(lines) - MOST:,} more"] if len(lines) > MOST else [])]


def _why(data: Data) -> str:
    if data.kind == "bitext" and TEACHER_LANGUAGE not in data.languages:
        return "the CLIP reads English, which it does not have"
    return "data.bitext may list several folders" if data.kind == "bitext" else "data.captions names one folder"


def batch_size(rows: int) -> int:
    """Rows of a step: a power of two, so that an epoch of few rows has some steps; 0 rows: their number is unknown.

    >>> [batch_size(rows) for rows in (0, 20, 1000, 10**6)]
    [256, 8, 64, 256]
    """
    fits = 1 << max(0, (rows // 8).bit_length() - 1)
    return min(LARGEST, max(SMALLEST, fits)) if rows else LARGEST


def quoted(value: str) -> str:
    """A string as YAML reads it, in one line.

    >>> quoted('a "b" #')
    '"a \\\\"b\\\\" #"'
    """
    return str(yaml.safe_dump(value, allow_unicode=True, default_style='"', width=10**6)).strip()
