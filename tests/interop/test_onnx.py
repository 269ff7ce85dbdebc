"""What is exported to ONNX is read by onnxruntime and tokenizers alone, and gives the model's embeddings."""

import ast
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")

from tokenizers import Tokenizer

from mclip_kit.config.model import AS_SEEN
from mclip_kit.data.captions import read_captions
from mclip_kit.errors import CheckpointError
from mclip_kit.interop import onnx, onnx_graph, parity
from mclip_kit.interop.export import export
from mclip_kit.interop.onnx import FORMAT, same_nearest, write_tokenizer
from mclip_kit.interop.onnx_graph import trace
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.projectors import build_projector
from tests import shared, tiny
from tests.interop.test_open_clip import build

HEADS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear"},
    "mlp": {"kind": "mlp", "noise": 0.1},
    "altclip": {"kind": "altclip"},
    "transformer": {"kind": "transformer"},
}
POOLS = ("cls", "mean", "eos")


@pytest.fixture(scope="module")
def exported(
    squares: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[MultilingualClip, Path, dict[str, float]]:
    """A model that sees pictures as people do, its folder, and what `export` found."""
    model = build(squares, {"kind": "linear", "pool": "mean"}, "linear", 24, tiny.TEACHER)
    model.clip[0].pictures = AS_SEEN
    folder = tmp_path_factory.mktemp("onnx") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx, "trace", remembered)
        found = export(model, "onnx", folder).differences
    return model, folder, found


traced: dict[str, Any] = {}


def remembered(tower: nn.Module, name: str, *rest: Any) -> Any:
    """`trace`, which takes seconds, once a tower."""
    if name not in traced:
        traced[name] = trace(tower, name, *rest)
    return traced[name]


def test_onnxruntime_gives_the_models_embeddings_of_every_group(exported):
    _, folder, found = exported
    assert set(found) == {*parity.TEXTS, "pictures", "palette and CMYK", "photos", "odd pictures"}
    assert max(found.values()) < 1e-6
    assert "int8" not in (folder / "README.md").read_text()


def test_the_lines_of_the_card_give_the_models_embeddings(exported):
    model, folder, _ = exported
    card = (folder / "README.md").read_text()
    assert "Without mclip-kit: `python -m pip install onnxruntime tokenizers pillow numpy`" in card
    found: dict[str, Any] = {}
    exec(card.split("```python\n")[1].split("```")[0].replace("THIS_FOLDER", str(folder)), found)
    np.testing.assert_allclose(found["text"], model.encode_text(["ein Hund", "a cat"]), atol=1e-5, rtol=0)


def test_the_layout_is_immichs(exported):
    model, folder, _ = exported
    import onnxruntime

    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        *("README.md", "config.json", "textual/model.onnx", "textual/tokenizer.json", "textual/tokenizer_config.json"),
        *("visual/model.onnx", "visual/preprocess_cfg.json"),
    }
    # what its OpenClipTextualEncoder does
    config = json.loads((folder / "config.json").read_text())
    pad = json.loads((folder / "textual" / "tokenizer_config.json").read_text())["pad_token"]
    length = config["text_cfg"]["context_length"]
    tokenizer = Tokenizer.from_file(str(folder / "textual" / "tokenizer.json"))
    tokenizer.enable_padding(length=length, pad_token=pad, pad_id=tokenizer.token_to_id(pad))
    tokenizer.enable_truncation(max_length=length)
    textual = onnxruntime.InferenceSession(folder / "textual" / "model.onnx")
    ids_1T = np.array([tokenizer.encode("rot <s>").ids], np.int32)
    assert ids_1T.shape == (1, 32)
    found_D = textual.run(None, {"text": ids_1T})[0][0]
    np.testing.assert_allclose(found_D, model.encode_text("rot <s>")[0], atol=1e-5, rtol=0)
    assert config["embed_dim"] == model.width == len(found_D)
    (image,) = onnxruntime.InferenceSession(folder / "visual" / "model.onnx").get_inputs()
    assert (image.name, image.shape, image.type) == ("image", ["batch", 3, 16, 16], "tensor(float)")
    for name in ("textual", "visual"):  # no line of the exporter's machine
        assert str(Path(torch.__file__).parents[1]).encode() not in (folder / name / "model.onnx").read_bytes()


def test_the_reader_needs_neither_torch_nor_transformers():
    tree = ast.parse((parity.READERS / "onnx.py").read_text(encoding="utf-8"))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert set(names) == {"json", "pathlib", "numpy", "onnxruntime", "PIL", "tokenizers"}


class Heads(nn.Module):
    """Embeddings (N, D) of many projectors over a word table, side by side."""

    def __init__(self, table: nn.Module, projectors: list[nn.Module]) -> None:
        super().__init__()
        self.table, self.projectors = table, nn.ModuleList(projectors)

    def forward(self, text: Tensor) -> Tensor:
        mask_NT = (text != 1).long()
        states_NTH = self.table(text.long())
        return torch.cat([projector(states_NTH, mask_NT) for projector in self.projectors], 1)


def test_every_head_and_pool_is_exact_for_any_batch_and_length(squares, tmp_path):
    import onnxruntime

    model = build(squares, {"kind": "linear", "pool": "cls"}, "none", 24, tiny.TEACHER)
    config = model.encoder.config
    built = [
        build_projector(config=config, width=16, **{**head, "pool": pool}) for head in HEADS.values() for pool in POOLS
    ]
    tower = Heads(nn.Embedding(60, 24), built).eval()
    length = torch.export.Dim("length", max=32)
    example_NT = torch.tensor([[0, 5, 6, 2], [0, 5, 2, 1]], dtype=torch.int32)
    onnx_graph.save(trace(tower, "text", example_NT, {1: length}), tmp_path / "a.onnx", False)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    for count, longest in ((1, 2), (1, 32), (5, 9)):
        ids_NT = torch.randint(4, 60, (count, longest), dtype=torch.int32)
        ids_NT[0, longest // 2 + 1 :] = 1
        with torch.no_grad():
            wanted_ND = tower(ids_NT)
        assert wanted_ND.shape == (count, 12 * 16)
        np.testing.assert_allclose(session.run(None, {"text": ids_NT.numpy()})[0], wanted_ND, atol=1e-5, rtol=0)


def test_int8_is_not_held_to_the_tolerance_and_its_loss_is_told(exported, tmp_path, monkeypatch):
    model, whole, _ = exported
    monkeypatch.setattr(onnx, "trace", remembered)
    found = export(model, "onnx", tmp_path / "out", int8=True)
    assert 1e-4 < found.differences["texts"] < 0.5
    assert 1e-4 < found.differences["pictures"] < 0.5
    assert any(note.startswith("int8: of 25 texts") for note in found.notes)
    card = (tmp_path / "out" / "README.md").read_text()
    assert re.search(r"int8: of 25 texts, \d+% keep their nearest neighbour", card)
    assert re.search(r"int8: of 11 pictures, \d+% keep .* largest difference of a number is \d", card)
    files = [sorted(str(path.relative_to(place)) for path in place.rglob("*")) for place in (whole, tmp_path / "out")]
    assert files[0] == files[1]


@pytest.mark.parametrize("int8", [False, True])
def test_large_weights_are_beside_the_graph_and_the_folder_can_be_moved(exported, tmp_path, monkeypatch, int8):
    import onnxruntime

    model, _, _ = exported
    monkeypatch.setattr(onnx_graph, "ONE_FILE", 1000)
    (tmp_path / "a").mkdir()
    onnx_graph.save(traced["text"], tmp_path / "a" / "model.onnx", int8)
    moved = (tmp_path / "a").rename(tmp_path / "b")
    assert sorted(path.name for path in moved.iterdir()) == ["model.onnx", "model.onnx.data"]
    ids_1T = model.student_tokens(["rot"])[0][None]
    found_D = onnxruntime.InferenceSession(moved / "model.onnx").run(None, {"text": ids_1T})[0][0]
    np.testing.assert_allclose(found_D, model.encode_text("rot")[0], atol=0.2 if int8 else 1e-5, rtol=0)


def test_the_share_of_rows_that_keep_their_nearest_row():
    before_ND = np.array([[1, 0], [0.8, 0.6], [0, 1]])
    assert same_nearest(before_ND, before_ND) == 1
    assert same_nearest(before_ND, np.array([[1, 0], [0.6, 0.8], [0, 1]])) == pytest.approx(2 / 3)


def texts(squares: Path) -> list[str]:
    """Sentences of Multi30K in four languages if they are here, else of the tiny corpus."""
    files = sorted((shared.MULTI30K / "task1" / "raw").glob("test_2016_flickr.*.gz"))
    found = [line for file in files for line in gzip.decompress(file.read_bytes()).decode().splitlines()]
    return found or [str(text) for text in read_captions(squares).texts]


def test_the_fast_tokenizer_has_the_models_ids(squares, tmp_path):
    model = build(squares, {"kind": "linear", "pool": "cls"}, "none", 24, tiny.TEACHER)
    write_tokenizer(model, tmp_path)
    fast = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    listed = [*texts(squares), *(text for group in parity.TEXTS.values() for text in group)]
    ids_NT = np.array([text.ids for text in fast.encode_batch(listed)])
    assert ids_NT.shape[1] == 32
    wanted = model.student_tokens(listed)
    for row, ids in enumerate(wanted):
        assert ids_NT[row].tolist() == [*ids, *[1] * (32 - len(ids))], listed[row]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"resize_mode": "longest"}, "resize_mode: longest"), ({"size": (16, 24)}, "16x24 by resize_mode: shortest")],
)
def test_pictures_that_the_layouts_readers_cannot_resize_are_refused(squares, tmp_path, change, message):
    model = build(squares, {"kind": "linear", "pool": "cls"}, "none", 24, tiny.TEACHER)
    model.clip[0].preprocess |= change
    with pytest.raises(CheckpointError, match=f"onnx: its pictures are resized .*{message}"):
        export(model, "onnx", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_padding_token_within_texts_is_refused(squares):
    model = build(squares, {"kind": "linear", "pool": "cls"}, "none", 24, tiny.TEACHER)
    assert FORMAT.misfit(model, FORMAT.options) is None
    model.encoder.tokenizer.pad = 2  # at the end of every text: the first one is the end
    assert FORMAT.misfit(model, FORMAT.options) is None
    model.encoder.tokenizer.pad = 0
    assert "tells padding by its id" in str(FORMAT.misfit(model, FORMAT.options))


def test_texts_that_the_model_repairs_are_told(squares):
    model = build(squares, {"kind": "linear", "pool": "cls"}, "none", 24, tiny.TEACHER)
    model.text_cleaning = "ftfy"
    assert "dirty texts" not in FORMAT.allowed(model, FORMAT.options)
    assert any("repairs mojibake" in note for note in FORMAT.notes(model, FORMAT.options))
