"""An export is kept only if its library gives the model's embeddings; every refusal is one line."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mclip_kit.cli import cli
from mclip_kit.errors import CheckpointError
from mclip_kit.interop import open_clip, parity
from mclip_kit.interop.export import export
from mclip_kit.models.multilingual_clip import MultilingualClip
from tests import tiny
from tests.interop.models import build


@pytest.fixture(scope="module")
def saved(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[MultilingualClip, Path]:
    """A model that open_clip takes, and its folder."""
    model = build(squares, {"kind": "altclip", "pool": "cls"}, "linear", 24, tiny.TEACHER)
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save(folder)
    return model, folder


def typed(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def test_the_command_prints_differences_notes_and_how_to_load_what_it_wrote(saved, tmp_path):
    _, folder = saved
    done = typed("export", "open-clip", folder, "--out", tmp_path / "out", "--context", "20")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'out'}: open_clip gives the model's embeddings")
    printed = {line[:18].strip(): line[18:].split(maxsplit=1) for line in lines[1:8]}
    assert set(printed) == {
        *parity.TEXTS,
        *("pictures", "palette and CMYK", "photos", "odd pictures"),
    }
    value, told = printed.pop("dirty texts")  # open_clip cleans them
    assert float(value) > 1e-4
    assert told == "differs: see below"
    for (value,) in printed.values():
        assert float(value) <= 1e-5
    assert "cuts them at 20 tokens, the model at 32" in done.output
    assert f'open("{tmp_path / "out"}/open_clip_config.json")' in done.output
    card = (tmp_path / "out" / "README.md").read_text()
    for group, (value,) in printed.items():
        assert f"| {group} | {value} |" in card
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    again = typed("export", "open-clip", folder, "--out", tmp_path / "out")
    assert again.exit_code == 2
    assert again.output == f"Error: {tmp_path / 'out'}: exists already; remove it or choose another --out\n"


def test_the_list_says_what_fits_and_why_not(saved, squares, tmp_path):
    build(squares, {"kind": "linear", "pool": "eos"}, "none", 24, tiny.TEACHER).save(tmp_path / "eos")
    fits = dict(line.split(maxsplit=1) for line in typed("export", "--list", saved[1]).output.splitlines())
    not_all = dict(line.split(maxsplit=1) for line in typed("export", "--list", tmp_path / "eos").output.splitlines())
    assert fits["open-clip"] == "fits exactly"
    assert not_all["open-clip"].startswith("does not fit: open_clip's text tower pools the first token or the mean")
    assert fits["fairseq"] == not_all["fairseq"] == "fits exactly: the encoder, without the projector"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--list", "no"), "no/config.json: missing"),
        (("open-clip", "no", "--out", "x"), "no/config.json: missing"),
        (("--list", "no", "open-clip", "no"), "--list MODEL takes no FORMAT"),
        (("open-clip", "MODEL", "--out", "x", "--repo", "mine"), "--repo mine: give ORG/NAME"),
        (("morse", "MODEL"), "No such command 'morse'"),
    ],
)
def test_a_wrong_command_is_one_line(words, message, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = typed("export", *(saved[1] if word == "MODEL" else word for word in words))
    assert done.exit_code == 2
    assert message in done.output.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_help_lists_the_formats() -> None:
    done = typed("export")
    assert done.exit_code == 2
    for name in ("open-clip", "fairseq", "--list MODEL"):
        assert name in done.output


@pytest.fixture
def theirs(saved, monkeypatch) -> dict[str, np.ndarray]:
    """What the library gives, in place of a process: the model's own embeddings, for a test to change."""
    found: dict[str, np.ndarray] = {}

    def read(reader: str, folders: list[Path], wanted: parity.Samples) -> list[parity.Embeddings]:
        assert reader == "open_clip"
        return [{**parity.own(saved[0], wanted), **found}]

    monkeypatch.setattr(parity, "read", read)
    return found


@pytest.mark.parametrize("group", ["texts", "photos"])
@pytest.mark.parametrize("spoilt", [2e-5, np.nan, "shape"])
def test_an_export_that_differs_is_not_kept(saved, theirs, tmp_path, group, spoilt):
    wanted = parity.samples(tmp_path / "samples") if (tmp_path / "samples").mkdir() is None else {}
    theirs[group] = parity.own(saved[0], wanted)[group]
    if spoilt == "shape":
        theirs[group] = theirs[group][:, 1:]
    else:
        theirs[group][1, 2] += spoilt
    told = "2.0e-05" if spoilt == 2e-5 else "inf"
    with pytest.raises(CheckpointError, match=f"nothing exported: open_clip's embeddings of {group} .* by {told}"):
        export(saved[0], "open-clip", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]


def test_a_group_that_the_library_leaves_out_is_no_proof(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "read", lambda *_: [parity.own(saved[0], {"text": parity.TEXTS})])
    with pytest.raises(CheckpointError, match="embeddings of pictures differ from the model's by inf"):
        export(saved[0], "open-clip", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_stays_as_it_is(saved, theirs, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(CheckpointError, match=r"out: exists already; remove it or choose another --out"):
        export(saved[0], "open-clip", tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_a_missing_package_is_named_with_its_extra(saved, theirs, tmp_path, monkeypatch):
    form = replace(open_clip.FORMAT, packages=("open_clip", "nowhere_to_be_found"), extra="some")
    monkeypatch.setattr(open_clip, "FORMAT", form)
    with pytest.raises(CheckpointError, match=r"open_clip is needed .* pip install -e '\.\[some\]'"):
        export(saved[0], "open-clip", tmp_path / "out")
    assert not list(tmp_path.iterdir())
    done = typed("export", "--list", saved[1])
    assert "fits exactly; open_clip is needed" in done.output


def test_an_option_that_a_format_lacks_is_refused(saved, theirs, tmp_path):
    with pytest.raises(TypeError, match="open-clip has no option towr; it has tower, context, repo"):
        export(saved[0], "open-clip", tmp_path / "out", towr="teacher")


def test_what_stops_the_library_is_told_in_one_line(saved, tmp_path, monkeypatch):
    shutil.copy(parity.READERS / "read.py", tmp_path)
    (tmp_path / "open_clip.py").write_text("def load(folder):\n    raise ValueError('no such\\nlayer\\n')\n")
    monkeypatch.setattr(parity, "READERS", tmp_path)
    done = typed("export", "open-clip", saved[1], "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert done.output == "Error: open_clip cannot load what was exported: layer\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["open_clip.py", "read.py"]


def test_a_reader_cannot_use_this_package(tmp_path, monkeypatch):
    shutil.copy(parity.READERS / "read.py", tmp_path)
    (tmp_path / "cheat.py").write_text("from mclip_kit import load\n")
    monkeypatch.setattr(parity, "READERS", tmp_path)
    with pytest.raises(CheckpointError, match=r"cheat cannot load what was exported: .*mclip_kit"):
        parity.read("cheat", [tmp_path], {})
