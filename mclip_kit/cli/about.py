"""mclip-kit recipes | doctor"""

import sys

import click

from mclip_kit.cli.common import SET


@click.command()
@click.option("--show", metavar="NAME", help="Print a recipe, with its comments, instead.")
def recipes(show: str | None) -> None:
    """List the shipped recipes; `mclip-kit init` writes one for your own data."""
    from mclip_kit.config.recipe import load
    from mclip_kit.config.yaml import find, shipped

    if show is not None:
        click.echo(find(show).read_text(encoding="utf-8"), nl=False)
        return
    for path in sorted(shipped("recipes").glob("*.yaml")):
        click.echo(f"{path.stem:20} {load(path).about}")


@click.command()
@click.argument("recipe", required=False)
@SET
def doctor(recipe: str | None, overrides: tuple[str, ...]) -> None:
    """Check this machine, the installed packages and a recipe; say how to fix each problem.

    The exit code is 1 if there is a problem.
    """
    from mclip_kit.doctor import conclusion, diagnose
    from mclip_kit.doctor.findings import PROBLEM

    if overrides and recipe is None:
        raise click.UsageError("--set overrides a key of a recipe: name the recipe too")
    findings = []
    for finding in diagnose(recipe, overrides):
        findings.append(finding)
        click.echo(str(finding))
    click.echo(conclusion(recipe, findings))
    sys.exit(any(finding.status == PROBLEM for finding in findings))
