"""The table of evaluations: what `mclip-kit eval --task NAME` runs, and what scores a model while it trains.

A new evaluation takes one module and one line in `EVALUATIONS`. The module has

    METRICS: tuple[Metric, ...]         the metrics of its rows; tables, report.html and the bootstrap read them here
    def run(request) -> Findings        scores every model of the request, and shows a table of each
    VALIDATION: Validation              optional: how it scores a model while it trains

This module imports no heavy package, so that the command line can read the table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from math import isfinite, isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mclip_kit.errors import RecipeError
from mclip_kit.evaluate.gallery import Gallery

if TYPE_CHECKING:
    from mclip_kit.config.recipe import Recipe

ResultRows = list[dict[str, Any]]
"""Rows of results.json: each has a task, a model, a language, a tower and metrics."""
FP32 = "fp32"
"""The precision of results that do not name one."""
OFF = "off"
"""A request's cache: vectors are not kept."""
SEED = 1
"""Of the draws of intervals and of the queries that are shown."""
Scorer = Callable[..., dict[str, Any]]
"""(model, feature cache, task) -> values for the log; and what `Opened.share` gave in all processes, if it has one."""


@dataclass(frozen=True)
class Metric:
    """A number that an evaluation computes. Higher is better, except in ranks and error rates.

    Attributes:
        name: its key in results.json.
        label: the head of its column, short.
        description: what it is, in words; the label of its chart.
        fraction: whether results.json has it as a fraction; tables and charts show percent.
        drawn: whether report.html has a chart of it.
        log_name: its name in a log, where fractions are in percent; the same as `name` if empty.
        sentence: what follows the percentage in the first sentence of a report; empty: the description is used.
        averaged: whether a mean over languages says something.
    """

    name: str
    label: str
    description: str = ""
    fraction: bool = True
    drawn: bool = False
    log_name: str = ""
    sentence: str = ""
    averaged: bool = True

    def text(self, value: float | None) -> str:
        """A value of results.json as a table shows it: fractions in percent, a dash where there is no number."""
        if value is None or not isfinite(value):
            return "–"
        return f"{value * (100 if self.fraction else 1):.1f}"

    @property
    def axis(self) -> str:
        """The label of its chart."""
        return f"{self.description}, percent" if self.fraction else self.description


@dataclass(frozen=True)
class Request:
    """What a user asks of an evaluation. Options after `out` are used by some evaluations only.

    Attributes:
        task: the name of the evaluation.
        models: model folders.
        data: the folder of the data.
        languages: codes, or `all`.
        out: the folder for results.
        protocol: how ranks are counted, see `retrieval.score`.
        baseline: names of what the models are compared with, see `baselines.baseline`.
        same_images: what the models' image vectors are compared with, see `same_images`; None: nothing.
        dims: widths to which embeddings are cut, see `widths`; none: they are not.
        classes: a YAML file of class names and templates.
        sentences: how many sentences of each direction; None: all.
        beams: width of the beam search.
        precision: a value of a recipe's key of that name.
        workers: reader processes that decode picture files; None: as many as cores.
        cache: where vectors are kept: a folder, `off`, or None: see `models.open_cache`.
        show: prints a table.
        opened: the data, as `checks.open_data` gives it; None: it is opened when it is needed.
    """

    task: str
    models: tuple[Path, ...]
    data: Path
    split: str
    languages: list[str] | str
    out: Path
    protocol: str = "any"
    baseline: tuple[str, ...] = ()
    same_images: str | None = None
    dims: tuple[int | str, ...] = ()
    classes: Path | None = None
    sentences: int | None = None
    beams: int = 5
    precision: str = FP32
    workers: int | None = None
    cache: str | None = None
    show: Callable[[str], None] = print
    opened: Any = None

    def about(self, model: Path, made_from: str) -> dict[str, Any]:
        """The part that all rows of a model share."""
        return {
            "dataset": self.data.resolve().name,
            "model": str(model),
            "pretrained": made_from,
            "split": self.split,
            "precision": self.precision,
            "task": EVALUATIONS[self.task].rows,
        }

    def title(self, model: Path, made_from: str = "", split: str = "") -> str:
        """The title of a model's table."""
        return f"{model}{f' ({made_from})' if made_from else ''}, {split or self.split} of {self.data}"


@dataclass(frozen=True)
class Findings:
    """What an evaluation found.

    Attributes:
        results: rows of results.json.
        comparisons: its rows on differences to baselines.
        intervals: its rows on intervals of scores.
        same_images: model -> what was found about its image vectors.
        files: what the evaluation itself wrote.
        gallery: for report.html.
        confusions, language_confusion: lists of results.json, see `qualitative`.
        widths: its rows at the widths that were asked for.
        device: what the models ran on, see `models.computed_on`; empty: no model ran.
    """

    results: ResultRows
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    intervals: list[dict[str, Any]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    gallery: Gallery | None = None
    confusions: list[dict[str, Any]] = field(default_factory=list)
    language_confusion: list[dict[str, Any]] = field(default_factory=list)
    widths: ResultRows = field(default_factory=list)
    device: str = ""
    same_images: dict[Path, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Opened:
    """An evaluation on its data, ready to score a model while it trains.

    Attributes:
        score: (model, feature cache, task) -> values for the log.
        names: stage -> metric as a recipe names it -> value of the log; higher is better.
        data: what is scored, such as `valid of data/emoji`.
        share: (model, feature cache, task) -> this process's share of the work, which `score` takes from all; None: the
            main process does everything.
    """

    score: Scorer
    names: Callable[[Any], Mapping[str, str]]
    data: str
    share: Callable[[Any, Any, Any], Any] | None = None


@dataclass(frozen=True)
class Validation:
    """How an evaluation scores a model while it trains.

    Attributes:
        open: (recipe, the stages that it scores) -> the evaluation on its data; RecipeError if the data has not what
            the recipe wants to score.
        default: task -> the value that decides which weights are best, unless the recipe names one.
        metrics: the values that it logs; a value's name may have a prefix, such as a language.
        shown: values that are also printed.
    """

    open: Callable[[Recipe, Sequence[Any]], Opened]
    default: Callable[[Any], str]
    metrics: tuple[Metric, ...]
    shown: tuple[str, ...]

    def words(self, name: str) -> str:
        """A value of the log in the words of the field: `de_t2i_r1` is `text-to-image R@1, de`."""
        for metric in self.metrics:
            own = metric.log_name or metric.name
            if name == own:
                return metric.description
            if name.endswith(f"_{own}"):
                prefix = name.removesuffix(f"_{own}")
                return f"{metric.description}, {PREFIXES.get(prefix, prefix)}"
        return name


PREFIXES = {"mean": "mean of languages", "teacher": "teacher's text tower"}
"""Prefix of a value of the log -> what it is, in words; other prefixes are languages or directions."""


@dataclass(frozen=True)
class Evaluation:
    """An entry of the table.

    Attributes:
        module: where `METRICS`, `run` and `VALIDATION` are; it is imported when it is needed.
        rows: the `task` of its rows in results.json.
        words: what it is, in words; the title of its table.
        options: the options of the command line that it takes besides those that all take.
    """

    module: str
    rows: str
    options: tuple[str, ...] = ()
    words: str = ""

    @cached_property
    def _module(self) -> Any:
        return import_module(self.module)

    @property
    def metrics(self) -> dict[str, Metric]:
        """Its metrics, by name."""
        return {metric.name: metric for metric in self._module.METRICS}

    @property
    def validation(self) -> Validation | None:
        """How it scores a model while it trains; None if it does not."""
        validation: Validation | None = getattr(self._module, "VALIDATION", None)
        return validation

    @property
    def run(self) -> Callable[[Request], Findings]:
        """Scores every model of a request."""
        run: Callable[[Request], Findings] = self._module.run
        return run


EVALUATIONS = {
    "retrieval": Evaluation(
        "mclip_kit.evaluate.retrieval_run",
        "zeroshot_retrieval",
        ("protocol", "baseline", "same-images", "dims", "workers", "cache"),
        "image-text retrieval",
    ),
    "zeroshot": Evaluation(
        "mclip_kit.evaluate.zeroshot",
        "zeroshot_classification",
        ("classes", "workers", "cache"),
        "zero-shot classification",
    ),
    "bitext": Evaluation(
        "mclip_kit.evaluate.bitext", "bitext_retrieval", ("sentences", "cache"), "retrieval of parallel sentences"
    ),
    "translation": Evaluation("mclip_kit.evaluate.translation", "translation", ("sentences", "beams"), "translation"),
}
"""Name -> evaluation."""


def metrics_of(rows: str) -> dict[str, Metric]:
    """The metrics of rows of results.json with that `task`; none if no evaluation makes such rows."""
    return next((evaluation.metrics for evaluation in EVALUATIONS.values() if evaluation.rows == rows), {})


def users_of(option: str) -> list[str]:
    """The evaluations that take an option; none for an option that all take."""
    return [name for name, evaluation in EVALUATIONS.items() if option in evaluation.options]


def check_options(task: str, given: Collection[str]) -> None:
    """Refuse options that have no effect on an evaluation.

    Raises:
        RecipeError: the evaluation does not take one of the options; the message names those that do.
    """
    for option in given:
        users = users_of(option)
        if users and task not in users:
            named = " and ".join(filter(None, [", ".join(users[:-1]), users[-1]]))
            raise RecipeError(f"--{option} is for --task {named}: leave it out of --task {task}")


def json_numbers(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers for JSON, which has no NaN: null instead."""
    return {name: None if isnan(value) else value for name, value in numbers.items()}
