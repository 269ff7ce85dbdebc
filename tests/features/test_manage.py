"""The cache from the command line: extract, ls, verify, prune."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mclip_kit.cli import cli
from mclip_kit.locks import place
from tests import tiny

Type = Callable[..., Result]


@pytest.fixture
def type_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Type:
    """Type a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MCLIP_KIT_CACHE", raising=False)
    return lambda *words: CliRunner().invoke(cli, [str(word) for word in words])


@pytest.fixture
def filled(type_: Type, squares: Path, tmp_path: Path) -> Path:
    """A cache that `extract` filled for a projector recipe of tiny frozen towers."""
    tree = tiny.recipe(squares)
    tree["teacher"]["weights"] = tree["encoder"]["weights"] = "random"
    tree |= {"projector": {"kind": "transformer", "layers": 1, "pool": "eos"}, "clip_projector": "linear"}
    tree["stages"] = [tree["stages"][2] | {"train": ["projector", "clip_projector"]}]
    result = type_("extract", tiny.write_recipe(tree, tmp_path / "tiny.yaml"))
    assert result.exit_code == 0, result.output
    return tmp_path / "runs" / "features"


def tables(root: Path) -> list[str]:
    return sorted(path.parent.name.split("-")[0] for path in root.glob("*/table.json"))


def test_extract_keeps_what_training_then_reads(type_: Type, filled: Path) -> None:
    assert tables(filled) == ["image", "tokens"]
    assert "to compute" not in type_("extract", "tiny.yaml").output
    assert not (filled.parent / "tiny" / "model").exists()


def test_extract_with_the_cache_off_is_refused(type_: Type, filled: Path) -> None:
    result = type_("extract", "tiny.yaml", "--set", "cache=off")
    assert (result.exit_code, "set cache=auto" in result.output) == (2, True)


def test_ls_lists_rows_and_tables(type_: Type, filled: Path) -> None:
    lines = type_("cache", "ls").output.splitlines()
    assert sorted((line.partition("-")[0], line.partition(" rows")[0].rpartition(" ")[2]) for line in lines[:-1]) == [
        ("image", "72"),
        ("rows", "216"),
        ("tokens", "216"),
    ]
    assert "3 tables" in lines[-1]


def test_verify_removes_a_damaged_shard_and_training_computes_it_again(type_: Type, filled: Path) -> None:
    assert type_("cache", "verify").exit_code == 0
    (values,) = filled.glob("tokens-*/*/values.bin")
    sound = values.read_bytes()
    values.write_bytes(sound[:99] + bytes([sound[99] ^ 1]) + sound[100:])
    result = type_("cache", "verify")
    assert result.exit_code == 1
    assert f"{values.parent.name}: damaged" in result.output
    assert not values.exists()
    assert type_("extract", "tiny.yaml").exit_code == 0
    assert values.read_bytes() == sound
    assert type_("cache", "verify").exit_code == 0


def test_a_damaged_description_of_a_shard_is_that_shards_alone(type_: Type, filled: Path) -> None:
    (facts,) = filled.glob("tokens-*/*/shard.json")
    facts.write_text("{")
    assert type_("cache", "ls").exit_code == 0
    result = type_("cache", "verify")
    assert (result.exit_code, f"{facts.parent.name}: damaged" in result.output) == (1, True)


def test_prune_by_age(type_: Type, filled: Path) -> None:
    (old,) = filled.glob("image-*/table.json")
    os.utime(old, (time.time() - 9 * 86400,) * 2)
    assert type_("cache", "prune", "--days", 10).exit_code == 0
    assert tables(filled) == ["image", "tokens"]
    assert "1 tables" in type_("cache", "prune", "--days", 8, "--dry-run").output
    assert tables(filled) == ["image", "tokens"]
    type_("cache", "prune", "--days", 8)
    assert tables(filled) == ["tokens"]


def test_prune_by_size_removes_the_table_used_longest_ago(type_: Type, filled: Path) -> None:
    (old,) = filled.glob("tokens-*/table.json")
    os.utime(old, (time.time() - 60,) * 2)
    type_("cache", "prune", "--size", 0.00005)
    assert tables(filled) == ["image"]


def test_locks_and_removals_that_a_kill_left_are_no_tables(type_: Type, filled: Path) -> None:
    before = type_("cache", "ls").output
    (table,) = filled.glob("image-*")
    for lock in (".tokens.lock", f"{table.name}/.index.lock", f"{table.name}/.0123456789abcdef.lock"):
        (filled / lock).touch()
    with subprocess.Popen(["true"]) as killed:
        killed.wait()
    removed = filled / f".{table.name}.{killed.pid}-{place()}.part"
    shutil.copytree(table, removed)
    assert type_("cache", "ls").output == before
    assert type_("cache", "verify").exit_code == 0
    assert "to compute" not in type_("extract", "tiny.yaml").output
    assert type_("cache", "prune", "--days", 0).exit_code == 0
    assert tables(filled) == []
    assert not removed.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ls", "--root", "nowhere"], "nowhere: no such folder"),
        (["prune"], "give --days, --size or both"),
    ],
)
def test_wrong_words(type_: Type, filled: Path, words: list[str], message: str) -> None:
    result = type_("cache", *words)
    assert result.exit_code == 2
    assert message in result.output


def test_a_damaged_description_is_named(type_: Type, filled: Path) -> None:
    (table,) = filled.glob("image-*/table.json")
    table.write_text("{")
    result = type_("cache", "ls")
    assert result.exit_code == 2
    assert "table.json: damaged" in result.output
