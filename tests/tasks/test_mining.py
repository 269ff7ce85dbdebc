"""Pairs that are mined: against a slow twin, and as rows of a run."""

import json
import shutil
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest
import torch

from mclip_kit.config.recipe import Recipe, load
from mclip_kit.config.yaml import parse
from mclip_kit.data.captions import read_captions
from mclip_kit.data.hashes import hash_texts
from mclip_kit.data.sequences import blocks_of
from mclip_kit.data.triangle_rows import TriangleRows
from mclip_kit.data.unpaired import sentences_of
from mclip_kit.doctor.recipe import check_start
from mclip_kit.errors import CheckpointError, DataError, RecipeError
from mclip_kit.files import write_text
from mclip_kit.models.multilingual_clip import load as load_model
from mclip_kit.tasks import mining
from mclip_kit.tasks.mining import nearest_pairs
from mclip_kit.train.build import CACHE_VARIABLE, build_model
from mclip_kit.train.run import Run
from tests import tiny
from tests.train.runs import different, recipe_of, weights


@pytest.fixture(autouse=True)
def no_cache_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)


def slow(a_NH: np.ndarray, b_MH: np.ndarray, neighbours: int, margin: float) -> list[tuple[int, int]]:
    """Equation 1 of arXiv 1811.01136, cosine by cosine."""
    unit = [[row / np.sqrt(row @ row) for row in side.astype(np.float64)] for side in (a_NH, b_MH)]
    cosine = [[float(x @ y) for y in unit[1]] for x in unit[0]]

    def near(values: list[float]) -> float:
        return float(np.mean(sorted(values, reverse=True)[:neighbours]))

    rows = [near(own) for own in cosine]
    columns = [near([own[j] for own in cosine]) for j in range(len(b_MH))]
    ratio = [[value / ((rows[i] + columns[j]) / 2) for j, value in enumerate(own)] for i, own in enumerate(cosine)]
    found = []
    for i, own in enumerate(ratio):
        j = int(np.argmax(own))
        if int(np.argmax([other[j] for other in ratio])) == i and own[j] >= margin:
            found.append((i, j))
    return found


@pytest.mark.parametrize(("rows", "columns", "neighbours", "margin"), [(9, 31, 4, 1.0), (31, 9, 2, 1.05), (3, 2, 8, 1)])
def test_pairs_are_those_of_the_slow_twin(
    rows: int, columns: int, neighbours: int, margin: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(rows)
    a_NH = draw.normal(size=(rows, 6)).astype(np.float32) + 1
    b_MH = a_NH[draw.integers(0, rows, columns)] + draw.normal(size=(columns, 6)).astype(np.float32) * 0.5
    wanted = slow(a_NH, b_MH, neighbours, margin)
    assert wanted
    sizes = list[int]()
    monkeypatch.setattr(mining, "blocks_of", lambda count, size: sizes.append(size) or blocks_of(count, size))
    for at_once in (2**26, 4 * rows, 1):
        monkeypatch.setattr(mining, "AT_ONCE", at_once)
        pairs_P2, margins_P = nearest_pairs(torch.from_numpy(a_NH), torch.from_numpy(b_MH), neighbours, margin)
        assert [tuple(pair) for pair in pairs_P2.tolist()] == wanted
        assert (margins_P >= margin).all()
    assert sizes == [2**26 // rows, 4, 1]  # memory does not grow with the sentences


@pytest.fixture(scope="module")
def start(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a tiny model that was not trained."""
    folder = tmp_path_factory.mktemp("start") / "model"
    build_model(parse(tiny.recipe(squares), Recipe, "tiny")).save(folder)
    return folder


def mining_recipe(squares: Path, start: Path, folder: Path, data: str, *changes: str) -> Recipe:
    """A stage in English and French, with sentences of German."""
    lines = sentences_of(read_captions(squares), "de")
    write_text(folder / "de.txt", "".join(f"{line}\n" for line in lines))
    tree = tiny.recipe(squares)
    stage = tree["stages"][{"bitext": 1, "captions": 2}[data]]
    own = {"train": ["projector"], "languages": ["en", "fr"], "epochs": 1, "batch_size": 16, "mine": {"margin": 0.5}}
    rest = {key: value for key, value in tree.items() if key not in ("teacher", "encoder", "projector")}
    tiny.write_recipe(rest | {"init_from": str(start), "stages": [stage | own]}, folder / "tiny.yaml")
    return load(folder / "tiny.yaml", [f"data.unpaired={{de: {folder / 'de.txt'}}}", *changes])


def rows_of(recipe: Recipe, folder: Path) -> TriangleRows:
    rows: TriangleRows = next(Run(recipe, folder).tasks()).rows
    return rows


def counts_of(rows: TriangleRows) -> dict[str, int]:
    assert rows.folder
    counts: dict[str, int] = json.loads((rows.folder / mining.COUNTS).read_text(encoding="utf-8"))["de"]
    return counts


@pytest.mark.parametrize("data", ["captions", "bitext"])
def test_rows_of_pairs_come_after_the_others(data: str, squares: Path, start: Path, tmp_path: Path) -> None:
    recipe = mining_recipe(squares, start, tmp_path, data)
    plain = rows_of(load(tmp_path / "tiny.yaml", ["stages.0.mine=null"]), tmp_path / "plain")
    rows = rows_of(recipe, tmp_path / "run")
    assert rows.folder
    pairs = [line.split("\t") for line in (rows.folder / mining.PAIRS).read_text(encoding="utf-8").splitlines()[1:]]
    assert len(rows) == len(plain) + len(pairs) > len(plain)
    assert rows.languages == [*plain.languages, "de"]
    model, kept = load_model(start), {*(tmp_path / "de.txt").read_text(encoding="utf-8").splitlines()}
    for row, (language, margin, sentence, text) in enumerate(pairs, len(plain)):
        assert (language, rows.languages[rows.languages_N[row]]) == ("de", "de")
        assert sentence in kept
        assert float(margin) >= 0.5
        assert rows.teacher_texts[row] == text
        np.testing.assert_array_equal(rows.tokens[row], model.student_tokens([sentence])[0])
        same = next(other for other in range(len(plain)) if plain.teacher_texts[other] == text)
        assert rows.images_N[row] == plain.images_N[same]
        assert rows.groups_N[row] == plain.groups_N[same]


def test_a_run_learns_from_pairs_says_so_and_resumes(squares: Path, start: Path, tmp_path: Path) -> None:
    recipe = mining_recipe(squares, start, tmp_path, "captions", "evaluation=null")
    run, said = Run(recipe, tmp_path / "run"), list[str]()
    run.warn = said.append  # type: ignore[assignment]
    run.go()
    count = len((tmp_path / "de.txt").read_text(encoding="utf-8").splitlines())
    assert any(f"of {count:,}" in line and "unpaired sentences with a pair: de " in line for line in said)
    assert load_model(tmp_path / "run" / "model").trained_languages == ["de", "en", "fr"]
    without = load(tmp_path / "tiny.yaml", ["stages.0.mine=null", "evaluation=null"])
    Run(without, tmp_path / "without").go()
    assert different(weights(tmp_path / "run"), weights(tmp_path / "without"))
    with (tmp_path / "de.txt").open("a", encoding="utf-8") as file:
        file.write("noch einer\n")
    (tmp_path / "run" / "model" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"de\.txt has changed since the run started"):
        Run(recipe, tmp_path / "run", resume=True).go()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.unpaired={}"], "mine needs data.unpaired: a mapping from a language to a file"),
        (["stages.0.mine=null"], "data.unpaired has no effect: no stage has mine"),
        (["stages.0.train=[encoder, projector]"], "mine needs a frozen encoder, and stage contrast trains it"),
        (["data.unpaired={PT: de.txt}"], "data.unpaired.PT.*: give a language's code in lower case, .* not 'PT'"),
        (["parallel=fsdp"], "stage contrast: parallel: fsdp shards an encoder that is trained, and this .* use ddp"),
        (["data.unpaired={en: de.txt, de: de.txt}"], r"data\.unpaired\.en has no effect: .* paired with English"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    changes: list[str], message: str, squares: Path, start: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        mining_recipe(squares, start, tmp_path, "captions", *changes)


def test_mined_rows_are_of_another_language(squares: Path, start: Path, tmp_path: Path) -> None:
    change = ["stages.0.languages=[en]", "stages.0.language_temperature=2"]
    rows = rows_of(mining_recipe(squares, start, tmp_path, "captions", *change), tmp_path / "run")
    assert rows.languages == ["en", "de"]
    change.append(f"stages.0.batch_size={int((rows.languages_N == 0).sum()) + 1}")  # more than the others alone
    assert len(rows_of(mining_recipe(squares, start, tmp_path, "captions", *change), tmp_path / "run")) == len(rows)


def test_a_new_encoder_and_a_missing_file_are_refused(squares: Path, start: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="mine needs an encoder that is trained already, by name; this one is new"):
        recipe_of(squares, tmp_path, f"data.unpaired={{de: {tmp_path / 'de.txt'}}}", "stages.2.mine={}")
    recipe = mining_recipe(squares, start, tmp_path, "captions")
    (tmp_path / "de.txt").unlink()
    with pytest.raises(DataError, match=r"de\.txt: cannot be read"):
        Run(recipe, tmp_path / "run")
    with pytest.raises(RecipeError, match=r"data\.unpaired\.jp: write ja"):
        Run(load(tmp_path / "tiny.yaml", ["data.unpaired={jp: de.txt}"]), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages.0.languages=[fr]", "stage contrast: mine: no row has a text in en to pair .*; add en to languages"),
        (
            "stages.0.mine.margin=100",
            r"stage contrast: mine: no sentence of data\.unpaired \(de\) has .* margin 100; lower",
        ),
        (
            "stages.0.mine.neighbours=72",
            r"stage contrast: mine: 72 texts in en are too few for mine\.neighbours 72; give more, or lower it",
        ),
    ],
)
def test_what_cannot_be_mined_is_refused(change: str, message: str, squares: Path, start: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        rows_of(mining_recipe(squares, start, tmp_path, "captions", change), tmp_path / "run")


def test_pairs_are_mined_again_when_a_folder_beside_holds_more_out(squares: Path, start: Path, tmp_path: Path) -> None:
    own = shutil.copytree(squares, tmp_path / "data" / "own")
    recipe = mining_recipe(own, start, tmp_path, "captions")
    pairs = counts_of(rows_of(recipe, tmp_path / "run"))
    line = (tmp_path / "de.txt").read_text(encoding="utf-8").splitlines()[0]
    fingerprints = tmp_path / "data" / "other" / "fingerprints"
    fingerprints.mkdir(parents=True)
    (fingerprints.parent / "manifest.json").write_text("{}", encoding="utf-8")
    hash_texts([line]).tofile(fingerprints / "test.texts.u64")
    assert counts_of(rows_of(recipe, tmp_path / "run")) == pairs | {"held_out": 1, "pairs": ANY}


def test_without_a_cache_no_list_is_named(squares: Path, start: Path, tmp_path: Path) -> None:
    run, said = Run(mining_recipe(squares, start, tmp_path, "captions", "cache=off"), tmp_path / "run"), list[str]()
    run.warn = said.append  # type: ignore[assignment]
    assert "de" in next(run.tasks()).rows.languages
    assert said[0].endswith("listed only where a cache is kept")


def test_a_dry_run_does_not_mine_and_says_so(squares: Path, start: Path, tmp_path: Path) -> None:
    run, said = Run(mining_recipe(squares, start, tmp_path, "captions"), tmp_path / "run"), list[str]()
    run.warn = said.append  # type: ignore[assignment]
    assert any("rows" in line for line in run.dry_run())
    assert said == [
        "stage contrast: pairs of unpaired sentences are mined when it trains; their rows are not counted here"
    ]
    assert not list(tmp_path.rglob(mining.PAIRS))


def test_doctor_does_not_mine(squares: Path, start: Path, tmp_path: Path) -> None:
    recipe = mining_recipe(squares, start, tmp_path, "captions", f"cache.folder={tmp_path / 'features'}")
    found = [finding.what for finding in check_start(recipe)]
    assert any("rows to train on: contrast " in line for line in found)
    check_start(recipe.model_copy(update={"stages": [recipe.stages[0].model_copy(update={"batch_size": 10**6})]}))
    assert not list(tmp_path.rglob(mining.PAIRS))


def test_the_shipped_recipe_trains_on_the_squares(squares: Path, start: Path, tmp_path: Path) -> None:
    mining_recipe(squares, start, tmp_path, "captions")
    small = [
        f"stages.{number}.{key}" for number in (0, 1) for key in ("languages=[en, fr]", "epochs=1", "batch_size=16")
    ]
    changes = [
        f"teacher.model=local-dir:{start / 'clip'}",
        f"encoder=hf:{start / 'encoder'}",
        f"data.captions={squares}",
        f"data.bitext={squares / 'bitext'}",
    ]
    for language in ("ar", "de", "es", "fa", "id", "it", "ja", "ko", "pt", "ru", "tr"):
        changes.append(f"data.unpaired.{language}={tmp_path / 'de.txt'}")
    run = Run(load("quickstart_unpaired", [*changes, *small]), tmp_path / "run")
    run.go()
    assert "pt" in load_model(tmp_path / "run" / "model").trained_languages
