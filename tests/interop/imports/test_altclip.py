"""A checkpoint of AltCLIP's layout with random weights becomes a model with the same embeddings."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AltCLIPConfig, AltCLIPModel, AltCLIPProcessor, CLIPImageProcessor

from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.errors import CheckpointError, RecipeError
from mclip_kit.interop.clip_pictures import AS_TRANSFORMERS
from mclip_kit.interop.imports.altclip import import_altclip
from mclip_kit.models.clip import build_clip
from mclip_kit.models.multilingual_clip import load
from tests.interop.imports import published
from tests.interop.imports.published import TEXTS

SIZES = {
    "AltCLIP-m9": ({"project_dim": 10}, {"hidden_act": "quick_gelu"}),  # 768 and 768; ViT-L-14 of OpenAI
    "AltCLIP-m18": ({"project_dim": 10}, {"hidden_act": "gelu", "num_hidden_layers": 3}),  # 1024; ViT-H-14 of LAION
    "other": ({"project_dim": 12}, {"hidden_act": "quick_gelu"}),
}
"""Name -> what is its own in the config of texts, and of pictures."""


def checkpoint(data: Path, folder: Path, name: str, **text_options: Any) -> AltCLIPModel:
    """AltCLIPModel.save_pretrained of tiny sizes, with XLM-R's tokenizer and CLIP's image processor."""
    tokenizer = XlmrTokenizer(data / "bitext")
    torch.manual_seed(0)
    text = {"vocab_size": tokenizer.vocabulary, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"intermediate_size": 32, "max_position_embeddings": 34, **SIZES[name][0], **text_options}
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    vision |= {"image_size": 16, "patch_size": 8, **SIZES[name][1]}
    model = AltCLIPModel(AltCLIPConfig(text_config=text, vision_config=vision, projection_dim=10))
    published.disturbed(model).save_pretrained(folder)
    tokenizer.save(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_mean=[0.4, 0.5, 0.6]
    ).save_pretrained(folder)
    return model


def as_of_2022(folder: Path, model: AltCLIPModel) -> None:
    """Rewrite a folder as BAAI published it: a .bin with buffers of positions, sizes of pictures as one number."""
    state = model.state_dict()
    for key in [key for key in state if ".roberta.encoder.layers." in key]:
        state[key.replace("encoder.layers.", "encoder.layer.")] = state.pop(key)
    state["text_model.roberta.embeddings.position_ids"] = torch.arange(34)[None]
    state["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    file = folder / "preprocessor_config.json"
    how = json.loads(file.read_text())
    keep = {key: how[key] for key in ("do_resize", "do_center_crop", "do_normalize", "image_mean", "image_std")}
    old = {"size": 16, "crop_size": 16, "resample": 3, "feature_extractor_type": "CLIPFeatureExtractor"}
    file.write_text(json.dumps({**keep, **old, "image_processor_type": "CLIPImageProcessor"}))
    (folder / "README.md").write_text(published.CARD)


@pytest.mark.parametrize("name", SIZES)
def test_the_model_gives_altclips_embeddings(squares, tmp_path, name):
    folder, images = tmp_path / name, published.pictures()
    theirs = checkpoint(squares, folder, name)
    processor = AltCLIPProcessor.from_pretrained(folder, backend="pil")
    inputs = processor(text=TEXTS, images=images, return_tensors="pt", padding=True, truncation=True, max_length=32)
    with torch.no_grad():
        out = theirs(**inputs)
    old = name != "other"
    if old:
        as_of_2022(folder, theirs)
    model = import_altclip(folder)
    model.save(tmp_path / "model")
    for ours in (model, load(tmp_path / "model", device="cpu")):
        assert ours.settings["projector"] == {
            "kind": "altclip",
            "pool": "cls",
            "hidden": theirs.config.text_config.project_dim,
        }
        torch.testing.assert_close(ours.encode_text(TEXTS), out.text_embeds, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.encode_image(images), out.image_embeds, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.encode_teacher_text(TEXTS), out.text_embeds, atol=1e-5, rtol=0)
        assert torch.equal(ours.teacher_scale, theirs.logit_scale.detach())
        assert ours.clip[0].pictures == AS_TRANSFORMERS
        assert ours.trained_languages == (["de", "en", "zh"] if old else [])


def test_another_clip_is_the_teacher(squares, tmp_path):
    checkpoint(squares, tmp_path / "altclip", "other")
    given = published.clip(tmp_path / "clip", 10)
    model = import_altclip(tmp_path / "altclip", given)
    own = import_altclip(tmp_path / "altclip")
    with torch.no_grad():
        teacher = build_clip(given)
        wanted = torch.nn.functional.normalize(teacher.model.text(teacher.tokenize(TEXTS)), dim=-1)
    torch.testing.assert_close(model.encode_teacher_text(TEXTS), wanted, atol=1e-6, rtol=0)
    assert torch.equal(model.encode_image(published.pictures()), own.encode_image(published.pictures()))
    with pytest.raises(CheckpointError, match="have width 10, the given CLIP's 16"):
        import_altclip(tmp_path / "altclip", published.clip(tmp_path / "wide"))
    with pytest.raises(RecipeError, match="give its trained weights"):
        import_altclip(tmp_path / "altclip", "ViT-B-32")


def test_what_is_no_altclip_is_refused_in_one_line(squares, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="not an AltCLIPModel"):
        import_altclip(tmp_path / "empty")
    theirs = checkpoint(squares, tmp_path / "altclip", "other", layer_norm_eps=1e-6)
    theirs.text_model.save_pretrained(tmp_path / "text")
    with pytest.raises(CheckpointError, match="model_type is altclip_text_model, not altclip"):
        import_altclip(tmp_path / "text")
    with pytest.raises(CheckpointError, match="its layer_norm_eps is 1e-06; the head altclip has 1e-05"):
        import_altclip(tmp_path / "altclip")
