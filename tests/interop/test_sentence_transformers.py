"""What is exported is loaded by sentence-transformers alone, and gives the model's embeddings."""

from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2

from mclip_kit.config.model import AS_SEEN
from mclip_kit.interop import parity
from mclip_kit.interop.export import find
from mclip_kit.models.clip import build_clip
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.text_encoder import pretrained_encoder
from tests import tiny
from tests.interop.test_open_clip import RESNET, build
from tests.models import test_encoder_kinds as kinds
from tests.models import test_text_encoder as encoders

pytest.importorskip("sentence_transformers", reason="the extra `sentence-transformers` is not installed")

FORMAT = find("sentence-transformers")
VIT = {
    **tiny.TEACHER,
    "vision_cfg": {**tiny.TEACHER["vision_cfg"], "image_size": 24},
}  # where few samples are cut beside
QUICK = {**VIT, "quick_gelu": True}
SPECIAL = ["a <s> b", "</s>", "<mask> [MASK] [CLS]", "<pad> <unk>"]

STUDENTS: dict[str, tuple[dict[str, Any], str]] = {
    "linear cls none": ({"kind": "linear", "pool": "cls"}, "none"),
    "noise mean linear": ({"kind": "linear", "pool": "mean", "noise": 0.1}, "linear"),
    "mlp eos none": ({"kind": "mlp", "pool": "eos", "noise": 0.1, "hidden": 20}, "none"),
    "altclip cls linear": ({"kind": "altclip", "pool": "cls", "hidden": 9}, "linear"),
    "transformer eos linear": ({"kind": "transformer", "pool": "eos"}, "linear"),
    "transformer mean none": ({"kind": "transformer", "pool": "mean", "layers": 1}, "none"),
}
ENCODERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "bert": (encoders.bert, {"kind": "transformer", "pool": "cls"}),
    "e5": (encoders.e5, {"kind": "transformer", "pool": "mean"}),
    "xlmr_xl": (encoders.xlmr_xl, {"kind": "linear", "pool": "eos"}),
    "modernbert": (encoders.modernbert, {"kind": "mlp", "pool": "mean"}),
    "mt5": (lambda folder: kinds.save(kinds.ENCODERS["mt5"], folder), {"kind": "linear", "pool": "mean"}),
    "qwen3": (lambda folder: kinds.save(kinds.DECODERS["qwen3"], folder), {"kind": "linear", "pool": "eos"}),
}


def with_encoder(name: str, folder: Path) -> MultilingualClip:
    """A model of another encoder than XLM-R."""
    maker, projector = ENCODERS[name]
    maker(folder)
    torch.manual_seed(0)
    return MultilingualClip(build_clip(VIT), pretrained_encoder(str(folder)), projector).eval()


def squashed(model: MultilingualClip) -> MultilingualClip:
    """The model with a transform that keeps no proportions."""
    clip = model.clip[0]
    clip.preprocess |= {"resize_mode": "squash", "interpolation": "bilinear"}
    clip._transform = image_transform_v2(PreprocessCfg(**clip.preprocess), is_train=False)
    return model


Found = dict[str, tuple[MultilingualClip, Path, dict[str, Any], dict[str, float]]]


@pytest.fixture(scope="module")
def found(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Name -> model, its folder, the options, the largest differences; all folders are read by one process."""
    root = tmp_path_factory.mktemp("exports")
    models = {name: build(squares, projector, fold, 24, VIT) for name, (projector, fold) in STUDENTS.items()}
    models["quick squash"] = squashed(build(squares, {"kind": "linear", "pool": "cls"}, "none", 24, QUICK))
    models["clean"] = build(squares, {"kind": "linear", "pool": "cls"}, "none", 24, VIT)
    models["clean"].text_cleaning, models["clean"].clip[0].pictures = "ftfy", AS_SEEN
    models["text only"] = build(squares, {"kind": "mlp", "pool": "mean"}, "none", 24, RESNET)
    models |= {name: with_encoder(name, root / f"encoder {name}") for name in ENCODERS}
    options = {name: {"text_only": name == "text only"} for name in models}
    folders = {}
    for name, model in models.items():
        assert FORMAT.misfit(model, options[name]) is None
        (root / "written").mkdir()
        FORMAT.write(model, root / "written", options[name])
        folders[name] = (root / "written").rename(root / name)
    wanted = parity.samples(root)
    theirs = parity.read("sentence_transformers", list(folders.values()), wanted)
    return {
        name: (model, folders[name], options[name], parity.differences(parity.own(model, wanted), embeddings))
        for (name, model), embeddings in zip(models.items(), theirs, strict=True)
    }


@pytest.mark.parametrize("name", [*STUDENTS, "quick squash", "clean", "text only", *ENCODERS])
def test_sentence_transformers_gives_the_models_embeddings(found: Found, name: str) -> None:
    model, _, options, differences = found[name]
    print(name, differences)
    allowed = FORMAT.allowed(model, options)
    assert {"texts", "long texts"} < set(allowed)
    parity.check(FORMAT.library, differences, allowed)
