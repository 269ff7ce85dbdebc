"""mclip-kit eval"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

from mclip_kit.cli.common import FILE, FOLDER, quiet
from mclip_kit.errors import DataError, RecipeError


@dataclass(frozen=True)
class Asked:
    """What a user wants to know.

    Attributes:
        languages: their codes, or `all`.
        out: the folder of what is written.
    """

    models: tuple[Path, ...]
    data: Path
    split: str
    languages: list[str] | str
    protocol: str
    baselines: tuple[str, ...]
    classes: Path | None
    sentences: int | None
    beams: int
    out: Path


@dataclass(frozen=True)
class Found:
    """What a task found: its parts of results.json, what it has written besides, a `html.Gallery` if it has one."""

    results: list[dict[str, Any]]
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    gallery: Any = None


def _retrieval(asked: Asked) -> Found:
    """Tables of every model, beside its baselines; retrieval.png and a gallery of the last model."""
    from mclip_kit.data.captions import read_captions
    from mclip_kit.evaluate import qualitative
    from mclip_kit.evaluate.baselines import baseline
    from mclip_kit.evaluate.bootstrap import compare
    from mclip_kit.evaluate.report import contact_sheet, html, tables
    from mclip_kit.evaluate.retrieval import evaluate
    from mclip_kit.features.cache import FeatureCache
    from mclip_kit.models.multilingual_clip import load

    if asked.classes:
        raise RecipeError("--classes is for --task zeroshot")
    captions, chosen = read_captions(asked.data), (asked.split, asked.languages)
    credit = _credits(asked.data)
    baselines = {name: baseline(name, captions, *chosen, asked.protocol) for name in asked.baselines}
    rows: list[dict[str, Any]] = []
    scored, shown_tables, comparisons = [], [], []
    for name in asked.models:
        model, store = load(name), FeatureCache()
        results = evaluate(model, captions, *chosen, store=store, protocol=asked.protocol)
        about = _about(asked, name, model.made_from)
        scored.append((f"{name} ({model.made_from})", results, model.trained_languages))
        rows += tables.retrieval_rows(results, about, tables.STUDENT, model.trained_languages)
        for against, score in baselines.items():
            theirs = score(model, store)
            found = compare(results, theirs)
            rows += tables.retrieval_rows(theirs, about, against, None)
            comparisons += [{"model": str(name), "baseline": against} | asdict(item) for item in found]
            shown_tables.append(tables.differences(f"{name} against {against}, {asked.split}", results, theirs, found))
    if len(scored) == 1:
        title, results, trained = scored[0]
        click.echo("\n" + tables.table(results, trained, f"{title}, {asked.split} of {asked.data}"))
    else:
        click.echo("\n" + tables.comparison(scored))
    for table in shown_tables:
        click.echo("\n" + table)
    shown = [language for language in results if language != tables.TEACHER]
    pool = qualitative.pool(model, captions, asked.split, shown, store)
    title, footer = f"What one model finds in {len(shown)} languages", f"Queries are drawn at random. {credit}"
    contact_sheet.draw(qualitative.drawn(pool, shown), asked.out / "retrieval.png", title, footer)
    best, worst = qualitative.extremes(pool)
    confused = qualitative.confusion(pool.text_QD, captions.languages[pool.rows_Q])
    gallery = html.Gallery({"Best queries": best, "Worst queries": worst}, confused, credit)
    return Found(tables.distinct(rows), comparisons, [asked.out / "retrieval.png"], gallery)


def _zeroshot(asked: Asked) -> Found:
    """A table a model."""
    from mclip_kit.evaluate import class_names, zeroshot
    from mclip_kit.evaluate.report import tables
    from mclip_kit.models.multilingual_clip import load

    if asked.baselines or asked.protocol != "any":
        raise RecipeError("--baseline and --protocol are for --task retrieval")
    pictures = zeroshot.read_labelled(asked.data, asked.split)
    known = pictures.classes
    there = (
        class_names.read_file(asked.classes, known) if asked.classes else class_names.packaged(known, asked.languages)
    )
    prompts = class_names.chosen(there, asked.languages)
    rows: list[dict[str, Any]] = []
    for name in asked.models:
        model = load(name)
        teacher, students = zeroshot.evaluate(model, pictures, prompts, there.get(tables.ENGLISH))
        about = _about(asked, name, model.made_from) | {"split": pictures.split}
        rows += tables.zeroshot_rows(teacher, students, about, model.trained_languages)
        title = f"{name} ({model.made_from}), {pictures.split} of {asked.data}"
        click.echo("\n" + tables.zeroshot_table(title, teacher, students, model.trained_languages))
    return Found(rows)


def _bitext(asked: Asked) -> Found:
    """Parallel-sentence retrieval: a table a model."""
    from mclip_kit.evaluate import bitext
    from mclip_kit.evaluate.report import tables
    from mclip_kit.evaluate.translation import held_out

    _only_for_retrieval(asked)
    bitexts, directions = held_out(asked.data, asked.split, asked.languages)
    rows: list[dict[str, Any]] = []
    for name in asked.models:
        embed, made_from = bitext.embedder(name)
        found = bitext.evaluate(embed, bitexts, asked.split, directions, asked.sentences)
        rows += tables.bitext_rows(found, _about(asked, name, made_from))
        click.echo("\n" + tables.bitext_table(f"{name}, {asked.split} of {asked.data}", found))
    return Found(rows)


def _translation(asked: Asked) -> Found:
    """BLEU and chrF, a table a model; what was written lies beside results.json, line by line with its reference."""
    from mclip_kit.evaluate import translation
    from mclip_kit.evaluate.report import tables
    from mclip_kit.files import write_text
    from mclip_kit.models.translator import load_translator

    _only_for_retrieval(asked)
    bitexts, directions = translation.held_out(asked.data, asked.split, asked.languages)
    rows: list[dict[str, Any]] = []
    files: list[Path] = []
    for name in asked.models:
        translator = load_translator(name)
        found = translation.evaluate(translator, bitexts, asked.split, directions, asked.sentences, asked.beams)
        rows += tables.translation_rows(found, _about(asked, name, translator.made_from))
        click.echo("\n" + tables.translation_table(f"{name}, {asked.split} of {asked.data}", found))
        if len(asked.models) == 1:
            for (source, target), result in found.items():
                for kind, lines in (("hyp", result.hypotheses), ("ref", result.references)):
                    files.append(asked.out / f"{asked.split}.{source}-{target}.{target}.{kind}")
                    write_text(files[-1], "".join(f"{line}\n" for line in lines))
    return Found(rows, files=files)


def _only_for_retrieval(asked: Asked) -> None:
    if asked.baselines or asked.protocol != "any" or asked.classes:
        raise RecipeError("--baseline and --protocol are for --task retrieval, --classes for --task zeroshot")


TASKS: dict[str, Callable[[Asked], Found]] = {
    "retrieval": _retrieval,
    "zeroshot": _zeroshot,
    "bitext": _bitext,
    "translation": _translation,
}


@click.command("eval")
@click.argument("models", nargs=-1, required=True, type=FOLDER)
@click.option("--task", type=click.Choice(list(TASKS)), default="retrieval", show_default=True)
@click.option(
    "--data",
    type=FOLDER,
    default=Path("data/emoji"),
    show_default=True,
    help="A prepared folder, or one of class folders.",
)
@click.option("--split", default="test", show_default=True)
@click.option("--langs", help="Languages, with commas between.  [default: all]")
@click.option(
    "--protocol",
    type=click.Choice(["any", "xtd", "mclip"]),
    default="any",
    show_default=True,
    help="Retrieval: how ranks are counted: any, as CLIP does; xtd, one caption a picture; mclip, as its script.",
)
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    metavar="NAME",
    help="Retrieval: compare with `teacher`, `translated:FILE` (captions, a tab, their English) or a model folder.",
)
@click.option("--sentences", type=click.IntRange(1), help="Bitext and translation: so many of each.  [default: all]")
@click.option("--beams", type=click.IntRange(1), default=5, show_default=True, help="Translation: width of the search.")
@click.option("--classes", type=FILE, help="Zeroshot: a YAML of class names and templates.  [default: ImageNet's]")
@click.option(
    "--out",
    type=FOLDER,
    help="Where results.json, report.html and retrieval.png go.  [default: eval/ or eval_TASK/ beside the model]",
)
def evaluate(
    models: tuple[Path, ...],
    task: str,
    data: Path,
    split: str,
    langs: str | None,
    protocol: str,
    baselines: tuple[str, ...],
    sentences: int | None,
    beams: int,
    classes: Path | None,
    out: Path | None,
) -> None:
    """Score model folders in every language.

    Image-text retrieval, which is also drawn; zero-shot classification; retrieval of parallel sentences (also by
    encoders and translators, mean pool); or a translator's translations.
    """
    quiet()
    from mclip_kit.data import leakage
    from mclip_kit.data.languages import normalize_language
    from mclip_kit.evaluate.report import html
    from mclip_kit.files import write_json
    from mclip_kit.layout import LEAKAGE
    from mclip_kit.train.logging import read_log

    languages = [normalize_language(language) for language in langs.split(",")] if langs else "all"
    beside = models[-1].resolve().parent / ("eval" if task == "retrieval" else f"eval_{task}")
    models = tuple(dict.fromkeys(models))
    asked = Asked(models, data, split, languages, protocol, baselines, classes, sentences, beams, out or beside)
    found = TASKS[task](asked)
    leaks = []
    others = [Path(other) for other in baselines if (Path(other) / "config.json").is_file()]
    for name in dict.fromkeys([*models, *others]):
        trained = leakage.read_json(name.resolve().parent / LEAKAGE)
        for leak in leakage.leaks_into(trained, data, split):
            leaks.append({"model": str(name), **asdict(leak)})
            click.echo(f"leak, {name}: {leak.line()}")
    settings = {"data": str(data), "task": task, "split": split, "protocol": protocol}
    parts = {"results": found.results, "comparisons": found.comparisons, "leakage": leaks}
    write_json(asked.out / "results.json", settings | parts)
    reports = [html.evaluated(name, settings | parts, read_log(name.resolve().parent)) for name in models]
    html.write(reports, asked.out / "report.html", found.gallery)
    files = [asked.out / "results.json", asked.out / "report.html", *found.files]
    click.echo(f"\nwritten: {', '.join(map(str, files))}")


def _about(asked: Asked, model: Path, made_from: str) -> dict[str, Any]:
    """What results.json says of every score of a model."""
    return {
        "dataset": asked.data.resolve().name,
        "model": str(model),
        "pretrained": made_from,
        "split": asked.split,
    }


def _credits(data: Path) -> str:
    try:
        licences = json.loads((data / "manifest.json").read_text(encoding="utf-8"))["licences"]
        names = "; ".join(f"{part['what']}: {part['by']}, {part['licence']}" for part in licences)
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{data / 'manifest.json'}: damaged; prepare the corpus again") from None
    return names
