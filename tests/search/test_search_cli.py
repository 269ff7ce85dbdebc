"""`mclip-kit embed`, `index` and `search`, as they are typed."""

import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

pytest.importorskip("faiss", reason="the extra `search` is not installed")

from mclip_kit.cli import cli
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.search.search import Search
from mclip_kit.search.sheet import write_sheet
from tests import tiny
from tests.interop.models import build


@pytest.fixture(scope="module")
def model(squares: Path) -> MultilingualClip:
    model = build(squares, {"kind": "linear", "pool": "mean"}, "none", 24, tiny.TEACHER)
    model.trained_languages = ["de", "en"]
    return model


@pytest.fixture(scope="module")
def folder(model, colours, tmp_path_factory) -> Path:
    """A model folder, its embeddings and its index."""
    place = tmp_path_factory.mktemp("typed")
    model.save(place / "model")
    for words in (
        ["embed", place / "model", "--images", colours, "--out", place / "embeddings", "--workers", "0"],
        ["index", place / "embeddings", "--out", place / "index"],
    ):
        done = typed(*words)
        assert done.exit_code == 0, done.output
        assert f"{words[-1] if words[0] == 'index' else place / 'embeddings'}: " in done.output
    return place


def typed(*words: str | Path, given: str = "") -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words], input=given)


def test_texts_pictures_and_lines_of_standard_input_are_searched(folder, model, colours):
    search = Search(folder / "index", model)
    done = typed("search", folder / "index", "ein rotes Quadrat", "--top", "3")
    assert done.exit_code == 0, done.output
    hits = search.texts("ein rotes Quadrat", 3)[0]
    assert done.stdout.splitlines() == [
        "ein rotes Quadrat",
        *(f"  {n}  {hit.score:.3f}  {hit.file}" for n, hit in enumerate(hits, 1)),
    ]
    done = typed("search", folder / "index", "--json", "--top", "2", given="rot\n\nblau\n")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["query"] for row in rows] == ["rot", "blau"]
    assert [hit["file"] for hit in rows[1]["hits"]] == [hit.file for hit in search.texts("blau", 2)[0]]
    file = next(colours.rglob("*.png"))
    done = typed("search", folder / "index", "--image", file, "--top", "1")
    assert done.stdout.splitlines()[1].split()[2] == str(file.resolve())


def test_a_script_that_was_not_trained_is_told_and_the_hits_are_given(folder):
    done = typed("search", folder / "index", "красное")
    assert "in Cyrillic letters; the model was trained on de, en" in done.stderr
    assert len(done.stdout.splitlines()) == 11
    assert not typed("search", folder / "index", "rot").stderr


def test_a_sheet_shows_a_row_a_query(folder, model, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("click.launch", lambda url: opened.append(url))
    done = typed("search", folder / "index", "rot", "blau", "--top", "4", "--open")
    assert done.exit_code == 0, done.output
    with Image.open(opened[0]) as sheet:
        assert sheet.size == (8 + 4 * 168, 2 * 190)
    hits = Search(folder / "index", model).texts("rot", 2)
    sheet = Image.open(write_sheet([("rot", hits[0])], tmp_path / "sheet.png"))
    middle = 22 + 80
    own = Image.open(hits[0][0].file).convert("RGB").resize((160, 160)).getpixel((80, 80))
    assert max(abs(a - b) for a, b in zip(sheet.getpixel((8 + 80, middle)), own, strict=True)) < 40


def test_queries_that_are_empty_or_not_utf8_are_told(folder):
    done = typed("search", folder / "index", "rot", " ", "--top", "1")
    assert done.exit_code == 0
    assert "1 empty queries were left out" in done.stderr
    assert "standard input had no query" in typed("search", folder / "index", given="").stderr
    done = typed("search", folder / "index", "caf\udce9")
    assert done.exit_code == 2
    assert "it is not UTF-8" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["embed", "MODEL", "--images", "", "--out", "OUT"], "the source of the pictures is empty"),
        (["embed", "MODEL", "--images", "nowhere.csv", "--out", "OUT"], "nowhere.csv: no such table"),
        (["embed", "MODEL", "--out", "x"], "give one of --images and --texts"),
        (["embed", "MODEL", "--images", "nowhere", "--out", "OUT"], "nowhere: no folder of pictures"),
        (["embed", "MODEL", "--texts", "nowhere.txt", "--out", "OUT"], "nowhere.txt: no such file"),
        (["embed", "nowhere", "--images", "x", "--out", "OUT"], "nowhere"),
        (["index", "nowhere", "--out", "OUT"], "nowhere: no vectors"),
        (["search", "nowhere", "a"], "nowhere: no index"),
        (["search", "INDEX", "a", "--image", "x.png"], "give --image or texts, not both"),
        (["search", "INDEX", "--image", "x.png"], "x.png: cannot be read as a picture"),
        (["search", "INDEX", "a", "--device", "abacus"], "device: 'abacus' cannot be used here; use auto or cpu"),
        (["demo", "INDEX", "--device", "abacus"], "device: 'abacus' cannot be used here; use auto or cpu"),
        (["embed", "MODEL", "--images", "x", "--out", "OUT", "--device", "abacus"], "device: 'abacus' cannot be used"),
    ],
)
def test_mistakes_are_one_line(folder, tmp_path, words, message):
    places = {"MODEL": folder / "model", "INDEX": folder / "index", "OUT": tmp_path / "out"}
    done = typed(*(places.get(word, word) for word in words))
    assert done.exit_code == 2
    assert message in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out" / "embeddings.json").exists()


def test_the_page_is_served_for_a_model_and_its_pictures(folder, colours, monkeypatch):
    served = []
    monkeypatch.setattr("mclip_kit.search.web.serve", lambda *given: served.append(given))
    done = typed("demo", folder / "model", "--images", colours, "--port", "0")
    assert done.exit_code == 0, done.output
    assert (folder / "search" / "colours" / "index" / "index.json").is_file()
    search, host, port, ready = served[0]
    assert (search.count, host, port) == (96, "127.0.0.1", 0)
    ready("http://127.0.0.1:1/")
    done = typed("demo", folder / "model")
    assert "name the pictures, as in: mclip-kit demo" in done.stderr


def test_a_port_that_is_taken_is_told_in_one_line(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = typed("demo", folder / "index", "--port", str(taken.getsockname()[1]))
    assert done.exit_code == 2
    assert "in use" in done.stderr.splitlines()[-1]
    assert done.stderr.rstrip().endswith("choose others")
