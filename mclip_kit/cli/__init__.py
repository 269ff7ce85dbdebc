"""The command line: init | prepare | extract | train | eval | report | import | export | push |
embed | index | search | demo | data | cache | recipes | doctor.

Wiring only; heavy imports live inside commands.
"""

import click

from mclip_kit import __version__
from mclip_kit.cli.about import doctor, recipes
from mclip_kit.cli.cache import cache
from mclip_kit.cli.common import Commands
from mclip_kit.cli.convert import import_
from mclip_kit.cli.data import data
from mclip_kit.cli.evaluate import evaluate
from mclip_kit.cli.export import export, push
from mclip_kit.cli.init import init
from mclip_kit.cli.prepare import prepare
from mclip_kit.cli.report import report
from mclip_kit.cli.search import demo, embed, index, search
from mclip_kit.cli.train import extract, train


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mclip-kit")
@click.option("--offline", is_flag=True, help="Ask no model hub for anything.")
@click.option("--quiet", is_flag=True, help="Print results, warnings and errors only.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(offline: bool, quiet: bool, debug: bool) -> None:
    """Give an existing CLIP many languages, cheaply."""


SEARCHING = (embed, index, search, demo)
COMMANDS = (
    init,
    prepare,
    extract,
    train,
    evaluate,
    report,
    import_,
    export,
    push,
    *SEARCHING,
    data,
    cache,
    recipes,
    doctor,
)
for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """The entry point."""
    cli()
