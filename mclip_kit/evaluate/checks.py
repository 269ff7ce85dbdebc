"""What can be wrong with the data and the options of `mclip-kit eval`, found before torch is imported."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mclip_kit.data.bitext import Bitext, Direction, find_directions, format_directions, open_bitext
from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.data.images import container
from mclip_kit.data.languages import TEACHER_LANGUAGE
from mclip_kit.errors import CheckpointError, DataError, RecipeError
from mclip_kit.evaluate import class_names
from mclip_kit.evaluate.base import Request
from mclip_kit.evaluate.labelled import Labelled, read_labelled
from mclip_kit.evaluate.translated import TRANSLATED, translated
from mclip_kit.layout import BITEXT, ENCODER, MODEL, MODEL_CONFIG, PICTURES, TRANSLATOR_CONFIG
from mclip_kit.storage import exists, fetch, place

LOOKED_AT = 1000  # picture files
CLOSED_FORM, FITTED, CHOSEN = "closed-form", "train", "valid"
"""A baseline, and the splits for its map and for its lambda, see `closed_form`."""


def open_data(request: Request) -> Any:
    """The data of a request, opened and checked; None if its evaluation checks nothing beforehand.

    Raises:
        CheckpointError: a model folder is missing or incomplete.
        DataError: the data is missing, or has not what is asked for.
        RecipeError: an option is wrong.
    """
    check = CHECKS.get(request.task)
    if check is None:
        return None
    for model in request.models:
        _check_model(model, request.task)
    return check(request)


def _check_model(folder: Path, task: str) -> None:
    inner = (ENCODER + "/config.json", TRANSLATOR_CONFIG, MODEL_CONFIG)
    files = {"translation": (TRANSLATOR_CONFIG,), "bitext": inner}.get(task, (MODEL_CONFIG,))
    if any(fetch(folder / file).is_file() for file in files):
        return
    if any(fetch(folder / MODEL / file).is_file() for file in files):
        raise CheckpointError(f"{folder}: is a run, not a model folder; give {folder / MODEL}")
    if not exists(folder):
        raise CheckpointError(f"{folder}: no such folder; give a model folder, as RUN/{MODEL} of mclip-kit train")
    if task == "bitext":
        raise CheckpointError(f"{folder}: contains no encoder; give a transformers folder or a model folder")
    what = "translator" if task == "translation" else "model"
    raise CheckpointError(f"{folder / files[0]}: missing; {folder} is not a complete {what} folder")


def _retrieval(request: Request) -> Captions:
    captions = read_captions(request.data)
    if not captions.names:
        other = "; its sentences are for --task bitext" if exists(request.data / BITEXT) else ""
        raise DataError(f"{request.data}: has no pictures to find{other}; give --data a corpus with pictures")
    if not len(captions.images):
        raise DataError(
            f"{request.data}: its pictures have no captions to find them by; with classes they are for --task zeroshot"
        )
    captions.select(request.split, request.languages)
    check_files(captions, request.split)
    for name in request.baseline:
        _check_baseline(name, captions, request)
    return captions


def _check_baseline(name: str, captions: Captions, request: Request) -> None:
    if name.startswith(TRANSLATED):
        translated(captions, place(name.removeprefix(TRANSLATED)), request.split, request.languages)
    elif name == CLOSED_FORM:
        check_closed_form(captions, request.split)
    elif name != "teacher" and not fetch(place(name) / MODEL_CONFIG).is_file():
        raise RecipeError(f"--baseline {name}: give teacher, {CLOSED_FORM}, translated:FILE or a model folder")


def check_closed_form(captions: Captions, split: str) -> None:
    """Refuse data on which the baseline `closed-form` cannot be fitted.

    Raises:
        RecipeError: `split` is one that it is fitted on, or the data lacks one of these, English captions, or the
            pictures for lambda.
    """
    if split in (FITTED, CHOSEN):
        raise RecipeError(f"--baseline {CLOSED_FORM}: it is fitted on {FITTED} and {CHOSEN}; give another --split")
    try:
        captions.check(CHOSEN)
        captions.check(FITTED, [TEACHER_LANGUAGE])
        check_files(captions, CHOSEN)
    except DataError as error:
        raise RecipeError(f"--baseline {CLOSED_FORM}: {error}; leave it out, or prepare data with them") from None


def check_files(captions: Captions, split: str) -> None:
    """Refuse a split of which no picture is there.

    Raises:
        DataError: none of its first picture files exists; the message says where to put them.
    """
    files = [captions.files[image] for image in captions.gallery(split)[:LOOKED_AT]] if captions.files else []
    if not files or any(_exists(file) for file in files):
        return
    where = captions.folder
    never_found = files[0].is_relative_to(captions.folder / PICTURES)
    names = f"mclip-kit data show {where} --table images"
    here = f"put the pictures, under the names of {names}, into {where / PICTURES}"
    raise DataError(
        f"{where}: none of its {split} pictures is there, such as {files[0]}; "
        f"{here if never_found else 'put them back'}, or prepare it with --again --images DIR"
    )


def _exists(file: Path) -> bool:
    """Whether a picture file is there, or the tar that has it."""
    return exists(file) or exists(container(file))


def _zeroshot(request: Request) -> Labelled:
    if request.classes:
        class_names.check_file(request.classes)
    pictures = read_labelled(request.data, request.split)
    if request.classes:
        names = class_names.read_file(request.classes, pictures.classes)
        class_names.chosen(names, request.languages)
    elif importlib.util.find_spec("clip_benchmark") is None:
        raise RecipeError(class_names.NOT_INSTALLED)
    return pictures


def _bitext(request: Request) -> tuple[list[Bitext], list[Direction]]:
    return held_out(request.data, request.split, request.languages)


def held_out(data: Path, split: str, languages: list[str] | str) -> tuple[list[Bitext], list[Direction]]:
    """The parallel text of a prepared folder, or of a fairseq-binarised one, and the directions that it has.

    Args:
        languages: source and target must both be among them; or `all`.
    Raises:
        DataError: there is no such direction.
    """
    bitexts = [open_bitext(data / BITEXT if exists(data / BITEXT) else data)]
    directions = find_directions(bitexts, split)
    chosen = [way for way in directions if languages == "all" or set(way) <= set(languages)]
    if not chosen:
        raise DataError(
            f"{data}: no {split} pair within {', '.join(languages)}; there are {format_directions(directions)}"
        )
    return bitexts, chosen


CHECKS: dict[str, Callable[[Request], Any]] = {
    "retrieval": _retrieval,
    "zeroshot": _zeroshot,
    "bitext": _bitext,
    "translation": _bitext,
}
"""Evaluation -> what opens and checks its data."""
