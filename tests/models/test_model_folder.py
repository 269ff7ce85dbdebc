"""The hashes of a model folder: every damaged or edited file is named before anything is used."""

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from mclip_kit.errors import CheckpointError
from mclip_kit.interop.encoders import named_encoder
from mclip_kit.models.clip import build_clip
from mclip_kit.models.multilingual_clip import MultilingualClip, load
from mclip_kit.models.text_encoder import encoder_within
from mclip_kit.models.translator import Translator, load_translator, new_decoder
from tests import tiny
from tests.models.test_multilingual_clip import FILES, model_of


@pytest.fixture(scope="module")
def folder(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hashes") / "model"
    model_of(squares).save(folder)
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(CheckpointError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_two_linear_maps_are_written_as_their_product(squares: Path, tmp_path: Path) -> None:
    made = model_of(squares)
    projector = {"kind": "linear", "pool": "mean", "hidden": 7}
    model = MultilingualClip(made.clip[0], made.encoder, projector, "linear")
    model.save(tmp_path / "model")
    back = load(tmp_path / "model")
    assert (back.settings["projector"]["hidden"], model.settings["projector"]["hidden"]) == (None, 7)
    assert [weight.shape for weight in back.projector.parameters()] == [(model.width, model.width), (model.width,)]
    texts = ["red square", "Quadrat", ""]
    torch.testing.assert_close(back.encode_text(texts), model.encode_text(texts), rtol=0, atol=1e-6)
    assert torch.equal(back.clip_projector.weight, model.clip_projector.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("file", FILES[1:])
def test_one_flipped_bit_is_named_with_what_to_do(copy: Path, file: str) -> None:
    tiny.flip(copy / file, -2)
    message = refusal(lambda: load(copy))
    assert message.startswith(f"{copy / file}: damaged or edited")
    assert message.endswith(f'copy the folder again, or, if you edited it, remove "hashes" from {copy / "config.json"}')


def test_without_verify_and_without_hashes_the_file_is_used(copy: Path) -> None:
    tiny.flip(copy / "projector.safetensors", -2)
    tampered = load(copy, verify=False).state_dict()
    assert "hashes" in refusal(lambda: load(copy))
    found = load(tiny.without_hashes(copy)).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in tampered.items())


def test_an_edited_config_is_refused_until_its_hashes_go(copy: Path) -> None:
    edit(copy / "config.json", trained_languages=["xx"])
    assert refusal(lambda: load(copy)).startswith(f"{copy / 'config.json'}: damaged or edited")
    loaded = load(tiny.without_hashes(copy))
    assert loaded.trained_languages == ["xx"]
    loaded.save(copy)
    assert load(copy).trained_languages == ["xx"]


def test_a_config_that_is_only_laid_out_otherwise_is_the_same(copy: Path) -> None:
    config = copy / "config.json"
    tree = json.loads(config.read_text())
    config.write_text(json.dumps(dict(reversed(tree.items())), indent=7))
    assert isinstance(load(copy), MultilingualClip)


def test_values_that_loaded_before_and_embedded_otherwise_are_refused(copy: Path) -> None:
    edit(copy / "encoder" / "config.json", layer_norm_eps=float("inf"))
    assert "encoder/config.json: damaged or edited" in refusal(lambda: load(copy))


def test_the_hashes_are_those_of_sha256sum(folder: Path) -> None:
    hashes = json.loads((folder / "config.json").read_text())["hashes"]
    assert set(hashes) == {*FILES, "encoder/tokenizer_config.json"}
    for name in FILES[1:]:
        assert hashes[name] == sha256((folder / name).read_bytes()).hexdigest()


def test_other_files_beside_do_not_count(copy: Path) -> None:
    for name in ("README.md", "card.json", "results/results.json", "encoder/.DS_Store"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("x")
    assert isinstance(load(copy), MultilingualClip)


@pytest.mark.parametrize("file", FILES[1:])
def test_a_listed_file_that_is_missing_is_named(copy: Path, file: str) -> None:
    (copy / file).unlink()
    assert refusal(lambda: load(copy)).startswith(f"{copy / file}: missing, but config.json lists it")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "encoder/../../secret", "C:\\secret", "..\\secret"])
def test_files_outside_the_folder_are_not_read(copy: Path, name: str) -> None:
    tree = json.loads((copy / "config.json").read_text())
    edit(copy / "config.json", hashes={**tree["hashes"], name: "0" * 64})
    assert "hashes are not hashes of files in" in refusal(lambda: load(copy))


@pytest.mark.parametrize("wrong", [{}, [], "x", {"config.json": 3}])
def test_hashes_that_are_none_are_refused(copy: Path, wrong: object) -> None:
    edit(copy / "config.json", hashes=wrong)
    assert refusal(lambda: load(copy)).startswith(f"{copy / 'config.json'}: ")


def test_a_part_that_is_loaded_alone_is_checked(copy: Path) -> None:
    named_encoder(f"hf:{copy / 'encoder'}")
    build_clip(f"local-dir:{copy / 'clip'}")
    tiny.flip(copy / "encoder" / "model.safetensors", -2)
    for read in (lambda: encoder_within(copy), lambda: named_encoder(f"hf:{copy / 'encoder'}")):
        assert "encoder/model.safetensors: damaged or edited" in refusal(read)
    build_clip(f"local-dir:{copy / 'clip'}")
    tiny.flip(copy / "clip" / "open_clip_model.safetensors", -2)
    message = refusal(lambda: build_clip(f"local-dir:{copy / 'clip'}"))
    assert "clip/open_clip_model.safetensors: damaged or edited" in message


def test_a_translator_folder_has_hashes_too(squares: Path, tmp_path: Path) -> None:
    encoder = model_of(squares).encoder
    Translator(encoder, new_decoder(encoder, 1, languages=["de"])).save(tmp_path)
    load_translator(tmp_path)
    for name in ("decoder/model.safetensors", "language_linear.safetensors", "encoder/config.json"):
        held = (tmp_path / name).read_bytes()
        tiny.flip(tmp_path / name, -2)
        assert refusal(lambda: load_translator(tmp_path)).startswith(f"{tmp_path / name}: damaged")
        (tmp_path / name).write_bytes(held)
    tiny.flip(tmp_path / "decoder" / "model.safetensors", -2)
    load_translator(tmp_path, verify=False)
    edit(tmp_path / "translator.json", made_from="someone else")
    assert refusal(lambda: load_translator(tmp_path)).startswith(f"{tmp_path / 'translator.json'}: damaged")
