"""A checkpoint of AltCLIP's layout with random weights becomes a model with the same embeddings."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AltCLIPConfig, AltCLIPModel, AltCLIPProcessor, CLIPImageProcessor

from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.errors import CheckpointError
from mclip_kit.interop.imports.altclip import import_altclip
from mclip_kit.models.multilingual_clip import load

TEXTS = ["red square left", "Quadrat grün links", "carré bleu haut", "", "x " * 60]


@pytest.fixture(scope="module")
def checkpoint(squares, tmp_path_factory):
    """AltCLIPModel.save_pretrained of tiny sizes, with XLM-R's tokenizer and CLIP's image processor."""
    folder = tmp_path_factory.mktemp("altclip") / "AltCLIP"
    tokenizer = XlmrTokenizer(squares / "bitext")
    torch.manual_seed(0)
    text = {"vocab_size": tokenizer.vocabulary, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"intermediate_size": 32, "max_position_embeddings": 34, "project_dim": 12}
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    vision |= {"image_size": 16, "patch_size": 8}
    model = AltCLIPModel(AltCLIPConfig(text_config=text, vision_config=vision, projection_dim=10)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    model.save_pretrained(folder)
    tokenizer.save(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_mean=[0.4, 0.5, 0.6]
    ).save_pretrained(folder)
    return folder, model


def test_the_model_gives_altclips_embeddings(checkpoint, tmp_path):
    folder, theirs = checkpoint
    processor = AltCLIPProcessor.from_pretrained(folder, backend="pil")
    draw = np.random.default_rng(0)
    images = [Image.fromarray(draw.integers(0, 256, (h, w, 3), np.uint8)) for h, w in ((16, 16), (30, 20), (20, 26))]
    inputs = processor(text=TEXTS, images=images, return_tensors="pt", padding=True, truncation=True, max_length=32)
    with torch.no_grad():
        out = theirs(**inputs)
    model = import_altclip(folder)
    model.save(tmp_path / "model")
    for ours in (model, load(tmp_path / "model", device="cpu")):
        assert ours.settings["projector"] == {"kind": "altclip", "pool": "cls", "hidden": 12}
        torch.testing.assert_close(ours.encode_text(TEXTS), out.text_embeds, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.encode_image(images), out.image_embeds, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.encode_teacher_text(TEXTS), out.text_embeds, atol=1e-5, rtol=0)
        assert torch.equal(ours.teacher_scale, theirs.logit_scale.detach())


def test_what_is_no_altclip_is_refused_in_one_line(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="not an AltCLIPModel"):
        import_altclip(tmp_path)
    _, theirs = checkpoint
    theirs.text_model.save_pretrained(tmp_path / "text")
    with pytest.raises(CheckpointError, match="model_type is altclip_text_model, not altclip"):
        import_altclip(tmp_path / "text")
