"""mclip-kit eval"""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from mclip_kit.cli.common import DEVICE, FILE, FOLDER, command_line, importing, languages_of, on_device
from mclip_kit.cli.output import JSON, coloured, json_alone, note, warn
from mclip_kit.errors import DiskError, RecipeError
from mclip_kit.evaluate.base import EVALUATIONS, OFF, Request, check_options, users_of
from mclip_kit.files import check_writable, relative, write_json
from mclip_kit.layout import LEAKAGE, MODEL_CONFIG, RECIPE, REPORT, RESULTS
from mclip_kit.locks import OTHER
from mclip_kit.storage import exists, fetch, hold, place


def _option(name: str, help: str, **more: Any) -> Callable[[Any], Any]:
    """An option that some evaluations take; its help begins with their names."""
    return click.option(f"--{name}", help=f"{', '.join(users_of(name)).capitalize()}: {help}", **more)


def _dims(text: str | None) -> tuple[int | str, ...]:
    """The widths of --dims, such as `32,64,full`; without it none."""
    words = [] if text is None else [word.strip() for word in text.split(",")]
    for count, word in enumerate(words):
        if word != "full" and not (word.isascii() and word.isdigit() and int(word)):
            raise RecipeError(f"--dims {text}: {word!r} is no width; give numbers and full, such as 32,64,full")
        if word in words[:count]:
            raise RecipeError(f"--dims {text}: {word} is given twice")
    return tuple(word if word == "full" else int(word) for word in words)


def _cache(text: str | None) -> str | None:
    """The folder of --cache, which can be written, or `off`; without it None."""
    if text is None or text.lower() == OFF:
        return text and OFF
    if not text or place(text).is_file():
        raise RecipeError(f"--cache {text!r}: is {'a file' if text else 'empty'}; give a folder, its URL, or off")
    check_writable(place(text))
    return text


def _precision(wanted: str, device: str) -> str:
    """The precision of --precision; what `auto` is on the device."""
    if wanted != "auto":
        return wanted  # torch need not be imported to know it
    with on_device(device):
        from mclip_kit.models.device import PRECISIONS, as_precision, auto_device

        found = as_precision(wanted, auto_device())
    return next(name for name, dtype in PRECISIONS.items() if dtype == found)


@click.command("eval")
@click.argument("models", nargs=-1, required=True, type=FOLDER)
@click.option("--task", type=click.Choice(list(EVALUATIONS)), default="retrieval", show_default=True)
@click.option(
    "--data",
    type=FOLDER,
    help="A prepared folder; for zeroshot also a folder of class folders.  [default: the captions that the first model "
    "was trained on, else data/emoji]",
)
@click.option("--split", default="test", show_default=True)
@click.option("--langs", help="Languages, separated by commas.  [default: all]")
@_option(
    "protocol",
    "how ranks are counted: any, as CLIP does; xtd, one caption per picture; mclip, as the official mCLIP script; "
    "language, as any, among the pictures that have a caption in the language.",
    type=click.Choice(["any", "xtd", "mclip", "language"]),
    default="any",
    show_default=True,
)
@_option(
    "baseline",
    "compare with `teacher`, `closed-form` (the best linear map on the encoder, without training), `translated:FILE` "
    "(lines of a caption, a tab, its English) or a model folder; repeatable.",
    multiple=True,
    metavar="NAME",
)
@_option(
    "same-images",
    "say whether image vectors are those of OLD, bit for bit, so that an index of them stays: a model folder, or a "
    "CLIP, such as local-dir:DIR or 'ViT-B-32 openai'.",
    metavar="OLD",
)
@_option(
    "dims",
    "also score embeddings that are cut to their first numbers: 32,64,full.",
    metavar="WIDTHS",
)
@_option("sentences", "how many sentences of each direction.  [default: all]", type=click.IntRange(1))
@_option("beams", "width of the beam search.", type=click.IntRange(1), default=5, show_default=True)
@_option("classes", "a YAML file of class names and templates.  [default: ImageNet's]", type=FILE)
@click.option(
    "--out",
    type=FOLDER,
    help="The folder for results.json, report.html, ...  [default: eval/DATA.SPLIT[.TASK][.PRECISION]/ next "
    "to the model]",
)
@DEVICE
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="As a recipe's; auto: bf16 on a GPU that has it, else fp32.",
)
@_option("workers", "processes that decode pictures.  [default: as many as CPU cores]", type=click.IntRange(0))
@_option(
    "cache",
    "where vectors are kept for the next evaluation of the model: a folder, its URL, or off.  [default: where its run "
    "keeps features, such as runs/features; without a run $MCLIP_KIT_CACHE, else features/ beside the model]",
    metavar="FOLDER|off",
)
@JSON
@click.pass_context
def evaluate(
    context: click.Context,
    /,
    models: tuple[Path, ...],
    task: str,
    data: Path | None,
    langs: str | None,
    dims: str | None,
    out: Path | None,
    device: str,
    cache: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Score model folders in every language.

    Image-text retrieval, with pictures of what a model finds; zero-shot classification; retrieval of parallel sentences
    (models, encoders and translators); translations by a translator.
    """
    given = [
        option.opts[0].removeprefix("--")
        for option in context.command.params
        if context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE
    ]
    check_options(task, given)
    from mclip_kit.evaluate.checks import open_data
    from mclip_kit.evaluate.folders import default_folder

    request = Request(
        task=task,
        models=tuple(dict.fromkeys(models)),
        data=data or _trained_on(models[0]),
        languages=languages_of(langs),
        dims=_dims(dims),
        cache=_cache(cache),
        out=out or Path(),
        show=lambda table: (note if as_json else click.echo)(f"\n{coloured(table)}"),
        **options,
    )
    request = replace(request, opened=open_data(request), precision=_precision(request.precision, device))
    request = replace(request, out=out or default_folder(request))
    check_writable(request.out)
    with (
        on_device(device),
        hold(request.out, RESULTS, "writes results there", OTHER),
        json_alone(as_json) as show_json,
    ):
        results = _score(request, command_line(context, but=("as_json",)))
        if as_json:
            show_json(results)


def _trained_on(model: Path) -> Path:
    """The captions of the recipe that a model is from, if it is in its run's folder; else the embedded corpus."""
    from mclip_kit.config.recipe import load

    recipe = fetch(model.resolve().parent / RECIPE)
    captions = load(recipe).data.captions if recipe.is_file() else None
    return Path(captions or "data/emoji")


def _score(request: Request, command: str) -> dict[str, Any]:
    """Score, write results and report, and record the scores in the models' cards; return results.json and files."""
    with importing():
        from mclip_kit.data.leakage import known_overlaps
        from mclip_kit.evaluate.folders import settings
        from mclip_kit.evaluate.report import html
        from mclip_kit.evaluate.report.reproduce import made_by
        from mclip_kit.evaluate.report.results import OF_A_MODEL
        from mclip_kit.features.filling import NoRoom
        from mclip_kit.interop.card import record
        from mclip_kit.train.logging import read_log

        run = EVALUATIONS[request.task].run
    try:
        found = run(request)
    except (NoRoom, DiskError) as error:
        if "cache" not in EVALUATIONS[request.task].options or str(error).startswith(str(request.out)):
            raise
        raise type(error)(f"{error}; --cache names another folder, or off") from None
    about = settings(request) | {"device": found.device} | made_by(request, command)
    about["overlaps"] = known_overlaps(request.data)
    about["leakage_checked"] = [str(name) for name in request.models if exists(name.resolve().parent / LEAKAGE)]
    lists = {name: getattr(found, name) for name in OF_A_MODEL}
    lists["leakage"] = _leaks(request)
    if found.same_images:
        lists["same_images"] = [same.row(name) for name, same in found.same_images.items()]
    replaced = exists(request.out / RESULTS)
    write_json(request.out / RESULTS, about | lists)
    reports = [html.evaluated(name, about | lists, read_log(name.resolve().parent)) for name in request.models]
    html.write(reports, request.out / REPORT, found.gallery)
    files = [request.out / RESULTS, request.out / REPORT, *found.files]
    if found.device:
        note(f"\ncomputed on: {found.device}")
    for name in request.models if request.task == "retrieval" else ():
        same = {"same_images": found.same_images[name].line} if name in found.same_images else {}
        remark = record(name, partial(_facts, results=lists, model=str(name), more=same))
        if remark:
            warn(remark)
    note(f"written{' over earlier results' if replaced else ''}: {', '.join(map(relative, files))}")
    return about | lists | {"files": [str(file) for file in files]}


def _facts(known: dict[str, Any], results: dict[str, Any], model: str, more: dict[str, Any]) -> dict[str, Any]:
    """The facts of a model's card that an evaluation changes."""
    from mclip_kit.interop.facts import evaluated

    return {**more, "evaluations": evaluated(known, results, model)}


def _leaks(request: Request) -> list[dict[str, Any]]:
    """What the training runs of the models and of the baselines found about test sets in their data; it is printed."""
    from mclip_kit.data import leakage

    for line in leakage.known_overlaps(request.data):
        warn(f"overlap, {request.data}: {line}")
    leaks = []
    others = [place(other) for other in request.baseline if fetch(place(other) / MODEL_CONFIG).is_file()]
    for name in dict.fromkeys([*request.models, *others]):
        trained = leakage.read_json(name.resolve().parent / LEAKAGE)
        for leak in leakage.leaks_into(trained, request.data, request.split):
            leaks.append({"model": str(name), **asdict(leak)})
            warn(f"leak, {name}: {leak.line()}")
    return leaks
