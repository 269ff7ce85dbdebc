"""The first sentences and the first chart: figures that are worked out by hand."""

from html import unescape
from pathlib import Path
from re import findall, sub
from typing import Any

import pytest

from mclip_kit.evaluate.gallery import Gallery
from mclip_kit.evaluate.report import html
from mclip_kit.evaluate.report.headline import headline
from mclip_kit.evaluate.report.scores import PLACE

R1 = "image_retrieval_recall@1"


def row(model: str, language: str, recall: float | None, tower: str = "student", **more: Any) -> dict[str, Any]:
    return {
        **{"model": model, "language": language, "tower": tower, "task": "zeroshot_retrieval", "n_images": 400},
        **{"metrics": {R1: recall}, "trained": None if tower == "teacher" else True},
        **more,
    }


def report(name: str, *rows: dict[str, Any]) -> html.Report:
    about = {"data": "data/x", "task": "retrieval", "split": "test", "protocol": "any", "leakage": []}
    return html.evaluated(Path(name), {**about, "results": list(rows), "comparisons": []}, [])


def words(*reports: html.Report) -> list[str]:
    """The leading sentences of a page, without markup."""
    page = html.render(reports, Gallery())
    return [unescape(sub(r"<[^>]*>", "", lead)) for lead in findall(r'<p class="lead">(.*?)</p>', page)]


def test_means_are_of_trained_languages_and_the_weakest_come_first() -> None:
    rows = [row("m", code, recall) for code, recall in (("de", 0.4), ("fr", 0.2), ("ja", 0.3))]
    rows += [row("m", "tr", 0.01, trained=False), row("m", "en", 0.5, "teacher"), row("m", "de", 0.1, "teacher")]
    assert words(report("m", *rows)) == [
        "30.0% of captions find their own picture first (text-to-image R@1, mean of 3 languages); with the teacher's "
        "own English text tower 50.0%. In 1 language that it was never trained on: 1.0%. It is weakest in Turkish (tr) "
        "1.0%, French (fr) 20.0%, Japanese (ja) 30.0%; best in German (de) 40.0%."
    ]
    found = headline([report("m", *rows)])
    assert found
    assert (found["choices"], found["chance"], found["few"]) == ("400 pictures", "0.25%", False)
    expected = "German (de): 40.0; Japanese (ja): 30.0; French (fr): 20.0; Turkish (tr), never trained: 1.0"
    assert f"{expected}; teacher&#39;s English: 50.0" in found["svg"]
    assert not found["is_all"]  # the teacher read German too: that has its own chart


def test_few_pictures_and_equal_languages_are_said() -> None:
    rows = [row("m", code, 0.8, n_images=15) for code in ("de", "fr")]
    assert "weakest" not in words(report("m", *rows))[0]
    page = html.render([report("m", *rows)], Gallery())
    assert "Among 15 pictures; by chance: 6.7%. <strong>So few choices make a score coarse.</strong>" in page


def test_an_interval_without_length_is_not_given_and_one_picture_is_always_found() -> None:
    def page(low: float) -> str:
        shown = report("m", row("m", "de", 1.0, n_images=1))
        about = {key: shown.results["results"][0][key] for key in ("model", "tower", *PLACE)}
        shown.results["intervals"] = [about | {"languages": ["de"], "metric": R1, "low": low, "high": 1.0}]
        return html.render([shown], Gallery())

    assert "German (de); 95% interval 80.0 to 100.0)" in page(0.8)
    assert "Intervals and thin lines: 95%" in page(0.8)
    assert "German (de))" in page(1.0)
    assert "Intervals and thin lines" not in page(1.0)
    assert "by chance: 100%." in page(1.0)


def test_a_split_that_is_trained_on_is_said() -> None:
    shown = report("m", row("m", "de", 0.4))
    assert "is what models are trained on" not in html.render([shown], Gallery())
    shown.results["evaluations"][0]["split"] = "train"
    assert "the split train of data/x is what models are trained on" in html.render([shown], Gallery())


def test_one_language_and_no_teacher() -> None:
    assert words(report("m", row("m", "de", 0.4))) == [
        "40.0% of captions find their own picture first (text-to-image R@1, German (de))."
    ]


def test_a_model_that_was_trained_on_none_of_the_languages() -> None:
    rows = [row("m", code, recall, trained=False) for code, recall in (("de", 0.4), ("fr", 0.2))]
    (sentence,) = words(report("m", *rows))
    assert sentence.startswith(
        "30.0% of captions find their own picture first (text-to-image R@1, mean of 2 languages "
    )
    assert "that it was never trained on)" in sentence
    assert "In " not in sentence


def test_runs_side_by_side_have_a_sentence_each_and_one_line_of_equal_teachers() -> None:
    teacher = [row(name, "en", 0.5, "teacher") for name in ("a", "b")]
    reports = [report("a", row("a", "de", 0.4), teacher[0]), report("b", row("b", "de", 0.3), teacher[1])]
    assert [sentence.split(" of ")[0] for sentence in words(*reports)] == ["a: 40.0%", "b: 30.0%"]
    found = headline(reports)
    assert found
    assert found["series"] == ["a", "b"]
    assert "German (de): a 40.0, b 30.0; teacher&#39;s English: 50.0" in found["svg"]
    teacher[1]["metrics"][R1] = 0.6
    other = headline([reports[0], report("b", row("b", "de", 0.3), teacher[1])])
    assert other
    assert "teacher" not in other["svg"]  # there are two teachers
    assert not other["is_all"]


def test_strata_are_means_over_the_trained_languages() -> None:
    def strata(plain: float, flags: float) -> dict[str, Any]:
        return {"plain": {R1: plain}, "flags": {R1: flags}}

    rows = [row("m", "de", 0.4, strata=strata(0.2, 0.6)), row("m", "fr", 0.2, strata=strata(0.1, 0.3))]
    rows.append(row("m", "tr", 0.0, trained=False, strata=strata(0, 0)))
    found = headline([report("m", *rows)])
    assert found
    assert "<desc" in found["strata"]["svg"]
    assert "plain: 15.0; flags: 45.0</desc>" in found["strata"]["svg"]


@pytest.mark.parametrize(
    ("task", "metrics", "sentence"),
    [
        ("translation", {"bleu": 20.5, "chrf": 40.0}, "20.5 is the BLEU (German to English (de-en))."),
        ("bitext_retrieval", {"retrieval_accuracy": 0.9}, "90.0% of sentences have their translation as the nearest"),
        ("zeroshot_classification", {"acc1": 0.25}, "25.0% of pictures get their own class first (top-1 accuracy"),
    ],
)
def test_every_evaluation_has_its_sentence(task: str, metrics: dict[str, float], sentence: str) -> None:
    rows = [row("m", "de-en", None, task=task) | {"metrics": metrics}]
    (found,) = words(report("m", *rows))
    assert found.startswith(sentence)


def test_without_a_score_there_is_no_headline() -> None:
    assert headline([report("m", row("m", "de", None))]) is None
    assert not words(report("m"))
