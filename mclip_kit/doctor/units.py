"""Folders that are one thing: a prepared corpus, a model, a CLIP or an encoder."""

import json
from pathlib import Path
from typing import Any

from mclip_kit.data.corpora import CODE
from mclip_kit.doctor.found import Data, Found, teacher_first
from mclip_kit.doctor.walk import has_odd_characters
from mclip_kit.errors import MALFORMED, first_line
from mclip_kit.interop.facts import read_json
from mclip_kit.layout import BITEXT, MANIFEST, MODEL_CONFIG, PROJECTOR

ENCODERS = {"xlm-roberta", "xlm-roberta-xl", "bert", "roberta", "distilbert"}
"""Values of `model_type` of transformers folders that `encoder: hf:DIR` takes."""


def note_unit(path: Path, names: set[str], found: Found) -> bool:
    """Note a folder that is a prepared one, a model, a CLIP or an encoder."""
    if MANIFEST in names and _prepared(path, found):
        return True
    if PROJECTOR in names and MODEL_CONFIG in names:
        found.models.append(str(path))
    elif "open_clip_config.json" in names:
        found.clips.append(f"local-dir:{path}")
    elif "config.json" in names and (kind := _model_type(path / "config.json")):
        if kind in ENCODERS:
            found.encoders.append(f"hf:{path}")
        elif kind == "altclip":
            found.others.append(f"{path}: an AltCLIP; mclip-kit import altclip {path} makes it a model folder")
        else:
            found.others.append(f"{path}: a model of kind {kind}; teacher.model takes open_clip's folders")
    else:
        return False
    return True


def _model_type(path: Path) -> str | None:
    """The `model_type` of a transformers folder; None: it is another folder."""
    kind = read_json(path).get("model_type")
    return kind if isinstance(kind, str) else None


def _prepared(path: Path, found: Found) -> bool:
    """Note a prepared folder; False: its manifest is that of another program."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        if isinstance(manifest, dict) and "counts" not in manifest:
            return False
        found.data += (data := _rows_of(path, manifest["counts"]))
        if not data:
            found.others.append(f"{path}: prepared, and has no rows to train on")
    except (OSError, *MALFORMED) as error:
        found.others.append(f"{path / MANIFEST}: damaged ({first_line(error)}); prepare it with --again")
    return True


def _rows_of(path: Path, counts: dict[str, Any]) -> list[Data]:
    """What a prepared folder has to train on; its counts are those of its manifest."""
    captions, pairs = (dict(counts[key].get("train", {})) for key in ("captions", "sentence_pairs"))
    spoken = [language for pair in pairs for language in pair.split("-")]
    kinds = (
        [("captions", list(captions), captions, path)] if counts["images"] > counts.get("missing_pictures", 0) else []
    )
    if has_odd_characters(str(path)) or not all(CODE.fullmatch(code) for code in [*captions, *spoken]):
        raise ValueError("its path or its languages have characters that a recipe cannot hold")
    return [
        Data(f"{path}: prepared", kind, teacher_first(languages), str(folder), rows=int(sum(rows.values())))
        for kind, languages, rows, folder in [*kinds, ("bitext", spoken, pairs, path / BITEXT)]
        if rows
    ]
