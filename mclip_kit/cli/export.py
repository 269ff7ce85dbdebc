"""mclip-kit export"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mclip_kit.cli.common import FOLDER, importing, languages_of
from mclip_kit.cli.output import note
from mclip_kit.errors import CheckpointError
from mclip_kit.files import check_new
from mclip_kit.interop.export import FORMATS, module
from mclip_kit.layout import README
from mclip_kit.storage import fetch

PUSH = click.option("--push-to-hub", metavar="ORG/NAME", help="Send the folder to the Hugging Face hub, too.")
ABOUT = {
    "open-clip": "A folder that open_clip loads, and clip-benchmark scores.",
    "sentence-transformers": "A folder that SentenceTransformer loads, for texts and pictures.",
    "transformers": "A folder of transformers' AltCLIPModel, or of its VisionTextDualEncoderModel.",
    "diffusers": "The text encoder and tokenizer of a Stable Diffusion pipeline, as AltDiffusion has them.",
    "onnx": "Graphs of both towers that onnxruntime runs, in the layout that Immich reads.",
}
"""Format -> its line of help."""


def _context(reader: str) -> Callable[[Any], Any]:
    """The option --context."""
    about = f"Tokens to which {reader} pads and cuts a text."
    return click.option("--context", type=click.IntRange(min=3), default=77, show_default=True, help=about)


OPTIONS: dict[str, tuple[Callable[[Any], Any], ...]] = {
    "open-clip": (
        click.option(
            "--tower",
            type=click.Choice(["student", "teacher"]),
            default="student",
            show_default=True,
            help="Text tower: the multilingual student, or the CLIP's own.",
        ),
        _context("open_clip"),
        click.option("--repo", metavar="ORG/NAME", help="The hub's repository that the folder will be pushed to."),
    ),
    "sentence-transformers": (
        click.option("--text-only", is_flag=True, help="Leave the image tower out, whatever it is."),
        click.option(
            "--truncate-dim", type=click.IntRange(1), help="Cut embeddings to a width that the model was trained for."
        ),
    ),
    "onnx": (
        click.option(
            "--int8", is_flag=True, help="Weights in 8 bits: a quarter of the size; what it costs is measured."
        ),
        _context("Immich"),
    ),
    "diffusers": (_context("diffusers"),),
}
"""Format -> its own options, which are those of its `FORMAT.options`."""


@click.group("export", invoke_without_command=True, subcommand_metavar="FORMAT MODEL --out DIR")
@click.option("--list", "listed", type=FOLDER, metavar="MODEL", help="Say which formats this model fits, and exit.")
@click.pass_context
def export(ctx: click.Context, listed: Path | None) -> None:
    """Convert model folders into formats of other programs.

    The other program reads the folder in a process of its own, and its embeddings are compared with the model's. The
    folder is kept only if they are the same; its README.md has the differences and how to load it.
    """
    if listed and ctx.invoked_subcommand:
        raise click.UsageError("--list MODEL takes no FORMAT")
    if listed:
        _list(listed)
    elif not ctx.invoked_subcommand:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


def _list(folder: Path) -> None:
    """A line a format: fits exactly, or why not."""
    model = _load(folder)
    from mclip_kit.interop.export import find, misfits
    from mclip_kit.interop.fairseq import misfit

    found = {**misfits(model), "fairseq": misfit(model.encoder)}
    width = max(map(len, found))
    for name, reason in found.items():
        fits = "fits exactly: the encoder, without the projector" if name == "fairseq" else "fits exactly"
        missing = find(name).missing if name in FORMATS else None
        click.echo(
            f"{name:{width}}  {f'does not fit: {reason}' if reason else fits}{f'; {missing}' if missing else ''}"
        )


def _load(folder: Path) -> Any:
    from mclip_kit.doctor.places import check_model

    check_model(folder)
    with importing():
        from mclip_kit.models.multilingual_clip import load

    return load(folder, device="cpu")


def _export(name: str, model: Path, out: Path, hub: str | None, options: dict[str, Any]) -> None:
    """Export a model folder, print what was compared, what differs and how to load the folder; push it if asked."""
    _check_hub(hub)
    if hub:
        if options.get("repo") not in (None, hub):
            raise CheckpointError(f"--repo {options['repo']}: --push-to-hub sends it to {hub}; leave --repo out")
        options |= {"repo": hub} if "repo" in options else {}
    check_new(out)
    loaded = _load(model)
    from mclip_kit.interop import export as formats

    found = formats.export(loaded, name, out, model, **options)
    form, width = formats.find(name), max(map(len, found.differences))
    allowed = form.allowed(loaded, options)
    click.echo(f"{out}: {form.library} gives the model's embeddings; largest difference, by samples:")
    for group, value in found.differences.items():
        more = "" if group in allowed else "  differs: see below"
        click.echo(f"  {group:{width}}  {value:.1e}{more}")
    for line in found.notes:
        click.echo(line)
    note(f"\n{form.lines(loaded, options).format(folder=out)}")
    _push(out, hub)


def _check_hub(repo: str | None) -> None:
    """CheckpointError if a folder cannot be sent to a repository, before anything is computed; None: it is not."""
    if repo:
        from mclip_kit.interop.push import check_repo

        check_repo(repo)


def _push(folder: Path, repo: str | None) -> None:
    """Send a folder to a repository; None: nowhere."""
    if repo:
        from mclip_kit.interop.push import push as upload

        click.echo(f"{folder}: sent to {upload(folder, repo)}")


def _command(name: str) -> click.Command:
    """The command of a format."""

    def run(model: Path, out: Path, push_to_hub: str | None, **options: Any) -> None:
        _export(name, model, out, push_to_hub, options)

    folder = Path("models") / module(name)
    common = (
        click.argument("model", type=FOLDER),
        click.option("--out", type=FOLDER, default=folder, show_default=True),
        PUSH,
    )
    for option in reversed((*common, *OPTIONS.get(name, ()))):
        run = option(run)
    return click.command(name, help=ABOUT[name])(run)


for _name in FORMATS:
    export.add_command(_command(_name))


@export.command("fairseq")
@click.argument("encoder", type=FOLDER)
@click.option("--out", type=FOLDER, required=True)
@PUSH
def export_fairseq(encoder: Path, out: Path, push_to_hub: str | None) -> None:
    """The encoder of a folder (encoder, model or translator) as a fairseq XLM-R folder."""
    _check_hub(push_to_hub)
    from mclip_kit.doctor.places import check_encoder_within

    check_encoder_within(encoder)
    check_new(out)
    from mclip_kit.files import new_folder
    from mclip_kit.interop.card import write_card
    from mclip_kit.interop.fairseq import CARD, write_folder
    from mclip_kit.models.text_encoder import encoder_within

    with new_folder(out) as part:
        write_folder(encoder_within(encoder), part)
        write_card(part, encoder, CARD)
    click.echo(f"{out}: fairseq reads it by XLMRModel.from_pretrained; recipes name it as  encoder: fairseq:{out}")
    _push(out, push_to_hub)


@export.command("clip-retrieval")
@click.argument("model", type=FOLDER)
@click.option("--data", type=FOLDER, required=True, help="A prepared folder, whose pictures and captions are embedded.")
@click.option("--split", default="test", show_default=True)
@click.option("--langs", help="Languages, separated by commas.  [default: all]")
@click.option("--rows", type=click.IntRange(1), default=1_000_000, show_default=True, help="Most rows of a file.")
@click.option("--out", type=FOLDER, required=True)
def export_clip_retrieval(model: Path, data: Path, split: str, langs: str | None, rows: int, out: Path) -> None:
    """Embeddings of pictures and captions, from which `clip-retrieval index` makes a searchable index.

    A row is a picture and one of its captions. Embeddings are L2-normalised and float16, as clip-retrieval's own.
    """
    check_new(out)
    languages = languages_of(langs)
    from mclip_kit.data.captions import read_captions

    captions = read_captions(data)
    captions.select(split, languages)
    loaded = _load(model)
    from mclip_kit.interop import clip_retrieval

    found = clip_retrieval.export(loaded, captions, out, split, languages, rows, model)
    files = f"{found.files} file{'s' * (found.files > 1)}"
    click.echo(f"{out}: {found.rows:,} rows of {found.pictures:,} pictures, in {files} of each kind")
    for line in found.notes():
        click.echo(line)
    note(f"\nclip-retrieval index --embeddings_folder {out} --index_folder INDEX")


@click.command("push")
@click.argument("folder", type=FOLDER)
@click.argument("repo", metavar="ORG/NAME")
def push(folder: Path, repo: str) -> None:
    """Send a model folder or an exported folder, with its card, to the Hugging Face hub."""
    if not (fetch(folder) / README).is_file():
        raise CheckpointError(f"{folder / README}: missing; give a model folder or an exported one, which have a card")
    _push(folder, repo)
