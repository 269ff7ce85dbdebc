"""What a report is made of: the results.json of evaluations, and the log and the recipe of a run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mclip_kit.data.leakage import Leak
from mclip_kit.errors import MALFORMED, DataError, first_line
from mclip_kit.evaluate.base import FP32, Metric
from mclip_kit.evaluate.folders import result_files
from mclip_kit.layout import EVALUATION, METRICS, RECIPE, RESULTS
from mclip_kit.storage import fetch

LISTS = ("results", "comparisons", "intervals", "leakage", "confusions", "language_confusion", "widths")
"""Lists of results.json; those after the first are missing in what earlier versions wrote."""
OF_A_MODEL = tuple(name for name in LISTS if name != "leakage")
"""Lists whose entries have the key `model`, the model of an evaluation that they are about."""
OF_DATA = ("model", "folder", "split", "protocol", "precision")
SAME = {
    "results": ("model", "tower", "language", "task", "dataset", "split", "protocol", "precision"),
    "comparisons": (*OF_DATA, "baseline", "language", "metric"),
    "intervals": (*OF_DATA, "tower", "languages", "metric"),
    "widths": (*OF_DATA, "tower", "language", "dims"),
}
"""List -> keys; of its entries that have the same values of all of them, the last one counts."""
OF_ALL = ("confusions", "language_confusion")
"""Lists about all captions of an evaluation: of two evaluations of the same data, those of the last one count."""


@dataclass(frozen=True)
class Report:
    """One run or evaluation.

    Attributes:
        name: its name on the page.
        results: the content of every results.json, see `_joined`.
        log: rows of metrics.jsonl.
        recipe: the text of the resolved recipe.
        recipe_file: where it is.
    """

    name: str
    results: dict[str, Any]
    log: list[dict[str, Any]] = field(default_factory=list)
    recipe: str = ""
    recipe_file: Path | None = None


def evaluated(model: Path, results: dict[str, Any], log: list[dict[str, Any]]) -> Report:
    """The part of an evaluation that is about one model, with the recipe next to the model folder.

    Args:
        results: the content of results.json, of any number of models.
        log: of the run that made the model; empty if there is none.
    """
    own = {key: [row for row in results.get(key, []) if row["model"] == str(model)] for key in OF_A_MODEL}
    return Report(str(model), _joined([results | own]), log, *_recipe(model.resolve().parent, model.parent))


def read(folder: Path, log: list[dict[str, Any]]) -> Report:
    """Read the folder of a run or of an evaluation.

    Args:
        log: of the run; empty if there is none.
    Raises:
        DataError: the folder has no results and there is no log, or results.json is damaged.
    """
    if not log:
        check_folder(folder, with_log=False)
    parts = [read_results(file) for file in result_files(folder)]
    return Report(str(folder), _joined(parts), log, *_recipe(folder, folder))


def check_folder(folder: Path, with_log: bool = True) -> None:
    """DataError if a folder has neither results nor, if that suffices, a log."""
    fetch(folder, (RESULTS, METRICS, RECIPE))
    if not result_files(folder) and not (with_log and (folder / METRICS).is_file()):
        raise DataError(
            f"{folder}: no {EVALUATION}/DATA.SPLIT/{RESULTS} and no {METRICS}; give a run's folder, or run mclip-kit "
            "eval first"
        )


def _joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several results.json as one: their lists, and `evaluations`, what each says about itself.

    Every entry of a list about a model gets the data, the split, the protocol and the precision of its evaluation.
    """
    joined: dict[str, Any] = {"evaluations": [], **{key: [] for key in LISTS}}
    for part in parts:
        about = {key: value for key, value in part.items() if key not in LISTS}
        data = {"dataset": Path(about["data"]).name, "folder": str(about.get("folder", about["data"]))}
        data |= {"split": about["split"], "protocol": about["protocol"], "precision": about.get("precision", FP32)}
        joined["evaluations"].append(about)
        for key in OF_A_MODEL:
            own = [data | row for row in part.get(key, [])]
            known = {_key(row, OF_DATA) for row in own if key in OF_ALL}
            joined[key] = [row for row in joined[key] if _key(row, OF_DATA) not in known] + own
        joined["leakage"] += part["leakage"]
    return joined | {name: _last(joined[name], keys) for name, keys in SAME.items()}


def _last(entries: Sequence[dict[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """The entries, the last of those that have the same values of the keys."""
    return list({_key(entry, keys): entry for entry in entries}.values())


def _key(entry: dict[str, Any], keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(entry.get(key)) for key in keys)


def _recipe(run: Path, named: Path) -> tuple[str, Path | None]:
    """The text of a run's recipe, and its file as the user named the run; empty and None if it has none."""
    written = run / RECIPE
    if not written.is_file():
        return "", None
    return written.read_text(encoding="utf-8", errors="replace"), named / RECIPE


def read_results(file: Path) -> dict[str, Any]:
    """Read and check a results.json.

    Raises:
        DataError: it is damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        for row in content["results"]:
            _ = "".join(row[key] for key in ("language", "tower", "model", "task"))
            parts = [row["metrics"], *dict(row.get("strata") or {}).values()]
            _ = [Metric("", "").text(value) for metrics in parts for value in metrics.values()]
        whole = {**{key: [] for key in LISTS}, **content}
        _check_lists(whole)
        _ = "".join([*(whole[key] for key in ("data", "task", "split", "protocol")), *whole.get("overlaps", [])])
        _ = [dict(whole.get(key) or {}) for key in ("environment", "hashes")]
        _ = "".join(whole.get("leakage_checked", []))
        _joined([whole])
        return whole
    except MALFORMED as error:
        raise DataError(f"{file}: damaged ({first_line(error)}); run mclip-kit eval again") from None


def _check_lists(content: dict[str, Any]) -> None:
    """Raise what plain code raises for malformed JSON if an entry lacks what the page shows of it."""
    for row in (row for name in OF_A_MODEL for row in content[name]):
        _ = "".join(row.get(key, "") for key in ("dataset", *OF_DATA))
    for row in content["widths"]:
        _ = "".join(row[key] for key in ("language", "tower")), f"{row['dims']:d}"
        _ = [Metric("", "").text(value) for value in row["metrics"].values()]
    for leak in content["leakage"]:
        leak_line(leak)
    for item in content["comparisons"]:
        _ = "".join(item[key] for key in ("model", "baseline", "language", "metric"))
        _ = [f"{item[key]:+.1f}" for key in ("difference", "low", "high")]
    for item in content["intervals"]:
        _ = "".join([item["tower"], item["metric"], *item["languages"]])
        _ = [f"{item[key]:.1f}" for key in ("low", "high")]
    for pair in content["confusions"]:
        _ = "".join(pair[key] for key in ("model", "picture", "found", "query", "language"))
        _ = ", ".join(pair["languages"]), pair["count"] / pair["captions"]
    for confused in content["language_confusion"]:
        _ = "".join([confused["model"], *confused["languages"]])
        shapes = [len(confused["languages"]), *map(len, confused["shares"])]
        if shapes != [len(confused["shares"])] * len(shapes):
            raise ValueError("language_confusion is not square")
        _ = [round(100.0 * share) for row in confused["shares"] for share in row]


def leak_line(leak: dict[str, Any]) -> str:
    """An entry of results.json's `leakage` as a sentence."""
    own = dict(leak)
    return f"{own.pop('model')}: {Leak(**own).line()}"
