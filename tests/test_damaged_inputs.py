"""Damage that once ended in a traceback, a hang or a crash, or was used in silence: each is one line that names it."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mclip_kit.data.bitext import open_bitext
from mclip_kit.data.captions import read_captions
from mclip_kit.data.leakage import leaks_of
from mclip_kit.data.prepare import summary
from mclip_kit.errors import MclipError
from mclip_kit.evaluate.report.results import read_results
from mclip_kit.features.manage import list_tables
from mclip_kit.interop.facts import facts_of
from mclip_kit.models.clip import build_clip
from tests import tiny


@pytest.fixture
def data(squares: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(squares, tmp_path / "data"))


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(MclipError) as caught:
        read()
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("file", ["train.en-de.de.bin", "train.en-de.en.txt", "dict.de.txt"])
def test_a_flipped_bit_of_prepared_text_is_named(data: Path, file: str) -> None:
    open_bitext(data / "bitext").read("train", "en", "de")
    tiny.flip(data / "bitext" / file, 20)
    said = refusal(lambda: open_bitext(data / "bitext").read("train", "en", "de"))
    assert said.startswith(f"{data / 'bitext' / file}: damaged or edited")


def test_a_flipped_bit_of_fingerprints_is_named(data: Path) -> None:
    tiny.flip(data / "fingerprints" / "train.texts.u64")
    assert refusal(lambda: leaks_of(data)).startswith(f"{data / 'fingerprints' / 'train.texts.u64'}: damaged")


def test_ids_that_the_dictionary_lacks_are_named(data: Path) -> None:
    side = tiny.without_hashes(data) / "bitext" / "train.en-de.de.bin"
    side.write_bytes(struct.pack("<H", 60_000) + side.read_bytes()[2:])
    said = refusal(lambda: open_bitext(data / "bitext").read("train", "en", "de"))
    assert said.startswith(f"{side}: has the id 60000, but dict.de.txt has ")


@pytest.mark.parametrize("what", ["pointer", "size"])
def test_an_index_that_points_elsewhere_is_damaged(data: Path, what: str) -> None:
    index = tiny.without_hashes(data) / "bitext" / "train.en-de.de.idx"
    content = bytearray(index.read_bytes())
    if what == "pointer":
        content[-8:] = struct.pack("<q", -1)
    else:
        first, second = struct.unpack_from("<ii", content, 26)
        struct.pack_into("<ii", content, 26, 0, first + second)
    index.write_bytes(content)
    assert refusal(lambda: open_bitext(data / "bitext").read("train", "en", "de")).startswith(f"{index}: damaged")


@pytest.mark.parametrize("content", [b"\x93NUMPY\x01\0\x04\0'''\n", b"", b"\x93NUMPY", b"[" * 5000])
def test_an_array_with_a_broken_head_is_damaged(data: Path, content: bytes) -> None:
    (tiny.without_hashes(data) / "images.npy").write_bytes(content)
    assert refusal(lambda: read_captions(data)).startswith(f"{data / 'images.npy'}: damaged")


@pytest.mark.parametrize("wrong", [{"counts": {}}, {"counts": None}, {"licences": [1]}, {"corpus": []}])
def test_a_manifest_with_wrong_values_is_damaged(data: Path, wrong: dict[str, object]) -> None:
    manifest = json.loads((data / "manifest.json").read_text()) | wrong
    assert refusal(lambda: summary.describe(data, manifest)).startswith(f"{data / 'manifest.json'}: damaged")


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "wrong", [DEEP, "[]", '{"results": 1}', '{"results": [], "data": {}, "task": "", "split": "", "protocol": ""}']
)
def test_results_with_wrong_values_are_damaged(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "results.json").write_text(wrong)
    assert refusal(lambda: read_results(tmp_path / "results.json")).startswith(f"{tmp_path / 'results.json'}: damaged")


@pytest.mark.parametrize("wrong", [DEEP, '{"width": Infinity}', "[]", '{"width": 1e999, "dtype": "fp16"}'])
def test_a_cache_table_with_wrong_values_is_damaged(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "table.json").write_text(wrong)
    assert refusal(lambda: list_tables(tmp_path)).startswith(f"{tmp_path / 'table' / 'table.json'}: damaged")


@pytest.mark.parametrize(
    "wrong",
    [
        {"evaluations": [{"dataset": "x"}]},
        {"bases": 3},
        {"stages": [None]},
        {"datasets": [{"name": "x", "licences": [{}]}]},
    ],
)
def test_a_damaged_card_says_nothing(tmp_path: Path, wrong: dict[str, object]) -> None:
    (tmp_path / "card.json").write_text(json.dumps({"recipe": "x", **wrong}))
    assert facts_of(tmp_path) == {}
    (tmp_path / "card.json").write_text(DEEP)
    assert facts_of(tmp_path) == {}


@pytest.mark.parametrize("mean", [["a", "b", "c"], [[1], 2, 3], [1, 2], [float("nan"), 0, 0], [0, 0, 1e400]])
def test_a_preprocessing_that_is_no_number_is_refused(tmp_path: Path, mean: object) -> None:
    build_clip(tiny.TEACHER).save(tmp_path)
    path = tmp_path / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["preprocess_cfg"]["mean"] = mean
    path.write_text(json.dumps(config))
    assert refusal(lambda: build_clip(f"local-dir:{tmp_path}")).startswith(f"{tmp_path}: ")


def test_a_sheet_that_ends_early_is_named(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    import zipfile

    from mclip_kit.data.corpora.records import Form, open_table
    from mclip_kit.data.corpora.source import File

    book = openpyxl.Workbook()
    for row in range(50):
        book.active.append([f"{row}.png", "a picture"])
    book.save(tmp_path / "whole.xlsx")
    path = tmp_path / "cut.xlsx"
    with zipfile.ZipFile(tmp_path / "whole.xlsx") as given, zipfile.ZipFile(path, "w") as out:
        for name in given.namelist():
            content = given.read(name)
            out.writestr(name, content[: len(content) // 2] if "sheet1" in name else content)
    said = refusal(lambda: list(open_table(File(path), Form.model_validate({})).read([])))
    assert said.startswith(f"{path}: not a readable .xlsx")


def test_a_zip_with_a_member_without_a_name_is_read(tmp_path: Path) -> None:
    import zipfile

    from mclip_kit.data.corpora.source import Source

    path = tmp_path / "source.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("no name", "x")
        archive.writestr("a.txt", "y")
    path.write_bytes(path.read_bytes().replace(b"no name", b"\0o name"))  # a name ends at its first zero
    assert [file.member for file in Source(path).files("a.txt")] == ["a.txt"]


@pytest.mark.parametrize("file", ["index.faiss", "rows.arrow"])
def test_a_flipped_bit_of_an_index_is_named(tmp_path: Path, file: str) -> None:
    pytest.importorskip("faiss", reason="the extra `search` is not installed")
    from mclip_kit.search.index import build, open_index

    (tmp_path / "vectors" / "img_emb").mkdir(parents=True)
    drawn = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    np.save(tmp_path / "vectors" / "img_emb" / "img_emb_0.npy", drawn)
    build(tmp_path / "vectors", tmp_path / "index")
    open_index(tmp_path / "index")
    tiny.flip(tmp_path / "index" / file, 100)
    assert refusal(lambda: open_index(tmp_path / "index")).startswith(f"{tmp_path / 'index' / file}: damaged")
