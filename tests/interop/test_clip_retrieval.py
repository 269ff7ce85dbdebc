"""What is written for clip-retrieval has its layout, and the model's embeddings; nothing is left out in silence."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from mclip_kit.cli import cli
from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.errors import CheckpointError, DataError
from mclip_kit.interop import clip_retrieval
from mclip_kit.interop.clip_retrieval import export
from mclip_kit.models.multilingual_clip import MultilingualClip
from tests import tiny
from tests.interop.models import build

ROUNDED = 2.5e-4  # half a step of float16 below 1


@pytest.fixture(scope="module")
def model(squares: Path) -> MultilingualClip:
    return build(squares, {"kind": "linear", "pool": "mean"}, "linear", 24, tiny.TEACHER)


@pytest.fixture
def as_files(squares: Path, tmp_path: Path) -> Captions:
    """The corpus with its pictures as files; the name of a folder is not UTF-8."""
    captions = read_captions(squares)
    folder = tmp_path / "pictures\udcff"
    folder.mkdir()
    assert captions.pixels is not None
    files = [folder / f"{name}.png" for name in captions.names]
    for image in captions.gallery("test"):
        Image.fromarray(captions.pixels[image]).save(files[image])
    return replace(captions, pixels=None, files=files)


def typed(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def read(folder: Path, kind: str) -> tuple[list[str], np.ndarray]:
    """Names of the files of embeddings in their order, and their rows together, as embedding-reader takes them."""
    files = sorted((folder / kind).iterdir())
    parts = [np.load(file) for file in files]
    assert all(part.dtype == np.float16 and part.flags.c_contiguous for part in parts)
    return [file.name for file in files], np.concatenate(parts)


def metadata(folder: Path) -> dict[str, list[str]]:
    files = sorted((folder / "metadata").iterdir())
    tables = [pq.read_table(file).to_pydict() for file in files]
    return {name: [cell for table in tables for cell in table[name]] for name in tables[0]}


@pytest.mark.parametrize(("rows", "block"), [(1_000_000, 512), (7, 5), (3, 4), (36, 12)])
def test_row_by_row_there_are_picture_caption_and_their_embeddings(rows, block, model, squares, tmp_path, monkeypatch):
    monkeypatch.setattr(clip_retrieval, "BLOCK", block)
    monkeypatch.setattr(clip_retrieval, "BATCH", 3)
    captions = read_captions(squares)
    found = export(model, captions, tmp_path / "out", rows=rows)
    assert (found.rows, found.pictures, found.unreadable, found.uncaptioned) == (36, 12, {}, 0)
    names, image_RD = read(tmp_path / "out", "img_emb")
    digits = len(str(found.files))
    assert names == [f"img_emb_{number:0{digits}}.npy" for number in range(-(-36 // rows))]
    text_names, text_RD = read(tmp_path / "out", "text_emb")
    assert text_names == [name.replace("img", "text") for name in names]
    about = metadata(tmp_path / "out")
    assert list(about) == ["image_path", "caption", "language", "image"]
    assert sorted(about["caption"]) == sorted(captions.texts[captions.select("test")])
    assert about["image"] == sorted(about["image"], key=captions.names.index)
    pairs = set(zip(captions.images.tolist(), captions.texts, captions.languages, strict=True))
    places = [captions.names.index(name) for name in about["image"]]
    assert set(zip(places, about["caption"], about["language"], strict=True)) <= pairs
    wanted_RD = model.encode_image([captions.open(place) for place in places]).numpy()
    assert np.abs(image_RD - wanted_RD).max() < ROUNDED
    wanted_TD = model.encode_text(about["caption"]).numpy()
    assert np.abs(text_RD - wanted_TD).max() < ROUNDED
    assert 0 < found.rounding["texts"] < ROUNDED
    assert not np.allclose(wanted_TD[0], wanted_TD[1], atol=10 * ROUNDED)  # rows that change places would be seen
    sizes = [len(np.load(file)) for file in sorted((tmp_path / "out" / "img_emb").iterdir())]
    assert sizes == [pq.read_metadata(file).num_rows for file in sorted((tmp_path / "out" / "metadata").iterdir())]
    assert max(sizes) <= rows


def test_pictures_that_cannot_be_read_are_named_and_left_out_with_their_captions(model, as_files, tmp_path):
    damaged, missing = as_files.gallery("test")[[1, 5]]
    as_files.files[damaged].write_bytes(b"no picture")
    as_files.files[missing].unlink()
    without = replace(as_files, uncaptioned={"test": as_files.gallery("train")[:2]})
    found = export(model, without, tmp_path / "out", languages=["de"])
    names = [as_files.names[damaged], as_files.names[missing]]
    assert list(found.unreadable) == names
    assert (found.rows, found.pictures, found.uncaptioned) == (10, 10, 2)
    about = metadata(tmp_path / "out")
    assert set(about["language"]) == {"de"}
    assert not set(names) & set(about["image"])
    assert about["image_path"][0] == str(tmp_path / "pictures\\udcff" / f"{about['image'][0]}.png")
    lines = (tmp_path / "out" / "left_out.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["image", *names]
    assert "not a readable picture" in lines[1]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "2 pictures cannot be read and are left out, with their captions" in card
    assert "2 pictures of the split have no caption in these languages" in card


def test_nothing_is_left_where_nothing_can_be_written(model, squares, as_files, tmp_path):
    out = tmp_path / "out" / "embeddings"
    for image in as_files.gallery("test"):
        as_files.files[image].unlink()
    with pytest.raises(DataError, match=r"none of the 12 test pictures can be read; .*No such file"):
        export(model, as_files, out)
    broken = build(squares, {"kind": "linear", "pool": "mean"}, "linear", 24, tiny.TEACHER)
    with torch.no_grad():
        broken.encoder.get_parameter(next(name for name, _ in broken.encoder.named_parameters()))[:] = torch.nan
    with pytest.raises(CheckpointError, match=r"embedding of text '.*' is non-finite \(NaN or inf\)"):
        export(broken, read_captions(squares), out)
    assert not out.parent.exists()
    export(model, read_captions(squares), out)
    with pytest.raises(CheckpointError, match="exists already"):
        export(model, read_captions(squares), out)


def test_the_command_says_what_it_wrote_and_what_comes_next(model, squares, tmp_path):
    model.save(tmp_path / "model")
    words = ("export", "clip-retrieval", tmp_path / "model", "--data", squares, "--out", tmp_path / "out")
    wrong = typed(*words, "--langs", "en,xx")
    assert wrong.exit_code == 2
    assert wrong.output == f"Error: {squares}: no test captions in xx; there are de, en, fr\n"
    done = typed(*words, "--langs", "en, de", "--split", "valid", "--rows", "10")
    assert done.exit_code == 0, done.output
    first, *_, last = done.output.splitlines()
    assert first == f"{tmp_path / 'out'}: 24 rows of 12 pictures, in 3 files of each kind"
    assert last == f"clip-retrieval index --embeddings_folder {tmp_path / 'out'} --index_folder INDEX"
    assert typed(*words).output == f"Error: {tmp_path / 'out'}: exists already; remove it or choose another --out\n"
