"""Parallel text of four languages: the English sentence that they share is computed once."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from mclip_kit.config.recipe import Recipe
from mclip_kit.config.yaml import parse
from mclip_kit.data.bitext import open_bitext
from mclip_kit.data.corpora import Content, Row
from mclip_kit.data.datasets import rows_from_bitexts
from mclip_kit.data.prepare.prepare import write_prepared
from mclip_kit.data.tokenizer import train_sentencepiece
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.tasks.triangle_batches import TriangleBatches
from mclip_kit.train.build import build_model
from tests import tiny

LANGUAGES = ["en", "de", "fr", "cs"]
ROWS = 1500


def lines(language: str) -> list[str]:
    """Made-up sentences; of every ten English ones two are the same, as captions of Multi30K repeat."""
    named = [f"a {n % 7} dog {n // 10} runs {min(n % 10, 8)} times" for n in range(ROWS)]
    return [line if language == "en" else f"{language} {row} {line}" for row, line in enumerate(named)]


def test_each_english_sentence_goes_through_the_teacher_exactly_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {language: lines(language) for language in LANGUAGES}
    english, some = texts["en"], [line for side in texts.values() for line in side[:1000]]
    spm = train_sentencepiece(some, tmp_path / "spm.model", 400, 0.999).path
    corpus = tiny.declaration().model_copy(update={"languages": LANGUAGES})
    together = [list(zip(LANGUAGES, row, strict=True)) for row in zip(*texts.values(), strict=True)]
    write_prepared(lambda: Content(Row("train", row, parallel=True) for row in together), corpus, tmp_path / "b", spm)
    bitext = tmp_path / "b" / "bitext"
    tree = tiny.recipe(tmp_path) | {"data": {"bitext": str(bitext)}, "evaluation": None}
    tree |= {"stages": [tree["stages"][1]], "teacher": {"model": tiny.TEACHER, "weights": "random"}}
    recipe = parse(tree, Recipe, "tiny")
    model = build_model(recipe)
    read: list[str] = []
    seen: list[int] = []
    tokens, run = model.teacher_tokens, model.teacher_text.forward
    monkeypatch.setattr(model, "teacher_tokens", lambda texts, *rest: read.extend(texts) or tokens(texts, *rest))
    monkeypatch.setattr(model.teacher_text, "forward", lambda ids_BT: seen.append(len(ids_BT)) or run(ids_BT))
    how = (True, 64, model.student_tokens, model.encoder.tokenizer.pieces())
    rows = tiny.rows_of(rows_from_bitexts([open_bitext(bitext)], "train", LANGUAGES, "en", *how))
    distinct = set(english)
    assert len(rows) == 3 * ROWS + len(distinct)
    towers = FrozenTowers(model, FeatureCache(tmp_path / "features"))
    batches = TriangleBatches(towers, rows, recipe.stages[0], {"encoder", "projector"}, recipe.cache)
    assert Counter(read) == dict.fromkeys(distinct, 1)
    assert sum(seen) == len(distinct)
    some = np.arange(0, len(rows), 97)
    with torch.no_grad():
        wanted_BE = run(tokens([rows.teacher_texts[row] for row in some]))
    torch.testing.assert_close(batches.batch(some).teacher_BE, wanted_BE, rtol=0, atol=2e-3)
    assert sum(seen) == len(distinct)
