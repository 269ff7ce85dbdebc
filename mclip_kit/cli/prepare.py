"""mclip-kit prepare"""

from pathlib import Path

import click

from mclip_kit.cli.common import ANY, FILE, FOLDER


@click.command()
@click.argument("corpora", metavar="[CORPUS | LANG=FILE ...]", nargs=-1)
@click.option("--source", type=ANY, help="Where the corpus's files are: a folder, or a zip.")
@click.option("--images", type=FOLDER, help="Where its pictures are, at any depth.  [default: the source]")
@click.option("--out", type=FOLDER, help="The prepared folder.  [default: data/CORPUS]")
@click.option("--langs", help="Some of its languages, with commas between.  [default: all]")
@click.option("--spm", type=FILE, help="A SentencePiece model in XLM-R's form; without it, one is trained.")
@click.option("--workers", type=click.IntRange(1), help="Processes for large inputs.  [default: the cores]")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Override one key of the declaration."
)
@click.option("--bitext", is_flag=True, help="Prepare parallel files: --bitext en=FILE de=FILE")
@click.option("--pairs", type=FILE, help="Prepare a table of captions or parallel texts: .tsv .csv .jsonl .parquet")
@click.option("--webdataset", metavar="SHARDS", help="Prepare captioned pictures in tars: 'shards-{000..099}.tar'")
@click.option("--folder", type=FOLDER, help="Prepare a folder of pictures with .txt beside, or of one folder a class.")
@click.option(
    "--list", "listing", is_flag=True, help="List the corpora, their sizes and licences, and what is prepared."
)
def prepare(
    corpora: tuple[str, ...],
    source: Path | None,
    images: Path | None,
    out: Path | None,
    langs: str | None,
    spm: Path | None,
    workers: int | None,
    overrides: tuple[str, ...],
    bitext: bool,
    pairs: Path | None,
    webdataset: str | None,
    folder: Path | None,
    listing: bool,
) -> None:
    """Prepare a corpus that data_prep/ declares, by name or file (by default the embedded one), or your own files."""
    from mclip_kit.data.tokenizer import loading

    if spm:
        loading(spm)  # while the rest is imported
    from mclip_kit.config.yaml import overridden, parse
    from mclip_kit.data.corpora import Corpus, declaration
    from mclip_kit.data.corpora.source import Source
    from mclip_kit.data.prepare import adhoc
    from mclip_kit.data.prepare.prepare import prepare, summary

    languages = [language.strip() for language in langs.split(",")] if langs else []
    if listing:
        click.echo(summary.listing((out or Path("data/corpus")).parent))
        return
    kinds = {"--bitext": bitext or None, "--pairs": pairs, "--webdataset": webdataset, "--folder": folder}
    given = [kind for kind, value in kinds.items() if value is not None]
    if len(given) > 1:
        raise click.UsageError("one of --bitext, --pairs, --webdataset and --folder at a time")
    if given:
        if corpora and not bitext:
            raise click.UsageError(f"{given[0]} or a corpus, not both: leave {' '.join(corpora)} out")
        if source and webdataset is None:
            raise click.UsageError(f"{given[0]} says where the files are itself; leave --source out")
        name, tree = adhoc.declared(list(corpora), pairs, webdataset, folder, languages)
        corpus = parse(overridden(tree, overrides), Corpus, name)
        source = folder or (pairs and pairs.parent) or source
    elif len(corpora) > 1:
        raise click.UsageError(f"one corpus at a time, not {' '.join(corpora)}; parallel files need --bitext")
    else:
        wanted = corpora[0] if corpora else "emoji"
        name = Path(wanted).stem
        corpus = declaration(wanted, overrides)
        corpus = corpus.only(languages) if languages else corpus
    target = out or Path("data", name)
    manifest = prepare(corpus, target, spm, Source(source, images, corpus.obtain), workers)
    click.echo(summary.described(target, manifest))
