"""mclip-kit train | extract"""

import os
import shlex
import sys
from pathlib import Path

import click

from mclip_kit import layout
from mclip_kit.cli.common import FOLDER, SET, importing
from mclip_kit.cli.engine import Chosen, engine_options
from mclip_kit.errors import DataError, RecipeError
from mclip_kit.files import check_writable
from mclip_kit.progress import is_quiet
from mclip_kit.storage import exists


@click.command()
@click.argument("recipe")
@SET
@click.option("--out", type=FOLDER, help="The run's folder.  [default: runs/RECIPE]")
@click.option("--resume", is_flag=True, help="Continue where the run stopped; start it if there is none.")
@click.option("--dry-run", is_flag=True, help="Do everything up to the first step, and measure time and memory.")
def train(recipe: str, overrides: tuple[str, ...], out: Path | None, resume: bool, dry_run: bool) -> None:
    """Train a recipe, by file or by the name of a shipped one."""
    from mclip_kit.config.recipe import load
    from mclip_kit.doctor.places import check_places

    checked = load(recipe, overrides)
    check_places(checked)
    with importing():
        from mclip_kit.evaluate.advice import eval_command
        from mclip_kit.evaluate.validation import evaluator
        from mclip_kit.train.outcome import losses
        from mclip_kit.train.run import Interrupted, Run

    folder = out or Path("runs", Path(recipe).stem)
    if not dry_run:
        check_writable(folder)
    try:
        evaluate = evaluator(checked)
        run = Run(checked, folder, evaluate, resume)
        lines = run.warnings() if is_quiet() else [run.describe(), *(evaluate.describe() if evaluate else ())]
        for line in lines:
            run.accelerator.print(line, flush=True)
        if dry_run:
            for line in run.dry_run():
                run.accelerator.print(line, flush=True)
            return
        model = run.go()
    except Interrupted as stop:
        changes = [word for override in overrides for word in ("--set", override)]
        again = shlex.join(["mclip-kit", "train", recipe, "--out", str(folder), "--resume", *changes])
        if run.is_main:
            click.echo(f"{stop}; resume with: {again}", err=True)
        sys.exit(128 + stop.signal)
    if run.was_finished:
        run.accelerator.print(f"{folder}: this run had finished; nothing was changed", flush=True)
    whole = exists(model / layout.MODEL_CONFIG)
    if not run.is_main:
        return
    then = (
        f"score it with: {eval_command(model, checked)}"
        if whole
        else f"use it as  encoder: hf:{model / layout.ENCODER}"
    )
    run.accelerator.print(f"{model}: done; {then}", flush=True)
    for line in losses(folder, checked):
        run.accelerator.print(line, flush=True)


@click.command()
@click.argument("recipe")
@SET
@click.option("--out", type=FOLDER, help="The run's folder; the features are next to it.  [default: runs/RECIPE]")
@engine_options
def extract(recipe: str, overrides: tuple[str, ...], out: Path | None, engine: Chosen) -> None:
    """Compute and keep what the recipe's frozen towers give for its training rows, so that training only reads it."""
    from mclip_kit.config.recipe import load
    from mclip_kit.doctor.places import check_places

    checked = load(recipe, overrides)
    check_places(checked)
    if checked.cache.features == "off":
        raise RecipeError(f"{recipe}: cache is off, so there is nothing to keep; set cache=auto")
    folder = out or Path("runs", Path(recipe).stem)
    with engine.connect(towers=True) as cluster:
        with importing():
            from mclip_kit.train import extractor

        root, refused = (
            extractor.extract(checked, folder, cluster) if cluster else extractor.Extractor(checked, folder)(0)
        )
    if refused:
        raise DataError(f"{'; '.join(refused)}: not kept; free some space, or set cache.folder, and run it again")
    if int(os.environ.get("RANK", "0")) == 0:
        click.echo(f"{root}: filled; train with: mclip-kit train {recipe}")
