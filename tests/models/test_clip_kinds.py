"""CLIPs of other kinds than OpenAI's: CoCa, a Hugging Face text tower, transforms that a weight file does not say."""

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, BertTokenizer

from mclip_kit.models.clip import build_clip
from tests.tiny import SIZE, TEACHER

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog"]
TEXTS = ["a dog", "a"]


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub, and names that open_clip knows in one test only."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))


def know(name: str, config: dict[str, Any], folder: Path) -> None:
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{name}.json")


@torch.no_grad()
def embeddings(clip: Any) -> tuple[torch.Tensor, torch.Tensor]:
    clip.eval()
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    return clip.model.visual(pixels), clip.model.text(clip.tokenize(TEXTS))


def test_coca_gives_embeddings_without_its_token_states(tmp_path: Path) -> None:
    text = {**TEACHER["text_cfg"], "embed_cls": True, "output_tokens": True}
    vision = {**TEACHER["vision_cfg"], "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True}
    decoder = {"context_length": 12, "width": 16, "heads": 2, "layers": 1}
    coca = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, "multimodal_cfg": decoder, "custom_text": True}
    know("CoCa-tiny", coca, tmp_path)
    clip = build_clip("CoCa-tiny", "random")
    found = embeddings(clip)
    assert [tuple(part.shape) for part in found] == [(2, 16), (2, 16)]
    clip.save(tmp_path / "clip")
    again = embeddings(build_clip(f"local-dir:{tmp_path / 'clip'}"))
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_a_hugging_face_text_tower_needs_no_other_folder(tmp_path: Path) -> None:
    source = tmp_path / "bert"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(WORDS), **sizes)).save_pretrained(source)
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(source)
    names = {"hf_model_name": str(source), "hf_tokenizer_name": str(source), "hf_pooler_type": "mean_pooler"}
    know("Bert-tiny", {**TEACHER, "text_cfg": {**names, "hf_proj_type": "mlp", "context_length": 12}}, tmp_path)
    clip = build_clip("Bert-tiny", "random")
    clip.save(tmp_path / "clip")
    found = embeddings(clip)
    shutil.rmtree(source)
    again = build_clip(f"local-dir:{tmp_path / 'clip'}")
    assert all(torch.equal(a, b) for a, b in zip(found, embeddings(again), strict=True))
    again.save(tmp_path / "second")
    shutil.rmtree(tmp_path / "clip")
    assert embeddings(build_clip(f"local-dir:{tmp_path / 'second'}"))[1].shape == (2, 16)


@pytest.mark.parametrize(("mean", "found"), [((0.5, 0.5, 0.5), [0.5] * 3), (None, open_clip.OPENAI_DATASET_MEAN)])
def test_a_weight_file_takes_the_transform_that_the_models_tags_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mean: Any, found: Any
) -> None:
    know("Own-tiny", TEACHER, tmp_path)
    save_file(open_clip.CLIP(**TEACHER).state_dict(), tmp_path / "weights.safetensors")
    common = {"std": (0.2, 0.2, 0.2), "interpolation": "bilinear", "resize_mode": "squash"}
    first = open_clip.OPENAI_DATASET_MEAN
    tags = {"a": {**common, "mean": mean or first}, "b": {**common, "mean": mean or (0.1, 0.1, 0.1)}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Own-tiny", tags)
    preprocess = build_clip("Own-tiny", str(tmp_path / "weights.safetensors")).preprocess
    assert list(preprocess["mean"]) == list(found)
    assert (preprocess["resize_mode"], preprocess["interpolation"]) == ("squash", "bilinear")
