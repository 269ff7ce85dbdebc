"""`mclip-kit prepare`: a corpus, or a user's own files, to a prepared folder."""

from pathlib import Path

import click

from mclip_kit.cli.common import ANY, FILE, FOLDER
from mclip_kit.cli.engine import Chosen, engine_options
from mclip_kit.files import check_writable
from mclip_kit.storage import exists


@click.command()
@click.argument("corpora", metavar="[CORPUS | LANG=FILE ...]", nargs=-1)
@click.option("--source", type=ANY, help="The folder or zip with the corpus's files.")
@click.option("--images", type=FOLDER, help="The folder with its pictures, at any depth.  [default: the source]")
@click.option("--out", type=FOLDER, help="The folder to write.  [default: data/CORPUS]")
@click.option("--langs", help="Only these languages, separated by commas.  [default: all]")
@click.option("--spm", type=FILE, help="A SentencePiece model in XLM-R's form.  [default: one is trained]")
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Processes for large inputs.  [default: as many as CPU cores, of all nodes with --engine ray]",
)
@engine_options
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Override one key of the declaration."
)
@click.option("--bitext", is_flag=True, help="Prepare parallel files: --bitext en=FILE de=FILE")
@click.option(
    "--pairs", type=FILE, help="Prepare a table of captions or parallel texts: .tsv .csv .jsonl .json .parquet .xlsx"
)
@click.option(
    "--webdataset", metavar="SHARDS", help="Prepare pictures with captions or classes in tars: 'shards-{000..099}.tar'"
)
@click.option(
    "--folder",
    type=FOLDER,
    help="Prepare a folder of pictures: with captions beside (NAME.txt, NAME.de.txt, NAME.json, metadata.jsonl), a "
    "folder a class, or bare; folders train/, val/ and test/ are splits.",
)
@click.option(
    "--again",
    is_flag=True,
    help="Prepare again what is there, such as after a correction of its source; the folder is replaced at the end.",
)
@click.option(
    "--list", "listing", is_flag=True, help="List the corpora, their sizes and licences, and where they are prepared."
)
def prepare(
    corpora: tuple[str, ...],
    source: Path | None,
    images: Path | None,
    out: Path | None,
    langs: str | None,
    spm: Path | None,
    workers: int | None,
    engine: Chosen,
    overrides: tuple[str, ...],
    bitext: bool,
    pairs: Path | None,
    webdataset: str | None,
    folder: Path | None,
    again: bool,
    listing: bool,
) -> None:
    """Prepare a corpus for training and evaluation.

    CORPUS is the name of a declaration in data_prep/, or a YAML file; by default, the embedded corpus `emoji`.
    Your own files are prepared by --bitext, --pairs, --webdataset or --folder.
    """
    from mclip_kit.config.yaml import overridden, parse
    from mclip_kit.data.corpora import Corpus, declaration
    from mclip_kit.data.corpora.source import Source
    from mclip_kit.data.prepare import adhoc, summary
    from mclip_kit.data.prepare.prepare import prepare

    languages = [language.strip() for language in langs.split(",")] if langs else []
    if listing:
        click.echo(summary.list_corpora((out or Path("data/corpus")).parent))
        return
    kinds = {"--bitext": bitext or None, "--pairs": pairs, "--webdataset": webdataset, "--folder": folder}
    given = [kind for kind, value in kinds.items() if value is not None]
    if len(given) > 1:
        raise click.UsageError("give only one of --bitext, --pairs, --webdataset and --folder")
    if given:
        if corpora and not bitext:
            raise click.UsageError(f"give {given[0]} or a corpus, not both; leave {' '.join(corpora)} out")
        if source and webdataset is None:
            raise click.UsageError(f"{given[0]} already gives the files; leave --source out")
        name, tree = adhoc.declare(list(corpora), pairs, webdataset, folder, languages, source, overrides)
        corpus = parse(overridden(tree, overrides), Corpus, name)
        source = folder or (pairs and pairs.parent) or source
    elif len(corpora) > 1:
        raise click.UsageError(f"give one corpus at a time, not {' '.join(corpora)}; parallel files need --bitext")
    else:
        wanted = corpora[0] if corpora else "emoji"
        name = Path(wanted).stem
        corpus = declaration(wanted, overrides)
        corpus = corpus.with_languages(languages) if languages else corpus
    target = out or Path("data", name)
    if not exists(target):
        check_writable(target)
    with engine.connect(workers) as cluster:
        manifest = prepare(corpus, target, spm, Source(source, images, corpus.obtain), cluster or workers, again)
    click.echo(summary.describe(target, manifest))
