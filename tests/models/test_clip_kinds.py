"""CLIPs of other kinds than OpenAI's: today's teachers, CoCa, a Hugging Face text tower, unsaid transforms."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizer

from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.models.clip import build_clip
from mclip_kit.models.text_encoder import pretrained_encoder
from mclip_kit.train.optim import cannot_checkpoint, set_activation_checkpointing
from tests.interop.models import build
from tests.models.kinds import assert_exports, refusals, said, save_kind, students
from tests.models.teachers import TEACHERS, said_of, save_teacher
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


def test_the_own_config_of_a_hugging_face_text_tower_is_part_of_its_key(tmp_path: Path, squares: Path) -> None:
    text = {"hf_model_name": str(tmp_path / "bert"), "hf_tokenizer_name": str(tmp_path / "bert"), "context_length": 12}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(WORDS), **sizes)
    torch.manual_seed(1)
    BertModel(config).save_pretrained(tmp_path / "bert")
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(tmp_path / "bert")
    know(
        "Bert-tiny", {**TEACHER, "text_cfg": {**text, "hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp"}}, tmp_path
    )
    build_clip("Bert-tiny", "random").save(tmp_path / "clip")
    found = []
    for activation in ("gelu", "relu", "gelu"):
        own = json.loads((tmp_path / "clip" / "text" / "config.json").read_text())
        (tmp_path / "clip" / "text" / "config.json").write_text(json.dumps({**own, "hidden_act": activation}))
        model = build(squares, {"kind": "linear", "pool": "cls"}, "none", 24, f"local-dir:{tmp_path / 'clip'}")
        features = FrozenTowers(model, FeatureCache(tmp_path / "kept", log=lambda line: None)).teacher_texts(TEXTS)
        found.append(features.take())
    assert len(list((tmp_path / "kept").glob("teacher-*"))) == 2
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


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


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each teacher, in open_clip's format."""
    root = tmp_path_factory.mktemp("teachers")
    return {name: save_teacher(name, root / name) for name in TEACHERS}


PICTURE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 90, 3), np.uint8))


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_embeds_as_open_clip_does_and_comes_back(
    name: str, teachers: dict[str, Path], tmp_path: Path
) -> None:
    folder = f"local-dir:{teachers[name]}"
    clip = build_clip(folder).eval()
    theirs, _, transform = open_clip.create_model_and_transforms(folder, force_custom_text=True)
    texts = ["a red dog", "", "  ", "ein roter Hund " * 40]
    pixels, ids = clip.transform(PICTURE)[None], clip.tokenize(texts)
    with torch.no_grad():
        found = [clip.model.text(ids), clip.model.visual(pixels)]
        wanted = [theirs.eval().encode_text(open_clip.get_tokenizer(folder)(texts)), theirs.encode_image(pixels)]
    assert torch.equal(pixels[0], transform(PICTURE))
    for ours, other in zip(found, wanted, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, other, rtol=0, atol=2e-6)
    clip.save(tmp_path / "clip")
    again = build_clip(f"local-dir:{tmp_path / 'clip'}").eval()
    with torch.no_grad():
        assert torch.equal(again.model.text(again.tokenize(texts)), found[0])
        assert torch.equal(again.model.visual(again.transform(PICTURE)[None]), found[1])


def step(tower: nn.Module, inputs: torch.Tensor) -> tuple[dict[str, torch.Tensor], int]:
    """The gradients of a step, and the bytes that are kept for the backward pass."""
    sizes: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    tower.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = tower.train()(inputs).square().sum()
    loss.backward()
    return {name: p.grad.clone() for name, p in tower.named_parameters() if p.grad is not None}, sum(sizes)


@pytest.mark.parametrize("name", TEACHERS)
def test_checkpointing_of_a_teacher_keeps_its_gradients_or_is_refused(name: str, teachers: dict[str, Path]) -> None:
    clip = build_clip(f"local-dir:{teachers[name]}")
    pixels = torch.stack([clip.transform(PICTURE), clip.transform(PICTURE.rotate(90, expand=True))])
    for tower, inputs in ((clip.model.visual, pixels), (clip.model.text, clip.tokenize(["a red dog", "ein"]))):
        if name == "CLIP, ResNet" and tower is clip.model.visual:
            assert cannot_checkpoint(tower) == "ModifiedResNet"
            continue
        assert cannot_checkpoint(tower) is None
        gradients, kept = step(tower, inputs)
        set_activation_checkpointing(tower, True)
        again, fewer = step(tower, inputs)
        set_activation_checkpointing(tower, False)
        assert again.keys() == gradients.keys()
        for key, gradient in gradients.items():
            torch.testing.assert_close(again[key], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))
        assert fewer < kept


def test_the_page_says_what_each_teacher_can_do(teachers: dict[str, Path], tmp_path: Path) -> None:
    rows, encoder = said("Teachers"), pretrained_encoder(str(save_kind("xlm-roberta", tmp_path)))
    assert list(rows) == list(TEACHERS)
    for name, row in rows.items():
        clip = build_clip(f"local-dir:{teachers[name]}")
        assert row["config"] == TEACHERS[name][0]
        assert said_of(clip).items() <= row.items()
        assert_exports(row, refusals(students(encoder, clip)))


def test_an_image_tower_of_timm_that_cannot_checkpoint_is_named() -> None:
    config = {**TEACHER, "vision_cfg": {"timm_model_name": "pit_ti_224", "timm_pool": "", "image_size": 224}}
    clip = build_clip({**config, "custom_text": True})
    assert cannot_checkpoint(clip.model.visual) == "PoolingVisionTransformer"
    set_activation_checkpointing(nn.ModuleDict({"image": clip.model.visual.requires_grad_(False)}), True)
