"""BLEU and chrF are sacreBLEU's, and retrieval errors those of a slow search."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mclip_kit.data.bitext import open_bitext
from mclip_kit.errors import DataError
from mclip_kit.evaluate.bitext import errors, mean_pooled
from mclip_kit.evaluate.translation import evaluate, score, summary
from tests.towers.test_decoder import translator

WRITTEN = {
    "en": (
        ["a dog runs on the beach .", "two men", "a red car"],
        ["A dog runs on a beach .", "Two men .", "a red car"],
    ),
    "zh": (["一只狗在海滩上跑", "两个人"], ["一只狗在沙滩上奔跑", "两个男人"]),
}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_scores_are_those_of_sacrebleus_command(language: str, tmp_path: Path) -> None:
    hypotheses, references = WRITTEN[language]
    for name, lines in (("hyp", hypotheses), ("ref", references)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    found = score(hypotheses, references, language)
    command = [sys.executable, "-m", "sacrebleu", "ref", "-i", "hyp", "-w", "12", "-b", "-m"]
    cut = ["--tokenize", "zh"] if language == "zh" else []
    for metric, value, options in (("bleu", found.bleu, cut), ("chrf", found.chrf, [])):
        done = subprocess.run([*command, metric, *options], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert value == pytest.approx(float(done.stdout), abs=1e-10)
    assert f"tok:{'zh' if cut else '13a'}" in found.bleu_signature
    assert "version:" in found.chrf_signature


def test_a_perfect_translation_has_100_and_none_has_0() -> None:
    _, references = WRITTEN["en"]
    assert score(references, references, "en").bleu == pytest.approx(100)
    assert score(["x"] * 3, references, "en").bleu < 1


def table(rows: dict[str, Sequence[float]]):  # type: ignore[no-untyped-def]
    return lambda texts: np.array([rows[text] for text in texts], np.float32)


def test_errors_are_counted_both_ways() -> None:
    rows = {"a": (1, 0), "b": (0.6, 0.8), "A": (0.8, 0.6), "B": (0, 1)}
    assert errors(table(rows), ["a", "b"], ["A", "B"]) == (50.0, 50.0)
    same = {**rows, "A": (1, 0)}
    assert errors(table(same), ["a", "b"], ["A", "B"]) == (0.0, 0.0)


def test_constant_embeddings_find_nothing_and_same_texts_are_one_answer() -> None:
    constant = table(dict.fromkeys(["a", "b", "A", "B"], (1.0, 0.0)))
    assert errors(constant, ["a", "b"], ["A", "B"]) == (100.0, 100.0)
    rows = {"a": (1, 0), "b": (0, 1), "A": (1, 0)}
    assert errors(table(rows), ["a", "b"], ["A", "A"])[0] == 0.0


def test_mean_pooled_is_the_mean_of_real_tokens(squares: Path) -> None:
    encoder = translator(squares).encoder.eval()
    texts = ["red square left, shade 2", "blue", "", "a green square above, shade 3"]
    found = mean_pooled(encoder, batch_size=3)(texts)
    for row, ids in enumerate(encoder.tokenizer.encode(texts)):
        with torch.no_grad():
            mean = encoder(torch.tensor(ids[None]).long(), torch.ones(1, len(ids)).long())[0].mean(0)
        np.testing.assert_allclose(found[row], (mean / mean.norm()).numpy(), atol=1e-5)


def test_held_out_sentences_are_translated_and_summed_up(squares: Path) -> None:
    own = translator(squares)
    results = evaluate(own, [open_bitext(squares / "bitext")], "valid", ["en-de", "de-en"], count=5, beams=2)
    assert list(results) == [("en", "de"), ("de", "en")]
    forth, back = results.values()
    assert len(forth.sources) == 5
    assert forth.sources == back.references
    assert forth.hypotheses == own.translate(forth.sources, "en", "de", 2)
    values = summary(own, results)
    assert values["bleu"] == pytest.approx((forth.score.bleu + back.score.bleu) / 2)
    assert values["retrieval_error"] == pytest.approx(100 - values["retrieval_accuracy"])
    assert {"en-de_retrieval_error", "de-en_retrieval_error", "en-de_chrf", "de-en_bleu"} <= values.keys()
    with pytest.raises(DataError, match="no test pair for de-fr"):
        evaluate(own, [open_bitext(squares / "bitext")], "test", ["de-fr"])
