"""Training rows as files: made once, mapped, known by their data, and damage is made again."""

import threading
from pathlib import Path

import numpy as np
import pytest

from mclip_kit.config.recipe import load
from mclip_kit.data.captions import read_captions
from mclip_kit.data.content_keys import hash_texts, hash_tokens
from mclip_kit.data.row_files import ROWS, ColumnWriter, Ragged, RaggedTexts, once, open_folder
from mclip_kit.data.triangle_rows import RowBlock, RowStream, open_rows, write_rows
from mclip_kit.errors import DataError
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.manage import list_tables, verify
from mclip_kit.tasks.base import Context, task_of
from mclip_kit.train.build import build_model
from tests import tiny
from tests.train.runs import only_stage


def block(texts: list[str], start: int) -> RowBlock:
    tokens = [np.arange(len(text) + 2, dtype=np.int32) for text in texts]
    return RowBlock(np.arange(len(texts)) % 2, tokens, texts, source=1, images_B=start + np.arange(len(texts)))


def test_blocks_become_columns(tmp_path: Path) -> None:
    texts = ["ein Hund", "", "犬", "", "a dog", "a dog"]
    write_rows(tmp_path, RowStream(["de", "en"], 6, [block(texts[:4], 0), block(texts[4:], 4)]))
    rows = open_rows(tmp_path)
    assert len(rows) == 6
    assert list(rows.teacher_texts) == texts
    assert rows.has_teacher_N.tolist() == [bool(text) for text in texts]
    assert [ids.tolist() for ids in rows.tokens] == [list(range(len(text) + 2)) for text in texts]
    assert rows.lengths_N.tolist() == [len(text) + 2 for text in texts]
    assert rows.images_N.tolist() == list(range(6))
    assert rows.sources_N.tolist() == [1] * 6
    np.testing.assert_array_equal(rows.teacher_keys_N2, hash_texts(texts))
    np.testing.assert_array_equal(rows.token_keys_N2, hash_tokens(rows.tokens))
    assert [[a == b for a in rows.groups_N] for b in rows.groups_N] == [[a == b for a in texts] for b in texts]
    some = rows.select(np.array([4, 2]))
    assert (list(some.teacher_texts), some.folder, rows.folder) == (["a dog", "犬"], None, tmp_path)
    assert not isinstance(rows.lengths_N, np.memmap) or rows.lengths_N.filename  # mapped, not read


def test_no_rows_are_rows_too(tmp_path: Path) -> None:
    write_rows(tmp_path, RowStream(["de"], 0, []))
    assert len(open_rows(tmp_path)) == 0


def test_ragged_columns_end_like_lists() -> None:
    values, ends_N = np.arange(6), np.array([2, 2, 6])
    assert [part.tolist() for part in Ragged(values, ends_N)] == [[0, 1], [], [2, 3, 4, 5]]
    assert Ragged(values, ends_N)[-1].tolist() == [2, 3, 4, 5]
    texts = RaggedTexts(np.frombuffer("aé犬".encode(), np.uint8), np.array([1, 3, 6]))
    assert (list(texts), texts[-2]) == (["a", "é", "犬"], "é")
    with pytest.raises(IndexError):
        texts[3]


def test_a_column_keeps_its_type(tmp_path: Path) -> None:
    with ColumnWriter(tmp_path, {}) as writer:
        writer.add("a", np.zeros(1, np.int32))
        with pytest.raises(TypeError, match="column a is <i4, not <i8"):
            writer.add("a", np.zeros(1, np.int64))
    assert open_folder(tmp_path)[1]["a"].tolist() == [0]


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"\x01" + content[1:]])
def test_damage_is_found_when_columns_are_opened(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    with ColumnWriter(tmp_path, {}) as writer:
        writer.add("a", np.zeros((4, 2), np.int32))
    (tmp_path / "a.bin").write_bytes(damage((tmp_path / "a.bin").read_bytes()))
    with pytest.raises(DataError, match=r"damaged \(a\.bin: a checksum is wrong\); remove it: it is made again"):
        open_folder(tmp_path)


def test_a_folder_is_written_once_by_whoever_comes_first(tmp_path: Path) -> None:
    writes, go = list[int](), threading.Barrier(8)

    def one(number: int) -> None:
        def write(part: Path) -> None:
            writes.append(number)
            (part / "file").write_text("whole")

        go.wait()
        assert (once(tmp_path / "deep" / "folder", write) / "file").read_text() == "whole"

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(writes) == 1
    assert [path.name for path in (tmp_path / "deep").iterdir() if not path.name.startswith(".")] == ["folder"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def write(part: Path) -> None:
        (part / "half").write_text("")
        raise DataError("broke off")

    with pytest.raises(DataError, match="broke off"):
        once(tmp_path / "folder", write)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.parametrize("stage", [1, 2], ids=["bitext", "captions"])
def test_a_stage_makes_its_rows_once_and_again_when_its_data_or_settings_change(
    squares: Path, tmp_path: Path, stage: int
) -> None:
    data = tiny.corpus(tmp_path / "data")

    def made(**changes: object) -> list[str]:
        recipe = load(tiny.write_recipe(tiny.recipe(data) | only_stage(data, stage), tmp_path / "tiny.yaml"))
        own = recipe.stages[0].model_copy(update=changes)
        cache = FeatureCache(tmp_path / "features")
        context = Context(recipe, build_model(recipe), frozenset(), cache, captions=read_captions(data))
        rows = task_of(own, context).rows
        assert rows.folder is not None  # type: ignore[attr-defined]
        assert len(rows) >= own.batch_size
        return sorted(path.name for path in (tmp_path / "features").glob("rows-*"))

    (first,) = made()
    tokens = tmp_path / "features" / first / "tokens.bin"
    content, before = tokens.read_bytes(), tokens.stat().st_mtime_ns
    assert made() == [first]
    assert tokens.stat().st_mtime_ns == before
    assert len(made(max_tokens=5)) == 2
    assert len(made(languages=["de"])) == 3
    tiny.flip(tokens, 9)
    assert first in made()  # damaged: made again
    assert tokens.read_bytes() == content
    tables = [table for table in list_tables(tmp_path / "features") if table.kind == ROWS]
    assert len(tables) == 3
    assert not list(verify(tables))
    tiny.flip(tables[0].folder / "teacher_key.bin", 3)
    assert list(verify(tables)) == [tables[0].folder]
    assert not tables[0].folder.exists()
    known = made()
    for path in [*(data / "bitext").iterdir(), data / "captions.arrow"]:
        path.touch()
    assert len(made()) == len(known) + 1
