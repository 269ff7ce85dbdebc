"""Unpaired text: what is read of a file, and what is left out and counted."""

import gzip
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mclip_kit.cli import cli
from mclip_kit.data.captions import read_captions
from mclip_kit.data.unpaired import held_out_of, read_unpaired, sentences_of
from mclip_kit.errors import DataError


def write(path: Path, *lines: str) -> Path:
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["pt.txt", "pt.txt.gz"])
def test_lines_are_distinct_and_what_is_left_out_is_counted(name: str, tmp_path: Path) -> None:
    text = read_unpaired("pt", write(tmp_path / name, "um  gato", "", "um gato", " dois cães ", "um gato"))
    assert text.lines == ["um gato", "dois cães"]
    assert text.counts == {"lines": 5, "empty": 1, "repeated": 2, "held_out": 0}


def test_held_out_texts_are_left_out(squares: Path, tmp_path: Path) -> None:
    captions = read_captions(squares)
    held = captions.texts[int(captions.select("test", ["de"])[0])]
    valid = captions.texts[int(captions.select("valid", ["de"])[0])]
    text = read_unpaired(
        "de", write(tmp_path / "de.txt", "ganz neu", held.upper() + "!", valid), held_out_of([squares])
    )
    assert text.lines == ["ganz neu"]
    assert text.counts["held_out"] == 2
    with pytest.raises(DataError, match=r"de\.txt: no sentence is left of 1 lines; give a file with one a line"):
        read_unpaired("de", write(tmp_path / "de.txt", held), held_out_of([squares]))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pt\.txt: cannot be read .*; check its path and its permissions$"):
        read_unpaired("pt", tmp_path / "pt.txt")
    (tmp_path / "pt.txt").write_bytes(b"um gato\n\xff\n")
    with pytest.raises(DataError, match=r"pt\.txt line 2"):
        read_unpaired("pt", tmp_path / "pt.txt")
    (tmp_path / "pt.txt").write_bytes("um gato\nmaçã\n".encode("utf-16-le"))
    with pytest.raises(DataError, match=r"pt\.txt line 1: has NUL bytes: .*: iconv -f utf-16le -t utf-8 OLD > NEW$"):
        read_unpaired("pt", tmp_path / "pt.txt")


def test_sentences_of_a_prepared_folder_are_unpaired_text(squares: Path, tmp_path: Path) -> None:
    command = ["data", "sentences", str(squares), "--out", str(tmp_path / "text"), "--lines", "3"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "text").iterdir()) == ["de.txt", "fr.txt"]
    known = sentences_of(read_captions(squares), "de")
    text = read_unpaired("de", tmp_path / "text" / "de.txt", held_out_of([squares]))
    assert text.counts == {"lines": 3, "empty": 0, "repeated": 0, "held_out": 0}
    assert {*text.lines} <= {*known}
    assert f"3 of {len(known)} sentences" in result.output
    again = CliRunner().invoke(cli, [*command, "--langs", "xx"])
    assert again.exit_code == 2
    assert "no train captions in xx; there are" in again.output


def test_sentences_are_neither_those_of_tests_nor_written_over_others(squares: Path, tmp_path: Path) -> None:
    def run(*words: str) -> Result:
        return CliRunner().invoke(cli, ["data", "sentences", str(squares), "--out", str(tmp_path), *words])

    held = run("--split", "test")
    assert held.exit_code == 2
    assert "all captions in de of test are held out for tests; use train" in held.output
    path = write(tmp_path / "de.txt", "meine eigenen")
    refused = run("--langs", "de")
    assert refused.exit_code == 2
    assert "de.txt: exists already; remove it or choose another --out" in refused.output
    assert path.read_text(encoding="utf-8") == "meine eigenen\n"
    assert [run("--langs", "fr,fr").output.count("fr.txt") for _ in range(2)] == [1, 1]
