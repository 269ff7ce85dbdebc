"""A model of open_clip with a Hugging Face text tower becomes a model with the embeddings that open_clip gives."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from mclip_kit.config.model import AS_OPEN_CLIP
from mclip_kit.errors import CheckpointError, RecipeError
from mclip_kit.interop import parity
from mclip_kit.interop.imports.open_clip import import_open_clip
from mclip_kit.models.clip import build_clip
from mclip_kit.models.multilingual_clip import load
from tests import tiny
from tests.interop.imports import published
from tests.models import test_text_encoder as encoders

KINDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "xlm-roberta-base-ViT-B-32": ("xlmr", {"hf_proj_type": "mlp", "hf_pooler_type": "mean_pooler"}, "mlp mean"),
    "xlm-roberta-large-ViT-H-14": ("xlmr", {"hf_proj_type": "mlp"}, "mlp mean"),  # XLM-R's own pooler: the mean
    "linear": ("bert", {"hf_proj_type": "linear", "hf_pooler_type": "cls_last_hidden_state_pooler"}, "linear cls"),
    "none": ("xlmr_fast", {"hf_proj_type": None, "hf_pooler_type": "mean_pooler"}, "linear mean"),
}
"""Name -> encoder, text_cfg, kind and pool of the projector."""
TEXTS = [*published.TEXTS, *parity.TEXTS["dirty texts"], "", "ein roter Apfel " * 30]


def source(folder: Path, encoder: str, text: dict[str, Any], **options: Any) -> Path:
    """A folder of open_clip whose text tower is a small encoder, with a context below its positions."""
    getattr(encoders, encoder)(folder / "encoder")
    width = encoders.SIZES["hidden_size"]
    config = {"embed_dim": width if text.get("hf_proj_type", "") is None else 16}
    config |= {"vision_cfg": tiny.TEACHER["vision_cfg"], **options}
    names = {f"hf_{part}_name": str(folder / "encoder") for part in ("model", "tokenizer")}
    config["text_cfg"] = {**names, "hf_model_pretrained": False, "context_length": 12, **text}
    torch.manual_seed(0)
    clip = build_clip(config)
    published.disturbed(clip.model)
    clip.save(folder / "open_clip")
    clip.tokenizer.tokenizer.save_pretrained(folder / "open_clip")  # type: ignore[attr-defined]
    (folder / "open_clip" / "README.md").write_text(published.CARD)
    return folder / "open_clip"


def theirs(folder: Path) -> tuple[Tensor, Tensor]:
    """Text and image embeddings by open_clip's own functions."""
    name = f"local-dir:{folder}"
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    config |= {"hf_model_name": str(folder.parent / "encoder"), "hf_model_pretrained": False}
    model, _, transform = open_clip.create_model_and_transforms(name, text_cfg=config)
    pixels = torch.stack([transform(picture) for picture in published.pictures()])
    with torch.no_grad():
        text = model.eval().encode_text(open_clip.get_tokenizer(name)(TEXTS), normalize=True)
        return text, model.encode_image(pixels, normalize=True)


@pytest.mark.parametrize("name", KINDS)
def test_the_model_gives_open_clips_embeddings(tmp_path: Path, name: str) -> None:
    encoder, text, projector = KINDS[name]
    folder = source(tmp_path, encoder, text)
    text_ND, image_ND = theirs(folder)
    model = import_open_clip(folder)
    model.save(tmp_path / "model")
    for ours in (model, load(tmp_path / "model", device="cpu")):
        torch.testing.assert_close(ours.encode_text(TEXTS), text_ND, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.encode_teacher_text(TEXTS), text_ND, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.encode_image(published.pictures()), image_ND, atol=1e-5, rtol=0)
        assert " ".join(str(ours.settings["projector"][key]) for key in ("kind", "pool")) == projector  # type: ignore[index]
        assert (ours.text_cleaning, ours.encoder.positions) == ("ftfy", 12)
        assert ours.clip[0].pictures == AS_OPEN_CLIP
        assert ours.trained_languages == ["de", "en", "zh"]
    student = {id(weight) for weight in model.encoder.parameters()}
    assert not student & {id(weight) for weight in model.teacher_text.parameters()}


def test_what_cannot_be_a_student_is_refused_with_what_to_do(tmp_path: Path) -> None:
    published.clip(tmp_path / "clip")
    with pytest.raises(CheckpointError, match=r"CLIP's own.*name it in a recipe as teacher\.model"):
        import_open_clip(tmp_path / "clip")
    for pooler, what in (("cls_pooler", "ClsPooler"), ("max_pooler", "MaxPooler")):
        folder = source(tmp_path / pooler, "bert", {"hf_proj_type": "linear", "hf_pooler_type": pooler})
        with pytest.raises(CheckpointError, match=f"pools by {what}"):
            import_open_clip(folder)
    options = {"tokenizer_kwargs": {"clean": "canonicalize", "strip_sep_token": True}}  # SigLIP's
    folder = source(tmp_path / "siglip", "xlmr", {"hf_proj_type": "linear", **options})
    with pytest.raises(CheckpointError, match="changes texts"):
        import_open_clip(folder)
    with pytest.raises(RecipeError, match="--pretrained TAG"):
        import_open_clip("xlm-roberta-base-ViT-B-32")
    with pytest.raises(CheckpointError, match=r"open_clip_config\.json: missing"):
        import_open_clip(tmp_path)
