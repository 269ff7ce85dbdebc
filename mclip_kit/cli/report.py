"""mclip-kit report"""

from pathlib import Path

import click

from mclip_kit.cli.common import FILE, FOLDER
from mclip_kit.cli.output import note, warn
from mclip_kit.files import check_writable
from mclip_kit.layout import REPORT


@click.command()
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option("--out", type=FILE, default=Path(REPORT), show_default=True, help="The page to write.")
def report(runs: tuple[Path, ...], out: Path) -> None:
    """Compare runs on one HTML page: scores, training curves, recipes.

    RUNS are folders of runs, or folders that mclip-kit eval wrote.
    """
    from mclip_kit.evaluate.report.results import check_folder

    for run in runs:
        check_folder(run)
    check_writable(out)
    from mclip_kit.evaluate.gallery import Gallery
    from mclip_kit.evaluate.report import html
    from mclip_kit.evaluate.report.pictures import confused_pictures
    from mclip_kit.train.logging import read_log

    reports = [html.read(run, read_log(run)) for run in dict.fromkeys(runs)]
    pictures, lines = confused_pictures(reports)
    for line in lines:
        warn(line)
    html.write(reports, out, Gallery(pictures=pictures))
    note(f"written: {out}")
