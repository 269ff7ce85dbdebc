"""How what a report shows is made again: the commands, the versions, the seeds and the hashes of data and model."""

import json
import platform
import re
import shlex
from collections.abc import Sequence
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mclip_kit import __version__
from mclip_kit.data.manifest import identity
from mclip_kit.errors import MALFORMED
from mclip_kit.evaluate.base import SEED, Request
from mclip_kit.evaluate.report.results import Report
from mclip_kit.layout import MANIFEST, MODEL_CONFIG, TRANSLATOR_CONFIG
from mclip_kit.storage import fetch
from mclip_kit.urls import named

PACKAGES = ("torch", "open_clip_torch", "transformers", "sentencepiece", "numpy")


def made_by(request: Request, command: str) -> dict[str, Any]:
    """What results.json keeps so that an evaluation can be made again.

    Args:
        command: the command line; it is kept as it was typed.
    """
    return {"command": command, "seed": SEED, "environment": environment(), "hashes": hashes(request)}


def environment() -> dict[str, str]:
    """The versions of packages, and the machine."""
    found = {"mclip_kit": __version__, "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found | {"machine": f"{platform.system()} {platform.machine()}"}


def hashes(request: Request) -> dict[str, str]:
    """A SHA-256 of the data and of each model, by their paths, of those that list the hashes of their files.

    That of prepared data is `manifest.identity`; that of a model or translator folder is of its config.json or
    translator.json, which has the hashes of all its files.
    """
    found = {}
    if fetch(request.data / MANIFEST).is_file():
        found[named(request.data)] = identity(request.data)
    for model in request.models:
        for name in (MODEL_CONFIG, TRANSLATOR_CONFIG):
            content = (model / name).read_bytes() if fetch(model / name).is_file() else b"{}"
            if _lists_hashes(content):
                found[named(model / name)] = sha256(content).hexdigest()
    return found


def _lists_hashes(content: bytes) -> bool:
    try:
        return bool(dict(json.loads(content)).get("hashes"))
    except MALFORMED:
        return False


def reproduction(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """For each report: its evaluations, as `made_by` and the settings of results.json have them, and its training."""
    return [
        {"name": report.name, "evaluations": _evaluations(report), "training": _training(report)} for report in reports
    ]


def _evaluations(report: Report) -> list[dict[str, Any]]:
    found = []
    for about in report.results["evaluations"]:
        facts = {
            "seed": str(about.get("seed", "")),
            **{str(name): str(value) for name, value in dict(about.get("environment") or {}).items()},
            "evaluated on": str(about.get("device", "")),
        }
        found.append(
            {
                "title": f"{about['task']}, {about['split']} of {about['data']}",
                "command": str(about.get("command", "")),
                "facts": {name: value for name, value in facts.items() if value},
                "hashes": {str(file): str(value) for file, value in dict(about.get("hashes") or {}).items()},
            }
        )
    return found


def _training(report: Report) -> dict[str, str] | None:
    """The command that trains the resolved recipe again, and its seed; None without a recipe."""
    if report.recipe_file is None:
        return None
    seed = re.search(r"(?m)^seed: *(-?\d+)", report.recipe)
    return {
        "command": shlex.join(["mclip-kit", "train", str(report.recipe_file), "--out", "runs/again"]),
        "seed": seed[1] if seed else "",
    }
