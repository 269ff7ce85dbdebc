"""TriKD runs on frozen towers, what goes through each tower, and corpora with picture files."""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mclip_kit.config.recipe import Recipe, load
from mclip_kit.data.captions import read_captions
from mclip_kit.evaluate.validation import evaluator
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import Features, FrozenTowers
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.train.run import Run
from tests import tiny

FROZEN = ("image", "teacher_text", "encoder")
TRIKD = {
    "image-student_text": {"loss": "contrastive"},
    "teacher_text-student_text": {"loss": "contrastive", "weight": 0.1, "temperature": 0.376},
}
EVALUATION = {"split": "valid", "languages": ["en", "de", "fr"], "every_epochs": 100}
BROKEN = (0, 1, 2)  # pictures of the training split
BROKEN_VALID = 3


def tree(data: Path, **changes: Any) -> dict[str, Any]:
    """mCLIP's TriKD of projectors on frozen towers, ten steps."""
    whole = tiny.recipe(data)
    stage = {
        "name": "trikd",
        "train": ["projector", "clip_projector"],
        "edges": TRIKD,
        "data": "captions",
        "epochs": 1,
        "batch_size": 21,
        "lr": 2e-3,
    }
    whole |= {
        "teacher": whole["teacher"] | {"weights": "random"},
        "encoder": whole["encoder"] | {"weights": "random"},
        "projector": {"kind": "transformer", "layers": 1, "pool": "eos", "dropout": 0.1},
        "clip_projector": "linear",
        "evaluation": None,
        "stages": [stage],
    }
    return whole | changes


def recipe_of(data: Path, *changes: str, **more: Any) -> Recipe:
    whole = tree(data, **more)
    path = data.parent / f"recipe-{len(list(data.parent.glob('recipe-*')))}.yaml"
    return load(tiny.write_recipe(whole, path), changes)


class Watch:
    """What goes through each tower, a line an input."""

    def __init__(self, model: MultilingualClip) -> None:
        self.seen: dict[str, Counter[tuple[float, ...]]] = {tower: Counter() for tower in FROZEN}
        for tower, seen in self.seen.items():
            padding = model.encoder.tokenizer.pad if tower == "encoder" else 0
            getattr(model, tower).register_forward_hook(
                lambda module, inputs, output, seen=seen, padding=padding: seen.update(
                    tuple(np.trim_zeros(row.flatten().numpy() - padding, "b").tolist()) for row in inputs[0]
                )
            )

    def counts(self) -> dict[str, int]:
        """Inputs by tower; the counting starts again."""
        counts = {tower: seen.total() for tower, seen in self.seen.items()}
        for seen in self.seen.values():
            seen.clear()
        return counts


def trained(recipe: Recipe, folder: Path) -> tuple[Run, Watch]:
    """A run that is finished, and what went through its towers."""
    made = Run(recipe, folder, evaluator(recipe))
    watch = Watch(made.model)
    made.go()
    return made, watch


def kinds(root: Path) -> list[str]:
    """The kinds of features in a cache folder."""
    return sorted(path.parent.name.rpartition("-")[0] for path in root.glob("*/table.json"))


def fresh(model: MultilingualClip, kind: str, *inputs: Any) -> torch.Tensor:
    """Features that are computed now, float32."""
    store = FeatureCache()
    features: Features = getattr(FrozenTowers(model, store), kind)(*inputs)
    return features.take()


def as_files(squares: Path, folder: Path) -> Path:
    """The same corpus, each picture a PNG."""
    tiny.without_hashes(tiny.corpus(folder))
    captions = read_captions(folder)
    assert captions.pixels is not None
    (folder / "pictures").mkdir()
    for name, picture in zip(captions.names, captions.pixels, strict=True):
        Image.fromarray(np.asarray(picture)).save(folder / "pictures" / f"{name}.png")
    with open(folder / "images.tsv", encoding="utf-8", newline="") as handle:
        header, *rows = csv.reader(handle, delimiter="\t")
    lines = ["\t".join([*header, "file"]), *("\t".join([*row, f"pictures/{row[0]}.png"]) for row in rows)]
    (folder / "images.tsv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (folder / "images.npy").unlink()
    return folder


def with_broken_files(squares: Path, folder: Path) -> Path:
    """A corrupt, a missing and a truncated picture in training, and a corrupt one in the valid split."""
    as_files(squares, folder)
    corrupt, missing, truncated, valid = (read_captions(folder).files[image] for image in (*BROKEN, BROKEN_VALID))
    corrupt.write_bytes(b"no picture at all")
    missing.unlink()
    truncated.write_bytes(truncated.read_bytes()[: truncated.stat().st_size // 2])
    valid.write_bytes(b"")
    return folder
