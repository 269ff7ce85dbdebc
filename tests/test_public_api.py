"""The public API: its examples run, one item or many, paths and pictures, half precision, and light imports."""

import doctest
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import mclip_kit
from mclip_kit.config.model import AS_OPEN_CLIP, AS_SEEN
from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.errors import CheckpointError, DataError
from mclip_kit.models.clip import build_clip
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.text_encoder import new_encoder
from tests import tiny

METHODS = ("encode_text", "encode_teacher_text", "encode_image", "similarity", "save")
EXAMPLES = [mclip_kit, mclip_kit.load, MultilingualClip, *(getattr(MultilingualClip, name) for name in METHODS)]
TEXTS = ["red square left, shade 1", "Quadrat", "", "carré bleu gauche " * 9, "☃", "rot", "vert haut, nuance 2"]
PROJECTORS: list[dict[str, Any]] = [
    {"kind": "altclip", "pool": "cls"},
    {"kind": "linear", "pool": "mean", "noise": 0.2},
    {"kind": "mlp", "pool": "mean", "hidden": 8, "noise": 0.2},
    {"kind": "transformer", "pool": "eos", "layers": 2},
]
TIMM = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160}
CLIPS: dict[str, dict[str, Any]] = {
    "ViT": tiny.TEACHER,
    "ResNet": {
        **tiny.TEACHER,
        "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "patch_size": None},
    },
    "timm": {**tiny.TEACHER, "vision_cfg": TIMM},
    "pad mask": {**tiny.TEACHER, "text_cfg": {**tiny.TEACHER["text_cfg"], "no_causal_mask": True, "pool_type": "last"}},
}


def build(squares: Path, clip: str = "ViT", projector: dict[str, Any] = PROJECTORS[0]) -> MultilingualClip:
    """A model with random weights."""
    torch.manual_seed(0)
    encoder = new_encoder(**tiny.ENCODER, tokenizer=XlmrTokenizer(squares / "bitext"))
    return MultilingualClip(build_clip(CLIPS[clip]), encoder, projector, "linear").eval()


@pytest.fixture(scope="module")
def model(squares: Path) -> MultilingualClip:
    return build(squares)


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 45, 3), np.uint8))


@pytest.mark.parametrize("documented", EXAMPLES, ids=lambda it: it.__name__)
def test_the_examples_run(documented: Any, model, picture, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model.save("models/mine")
    names = {"model": model, "picture": picture}
    examples = doctest.DocTestParser().get_doctest(documented.__doc__, names, documented.__name__, None, None)
    assert examples.examples
    output: list[str] = []
    assert doctest.DocTestRunner().run(examples, out=output.append).failed == 0, "".join(output)


def test_the_package_lists_its_names_and_loads_torch_only_when_one_is_used() -> None:
    code = (
        "import sys, mclip_kit\n"
        "assert {'load', 'MultilingualClip', '__version__'} <= set(dir(mclip_kit))\n"
        "assert not hasattr(mclip_kit, 'nonsense') and 'torch' not in sys.modules\n"
        "from mclip_kit import MultilingualClip, load\n"
        "assert 'torch' in sys.modules and mclip_kit.load is load"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("encode", ["encode_text", "encode_teacher_text"])
def test_one_string_is_one_text(model, encode) -> None:
    found = getattr(model, encode)("red apple")
    assert found.shape == (1, model.width)
    assert torch.equal(found, getattr(model, encode)(["red apple"]))
    with pytest.raises(TypeError, match=r"texts\[1\]: give a str, not NoneType"):
        getattr(model, encode)(["red apple", None])


@pytest.mark.parametrize("encode", ["encode_text", "encode_teacher_text", "encode_image"])
def test_embeddings_may_be_cut(model, encode, picture) -> None:
    items = [picture, picture.rotate(90)] if encode == "encode_image" else ["red apple", "rot"]
    whole = getattr(model, encode)(items)
    torch.testing.assert_close(getattr(model, encode)(items, dims=5), F.normalize(whole[:, :5], dim=-1))
    assert torch.equal(getattr(model, encode)(items, dims=model.width), whole)
    for wrong in (0, model.width + 1, 2.0):
        with pytest.raises(ValueError, match=rf"dims: must be a whole number between 1 and {model.width}"):
            getattr(model, encode)(items, dims=wrong)


@pytest.mark.parametrize("encode", ["encode_text", "encode_teacher_text"])
def test_texts_of_any_length_come_back_in_their_order(model, encode) -> None:
    alone = torch.cat([getattr(model, encode)(text) for text in TEXTS])
    for batch_size in (1, 2, 3, 100):
        torch.testing.assert_close(getattr(model, encode)(TEXTS, batch_size), alone, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="batch_size"):
        getattr(model, encode)(TEXTS, 0)


def test_texts_of_similar_length_share_a_batch(model, monkeypatch) -> None:
    texts = ["rot", "carré bleu gauche, nuance 0"] * 8
    lengths = sorted(len(ids) for ids in model.student_tokens(texts))
    padded: list[int] = []
    pad = model.encoder.pad
    monkeypatch.setattr(model.encoder, "pad", lambda tokens: padded.append(pad(tokens)[0].numel()) or pad(tokens))
    model.encode_text(texts, batch_size=8)
    assert sum(padded) == sum(lengths)


def test_pictures_and_paths_are_the_same(model, picture, tmp_path) -> None:
    odd = {"grey.png": picture.convert("L"), "palette.png": picture.convert("P"), "alpha.png": picture.convert("RGBA")}
    for name, image in {"rgb.png": picture, **odd}.items():
        image.save(tmp_path / name)
        opened = model.encode_image(Image.open(tmp_path / name))
        assert opened.shape == (1, model.width)
        for images in (tmp_path / name, str(tmp_path / name), [tmp_path / name]):
            assert torch.equal(model.encode_image(images), opened)
    several = model.encode_image([tmp_path / "grey.png", picture, str(tmp_path / "rgb.png")], batch_size=2)
    alone = torch.cat([model.encode_image(tmp_path / name) for name in ("grey.png", "rgb.png", "rgb.png")])
    torch.testing.assert_close(several, alone, rtol=0, atol=1e-5)


def test_what_is_no_picture_is_named(model, picture, tmp_path) -> None:
    picture.save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:900])
    (tmp_path / "text.jpg").write_text("no picture")
    for name in ("cut.png", "text.jpg", "missing.png"):
        with pytest.raises(DataError, match=name):
            model.encode_image([picture, tmp_path / name])


class Unread:
    """What is neither a text nor a picture."""


WRONG = [5, 1.5, None, b"ab", bytearray(b"a"), {"a": 1}, {"a"}, Unread(), torch.zeros(3, 8, 8), np.zeros((8, 8, 3))]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: type(wrong).__name__)
def test_every_wrong_type_is_named(model, picture, wrong) -> None:
    kind = type(wrong).__name__
    given: dict[str, Any] = {"encode_text": "a", "encode_teacher_text": "a", "encode_image": picture}
    for encode, right in given.items():
        name = "images" if encode == "encode_image" else "texts"
        with pytest.raises(TypeError, match=rf"^{name}: give a .* not {kind}$"):
            getattr(model, encode)(wrong)
        for row, listed in enumerate(([wrong], [right, wrong])):
            with pytest.raises(TypeError, match=rf"^{name}\[{row}\]: give a .* not {kind}$"):
                getattr(model, encode)(listed)
    for wrong_list in ([["a"]], [[picture]]):
        with pytest.raises(TypeError, match=r"\[0\]: give a .* not list"):
            model.encode_text(wrong_list)
        with pytest.raises(TypeError, match=r"\[0\]: give a .* not list"):
            model.encode_image(wrong_list)
    if not isinstance(wrong, torch.Tensor):  # a tensor is embeddings
        with pytest.raises(TypeError, match="texts: give a str"):
            model.similarity(wrong, picture)


def test_arrays_and_generators_of_texts_are_lists_of_texts(model) -> None:
    expected = model.encode_text(["rot", "vert"])
    for texts in (("rot", "vert"), (text for text in ("rot", "vert")), np.array(["rot", "vert"])):
        assert torch.equal(model.encode_text(texts), expected)
    assert torch.equal(model.encode_text(np.str_("rot")), model.encode_text("rot"))


def test_half_a_surrogate_pair_is_named(model) -> None:
    for encode in (model.encode_text, model.encode_teacher_text):
        with pytest.raises(ValueError, match=r"texts\[1\]: character 3 is half of a surrogate pair"):
            encode(["a", "abc\ud83d"])


def test_pictures_that_cannot_be_used_are_named(model, picture, tmp_path) -> None:
    for path in ("", tmp_path, "http://example.org/a.jpg"):
        with pytest.raises(DataError, match=f"{path or 'an empty path'}: cannot be read as a picture"):
            model.encode_image([picture, path])
    with pytest.raises(DataError, match="a PIL picture: not a readable picture: it has no pixels"):
        model.encode_image(Image.new("RGB", (0, 4)))
    picture.save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:900])
    with pytest.raises(DataError, match=r"cut.png: not a readable picture"):  # opened, but not read yet
        model.encode_image(Image.open(tmp_path / "cut.png"))


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "8"])
def test_a_batch_size_that_is_no_count_is_named(model, batch_size) -> None:
    with pytest.raises(ValueError, match="batch_size: must be a whole number of at least 1"):
        model.encode_text("a", batch_size)


@pytest.mark.parametrize(("text", "image"), [((2, 3), (1, 16)), ((3,), (16,)), ((1, 2, 16), (1, 16))])
def test_embeddings_that_do_not_fit_each_other_are_named(model, text, image) -> None:
    with pytest.raises(ValueError, match="text and image: give embeddings of one width"):
        model.similarity(torch.zeros(text), torch.zeros(image))


def test_nothing_gives_no_rows(model) -> None:
    for found in (model.encode_text([]), model.encode_teacher_text([]), model.encode_image([])):
        assert found.shape == (0, model.width)
    assert model.similarity([], []).shape == (0, 0)


def test_similarity_is_the_cosine(model, picture, tmp_path) -> None:
    picture.save(tmp_path / "a.png")
    turned = picture.rotate(90)
    text_ND, image_MD = model.encode_text(TEXTS[:3]), model.encode_image([picture, turned])
    cosines_NM = F.cosine_similarity(text_ND[:, None], image_MD[None], dim=-1)
    given = [(text_ND, image_MD), (3 * text_ND.double(), image_MD / 2), (TEXTS[:3], [tmp_path / "a.png", turned])]
    for text, image in given:
        torch.testing.assert_close(model.similarity(text, image), cosines_NM)
    torch.testing.assert_close(model.similarity(TEXTS[1], picture), cosines_NM[1:2, :1])
    torch.testing.assert_close(model.similarity(text_ND[1], image_MD[0]), cosines_NM[1:2, :1])


@pytest.mark.parametrize(
    ("clip", "projector"),
    [*(("ViT", projector) for projector in PROJECTORS), *((clip, PROJECTORS[0]) for clip in CLIPS if clip != "ViT")],
    ids=lambda given: given if isinstance(given, str) else given["kind"],
)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_encodes_everything(squares, tmp_path, picture, clip, projector, dtype) -> None:
    whole = build(squares, clip, projector)
    whole.save(tmp_path / "model")
    half = mclip_kit.load(tmp_path / "model", "cpu", dtype)
    assert {weight.dtype for weight in half.parameters()} == {{"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]}
    for found, expected in (
        (half.encode_text(TEXTS), whole.encode_text(TEXTS)),
        (half.encode_teacher_text(TEXTS), whole.encode_teacher_text(TEXTS)),
        (half.encode_image([picture, picture]), whole.encode_image([picture, picture])),
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.norm(dim=-1), torch.ones(len(found)))
        assert F.cosine_similarity(found, expected).min() > 0.995


def test_load_takes_devices_and_dtypes(model, tmp_path) -> None:
    model.save(tmp_path / "model")
    found = mclip_kit.load(str(tmp_path / "model"), torch.device("cpu"), torch.float64)
    assert {weight.dtype for weight in found.parameters()} == {torch.float64}
    assert found.encode_text("rot").dtype == torch.float32
    with pytest.raises(ValueError, match=r"'half' is not known; use fp32, bf16, fp16"):
        mclip_kit.load(tmp_path / "model", dtype="half")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "float64"])
def test_load_takes_torchs_names_of_dtypes(model, tmp_path, name) -> None:
    model.save(tmp_path / "model")
    found = mclip_kit.load(tmp_path / "model", "cpu", name)
    assert {weight.dtype for weight in found.parameters()} == {getattr(torch, name)}


def test_load_names_what_it_cannot_do(model, tmp_path) -> None:
    model.save(tmp_path / "run" / "model")
    folder = tmp_path / "run" / "model"
    for dtype in (torch.int8, torch.bool, torch.complex64, "int8", "torch.float32", 16):
        with pytest.raises(ValueError, match=r"dtype: .* is not known; use fp32, bf16"):
            mclip_kit.load(folder, dtype=dtype)
    for device in ("banana", "cuda:99", "", 3.5):
        with pytest.raises(ValueError, match=r"device: .* cannot be used here; use auto or cpu"):
            mclip_kit.load(folder, device)
    for path in (None, 5, ["a"]):
        with pytest.raises(TypeError, match="path: give the path of a model folder"):
            mclip_kit.load(path)
    for path, message in (
        (tmp_path / "none", "none: there is no such folder"),
        (tmp_path, "is not a complete model folder$"),
        (tmp_path / "run", f"a model folder is {folder}$"),
        (folder / "config.json", "is not a complete model folder"),
    ):
        with pytest.raises(CheckpointError, match=message):
            mclip_kit.load(path)


@pytest.mark.parametrize("part", ["clip", "encoder", "projector.safetensors", "clip/open_clip_config.json"])
def test_a_folder_that_lacks_a_part_is_named(model, tmp_path, part) -> None:
    model.save(tmp_path / "model")
    (tmp_path / "model" / part).rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match=r"missing") as raised:
        mclip_kit.load(tmp_path / "model")
    assert part.split("/")[0] in str(raised.value)


@pytest.mark.parametrize("wrong", [{"text_cleaning": "bleach"}, {"pictures": {"alpha": "pink"}}, {"pictures": 3}])
def test_inputs_that_this_version_does_not_know_are_named(model, tmp_path, wrong) -> None:
    model.save(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | wrong))
    with pytest.raises(CheckpointError, match="not the config of a model folder"):
        mclip_kit.load(tmp_path / "model")


def test_saving_and_loading_print_nothing(model, tmp_path, capfd) -> None:
    model.save(tmp_path / "model")
    mclip_kit.load(tmp_path / "model")
    assert capfd.readouterr() == ("", "")


def test_a_model_folder_works_wherever_it_goes(model, picture, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model.save("models/mine")
    Path("models/mine").rename("elsewhere")
    monkeypatch.chdir("models")
    moved = mclip_kit.load("../elsewhere")
    assert torch.equal(moved.encode_text(TEXTS), model.encode_text(TEXTS))
    assert torch.equal(moved.encode_image(picture), model.encode_image(picture))


def test_a_folder_keeps_what_is_done_to_texts_and_pictures(squares, tmp_path) -> None:
    made = build(squares)
    made.text_cleaning, made.clip[0].pictures = "ftfy", AS_SEEN
    made.save(tmp_path / "model")
    loaded = mclip_kit.load(tmp_path / "model")
    assert (loaded.text_cleaning, loaded.clip[0].pictures) == ("ftfy", AS_SEEN)
    assert torch.equal(loaded.encode_text("“rot” &amp;"), loaded.encode_text('"rot"  &'))
    hidden = Image.new("RGBA", (20, 20), (250, 0, 0, 0))
    assert torch.equal(loaded.encode_image(hidden), loaded.encode_image(Image.new("RGB", (20, 20), "white")))
    config = tiny.without_hashes(tmp_path / "model") / "config.json"
    tree = json.loads(config.read_text())
    config.write_text(
        json.dumps({key: value for key, value in tree.items() if key not in ("text_cleaning", "pictures")})
    )
    old = mclip_kit.load(tmp_path / "model")  # of a version without the keys: as it was
    assert (old.text_cleaning, old.clip[0].pictures) == ("none", AS_OPEN_CLIP)
    assert not torch.equal(old.encode_text("“rot” &amp;"), old.encode_text('"rot"  &'))
    assert torch.equal(old.encode_image(hidden), old.encode_image(hidden.convert("RGB")))
