"""Tables of a prepared folder as columns: what they hold, how damage is named, and as text."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from mclip_kit.cli import cli
from mclip_kit.data.captions import read_captions
from mclip_kit.data.columns import Labels, Strings, as_keys, open_columns, write_columns
from mclip_kit.data.content_keys import hash_bytes
from mclip_kit.data.tables import OF_CAPTIONS, OF_IMAGES
from mclip_kit.errors import DataError
from tests import tiny

TEXTS = ["", "a dog", "ein Hund", "犬", "a\rb"] * 5


def several(values: list[str], size: int) -> pa.ChunkedArray:
    """A column in several blocks, as a large file has it, of which one is empty."""
    parts = [values[start : start + size] for start in range(0, len(values), size)]
    return pa.chunked_array([pa.array(part, pa.string()) for part in [[], *parts]])


@pytest.mark.parametrize("size", [1, 4, 100])
def test_texts_of_several_blocks_are_those_of_a_list(size: int) -> None:
    texts, draw = Strings(several(TEXTS, size)), np.random.default_rng(0)
    assert texts.tolist() == list(texts) == TEXTS
    assert [texts[row] for row in range(-len(TEXTS), len(TEXTS))] == TEXTS * 2
    for rows in (draw.integers(len(TEXTS), size=40), np.arange(3), np.array([], int)):
        assert texts[rows].tolist() == [TEXTS[row] for row in rows]
        assert texts.take(rows).tolist() == [TEXTS[row] for row in rows]
    mask = draw.random(len(TEXTS)) < 0.5
    assert texts.take(mask).tolist() == texts[mask].tolist() == [t for t, kept in zip(TEXTS, mask, strict=True) if kept]
    assert texts[1:4].tolist() == TEXTS[1:4]
    for wrong in (len(TEXTS), -len(TEXTS) - 1):
        with pytest.raises(IndexError):
            texts[wrong]


@pytest.mark.parametrize("size", [1, 4, 100])
def test_labels_of_several_blocks_are_those_of_a_list(size: int) -> None:
    labels = Labels.of(several(TEXTS, size))
    assert labels.tolist() == labels[np.arange(len(TEXTS))].tolist() == TEXTS
    assert labels.codes.dtype == np.int8
    assert labels.isin(["犬", "none"]).tolist() == [text == "犬" for text in TEXTS]
    assert labels.present() == sorted(set(TEXTS))
    assert labels.take(np.array([3, 1])).tolist() == ["犬", "a dog"]
    assert labels.take(np.array([3, 1])).present() == ["a dog", "犬"]
    assert (len(Labels.of([])), Labels.of([]).present()) == (0, [])


def test_the_columns_are_those_of_the_text_tables(squares: Path, tmp_path: Path) -> None:
    now, before = read_captions(squares), read_captions(tiny.as_text(Path(shutil.copytree(squares, tmp_path / "copy"))))
    for name in ("names", "strata", "languages", "splits", "texts", "images", "groups"):
        assert getattr(now, name).tolist() == getattr(before, name).tolist()
    assert before.keys is None
    assert now.pixels is not None
    assert now.keys is not None
    np.testing.assert_array_equal(now.keys, hash_bytes(picture.tobytes() for picture in now.pixels))


def test_show_prints_what_earlier_versions_wrote(squares: Path, tmp_path: Path) -> None:
    text = tiny.as_text(Path(shutil.copytree(squares, tmp_path / "copy")))
    for table in ("images", "captions"):
        done = CliRunner().invoke(cli, ["data", "show", str(squares), "--table", table])
        assert done.stdout == (text / f"{table}.tsv").read_text(encoding="utf-8")
    done = CliRunner().invoke(cli, ["data", "show", str(squares), "--rows", "2"])
    assert [line.split("\t")[:3] for line in done.stdout.splitlines()] == [
        ["image", "language", "split"],
        ["red-left-0", "en", "train"],
        ["red-left-0", "de", "train"],
    ]
    done = CliRunner().invoke(cli, ["data", "show", str(squares), "--table", "uncaptioned"])
    assert done.stdout == "image\tsplit\n"
    done = CliRunner().invoke(cli, ["data", "show", str(tmp_path)])
    assert (done.exit_code, "not a prepared corpus" in done.output) == (2, True)


def cut(name: str, kept: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:kept])  # type: ignore[func-returns-value]


def far(folder: Path) -> None:
    """A caption of a picture that is not there."""
    rows = {"image": [0, 96], "language": ["en"] * 2, "split": ["train"] * 2, "caption": ["a", "b"]}
    write_columns(folder / "captions.arrow", pa.schema(OF_CAPTIONS), [rows])


def lacking(folder: Path) -> None:
    write_columns(folder / "images.arrow", pa.schema({"image": pa.string()}), [{"image": ["a"]}])


def outside(folder: Path) -> None:
    """The end of the first caption lies far behind the file."""
    path = folder / "captions.arrow"
    texts = read_captions(folder).texts.tolist()
    ends = np.cumsum([0, *(len(text.encode()) for text in texts)]).astype("<i4").tobytes()
    content = path.read_bytes()
    assert content.count(ends) == 1
    path.write_bytes(content.replace(ends, ends[:4] + np.array([2**30], "<i4").tobytes() + ends[8:]))


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (cut("captions.arrow", 2000), r"captions\.arrow: damaged \(not an Arrow file"),
    "empty": (cut("images.arrow", 0), r"images\.arrow: damaged \(.*; prepare it with --again"),
    "gone": (lambda folder: (folder / "captions.arrow").unlink(), r"captions\.arrow: missing; prepare it with --again"),
    "a picture that is not there": (far, r"captions\.arrow row 1: its image is not in images\.arrow"),
    "offsets that lead out of the file": (outside, r"captions\.arrow: damaged \(not an Arrow file: .*offset"),
    "a column less": (lacking, r"images\.arrow: damaged \(no column group of type int64\)"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(squares: Path, tmp_path: Path, name: str) -> None:
    damage, expected = DAMAGE[name]
    folder = Path(shutil.copytree(squares, tmp_path / "copy"))
    damage(folder)
    if (folder / "captions.arrow").is_file():
        with pytest.raises(DataError, match=r"arrow: damaged or edited, it is not what was written"):
            read_captions(folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps(manifest | {"files": {}}), encoding="utf-8")
    with pytest.raises(DataError, match=expected) as caught:
        read_captions(folder)
    assert "\n" not in str(caught.value)


def test_one_flipped_byte_is_damage(squares: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(squares, tmp_path / "copy"))
    content = bytearray((folder / "captions.arrow").read_bytes())
    content[content.index(b"Quadrat")] ^= 1
    (folder / "captions.arrow").write_bytes(content)
    with pytest.raises(DataError, match=r"captions\.arrow: damaged or edited"):
        read_captions(folder)


def test_keys_of_several_blocks(tmp_path: Path) -> None:
    keys_N2 = hash_bytes(str(number).encode() for number in range(7))
    schema = pa.schema({"key": pa.binary(16)})
    blocks = [{"key": [row.tobytes() for row in part]} for part in (keys_N2[:3], keys_N2[3:])]
    write_columns(tmp_path / "keys.arrow", schema, blocks)
    np.testing.assert_array_equal(as_keys(open_columns(tmp_path / "keys.arrow", schema)["key"]), keys_N2)
    assert pa.schema(OF_IMAGES).names == ["image", "group", "stratum"]
