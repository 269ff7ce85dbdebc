"""What the imports read of a source: where its folder is, its settings, its weights, the languages on its card."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors.torch import load_file

from mclip_kit import storage
from mclip_kit.errors import MALFORMED, CheckpointError, first_line
from mclip_kit.interop.facts import front_matter
from mclip_kit.layout import README
from mclip_kit.models.hub import MissingWeights, hub_answers
from mclip_kit.models.safe_load import UNFIT, StateDict, named_tensors, read_pickle

FILES = ["*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "README.md"]
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
NOT_CODES = ("multilingual", "multi", "mul")


def folder_of(place: str | Path, what: str) -> Path:
    """A source's folder: the place itself, or the hub's copy on this machine.

    Args:
        place: a folder, or an id on the hub, ORG/NAME.
        what: the kind of source, for messages.
    Raises:
        MissingWeights: it is neither on disk nor on the hub.
    """
    folder = storage.fetch(storage.place(place))
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(str(place), local_files_only=not hub_answers(), allow_patterns=FILES))
    except UNFIT:  # an id with wrong letters, no answer, no such repository
        raise MissingWeights((f"{what} {place}", "a folder that has it")) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file with a dict; CheckpointError if it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise CheckpointError(f"{path}: missing") from None
    except MALFORMED as error:
        raise CheckpointError(f"{path}: damaged: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: contains a {type(found).__name__}, not settings by name")
    return found


def read_weights(folder: Path) -> tuple[Path, StateDict]:
    """The file of a folder's weights, and the weights, in float32.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder}: has no weights, neither {' nor '.join(WEIGHTS)}")
    if path.suffix == ".bin":
        state = named_tensors(read_pickle(path), path)
    else:
        try:
            state = load_file(path)
        except UNFIT as error:
            raise CheckpointError(f"{path}: damaged: {first_line(error)}") from None
    return path, {name: tensor.float() for name, tensor in state.items()}


def languages(folder: Path) -> list[str]:
    """The codes that a source's card lists under `language`; empty without a card or a list.

    >>> languages(Path("models/without-a-card"))
    []
    """
    found = front_matter(folder / README).get("language")
    listed = found if isinstance(found, list) else [found] if found else []
    codes = ("no" if code is False else str(code) for code in listed)  # YAML reads a bare `no` as false
    return sorted({code for code in codes if code not in NOT_CODES})
