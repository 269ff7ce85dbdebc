"""Where results of evaluations are: eval/DATA.SPLIT[.TASK]/ next to the model folder."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mclip_kit.errors import MALFORMED
from mclip_kit.evaluate.base import EVALUATIONS, FP32, Request
from mclip_kit.layout import EVALUATION, MODEL, RESULTS
from mclip_kit.storage import fetch
from mclip_kit.urls import named

SETTINGS = ("task", "split", "protocol", "languages", "precision")
"""Keys of results.json besides the data and the models, by which evaluations differ."""


def default_folder(request: Request) -> Path:
    """The folder for a request's results, which holds no results of anything else.

    Its name has the data and the split; also the task, protocol, precision and model where they are not the usual ones.
    """
    model = request.models[-1].resolve()
    parts = [request.data.resolve().name, request.split]
    parts += [request.task] if request.task != "retrieval" else []
    parts += [request.protocol] if request.protocol != "any" else []
    parts += [request.precision] if request.precision != FP32 else []
    parts += [model.name] if model.name != MODEL else []
    name = ".".join(parts)
    for number in range(1, 1000):
        folder = model.parent / EVALUATION / (name if number == 1 else f"{name}-{number}")
        if not fetch(folder / RESULTS).exists() or _same(folder / RESULTS, settings(request)):
            return folder
    raise AssertionError(f"{folder}: a thousand evaluations of the same name")


def settings(request: Request) -> dict[str, Any]:
    """What results.json says about the evaluation itself; `folder` and `models` are full paths."""
    return {
        "data": named(request.data),
        "task": request.task,
        "split": request.split,
        "protocol": request.protocol,
        "precision": request.precision,
        "languages": "all" if request.languages == "all" else sorted({*request.languages}),
        "folder": named(request.data.resolve()),
        "models": [named(model.resolve()) for model in request.models],
    }


def _same(file: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a results.json is of the same models, data, languages and so on, and may be replaced."""
    try:
        found = {"precision": FP32, **json.loads(file.read_text(encoding="utf-8"))}  # earlier versions do not name it
        return all(found[key] == wanted[key] for key in (*SETTINGS, "folder", "models"))
    except (OSError, *MALFORMED):
        return False


def result_files(folder: Path) -> list[Path]:
    """Every results.json of a run folder, or of a folder that an evaluation wrote, sorted by name.

    Earlier versions wrote eval/ for retrieval, and eval_TASK/ for another task.
    """
    return list(dict.fromkeys(file for file in _candidates(folder) if file.is_file()))


def _candidates(folder: Path) -> Iterator[Path]:
    yield folder / RESULTS
    yield folder / EVALUATION / RESULTS
    for task in EVALUATIONS:
        yield folder / f"{EVALUATION}_{task}" / RESULTS
    yield from sorted(folder.glob(f"{EVALUATION}/*/{RESULTS}"))
    yield from sorted(folder.glob(f"*/{RESULTS}"))
