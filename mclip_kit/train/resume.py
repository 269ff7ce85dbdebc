"""Whether a run can go on from what is in its folder, and what has changed since."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mclip_kit import layout
from mclip_kit.config.model import AS_OPEN_CLIP
from mclip_kit.config.recipe import RENAMED, Recipe
from mclip_kit.config.stages import Stage
from mclip_kit.config.yaml import parse, read_yaml, rename_keys
from mclip_kit.data.corpora.source import File
from mclip_kit.data.manifest import identity
from mclip_kit.errors import CheckpointError
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.hashing import hash_towers
from mclip_kit.storage import fetch
from mclip_kit.train.checkpoint import TrainState, checkpoints, newest, versions
from mclip_kit.urls import named, with_urls

LOGS = ("*.json", "*.jsonl", "*.yaml", "*.txt", "*tfevents*")
"""Files of a run folder that a run goes on with, besides checkpoints, which are brought when they are read."""
HARMLESS = (
    "about",
    "cache",
    "checkpoint_every",
    "checkpoints_kept",
    "evaluation.every_epochs",
    "evaluation.every_steps",
    "trackers",
    "workers",
)
"""Keys and sections that decide nothing of what is trained, but where features lie and what is written."""


def check_folder(folder: Path, recipe: Recipe, resume: bool) -> list[str]:
    """What is said of a run folder before the run goes on: a line for each harmless key that has changed.

    Raises:
        CheckpointError: it holds a run that is not to be resumed, or one of another recipe; each key is named.
    """
    written = fetch(folder / layout.RECIPE)
    if not written.is_file() or not checkpoints(folder):
        return []  # a run that saved nothing, such as one that failed at once, starts again
    if not resume:
        raise CheckpointError(f"{folder}: holds a run already; add --resume to continue it, or choose another --out")
    tree = read_yaml(written)
    rename_keys(tree, RENAMED)  # of an earlier version
    started = parse(tree, Recipe, str(written))  # with the defaults of keys that are newer than the run
    if "text_cleaning" not in tree and started.text_cleaning:
        started.text_cleaning, started.pictures = "none", AS_OPEN_CLIP  # what runs did before the keys
    if started.lora and recipe.lora and recipe.lora.targets is None and started.lora.targets == ["query", "value"]:
        started.lora.targets = None  # the default of earlier versions; of such an encoder it is still the same
    before, now = (_flat(one.model_dump(mode="json")) for one in (started, recipe))
    changed = sorted(key for key in before | now if before.get(key) != now.get(key))
    harmful = [key for key in changed if not f"{key}.".startswith(tuple(f"{name}." for name in HARMLESS))]
    if harmful:
        inputs = [f"--set {key}={before[key]}" for key in harmful if key.startswith(("pictures", "text_cleaning"))]
        again = f", or continue it with {' '.join(inputs)}" if len(inputs) == len(harmful) else ""
        raise CheckpointError(
            f"{folder}: was started with another recipe; different keys: {', '.join(harmful)}; choose another "
            f"--out{again}"
        )
    return [f"{folder}: goes on with {key}: {now.get(key)}, was {before.get(key)}" for key in changed]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    if not isinstance(tree, dict | list):
        return {prefix: tree}
    return {k: v for key, part in items for k, v in _flat(part, f"{prefix}.{key}" if prefix else str(key)).items()}


def inputs_of(recipe: Recipe, model: Any, cache: FeatureCache) -> dict[str, str]:
    """What a run is made from, and a checkpoint does not hold: a hash of each prepared folder and named tower."""
    folders = [*recipe.data.bitexts, *filter(None, [recipe.data.captions])]
    found = {named(folder): identity(Path(folder)) for folder in dict.fromkeys(folders)}
    found |= {named(path): File(Path(path)).sha256() for path in recipe.data.unpaired.values()}
    towers = {tower: source for tower, source in recipe.sources.items() if source != "new" and hasattr(model, tower)}
    hash_towers(model, towers, cache.weights)
    return found | {with_urls(f"{tower} {source}"): cache.weights[tower] for tower, source in towers.items()}


def find_start(
    folder: Path,
    stages: Sequence[Stage],
    processes: int,
    inputs: dict[str, str],
    changes: list[str],
    is_finished: Callable[[TrainState], bool],
) -> tuple[dict[str, Any], bool, list[str]]:
    """The entries of the state from which a run goes on, whether it has ended, and lines about it.

    Args:
        folder: of the run.
        stages: of its recipe.
        processes: that share its steps from now on.
        inputs: of `inputs_of`.
        changes: of `check_folder`.
        is_finished: whether a run with such a newest state has ended.
    Raises:
        CheckpointError: no checkpoint is whole, or data or a tower has changed since the newest whole one.
    """
    fetch(folder, LOGS)
    state, path, lines = newest(folder)
    finished = is_finished(state)
    if finished:
        again = "to train on what is there now, choose another --out"
        lines = [*lines, *(f"{changed}; {again}" for changed in _changed_since(state, inputs, folder))]
    elif path:
        _check_inputs(state, inputs, folder)
        where = (
            f"step {state.step} of stage {state.stage + 1}" if state.step else f"the start of stage {state.stage + 1}"
        )
        others = [*_other_versions(state), *_other_processes(state, stages, processes)]
        lines = [*lines, *changes, *others, f"{path}: the run goes on from {where}"]
    return vars(state), finished, lines


def _check_inputs(state: TrainState, inputs: dict[str, str], folder: Path) -> None:
    """CheckpointError if data or a tower has changed under the same name since a checkpoint was written."""
    for changed in _changed_since(state, inputs, folder):
        raise CheckpointError(f"{changed}; put back what was there, or start a new run with another --out")


def _changed_since(state: TrainState, inputs: dict[str, str], folder: Path) -> Iterator[str]:
    """A sentence if data or a tower has changed."""
    changed = [name for name, value in state.inputs.items() if inputs.get(name, value) != value]
    if changed:
        yield f"{folder}: {', '.join(changed)} {'has' if len(changed) == 1 else 'have'} changed since the run started"


def _other_processes(state: TrainState, stages: Sequence[Stage], now: int) -> Iterator[str]:
    """A line about the batches of the stage in progress, if other processes share them than before."""
    before = state.processes or now
    if before == now or not state.step:
        return
    if stages[state.stage].rows_follow_processes:
        rows = f"batches are cut for {now} of them, so the rest of stage {state.stage + 1} has them in another order"
    else:
        rows = "the same rows in the same order"
    several = f"{now} processes instead of {before}, each with 1/{now} of a batch"
    yield f"{several if now > 1 else f'1 process instead of {before}'}: {rows}"


def _other_versions(state: TrainState) -> Iterator[str]:
    """A line for each package that has another version than when a checkpoint was written."""
    for name, now in versions().items():
        before = state.versions.get(name, now)
        if before != now:
            yield f"{name} {now} goes on with what {before} began; results may differ in the last digits"
