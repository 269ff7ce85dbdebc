"""Small real things that tests share: a corpus of coloured squares, and a recipe of tiny towers for it."""

import json
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from mclip_kit.data import tables
from mclip_kit.data.corpora import Content, Corpus, Row
from mclip_kit.data.prepare.prepare import write_prepared
from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.data.triangle_rows import RowStream, TriangleRows, open_rows, write_rows
from tests import processes

COLOURS = {
    "red": ((220, 30, 30), "rot", "rouge"),
    "green": ((30, 200, 30), "grün", "vert"),
    "blue": ((30, 30, 220), "blau", "bleu"),
    "yellow": ((230, 220, 40), "gelb", "jaune"),
    "black": ((10, 10, 10), "schwarz", "noir"),
    "grey": ((128, 128, 128), "grau", "gris"),
}
PLACES = {
    "left": ("links", "gauche"),
    "right": ("rechts", "droite"),
    "above": ("oben", "haut"),
    "below": ("unten", "bas"),
}
SIZE = 16


def content() -> Content:
    """96 pictures: a coloured square in a place, on a light ground of four shades; en de fr captions."""
    rows, pixels = [], []
    for colour, (rgb, *colour_names) in COLOURS.items():
        for place, place_names in PLACES.items():
            for shade in range(4):
                picture = np.full((SIZE, SIZE, 3), 255 - 8 * shade, np.uint8)
                lines = slice(0, 8) if place == "above" else slice(8, 16) if place == "below" else slice(0, 16)
                columns = slice(0, 8) if place == "left" else slice(8, 16) if place == "right" else slice(0, 16)
                picture[lines, columns] = rgb
                image = len(rows)
                texts = [
                    ("en", f"{colour} square {place}, shade {shade}"),
                    ("de", f"Quadrat {colour_names[0]} {place_names[0]}, Ton {shade}"),
                    ("fr", f"carré {colour_names[1]} {place_names[1]}, nuance {shade}"),
                ]
                split = "test" if image % 8 == 7 else "valid" if image % 8 == 3 else "train"
                stratum = "even" if image % 2 else "odd"
                rows.append(Row(split, texts, f"{colour}-{place}-{shade}", parallel=True, group=image, stratum=stratum))
                pixels.append(picture)
    return Content(rows, np.stack(pixels))


def declaration() -> Corpus:
    """The declaration of that corpus."""
    return Corpus.model_validate(
        {
            "about": "coloured squares",
            "reader": "none",
            "languages": ["en", "de", "fr"],
            "licences": [{"what": "all", "licence": "none needed", "by": "these tests"}],
            "obtain": "made by tests/tiny.py",
            "vocabulary": {"pieces": 120, "coverage": 1.0},
        }
    )


def corpus(folder: Path) -> Path:
    """Write the corpus as a prepared folder."""
    write_prepared(content, declaration(), folder)
    return folder


def class_folders(folder: Path) -> Path:
    """The same pictures as PNG files in a folder a colour."""
    found = content()
    assert found.pixels is not None
    for row, pixels in zip(found.rows, found.pixels, strict=True):
        path = folder / str(row.image).partition("-")[0] / f"{row.image}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def flip(path: Path, place: int = -1) -> None:
    """Flip a bit of a file, in the byte at a place."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def without_hashes(folder: Path) -> Path:
    """A model folder, translator folder or prepared folder, so that it can be edited: as earlier versions wrote it."""
    names = ("config.json", "translator.json", "manifest.json")
    config = next(path for name in names if (path := folder / name).is_file())
    tree = json.loads(config.read_text(encoding="utf-8"))
    entry = "files" if config.name == "manifest.json" else "hashes"
    assert tree[entry]
    tree |= {"files": {}} if entry == "files" else {"hashes": None}
    config.write_text(json.dumps(tree), encoding="utf-8")
    if (folder / "images.arrow").is_file():
        as_text(folder)
    return folder


def rows_of(stream: RowStream) -> TriangleRows:
    """Rows as a run maps them, in a temporary folder that is unlinked while it is mapped."""
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder), stream)
        return replace(open_rows(Path(folder)), folder=None)


def as_text(folder: Path) -> Path:
    """A prepared folder whose tables are text, as earlier versions wrote them."""
    for name, lines in tables.as_text(tables.open_tables(folder)):
        (folder / name).write_text("".join(lines), encoding="utf-8", newline="\n")
        (folder / name).with_suffix(".arrow").unlink(missing_ok=True)
    return folder


def fairseq_preprocess(lines: dict[str, Sequence[str]], bitext: Path, folder: Path) -> Path:
    """Parallel lines of two languages, as SentencePiece pieces, binarised by fairseq's own command.

    Args:
        lines: language -> its lines.
        bitext: a folder whose SentencePiece model and dictionaries are used.
        folder: where to work; the binarised folder is in it.
    """
    tokenizer = XlmrTokenizer(bitext)
    source, target = lines
    for language, texts in lines.items():
        pieces = [" ".join(tokenizer.spm.encode(text, out_type=str)) for text in texts]
        (folder / f"train.spm.{language}").write_text("".join(f"{line}\n" for line in pieces), encoding="utf-8")
    words = ["--source-lang", source, "--target-lang", target, "--workers", "1"]
    words += ["--trainpref", str(folder / "train.spm"), "--destdir", str(folder / "bin")]
    for option, language in (("--srcdict", source), ("--tgtdict", target)):
        words += [option, str(bitext / f"dict.{language}.txt")]
    done = processes.run(processes.script, "from fairseq_cli.preprocess import cli_main; cli_main()", *words)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


TEACHER: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIZE, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 12, "width": 16, "heads": 2, "layers": 1},
}
ENCODER = {"layers": 1, "width": 16, "heads": 2, "ffn": 32, "dropout": 0.1, "positions": 32}


def recipe(data: Path) -> dict[str, Any]:
    """A tree of all three kinds of stage: teacher from scratch, teacher learning, contrastive."""
    common: dict[str, Any] = {"epochs": 2, "batch_size": 24, "lr": 2e-3}
    return {
        "about": "tiny",
        "teacher": {"model": deepcopy(TEACHER), "weights": "train"},
        "encoder": dict(ENCODER),
        "projector": {"kind": "altclip", "pool": "cls"},
        "data": {"captions": str(data), "bitext": str(data / "bitext")},
        "evaluation": {"split": "valid", "languages": ["en", "de", "fr"], "keep": "best"},
        "precision": "fp32",
        "checkpoint_every": 2,
        "stages": [
            {
                "name": "teacher",
                "train": ["image", "teacher_text"],
                "edges": {"image-teacher_text": {"loss": "contrastive", "learned": True}},
                "data": "captions",
                "languages": ["en"],
                "templates": ["{}", "a {}"],
                "augment": {"shift": 1, "colour": 0.1},
                **common,
            },
            {
                "name": "distill",
                "train": ["student"],
                "edges": {"teacher_text-student_text": {"loss": "mse"}},
                "data": "bitext",
                **common,
            },
            {
                "name": "contrast",
                "train": ["student"],
                "edges": {"image-student_text": {"loss": "contrastive"}},
                "data": "captions",
                **common,
            },
        ],
    }


def write_recipe(tree: dict[str, Any], path: Path) -> Path:
    """Write a recipe tree as YAML."""
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return path
