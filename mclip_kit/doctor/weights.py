"""Where the pretrained weights of a recipe are: on disk, in the hub's cache, or to be downloaded."""

import glob
import json
import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from mclip_kit.doctor.findings import NOTE, OK, PROBLEM, Finding, guarded
from mclip_kit.errors import RecipeError
from mclip_kit.files import readable
from mclip_kit.layout import CLIP, ENCODER, MODEL_CONFIG, PROJECTOR
from mclip_kit.storage import exists, listing
from mclip_kit.urls import is_copy

if TYPE_CHECKING:
    from mclip_kit.config.recipe import Recipe

INDEX = ".index.json"  # lists the files of weights that are split into several

RequiredFiles = tuple[tuple[str, ...], ...]
OPEN_CLIP: RequiredFiles = (
    ("open_clip_config.json",),
    ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
)
REQUIRED_FILES: dict[str, RequiredFiles] = {
    "local-dir": (OPEN_CLIP[0], ("*.safetensors", "*.bin", "*.pth")),
    "hf-hub": OPEN_CLIP,
    "hf": (
        ("config.json",),
        ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json"),
        ("sentencepiece.bpe.model", "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "spm.model"),
    ),
    "fairseq": (("model.pt", "model.pt.xz"), ("dict.txt",), ("sentencepiece.bpe.model",)),
    "init_from": (
        *((name,) for name in (MODEL_CONFIG, PROJECTOR, f"{CLIP}/open_clip_config.json")),
        *((name,) for name in (f"{CLIP}/*.safetensors", f"{ENCODER}/config.json", f"{ENCODER}/*.safetensors")),
    ),
}
"""Prefix of a recipe's weights -> the files that must exist, each with its possible names (in a folder: globs)."""

LOCAL_PATHS = {
    "teacher": "teacher.model: local-dir:DIR or openai:FILE",
    "encoder": "encoder: hf:DIR or fairseq:DIR",
}
"""A recipe key -> how it takes a local path."""

MADE_BY = {r"runs/(\w+)/model\b": r"mclip-kit train \1", r"^encoders/e5-small$": "mclip-kit import e5"}
"""A path -> the command that makes it."""


def check_weights(recipe: "Recipe") -> list[Finding]:
    """For each tower with pretrained weights, where they are and how large a download is needed."""
    teacher, encoder = recipe.teacher, recipe.encoder
    wanted = [("init_from", f"init_from:{recipe.init_from}")] if recipe.init_from else []
    if isinstance(encoder, str):
        wanted.append(("encoder", encoder))
    if teacher and isinstance(teacher.model, str) and teacher.weights not in ("random", "train"):
        file = Path(str(teacher.weights))
        kind = "file" if file.is_file() or is_copy(file) else teacher.model
        wanted.append(("teacher", teacher.model if ":" in teacher.model else f"{kind}:{teacher.weights}"))
    found = [finding for key, name in wanted for finding in guarded(key, _look_up, key, name)]
    return found or [Finding(OK, "weights: all are new")]


def _look_up(key: str, name: str) -> list[Finding]:
    place, required = _place(name)
    sizes = [_bytes(place, names) for names in required]
    missing = ", ".join(names[0] for names, size in zip(required, sizes, strict=True) if size is None)
    if missing:
        commands = [match.expand(how) for where, how in MADE_BY.items() if (match := re.search(where, str(place)))]
        local = f"give a local path ({LOCAL_PATHS.get(key, 'init_from: DIR')}), or set HF_HOME to a cache that has it"
        why = _why_missing(place, missing)
        return [Finding(PROBLEM, f"{key} {name}: {why}", "; or ".join([*commands, local]))]
    size, download = (sum(column) for column in zip(*filter(None, sizes), strict=True))
    where = ("in storage" if is_copy(place) else "on disk") if isinstance(place, Path) else "in the cache"
    where = f"{readable(download, 1)} of it to be downloaded" if download else where
    return [Finding(NOTE if download else OK, f"{key} {name}: {readable(size, 1)}, {where}", "", size, download)]


def _why_missing(place: Path | str, missing: str) -> str:
    from huggingface_hub import constants

    from mclip_kit.models.hub import hub_answers

    if isinstance(place, Path):
        return f"no {missing} there" if exists(place) else "no such folder"
    offline = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE", "0") != "0" else "the hub does not answer"
    hub = "the hub does not have it" if hub_answers() else offline
    return f"no {missing} in the cache {constants.HF_HUB_CACHE}, and {hub} ({constants.ENDPOINT})"


def _place(name: str) -> tuple[Path | str, RequiredFiles]:
    """Where a recipe's weights should be (a folder, or the name of a repository of the hub), and the required files."""
    kind, _, rest = name.partition(":")
    path = Path(rest)
    if kind in ("file", "openai") or (kind == "fairseq" and path.suffix in (".pt", ".xz")):
        return path.parent, ((glob.escape(path.name),), *REQUIRED_FILES.get(kind, ())[1:])
    if kind not in REQUIRED_FILES:  # an open_clip model and its tag
        from open_clip.pretrained import get_pretrained_cfg

        repository, _, file = get_pretrained_cfg(kind.replace("/", "-"), rest).get("hf_hub", "").rpartition("/")
        if not repository:
            raise RecipeError(f"teacher: open_clip knows no weights {rest!r} of {kind}, and there is no such file")
        return repository, ((str(Path(file).with_suffix(".safetensors")), file),) if file else OPEN_CLIP[1:]
    may_be_remote = kind.startswith("hf") and not exists(path) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", rest)
    return rest if may_be_remote else path, REQUIRED_FILES[kind]


def _bytes(place: Path | str, names: Sequence[str]) -> tuple[int, int] | None:
    """Bytes of the first of these files that exists, and bytes to be downloaded; None if no file exists."""
    from huggingface_hub import try_to_load_from_cache as find_cached

    if isinstance(place, Path) and is_copy(place):
        there = listing(place).items()
        return next(((size, 0) for name in names for file, size in there if fnmatchcase(file, name)), None)
    if isinstance(place, Path):
        return next(((_size(path), 0) for name in names for path in sorted(place.glob(name)) if path.is_file()), None)
    for name in names:
        if isinstance(cached := find_cached(place, name), str):
            return _size(Path(cached)), 0
    size = next((size for name in names if (size := _bytes_on_hub(place, name))), None)
    return (size, size) if size else None


def _bytes_on_hub(repository: str, name: str) -> int | None:
    """Bytes of a file on the hub; None if the hub does not have it or does not answer."""
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_download, hf_hub_url

    from mclip_kit.models.hub import PATIENCE, hub_answers

    try:
        if hub_answers():
            size = get_hf_file_metadata(hf_hub_url(repository, name), timeout=PATIENCE).size or 1
            return _size(Path(hf_hub_download(repository, name))) if name.endswith(INDEX) else size
    except errors.HfHubHTTPError:
        return None
    except Exception:  # of the hub's HTTP client, which differs between major versions
        constants.HF_HUB_OFFLINE = True
    return None


def _size(path: Path) -> int:
    """Bytes of a file, or of the files that an index lists."""
    if path.name.endswith(INDEX):
        return int(json.loads(path.read_text(encoding="utf-8"))["metadata"]["total_size"])
    return path.stat().st_size
