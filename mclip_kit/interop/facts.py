"""What is known of a model, for its card: card.json, and what the files of its folder and of its bases say."""

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from mclip_kit import layout
from mclip_kit.errors import MALFORMED
from mclip_kit.storage import fetch

Facts = dict[str, Any]
"""What card.json has: `bases` (tower -> name of its weights), `licences` (of them, see `licences_of`), `images` (whose
image tower it was compared with, see `origin.images`), `recipe`, `stages` (lines), `datasets` (a manifest's name and
licences), `leakage` (lines), `evaluations` (see `evaluated`), `same_images` (a line), `readme` (its hash)."""

RECALLS = {
    f"{way} R@{k}": f"{target}_retrieval_recall@{k}"
    for way, target in (("T2I", "image"), ("I2T", "text"))
    for k in (1, 5, 10)
}
"""Column -> its key in results.json."""


class _Evaluated(TypedDict):
    tower: str
    language: str
    trained: bool | None
    metrics: dict[str, float]


class _Evaluation(TypedDict):
    dataset: str
    split: str
    protocol: str
    precision: NotRequired[str]
    n_images: int
    rows: list[_Evaluated]


class _Licence(TypedDict):
    what: Any
    licence: Any
    by: Any


class _Dataset(TypedDict):
    name: str
    licences: list[_Licence]


class _Images(TypedDict):
    of: str
    pictures: dict[str, str]
    same: bool


class _Card(TypedDict, total=False):
    """The values of `Facts`, for a check."""

    bases: dict[str, str]
    licences: dict[str, str]
    images: _Images
    recipe: str
    stages: list[str]
    datasets: list[_Dataset]
    leakage: list[str]
    evaluations: list[_Evaluation]
    same_images: str
    readme: str


def facts_of(folder: Path) -> Facts:
    """What card.json of a model folder has; nothing if it is missing or damaged."""
    found = read_json(fetch(folder / layout.CARD))
    try:
        TypeAdapter(_Card).validate_python(found, strict=True)
        _ = [
            row["metrics"][name]
            for one in found.get("evaluations", [])
            for row in one["rows"]
            for name in RECALLS.values()
        ]
    except (ValidationError, KeyError):
        return {}
    return found


def evaluated(facts: Facts, results: Mapping[str, Any], model: str) -> list[dict[str, Any]]:
    """The `evaluations` of a card with those of a results.json: rows of a data set, split, protocol and precision, by
    language.

    Args:
        facts: of the card.
        results: of an evaluation of retrieval.
        model: the folder as `results` names it.
    """
    found = {_place(kept): kept for kept in facts.get("evaluations", [])}
    rows = [row for row in results["results"] if row["model"] == model and row["tower"] in ("teacher", "student")]
    if rows:
        first = rows[0]
        new = {key: first[key] for key in ("dataset", "split", "protocol", "precision", "n_images")}
        kept = {(row["tower"], row["language"]): row for row in found.get(_place(new), {}).get("rows", [])}
        for row in rows:
            metrics = {name: row["metrics"][name] for name in RECALLS.values()}
            language = {key: row[key] for key in ("tower", "language", "trained")}
            kept[row["tower"], row["language"]] = {**language, "metrics": metrics}
        found[_place(new)] = {**new, "rows": list(kept.values())}
    return list(found.values())


def _place(evaluation: Mapping[str, Any]) -> tuple[str, ...]:
    known = {"precision": "fp32", **evaluation}  # earlier versions do not name it
    return tuple(known[key] for key in ("dataset", "split", "protocol", "precision"))


def hub_id(name: str) -> str | None:
    """The hub's id in a name of weights, such as `hf:xlm-roberta-base`; None for weights that were a folder or new.

    >>> hub_id("hf:xlm-roberta-base"), hub_id("local-dir:models/clip"), hub_id("hf:./xlmr")
    ('xlm-roberta-base', None, None)
    """
    kind, _, place = name.partition(":")
    model, _, tag = name.partition(" ")
    if tag and ":" not in model:
        from open_clip.pretrained import get_pretrained_cfg  # the command line lists the formats without open_clip

        return str(get_pretrained_cfg(model.replace("/", "-"), tag).get("hf_hub") or "").strip("/") or None
    if (
        kind not in ("hf", "hf-hub")
        or place.startswith((".", "/", "~"))
        or place.count("/") > 1
        or Path(place).exists()
    ):
        return None
    return place


def cuts(config: Mapping[str, Any]) -> Iterable[str]:
    """A line on the widths at which a model's embeddings may be cut, from its config.json; none if it has none.

    >>> list(cuts({"dims": [32, 64]}))[0].split(":")[0]
    'Shorter embeddings'
    """
    dims = config.get("dims") or []
    if dims:
        yield (
            f"Shorter embeddings: trained to be cut to their first {' or '.join(map(str, dims))} numbers (Matryoshka); "
            f"L2-normalise what is left. In mclip-kit: `encode_text(texts, dims={dims[0]})`, and so for pictures."
        )


def is_new(base: str) -> bool:
    """Whether weights of this name, as a card's `bases` has it, began as random ones.

    >>> is_new("new"), is_new("ViT-B-32 random"), is_new("ViT-B-32 openai")
    (True, True, False)
    """
    return base == "new" or base.endswith((" random", " train"))


def licences_of(bases: Iterable[str]) -> dict[str, str]:
    """Name of weights -> the `license` in the front matter of their README.md; empty: it was not declared.

    A name of the hub is looked up in the cache alone.

    >>> licences_of(["new", "local-dir:models/clip"])
    {'local-dir:models/clip': ''}
    """
    return {base: _licence(front_matter(_readme(base))) for base in bases if not is_new(base)}


def _readme(base: str) -> Path:
    """Where the card of weights would be."""
    kind, colon, place = base.partition(":")
    folder = Path(place if colon and kind in ("hf", "hf-hub", "fairseq", "local-dir") else base)
    hub = hub_id(base)
    if hub:
        from huggingface_hub import try_to_load_from_cache  # the command line starts faster
        from huggingface_hub.errors import HFValidationError

        try:
            found = try_to_load_from_cache(hub, layout.README)
        except HFValidationError:  # not an id
            found = None
        return Path(found) if isinstance(found, str) else folder / layout.README
    return (folder.parent if kind == "fairseq" and folder.is_file() else folder) / layout.README


def _licence(front: Mapping[str, Any]) -> str:
    named = front.get("license")
    if named == "other" and front.get("license_name"):
        return f"other ({front['license_name']})"
    return ", ".join(map(str, named)) if isinstance(named, list) else str(named or "")


def one_licence(facts: Facts) -> str | None:
    """The licence that every base declares; None: they differ, one is not declared, or there is no base."""
    licences: dict[str, str] = facts.get("licences", {})
    bases = {base for base in facts.get("bases", {}).values() if not is_new(base)}
    (licence, *others) = {licences.get(base, "") for base in bases} or {""}
    return licence if not others and licence != "other" and re.fullmatch(r"[\w.-]+", licence) else None


def front_matter(readme: Path) -> dict[str, Any]:
    """The YAML at the head of a card; empty if there is none, or it is damaged."""
    import yaml

    try:
        text = readme.read_text(encoding="utf-8", errors="replace")
        found = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else None
    except (OSError, yaml.YAMLError, *MALFORMED):
        return {}
    return found if isinstance(found, dict) else {}


STATISTICS = ("running_mean", "running_var", "num_batches_tracked", "position_ids")
"""Last parts of names of tensors that are no parameters."""
PARTS = {"visual": "image", "text": "teacher_text"}
"""First part of a name in an open_clip file -> the tower."""


def parameters(folder: Path) -> dict[str, int]:
    """Tower -> number of its parameters, from the headers of a model folder's safetensors files.

    Files that are missing or damaged are left out.
    """
    found: dict[str, int] = {}
    clip, encoder = folder / layout.CLIP, folder / layout.ENCODER
    for path in (*clip.glob("*.safetensors"), *encoder.glob("*.safetensors"), folder / layout.PROJECTOR):
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(*struct.unpack("<Q", file.read(8))))
            for name, tensor in header.items():
                if name != "__metadata__" and not name.endswith(STATISTICS):
                    first = name.partition(".")[0]
                    tower = "encoder" if path.parent == encoder else PARTS.get(first, first)
                    found[tower] = found.get(tower, 0) + math.prod(tensor["shape"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, MemoryError, OverflowError):
            continue
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file with a dict; empty if it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, *MALFORMED):
        return {}
    return found if isinstance(found, dict) else {}
