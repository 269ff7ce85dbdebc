"""mteb's own runner finds the figures of `mclip-kit eval` with a sentence-transformers export."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.interop.export import find
from mclip_kit.models.multilingual_clip import MultilingualClip
from tests import tiny
from tests.interop.models import build

for package in ("mteb", "sentence_transformers"):
    pytest.importorskip(package, reason="mteb and sentence-transformers are not installed")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LANGUAGES = ["en", "de", "fr"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/mteb_retrieval.py"""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import mteb_retrieval

    return mteb_retrieval


def fitted(model: MultilingualClip, captions: Captions) -> MultilingualClip:
    """The model with the linear head that fits its texts to their pictures, so that it finds some of them."""
    (linear,), texts = model.projector.head, captions.texts.tolist()
    pooled_QH: list[torch.Tensor] = []
    hook = linear.register_forward_pre_hook(lambda module, inputs: pooled_QH.append(inputs[0]))
    for text in texts:
        model.encode_text(text)
    hook.remove()
    wanted_QD = model.encode_image([captions.picture(int(image)) for image in captions.images])
    inputs_QH = torch.cat([torch.cat(pooled_QH), torch.ones(len(texts), 1)], 1)
    solution = torch.linalg.lstsq(inputs_QH, wanted_QD - wanted_QD.mean(0)).solution
    with torch.no_grad():
        linear.weight.copy_(solution[:-1].T)
        linear.bias.copy_(solution[-1])
    return model


def test_mteb_finds_the_figures_of_our_evaluation(script: Any, squares: Path, tmp_path: Path) -> None:
    captions = read_captions(squares)
    captions = replace(captions, groups=captions.groups // 2)  # some queries have several right answers
    model = fitted(build(squares, {"kind": "linear", "pool": "mean"}, "linear", 24, tiny.TEACHER), captions)
    find("sentence-transformers").write(model, tmp_path, {"text_only": False})
    found = script.theirs(tmp_path, script.tasks(model, captions, "train", LANGUAGES), "train")
    assert found == script.ours(model, captions, "train", LANGUAGES)
    for figures in found.values():
        assert 2 / 36 < figures["t2i_r1"] < figures["t2i_r5"] < figures["t2i_r10"] < 1  # more than chance
    assert len({str(figures) for figures in found.values()}) == len(LANGUAGES)
