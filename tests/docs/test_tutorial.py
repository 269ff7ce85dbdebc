"""docs/tutorial.ipynb, from its first to its last cell, at a small size; docs/run_tutorial.py runs it as it is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("IPython", reason="the extra `docs` is not installed")
pytest.importorskip("faiss", reason="the extra `search` is not installed")

from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.models.text_encoder import new_encoder
from tests import tiny
from tests.docs.blocks import ROOT
from tests.docs.photos import write_photos


def test_the_cells_of_the_tutorial_lead_to_a_search(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures and an encoder are there already; everything else is as a reader has it."""
    write_photos(tmp_path / "photos", languages=("en", "fr"))
    shutil.copytree(squares, tmp_path / "data" / "emoji")
    new_encoder(**tiny.ENCODER, tokenizer=XlmrTokenizer(squares / "bitext")).save(tmp_path / "encoders" / "e5-small")
    monkeypatch.setenv("TUTORIAL_EPOCHS", "1")
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert "96 pictures" in printed
    assert "runs/tutorial/model: done" in printed
    results = json.loads(Path("runs/tutorial/eval/emoji.test/results.json").read_text(encoding="utf-8"))["results"]
    assert {"de", "en", "fr"} == {row["language"] for row in results if row["metrics"]}  # de has no caption in photos
    assert all(len(hits) == 5 for _, hits in names["found"])
    assert Path("search.png").is_file()
