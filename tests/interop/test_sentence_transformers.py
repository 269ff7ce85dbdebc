"""What is exported is loaded by sentence-transformers alone, and gives the model's embeddings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from mclip_kit.config.model import AS_SEEN
from mclip_kit.errors import CheckpointError
from mclip_kit.interop import parity
from mclip_kit.interop.export import export, find
from mclip_kit.models.clip import build_clip
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.text_encoder import pretrained_encoder
from tests import tiny
from tests.interop.test_open_clip import RESNET, build
from tests.models import test_encoder_kinds as kinds
from tests.models import test_text_encoder as encoders

SentenceTransformer: Any = pytest.importorskip(
    "sentence_transformers", reason="the extra `sentence-transformers` is not installed"
).SentenceTransformer

FORMAT = find("sentence-transformers")
VIT = {**tiny.TEACHER, "vision_cfg": {**tiny.TEACHER["vision_cfg"], "image_size": 24}}
"""A size at which only `photos` are cut one pixel beside the model's cut."""
QUICK = {**VIT, "quick_gelu": True}

STUDENTS: dict[str, tuple[dict[str, Any], str]] = {
    "mlp eos none": ({"kind": "mlp", "pool": "eos", "noise": 0.1, "hidden": 20}, "none"),
    "altclip cls linear": ({"kind": "altclip", "pool": "cls", "hidden": 9}, "linear"),
    "transformer mean linear": ({"kind": "transformer", "pool": "mean"}, "linear"),
}
OTHERS = ["quick squash", "clean", "text only", "bert", "qwen3", "short"]


def with_encoder(folder: Path, projector: dict[str, Any]) -> MultilingualClip:
    """A model of another encoder than XLM-R."""
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
    noisy = {"kind": "linear", "pool": "mean", "noise": 0.1}
    models["quick squash"] = squashed(build(squares, noisy, "linear", 24, QUICK))
    models["clean"] = build(squares, {"kind": "linear", "pool": "cls"}, "none", 24, VIT)
    models["clean"].text_cleaning, models["clean"].clip[0].pictures = "ftfy", AS_SEEN
    models["text only"] = build(squares, {"kind": "transformer", "pool": "eos"}, "none", 24, RESNET)
    encoders.bert(root / "bert encoder")
    models["bert"] = with_encoder(root / "bert encoder", {"kind": "transformer", "pool": "cls"})
    qwen3 = kinds.save(kinds.DECODERS["qwen3"], root / "qwen3 encoder")
    models["qwen3"] = with_encoder(qwen3, {"kind": "linear", "pool": "eos"})
    models["short"] = build(squares, {"kind": "altclip", "pool": "cls"}, "none", 24, VIT)
    models["short"].dims = [5, 8]
    options = {name: {"text_only": name in ("text only", "short")} for name in models}
    options["short"] |= {"truncate_dim": 8}
    folders = {}
    for name, model in models.items():
        assert FORMAT.misfit(model, options[name]) is None
        (root / "written").mkdir()
        FORMAT.write(model, root / "written", options[name])
        folders[name] = (root / "written").rename(root / name)
    wanted = parity.samples(root)
    theirs = parity.read("sentence_transformers", list(folders.values()), wanted)
    own = {name: parity.own(model, wanted) for name, model in models.items()}
    own["short"] = {group: vectors_ND[:, :8] for group, vectors_ND in own["short"].items()}
    return {
        name: (model, folders[name], options[name], parity.differences(own[name], embeddings))
        for (name, model), embeddings in zip(models.items(), theirs, strict=True)
    }


@pytest.mark.parametrize("name", [*STUDENTS, *OTHERS])
def test_sentence_transformers_gives_the_models_embeddings(found: Found, name: str) -> None:
    model, _, options, differences = found[name]
    allowed = FORMAT.allowed(model, options)
    assert {"texts", "long texts"} < set(allowed)
    parity.check(FORMAT.library, differences, allowed)


def test_which_groups_are_the_models_is_known_before(found: Found) -> None:
    """What is not allowed to differ is all that does not differ: nothing is told as different that is not."""
    for name, (model, _, options, differences) in found.items():
        same = {group for group, value in differences.items() if value < 1e-5}
        assert same - {"odd pictures"} <= set(FORMAT.allowed(model, options)) | {"dirty texts"}, name
    assert found["clean"][3]["dirty texts"] > 1e-5
    assert "photos" in FORMAT.allowed(found["quick squash"][0], {"text_only": False})
    assert "photos" not in FORMAT.allowed(found["mlp eos none"][0], {"text_only": False})


def test_a_text_a_list_a_picture_and_fewer_dimensions(found: Found) -> None:
    model, folder, _, _ = found["mlp eos none"]
    loaded = SentenceTransformer(str(folder), device="cpu")
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 24, 3), np.uint8))
    text_D, image_D = loaded.encode("ein Hund"), loaded.encode(picture)
    np.testing.assert_allclose(text_D, model.encode_text("ein Hund")[0], atol=1e-6)
    np.testing.assert_allclose(image_D, model.encode_image(picture)[0], atol=1e-6)
    np.testing.assert_allclose(loaded.similarity(text_D, image_D), model.similarity("ein Hund", picture), atol=1e-5)
    np.testing.assert_allclose(loaded.encode(["ein Hund"], truncate_dim=5)[0], text_D[:5], atol=1e-6)
    assert SentenceTransformer(str(folder), device="cpu", truncate_dim=5).encode(picture).shape == (5,)
    assert loaded.max_seq_length == model.encoder.positions
    assert loaded.get_embedding_dimension() == model.width


def test_the_folder_has_a_card_and_asks_for_pil(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(squares, {"kind": "linear", "pool": "cls"}, "none", 24, VIT)
    model.text_cleaning, model.clip[0].pictures = "ftfy", AS_SEEN
    monkeypatch.setattr(parity, "read", lambda reader, folders, wanted: [parity.own(model, wanted)])  # read above
    export(model, "sentence-transformers", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for words in ("text_cleaning: ftfy", "EXIF", "one pixel beside", "SentenceTransformer("):
        assert words in card
    config = json.loads((tmp_path / "out" / "image_0_Transformer" / "sentence_bert_config.json").read_text())
    assert config["processor_kwargs"] == {"backend": "pil"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_does_not_fit_is_refused_with_what_to_do(squares: Path, tmp_path: Path) -> None:
    resnet = build(squares, {"kind": "linear", "pool": "cls"}, "none", 24, RESNET)
    with pytest.raises(CheckpointError, match=r"^sentence-transformers: .*ResNet.*; or export .*--text-only$"):
        export(resnet, "sentence-transformers", tmp_path / "out")
    encoders.modernbert(tmp_path / "modernbert")
    model = with_encoder(tmp_path / "modernbert", {"kind": "transformer", "pool": "cls"})
    assert "train a projector of kind linear, mlp or altclip" in str(FORMAT.misfit(model, {"text_only": True}))
    bare = kinds.save(kinds.DECODERS["qwen3"], tmp_path / "bare", ends=False)
    model = with_encoder(bare, {"kind": "linear", "pool": "eos"})
    assert "an empty text no token" in str(FORMAT.misfit(model, {"text_only": True}))
    assert not (tmp_path / "out").exists()


def test_a_folder_may_cut_embeddings_at_a_trained_width(found: Found) -> None:
    model, folder, options, _ = found["short"]
    loaded = SentenceTransformer(str(folder), device="cpu")
    assert loaded.truncate_dim == 8
    again = loaded.encode(["ein Hund", "rot"], normalize_embeddings=True)
    np.testing.assert_allclose(again, model.encode_text(["ein Hund", "rot"], dims=8), atol=1e-6)
    assert any("8 numbers" in note for note in FORMAT.notes(model, options))
    assert any("truncate_dim=5) cuts" in note for note in FORMAT.notes(model, {"text_only": True}))


def test_a_cut_is_proven_and_said_in_the_card(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(squares, {"kind": "linear", "pool": "cls"}, "none", 24, VIT)
    with pytest.raises(CheckpointError, match=r"truncate_dim 8 is no width .*: it has no `dims`$"):
        export(model, "sentence-transformers", tmp_path / "out", truncate_dim=8)
    model.dims = [4, 8]
    with pytest.raises(CheckpointError, match=r"truncate_dim 5 .*: it was trained for 4, 8$"):
        export(model, "sentence-transformers", tmp_path / "out", truncate_dim=5)
    whole = parity.own(model, parity.samples(tmp_path))
    cut = {group: vectors_ND[:, :8] for group, vectors_ND in whole.items()}
    for theirs, right in ((whole, False), (cut, True)):  # that the library gives these is shown above
        monkeypatch.setattr(parity, "read", lambda reader, folders, wanted, theirs=theirs: [theirs])
        if right:
            export(model, "sentence-transformers", tmp_path / "out", truncate_dim=8)
        else:
            with pytest.raises(CheckpointError, match="differ from the model's"):
                export(model, "sentence-transformers", tmp_path / "out", truncate_dim=8)
    assert "encode cuts embeddings to 8 numbers" in (tmp_path / "out" / "README.md").read_text()
