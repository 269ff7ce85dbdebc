"""What a command imports before its first result; how long that takes is for benchmarks/startup.py."""

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mclip_kit.cli.common import importing
from mclip_kit.config.recipe import load
from mclip_kit.search.embed import embed_pictures
from mclip_kit.search.index import build
from mclip_kit.train.build import build_model
from tests import tiny

UNREAD = {
    "fairseq",
    "ray",
    "matplotlib",
    "tensorboard",
    "sacrebleu",
    "datasets",
    "fastapi",
    "fsspec",
    "sklearn",
    "onnx",
    "wandb",
}
"""Packages that are for other commands or other data; importing one takes from 0.1 to 3 s."""
TYPED = """
import json, sys
from mclip_kit.cli import cli
found = []
for words in json.loads(sys.argv[1]):
    cli(words, standalone_mode=False)
    found.append([*sys.modules])
print(json.dumps(found))
"""


def imported(*commands: list[str]) -> list[set[str]]:
    """The modules that are there after each of some commands, in one new process."""
    words = [sys.executable, "-c", TYPED, json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [set(names) for names in json.loads(done.stdout.splitlines()[-1])]


def test_commands_import_what_they_read_alone(squares: Path, tmp_path: Path) -> None:
    tree = tiny.recipe(squares) | {"stages": tiny.recipe(squares)["stages"][2:]}
    tree["teacher"]["weights"] = "random"
    recipe = str(tiny.write_recipe(tree | {"workers": 0}, tmp_path / "tiny.yaml"))
    model: Any = build_model(load(recipe))
    model.save(tmp_path / "model")
    embed_pictures(model, squares, tmp_path / "vectors", workers=0)
    index = tmp_path / "index"
    build(tmp_path / "vectors", index)
    tried = ["train", recipe, "--dry-run", "--out", str(tmp_path / "run")]
    searched = ["search", str(index), "a red square", "--model", str(tmp_path / "model")]
    (tmp_path / "lines.txt").write_text("ein rotes Quadrat\n", encoding="utf-8")
    lines, words = str(tmp_path / "lines.txt"), ["embed", str(tmp_path / "model"), "--texts"]
    embedded = [*words, lines, "--out", str(tmp_path / "texts")]
    of_help, of_search, of_texts, of_train = imported(["--help"], searched, embedded, tried)
    assert set() == of_help & (UNREAD | {"torch", "numpy", "pyarrow", "PIL", "transformers", "open_clip", "asyncio"})
    assert "faiss" in of_search
    unread = UNREAD | {"pandas", "mclip_kit.train", "mclip_kit.tasks", "mclip_kit.evaluate.retrieval"}
    assert set() == of_search & unread
    assert set() == (of_search | of_texts) & {"open_clip", "mclip_kit.models.clip"}  # a student's texts need no CLIP
    assert set() == of_train & (UNREAD - {"tensorboard"} | {"mclip_kit.evaluate.report.html"})


def test_text_is_prepared_without_pandas(tmp_path: Path) -> None:
    for language in ("en", "de"):
        (tmp_path / f"t.{language}").write_text("".join(f"text {n}\n" for n in range(20)), encoding="utf-8")
    sides = [f"{language}={tmp_path / f't.{language}'}" for language in ("en", "de")]
    words = ["prepare", "--bitext", *sides, "--out", str(tmp_path / "out"), "--set", "vocabulary.pieces=30"]
    assert "pandas" not in imported(words)[0]


def looked_through(held: object) -> bool:
    """Whether garbage collection looks through an object."""
    return any(other is held for other in gc.get_objects())


def test_imports_are_without_garbage_collection() -> None:
    with importing():
        assert not gc.isenabled()
        stays: list[int] = []
        assert looked_through(stays)
    assert gc.isenabled()
    assert not looked_through(stays)


def test_a_failed_import_leaves_garbage_collection_as_it_was() -> None:
    held: list[int] = []
    with pytest.raises(ModuleNotFoundError), importing():
        raise ModuleNotFoundError
    assert gc.isenabled()
    assert looked_through(held)
