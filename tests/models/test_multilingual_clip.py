"""The model folder: what was saved comes back to the bit, other programs open it, and damage is named."""

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel

from mclip_kit.config.recipe import Recipe
from mclip_kit.config.yaml import parse
from mclip_kit.errors import CheckpointError
from mclip_kit.models.multilingual_clip import MultilingualClip, load
from mclip_kit.train.build import build_model
from tests import tiny

TEXTS = ["red square left, shade 1", "Quadrat", "", "carré bleu gauche, nuance 0 " * 9, "☃"]
CONFIGS = ("config.json", "clip/open_clip_config.json", "encoder/config.json")
WEIGHTS = ("projector.safetensors", "clip/open_clip_model.safetensors", "encoder/model.safetensors")
FILES = (*CONFIGS, *WEIGHTS, "encoder/sentencepiece.bpe.model")


def model_of(squares: Path, **changes: object) -> MultilingualClip:
    return build_model(parse({**tiny.recipe(squares), **changes}, Recipe, "tiny")).eval()


def pictures() -> list[Image.Image]:
    """Two pictures of the towers' size, one larger and wide."""
    wide = np.random.default_rng(0).integers(0, 256, (20, 45, 3), np.uint8)
    return [*(Image.fromarray(picture) for picture in tiny.content().pixels[:2]), Image.fromarray(wide)]


def embeddings(model: MultilingualClip) -> dict[str, Tensor]:
    return {
        "text": model.encode_text(TEXTS),
        "teacher text": model.encode_teacher_text(TEXTS),
        "image": model.encode_image(pictures()),
    }


@pytest.fixture(scope="module")
def model(squares: Path) -> MultilingualClip:
    model = model_of(squares)
    model.trained_languages, model.made_from = ["de", "en"], "a test"
    return model


@pytest.fixture(scope="module")
def folder(model: MultilingualClip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saved model."""
    folder = tmp_path_factory.mktemp("model") / "model"
    model.save(folder)
    return folder


def test_a_loaded_model_embeds_to_the_bit(model, folder):
    expected, found = embeddings(model), embeddings(load(folder))
    assert {name: torch.equal(found[name], expected[name]) for name in expected} == dict.fromkeys(expected, True)


@pytest.mark.parametrize(
    "projector",
    [
        {"kind": "linear", "pool": "mean", "noise": 0.2},
        {"kind": "mlp", "pool": "mean", "hidden": 8},
        {"kind": "transformer", "pool": "eos", "layers": 1},
    ],
    ids=lambda settings: settings["kind"],
)
def test_every_projector_comes_back_to_the_bit(squares, tmp_path, projector):
    model = model_of(squares, projector=projector, clip_projector="linear")
    with torch.no_grad():
        for name, buffer in model.projector.named_buffers():
            if "running" in name:
                buffer.add_(0.5)
    model.save(tmp_path / "model")
    expected, found = embeddings(model), embeddings(load(tmp_path / "model"))
    assert {name: torch.equal(found[name], expected[name]) for name in expected} == dict.fromkeys(expected, True)


def test_what_the_model_is_comes_back(model, folder):
    loaded = load(folder)
    assert not any(part.training for part in loaded.modules())
    assert (loaded.trained_languages, loaded.made_from) == (["de", "en"], "a test")
    assert loaded.settings == model.settings
    assert json.dumps(loaded.clip[0].preprocess) == json.dumps(model.clip[0].preprocess)


def test_a_loaded_model_is_saved_again_alike(folder, tmp_path):
    load(folder).save(tmp_path / "again")
    contents = [
        {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        for place in (folder, tmp_path / "again")
    ]
    assert set(contents[0]) == set(contents[1]) == {*FILES, "encoder/tokenizer_config.json"}
    assert [name for name in FILES if contents[0][name] != contents[1][name]] == []


def test_a_text_alone_has_the_embedding_it_has_in_a_batch(model):
    alone = torch.cat([model.encode_text([text]) for text in TEXTS])
    torch.testing.assert_close(model.encode_text(TEXTS), alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.encode_text(TEXTS, batch_size=2), alone, rtol=0, atol=1e-5)


def test_embeddings_have_length_one(model):
    for found in embeddings(model).values():
        torch.testing.assert_close(found.norm(dim=-1), torch.ones(len(found)))


def test_nothing_to_embed_gives_no_rows(model):
    assert model.encode_text([]).shape == model.encode_image([]).shape == (0, model.width)


def test_encoding_leaves_the_mode_of_the_model(squares):
    model = model_of(squares).train()
    model.image.eval()
    model.encode_text(TEXTS[:1])
    assert model.encoder.training
    assert not model.image.training


def test_dropout_is_off_while_encoding(squares):
    model = model_of(squares).train()
    assert torch.equal(model.encode_text(TEXTS), model.encode_text(TEXTS))


def test_a_text_beyond_the_positions_loses_its_end(model):
    (ids,) = model.student_tokens([TEXTS[3]])
    assert len(ids) == model.encoder.positions == 32
    assert ids[-1] == 2


def test_open_clip_opens_the_clip_folder_with_the_same_features(model, folder):
    theirs, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder / 'clip'}")
    pixels_BCHW = torch.stack([preprocess(picture) for picture in pictures()])
    tokens_BT = open_clip.get_tokenizer(f"local-dir:{folder / 'clip'}")(TEXTS)
    with torch.no_grad():
        image_ND = theirs.eval().encode_image(pixels_BCHW, normalize=True)
        text_ND = theirs.encode_text(tokens_BT, normalize=True)
    torch.testing.assert_close(image_ND, model.encode_image(pictures()))
    torch.testing.assert_close(text_ND, model.encode_teacher_text(TEXTS))


def test_open_clips_create_model_gives_the_same_image_tower(model, folder):
    theirs = open_clip.create_model(f"local-dir:{folder / 'clip'}")
    pixels_BCHW = torch.randn(2, 3, tiny.SIZE, tiny.SIZE)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval().encode_image(pixels_BCHW), model.image(pixels_BCHW), rtol=0, atol=0)


def test_transformers_opens_the_encoder_folder_with_the_same_states(model, folder):
    theirs = AutoModel.from_pretrained(folder / "encoder", add_pooling_layer=False).eval()
    ids_BT = torch.tensor([[0, 8, 9, 10, 2]])
    with torch.no_grad():
        states_BTH = theirs(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)).last_hidden_state
        torch.testing.assert_close(states_BTH, model.encoder(ids_BT, torch.ones_like(ids_BT)), rtol=0, atol=0)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder without hashes, to be damaged: other checks than theirs."""
    return tiny.without_hashes(Path(shutil.copytree(folder, tmp_path / "model")))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(copy, file):
    (copy / file).unlink()
    message = refusal(copy)
    assert str(copy / Path(file).parent) in message
    if file in ("config.json", "projector.safetensors"):
        assert file in message


@pytest.mark.parametrize(("file", "kept"), [*((file, 100) for file in FILES), ("projector.safetensors", 0)])
def test_a_truncated_file_is_refused(copy, file, kept):
    (copy / file).write_bytes((copy / file).read_bytes()[:kept])
    assert str(copy / Path(file).parent) in refusal(copy)


@pytest.mark.parametrize("file", FILES)
def test_garbage_is_refused(copy, file):
    (copy / file).write_bytes(b"garbage" * 99)
    assert str(copy / Path(file).parent) in refusal(copy)


@pytest.mark.parametrize("file", WEIGHTS)
def test_a_lost_tensor_is_refused(copy, file):
    state = load_file(copy / file)
    state.pop(next(name for name in sorted(state) if state[name].dim() == 2))
    save_file(state, copy / file, {"format": "pt"})
    assert str(copy / Path(file).parent) in refusal(copy)


@pytest.mark.parametrize("file", ["projector.safetensors", "encoder/model.safetensors"])
def test_a_tensor_of_another_shape_is_refused(copy, file):
    state = load_file(copy / file)
    name = next(name for name in sorted(state) if state[name].dim() == 2)
    save_file({**state, name: state[name][:-1].clone()}, copy / file, {"format": "pt"})
    assert str(copy / Path(file).parent) in refusal(copy)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"format": 1', '"format": 2'),
        ('"trained_languages": ["de"', '"trained_languages": [3'),
        ('"format"', '"shape"'),
        ('"projector"', '"projektor"'),
        ('"kind": "altclip"', '"kind": "linear"'),
        ('"kind"', '"sort"'),
        ('"clip_projector": "none"', '"clip_projector": "linear"'),
        ('"trained_languages"', '"languages"'),
    ],
)
def test_a_config_that_does_not_fit_is_refused(copy, before, after):
    text = (copy / "config.json").read_text()
    assert before in text
    (copy / "config.json").write_text(text.replace(before, after))
    assert str(copy) in refusal(copy)


def test_a_folder_that_is_none_is_refused(tmp_path):
    assert refusal(tmp_path).startswith(f"{tmp_path / 'config.json'}: missing")
