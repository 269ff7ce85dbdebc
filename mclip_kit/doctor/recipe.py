"""Checks of a recipe: its weights, its prepared data, and whether a run reaches its first step."""

import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mclip_kit.doctor.findings import NOTE, OK, PROBLEM, Finding, guarded
from mclip_kit.doctor.weights import check_weights
from mclip_kit.errors import MclipError
from mclip_kit.files import temporary_folder
from mclip_kit.layout import BITEXT

if TYPE_CHECKING:
    from mclip_kit.config.recipe import Recipe


def check_recipe(name: str, overrides: Sequence[str]) -> list[Finding]:
    """All checks of a recipe; the last one builds the towers, so it is left out if something is missing before.

    Raises:
        RecipeError: the recipe or an override is wrong.
    """
    from mclip_kit.config.recipe import load

    recipe = load(name, overrides)
    findings = [*guarded("weights", check_weights, recipe), *guarded("data", check_data, recipe)]
    if recipe.precision == "fp16" and not importlib.import_module("torch").cuda.is_available():
        findings.append(Finding(PROBLEM, "precision: fp16 needs a GPU", "--set precision=bf16, or fp32"))
    if not any(finding.status == PROBLEM or finding.download for finding in findings):
        findings += guarded("start", check_start, recipe)
    return findings


def check_data(recipe: "Recipe") -> list[Finding]:
    """Whether each data folder is prepared and has the languages of the recipe, and the vocabulary of a new encoder."""
    from mclip_kit.data.bitext import open_bitext
    from mclip_kit.data.captions import read_captions
    from mclip_kit.data.tokenizer import XlmrTokenizer

    def read_selected(folder: str) -> None:
        captions = read_captions(folder)
        for stage in recipe.stages:
            if stage.data == "captions":
                captions.select(stage.split, getattr(stage, "languages", "all"))
        if recipe.evaluation:
            captions.select(recipe.evaluation.split, recipe.evaluation.languages)

    findings = []
    if recipe.data.captions:
        findings.append(_check_folder("captions", recipe.data.captions, read_selected))
    new_encoder = not recipe.init_from and not isinstance(recipe.encoder, str)
    for number, folder in enumerate(recipe.data.bitexts):
        vocabulary = [XlmrTokenizer] if new_encoder and number == 0 else []  # of the first folder
        findings.append(_check_folder("bitext", folder, open_bitext, *vocabulary))
    return findings


def _check_folder(key: str, folder: str, *readers: Callable[[str], Any]) -> Finding:
    try:
        for read in readers:
            read(folder)
        return Finding(OK, f"data.{key}: {folder}")
    except MclipError as error:
        out = folder.removesuffix(f"/{BITEXT}")
        return Finding(
            PROBLEM, f"data.{key}: {error}", f"mclip-kit prepare CORPUS --out {out}, or --set data.{key}=DIR"
        )


def check_start(recipe: "Recipe") -> list[Finding]:
    """Whether a run reaches its first step: it can be scored, its towers be built, and stages have rows for a batch.

    Building checks that weights are finite, that ids fit the word table, and what the encoder cannot do.
    """
    from mclip_kit.evaluate.validation import evaluator
    from mclip_kit.train.run import Run

    evaluator(recipe)
    with temporary_folder() as folder:
        run = Run(recipe, folder / "run")
        run.cache.writes = False  # nor are pairs mined, which takes long
        rows = [len(task.rows) for task in run.tasks()]
    counts = ", ".join(f"{stage.name} {count:,}" for stage, count in zip(recipe.stages, rows, strict=True))
    built = Finding(OK, f"towers are built, and their weights are finite; rows to train on: {counts}")
    return [built, *_check_ends(run.model)]


def _check_ends(model: Any) -> list[Finding]:
    """Whether the tokenizer adds the token that the projector pools."""
    pooling = model.projector.pooling if hasattr(model, "projector") else "mean"
    first, last = model.encoder.tokenizer.encode(["a"])[0][[0, -1]]
    hf = getattr(model.encoder.tokenizer, "hf", None)
    if hf is None or pooling == "mean" or {"cls": first, "eos": last}[pooling] in hf.all_special_ids:
        return []
    place, word = {"cls": ("start", "first"), "eos": ("end", "last")}[pooling]
    what = f"the encoder's tokenizer adds no token at the {place}, so pool: {pooling} reads the {word} word's state"
    return [Finding(NOTE, what)]
