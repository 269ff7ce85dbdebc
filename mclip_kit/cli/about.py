"""mclip-kit recipes | doctor"""

import sys

import click

from mclip_kit.cli.common import SET
from mclip_kit.cli.output import JSON, json_alone, note


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
@JSON
def doctor(recipe: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check this machine, the installed packages and a recipe; say how to fix each problem.

    The exit code is 1 if there is a problem.
    """
    from mclip_kit.doctor import conclusion, diagnose
    from mclip_kit.doctor.findings import NOTE, OK, PROBLEM

    if overrides and recipe is None:
        raise click.UsageError("--set overrides a key of a recipe: name the recipe too")
    findings = []
    with json_alone(as_json) as show_json:
        for finding in diagnose(recipe, overrides):
            findings.append(finding)
            colour = {PROBLEM: "red", NOTE: "yellow"}.get(finding.status)
            show = note if as_json or finding.status == OK else click.echo
            show(click.style(str(finding), fg=colour))
        ends = conclusion(recipe, findings)
        if as_json:
            rows = [{"status": one.status.lower(), "what": one.what, "fix": one.fix} for one in findings]
            show_json({"recipe": recipe, "conclusion": ends, "findings": rows})
        else:
            click.echo(ends)
    sys.exit(any(finding.status == PROBLEM for finding in findings))
