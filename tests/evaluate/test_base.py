"""The table of evaluations: what each entry promises, and a new evaluation from one module and one line."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from mclip_kit.cli import cli
from mclip_kit.errors import RecipeError
from mclip_kit.evaluate import base
from mclip_kit.evaluate.base import EVALUATIONS, Evaluation, Findings, Metric, Request, check_options, metrics_of


@pytest.mark.parametrize("name", EVALUATIONS)
def test_an_evaluation_declares_its_metrics_once(name: str) -> None:
    metrics = EVALUATIONS[name].metrics
    assert any(metric.drawn for metric in metrics.values())
    assert all(metric.label and metric.description for metric in metrics.values())
    assert metrics_of(EVALUATIONS[name].rows) == metrics


@pytest.mark.parametrize("name", ["retrieval", "translation"])
def test_what_is_shown_while_training_belongs_to_the_evaluation(name: str) -> None:
    validation = EVALUATIONS[name].validation
    assert validation
    assert all(validation.words(shown) != shown for shown in validation.shown)
    assert [validation.words(other) for other in ("loss", "beauty")] == ["loss", "beauty"]


def test_values_of_a_log_have_words() -> None:
    retrieval, translation = EVALUATIONS["retrieval"].validation, EVALUATIONS["translation"].validation
    assert retrieval
    assert translation
    assert retrieval.words("zh_tw_t2i_r1") == "text-to-image R@1, zh_tw"
    assert retrieval.words("mean_mean_recall") == "mean recall, mean of languages"
    assert retrieval.words("teacher_i2t_r10") == "image-to-text R@10, teacher's text tower"
    assert translation.words("bleu") == "BLEU"
    assert translation.words("en-de_chrf") == "chrF, en-de"


def test_an_option_of_another_evaluation_is_refused() -> None:
    check_options("retrieval", ["protocol", "baseline", "split", "out"])
    check_options("translation", ["sentences", "beams"])
    with pytest.raises(RecipeError, match="--sentences is for --task bitext and translation: leave it out"):
        check_options("retrieval", ["sentences"])


def test_a_metric_is_shown_in_percent_or_as_it_is() -> None:
    assert Metric("acc1", "acc1").text(0.1234) == "12.3"
    assert Metric("bleu", "BLEU", fraction=False).text(12.34) == "12.3"
    assert Metric("acc5", "acc5").text(None) == Metric("acc5", "acc5").text(float("nan")) == "–"


def test_a_new_evaluation_takes_one_module_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("counting")
    module.METRICS = (Metric("files", "files", "number of files", fraction=False, drawn=True),)  # type: ignore[attr-defined]

    def run(request: Request) -> Findings:
        request.show("counted")
        row = {"tower": "student", "language": "en", "metrics": {"files": len(list(request.data.iterdir()))}}
        return Findings([request.about(model, "nothing") | row for model in request.models])

    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "counting", module)
    monkeypatch.setitem(base.EVALUATIONS, "counting", Evaluation("counting", "counted_files"))
    option = next(option for option in cli.commands["eval"].params if option.name == "task")
    monkeypatch.setattr(option.type, "choices", list(EVALUATIONS))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "one").touch()
    words = ["eval", str(tmp_path / "model"), "--task", "counting", "--data", str(tmp_path / "data")]
    done = CliRunner().invoke(cli, [*words, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "counted" in done.output
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["results"]
    assert (row["task"], row["metrics"]) == ("counted_files", {"files": 1})
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert '<th scope="col" class="number" title="number of files">files</th>' in page
    assert ">Number of files, by language</title>" in page
    assert "<strong>1.0</strong> is the number of files (English (en))" in page
