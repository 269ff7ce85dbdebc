"""Baselines: the teacher, translations, another model; and tables of translations with mistakes."""

from pathlib import Path

import numpy as np
import pytest

from mclip_kit.config.recipe import Recipe
from mclip_kit.config.yaml import parse
from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.data.tables import as_text, open_tables
from mclip_kit.errors import CheckpointError, DataError, RecipeError
from mclip_kit.evaluate.baselines import baseline, read_translations, translated
from mclip_kit.evaluate.bootstrap import compare
from mclip_kit.evaluate.retrieval import evaluate
from mclip_kit.features.cache import FeatureCache
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.train.build import build_model
from tests import tiny


@pytest.fixture(scope="module")
def model(squares: Path) -> MultilingualClip:
    return build_model(parse(tiny.recipe(squares), Recipe, "tiny")).eval()


@pytest.fixture
def captions(squares: Path) -> Captions:
    return read_captions(squares)


def english(captions: Captions, language: str = "de") -> dict[str, str]:
    """The English caption of the picture of each caption."""
    rows = captions.select("test", ["en"])
    of = dict(zip(captions.images[rows].tolist(), captions.texts[rows].tolist(), strict=True))
    own = captions.select("test", [language])
    return {str(captions.texts[row]): of[int(captions.images[row])] for row in own}


def table(rows: dict[str, str], path: Path) -> Path:
    path.write_text("".join(f"{text}\t{own}\n" for text, own in rows.items()), encoding="utf-8")
    return path


def ranks(result) -> list[list[int]]:
    return [result.t2i_Q.tolist(), result.i2t_G.tolist()]


def test_the_teacher_reads_every_language_as_it_is(model, captions):
    found = baseline("teacher", captions, "test", ["en", "de"])(model, FeatureCache(), "m")
    usual = evaluate(model, captions, "test", ["en", "de"])
    assert list(found) == ["en", "de"]
    assert ranks(found["en"]) == ranks(usual["teacher"])
    assert ranks(found["de"]) != ranks(found["en"])


def test_perfect_translations_score_as_the_teachers_english(model, captions, tmp_path):
    file = table(english(captions), tmp_path / "de.tsv")
    found = baseline(f"translated:{file}", captions, "test", ["de", "en"])(model, FeatureCache(), "m")
    assert ranks(found["de"]) == ranks(found["en"]) == ranks(evaluate(model, captions, "test", ["en"])["teacher"])


def test_another_model_is_scored_by_its_own_towers(model, captions, tmp_path):
    model.save(tmp_path / "model")
    found = baseline(str(tmp_path / "model"), captions, "test", ["de"])(None, FeatureCache(), "m")  # type: ignore[arg-type]
    ours = evaluate(model, captions, "test", ["de"])
    assert list(found) == ["de"]
    np.testing.assert_allclose(found["de"].t2i_Q, ours["de"].t2i_Q, atol=1)  # float rounding may swap neighbours
    assert {item.language for item in compare(ours, found, resamples=10)} == {"de"}


def test_only_wanted_captions_are_translated(captions, tmp_path):
    rows = english(captions)
    found = translated(captions, table(rows, tmp_path / "de.tsv"), "test", ["de"])
    changed = np.flatnonzero(np.array(found.texts.tolist()) != np.array(captions.texts.tolist()))
    assert changed.tolist() == captions.select("test", ["de"]).tolist()
    assert found.texts[changed[0]] == rows[str(captions.texts[changed[0]])]
    assert captions.texts[changed[0]].startswith("Quadrat")


def test_a_missing_caption_is_named_with_its_line(captions, tmp_path):
    rows = english(captions)
    missing = sorted(rows)[3]
    del rows[missing]
    file = table(rows, tmp_path / "de.tsv")
    with pytest.raises(
        DataError, match=r"de\.tsv: no English for .* \(de, line \d+ of mclip-kit data show .*\)"
    ) as error:
        baseline(f"translated:{file}", captions, "test", ["de"])
    line = int(str(error.value).partition("line ")[2].partition(" of")[0])
    written = dict(as_text(open_tables(captions.folder)))["captions.tsv"]
    written = "".join(written).splitlines()[line - 1]
    assert written.endswith(f"\tde\ttest\t{missing}")
    assert repr(missing) in str(error.value)


def test_a_word_may_mean_different_things_in_two_languages(tmp_path):
    file = tmp_path / "words.tsv"
    file.write_text("de\tRock\tskirt\nRock\trock music\n\nzh-CN\t红\tred\n", encoding="utf-8")
    assert read_translations(file) == {("de", "Rock"): "skirt", ("", "Rock"): "rock music", ("zh", "红"): "red"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Quadrat\n", "line 1: write a caption, a tab, its English"),
        ("Quadrat\tsquare\nRot\t\n", "line 2: write"),
        ("\tsquare\n", "line 1: write"),
        ("de\tRot\tred\tr\n", "line 1: write"),
        ("Rock\tskirt\nRock\trock\n", "line 2: 'Rock' is 'skirt' in an earlier line, and 'rock' here"),
    ],
)
def test_a_wrong_line_is_named(content, message, tmp_path):
    (tmp_path / "own.tsv").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=rf"own\.tsv {message}"):
        read_translations(tmp_path / "own.tsv")


def test_a_wrong_name_is_refused(captions, tmp_path):
    with pytest.raises(RecipeError, match="techer: give teacher, closed-form, translated:FILE or a model folder"):
        baseline("techer", captions, "test", ["de"])
    with pytest.raises(DataError, match=r"none\.tsv: missing"):
        baseline(f"translated:{tmp_path / 'none.tsv'}", captions, "test", ["de"])
    with pytest.raises(CheckpointError, match="not a complete model folder"):
        baseline(str(tmp_path), captions, "test", ["de"])
