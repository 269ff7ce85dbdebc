"""BLEU and chrF are sacreBLEU's, and retrieval errors those of a slow search."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mclip_kit.cli import cli
from mclip_kit.data.bitext import open_bitext
from mclip_kit.errors import DataError
from mclip_kit.evaluate.bitext import errors, held_out, held_out_sentences, mean_pooled
from mclip_kit.evaluate.bleu import Score
from mclip_kit.evaluate.translation import Translated, evaluate, log_values, notes, score
from tests.models.test_translator import translator

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
    results = evaluate(own, [open_bitext(squares / "bitext")], "valid", [("en", "de"), ("de", "en")], count=5, beams=2)
    assert list(results) == [("en", "de"), ("de", "en")]
    forth, back = results.values()
    assert len(forth.sources) == 5
    assert forth.sources == back.references
    assert forth.hypotheses == own.translate(forth.sources, "en", "de", 2)
    values = log_values(own, results)
    assert values["bleu"] == pytest.approx((forth.score.bleu + back.score.bleu) / 2)
    assert values["retrieval_error"] == pytest.approx(100 - values["retrieval_accuracy"])
    assert {"en-de_retrieval_error", "de-en_retrieval_error", "en-de_chrf", "de-en_bleu"} <= values.keys()


def test_bleu_that_counts_characters_for_want_of_packages_is_told_with_the_way_to_words() -> None:
    lacking = Translated(["a"], ["b"], ["b"], Score(1.0, 1.0, "tok:char", "", "ja"))
    whole = Translated(["a"], ["b"], ["b"], Score(1.0, 1.0, "tok:zh", ""))
    told = "BLEU of ja counts characters; to count words: pip install 'sacrebleu[ja]'"
    assert notes({("en", "ja"): lacking, ("de", "ja"): lacking, ("en", "zh"): whole}) == [told]


def test_directions_within_some_languages(squares: Path) -> None:
    for folder in (squares, squares / "bitext"):
        assert held_out(folder, "test", ["de", "en"])[1] == [("en", "de"), ("de", "en")]
    assert len(held_out(squares, "test", "all")[1]) == 4
    with pytest.raises(DataError, match="no test pair within de, fr; there are en-de, de-en"):
        held_out(squares, "test", ["de", "fr"])


def test_eval_scores_translators_encoders_and_models(squares: Path, tmp_path: Path) -> None:
    translator(squares).save(tmp_path / "run" / "model")
    run = CliRunner()

    def scored(*words: str) -> dict[str, Any]:
        result = run.invoke(cli, ["eval", *words, "--data", str(squares), "--out", str(tmp_path / "out")])
        assert result.exit_code == 0, result.output
        return json.loads((tmp_path / "out" / "results.json").read_text())  # type: ignore[no-any-return]

    model = str(tmp_path / "run" / "model")
    some = ["--langs", "en,de", "--sentences", "5"]
    found = scored(model, "--task", "translation", *some, "--beams", "2")
    assert [row["language"] for row in found["results"]] == ["en-de", "de-en"]
    metrics = found["results"][0]["metrics"]
    command = [sys.executable, "-m", "sacrebleu", "test.en-de.de.ref", "-i", "test.en-de.de.hyp", "-w", "12", "-b"]
    done = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, text=True, check=True)
    assert metrics["bleu"] == pytest.approx(float(done.stdout), abs=1e-10)
    seen: set[torch.dtype] = set()
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: seen.add(output.dtype) if isinstance(module, torch.nn.Linear) else None
    )
    with hook:
        found = scored(model, "--task", "translation", *some, "--beams", "2", "--precision", "bf16")
    assert found["device"] == "cpu, bf16"
    assert torch.bfloat16 in seen
    for folder in (model, f"{model}/encoder"):
        found = scored(folder, "--task", "bitext", *some)
        assert [row["language"] for row in found["results"]] == ["en-de", "de-en"]
        assert all(row["n_captions"] == 5 for row in found["results"])
        rates = [row["metrics"]["retrieval_error"] for row in found["results"]]
    own = mean_pooled(translator(squares).encoder.eval())
    sides = held_out_sentences(*held_out(squares, "test", ["en", "de"])[:1], "test", ("en", "de"), 5)
    assert rates == pytest.approx([error / 100 for error in errors(own, *sides)])
    wrong = run.invoke(cli, ["eval", str(squares), "--task", "bitext", "--data", str(squares)])
    assert (wrong.exit_code, "contains no encoder" in wrong.output) == (2, True)
    wrong = run.invoke(cli, ["eval", model, "--task", "bitext", "--data", str(squares), "--baseline", "teacher"])
    assert (wrong.exit_code, "for --task retrieval" in wrong.output) == (2, True)
    wrong = run.invoke(cli, ["eval", model, "--data", str(squares), "--beams", "2"])
    assert (wrong.exit_code, "--beams is for --task translation: leave it out of --task retrieval" in wrong.output) == (
        2,
        True,
    )
