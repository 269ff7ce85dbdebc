"""`mclip-kit embed`, `index`, `search` and `demo`."""

import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mclip_kit.cli.common import DEVICE, FILE, FOLDER, importing, on_device
from mclip_kit.cli.engine import Chosen, engine_options
from mclip_kit.cli.output import JSON, ShowJson, json_alone, note
from mclip_kit.errors import CheckpointError, DataError, one_line
from mclip_kit.files import check_writable
from mclip_kit.layout import MODEL_CONFIG
from mclip_kit.storage import fetch
from mclip_kit.urls import is_copy

if TYPE_CHECKING:
    from mclip_kit.search.search import Hit, Search

MODEL = click.option("--model", type=FOLDER, help="The model folder.  [default: the one that embedded the pictures]")


@click.command()
@click.argument("model", type=FOLDER)
@click.option("--images", metavar="SOURCE", help="A folder, shards ('00{0..9}.tar'), a table, or a prepared folder.")
@click.option("--texts", type=FILE, help="A text a line.")
@click.option("--out", type=FOLDER, required=True, help="The folder of the vectors; it may have earlier ones.")
@click.option("--dtype", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True)
@click.option("--workers", type=click.IntRange(0), help="Processes that decode.  [default: as many as CPU cores]")
@DEVICE
@engine_options
def embed(
    model: Path,
    images: str | None,
    texts: Path | None,
    out: Path,
    dtype: Any,
    workers: int | None,
    device: str,
    engine: Chosen,
) -> None:
    """Embed any number of pictures, or texts, into files of vectors.

    What was interrupted goes on where it stopped, and pictures that were embedded before are not computed again. The
    folder is in clip-retrieval's layout. Several GPUs: torchrun --nproc-per-node N -m mclip_kit.cli embed ...
    """
    if (images is None) == (texts is None):
        raise click.UsageError("give one of --images and --texts")
    if device != "auto" and engine.engine != "local":
        raise click.UsageError(f"--device: every process of --engine {engine.engine} takes its node's; leave it out")
    from mclip_kit.doctor.places import check_model

    check_model(model)
    if texts is not None and not fetch(texts).is_file():
        raise DataError(f"{texts}: no such file")
    check_writable(out)
    rank, world_size = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    if world_size > 1 and device in ("auto", "cuda") and _has_gpus():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    with importing():
        from mclip_kit.models.student import load_student
        from mclip_kit.progress import tqdm
        from mclip_kit.search.embed import embed_pictures, embed_texts

        if texts is None:
            from mclip_kit.models.multilingual_clip import load

    made_with = os.path.abspath(model)
    with engine.connect(towers=True) as cluster, on_device("cpu" if cluster else device):
        if texts is not None:
            student = load_student(model)
            found, width = embed_texts(student, texts, out, dtype, made_with, tqdm.write, cluster), student.width
        else:
            loaded = load(model)
            decode = int(cluster.cpus) if cluster and workers is None else workers
            shares = (rank, world_size, made_with, tqdm.write, cluster)
            found, width = embed_pictures(loaded, str(images), out, dtype, decode, *shares), loaded.width
    if rank:
        return
    for line in found.lines():
        click.echo(line)
    what = "pictures" if texts is None else "texts"
    then = f"; then: mclip-kit index {out} --out INDEX" if texts is None else ""
    click.echo(f"{out}: vectors of {found.count:,} {what}, {width} numbers each{then}")


def _has_gpus() -> bool:
    import torch

    return torch.cuda.is_available()


@click.command("index")
@click.argument("embeddings", type=FOLDER)
@click.option("--out", type=FOLDER, required=True)
@click.option(
    "--kind",
    type=click.Choice(["flat", "hnsw", "ivfpq"]),
    help="flat: exact; hnsw: faster; ivfpq: 64 bytes a picture.  [default: as it is, at first flat]",
)
def index(embeddings: Path, out: Path, kind: Any) -> None:
    """Build an index of vectors, or bring it up to date; new pictures are appended, deleted ones are not found."""
    _check_packages("faiss")
    check_writable(out)
    from mclip_kit.search.index import build

    built = build(embeddings, out, kind)
    changes = ", ".join(
        f"{count:,} {name}"
        for name, count in (("new", built.added), ("deleted", built.gone), ("more with the same content", built.same))
        if count
    )
    click.echo(f"{out}: {built.kind}, {built.count:,} pictures ({changes or 'nothing new'})")
    if built.recall is None:
        click.echo("exact: every picture is compared")
    else:
        click.echo(f"recall of the exact 10 nearest: {100 * built.recall:.1f}%, queries: {built.queries}")
    note(f'then: mclip-kit search {out} "ein Hund im Schnee"')


@click.command()
@click.argument("index", type=FOLDER)
@click.argument("queries", nargs=-1)
@MODEL
@click.option("--image", type=FILE, help="Find pictures like this one.")
@click.option("--top", type=click.IntRange(1), default=10, show_default=True)
@JSON
@click.option("--open", "opened", is_flag=True, help="Show a sheet of the pictures.")
@DEVICE
def search(
    index: Path,
    queries: tuple[str, ...],
    model: Path | None,
    image: Path | None,
    top: int,
    as_json: bool,
    opened: bool,
    device: str,
) -> None:
    """Find pictures by texts in any language; without QUERIES, a query a line from standard input.

    --json prints a line a query.
    """
    if image and queries:
        raise click.UsageError("give --image or texts, not both")
    if not image and not queries and sys.stdin.isatty():
        raise click.UsageError('give a query, as in: mclip-kit search INDEX "ein Hund im Schnee"')
    _check_packages("faiss")
    with json_alone(as_json) as show_json, on_device(device):
        found = list(_found(index, queries, model, image, top, show_json if as_json else None))
    if opened and found:
        from mclip_kit.search.sheet import write_sheet

        sheet = write_sheet(found)
        click.echo(f"opening {sheet}", err=True)
        click.launch(str(sheet))


def _found(
    index: Path, queries: Sequence[str], model: Path | None, image: Path | None, top: int, show: ShowJson | None
) -> Iterator[tuple[str, Sequence["Hit"]]]:
    """Each query and what it finds, which is printed at once."""
    with importing():
        from mclip_kit.search.search import Search

    searcher = Search(index, model)
    if image:
        hits = searcher.pictures(image, top)[0]
        _show(image.name, hits, show)
        yield image.name, hits
        return
    count, empty = 0, 0
    typed = (line.decode("utf-8", "surrogateescape") for line in sys.stdin.buffer)
    given: Iterable[str] = queries or typed
    for text in (_utf8(line) for line in given):
        if text.strip():
            hits = searcher.texts(text, top)[0]
            _show(text, hits, show)
            _tell_script(searcher, text)
            count += 1
            yield text, hits
        else:
            empty += 1
    if empty or not count:
        click.echo(f"{empty} empty queries were left out" if empty else "standard input had no query", err=True)


def _utf8(query: str) -> str:
    """A query without its line's end; DataError if its bytes were not UTF-8."""
    line = query.rstrip("\r\n")
    try:
        line.encode()
    except UnicodeEncodeError:
        raise DataError(f"query {line!a}: it is not UTF-8; write it in UTF-8") from None
    return line


def _check_packages(*packages: str) -> None:
    missing = [package for package in packages if not importlib.util.find_spec(package)]
    if missing:
        raise CheckpointError(
            f"{' and '.join(missing)} is needed: run, in mclip-kit's checkout, python -m pip install -e '.[search]'"
        )


def _show(query: str, hits: Sequence["Hit"], show: ShowJson | None) -> None:
    """Print what a query finds: by `show`, or for people."""
    if show:
        rows = [{"file": hit.file, "score": round(hit.score, 6), "caption": hit.caption} for hit in hits]
        show({"query": query, "hits": rows})
        return
    click.echo(one_line(query))
    for rank, hit in enumerate(hits, 1):
        click.echo(
            f"{rank:3}  {hit.score:.3f}  {one_line(hit.file)}{f'  {one_line(hit.caption)}' if hit.caption else ''}"
        )


def _tell_script(searcher: "Search", text: str) -> None:
    from mclip_kit.search.search import untrained_script

    languages = searcher.student.trained_languages
    script = untrained_script(text, languages)
    if script:
        click.echo(
            f"note: this query is in {script} letters; the model was trained on {', '.join(languages)}", err=True
        )


@click.command()
@click.argument("place", metavar="INDEX|MODEL", type=FOLDER)
@click.option("--images", metavar="SOURCE", help="Of a MODEL: the pictures; a folder, shards, a table, or prepared.")
@MODEL
@click.option(
    "--work", type=FOLDER, help="Where their vectors and index are kept.  [default: search/NAME by the model]"
)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0: everyone in the network can search.")
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True)
@click.option("--open", "opened", is_flag=True, help="Open it in the browser.")
@DEVICE
def demo(
    place: Path,
    images: str | None,
    model: Path | None,
    work: Path | None,
    host: str,
    port: int,
    opened: bool,
    device: str,
) -> None:
    """A page to search in, on this machine."""
    _check_packages("faiss", "fastapi", "uvicorn")
    if images is None and (work or fetch(place / MODEL_CONFIG).is_file()):
        raise click.UsageError(f"{place}: name the pictures, as in: mclip-kit demo {place} --images DIR")
    if images is not None and model is not None:
        raise click.UsageError("--images goes with a MODEL in the place of INDEX; leave --model out")
    with importing():
        from mclip_kit.search.search import Search
        from mclip_kit.search.web import serve

    with on_device(device):
        search = Search(place, model) if images is None else _embedded(place, images, work)

    def ready(address: str) -> None:
        click.echo(f"{search.count:,} pictures; open {address} in a browser; Ctrl-C ends it")
        if opened:
            click.launch(address)

    serve(search, host, port, ready)


def _embedded(model: Path, images: str, work: Path | None) -> "Search":
    """A search in pictures, which are embedded by a model first."""
    from mclip_kit.doctor.places import check_model

    check_model(model)
    from mclip_kit.models.multilingual_clip import load
    from mclip_kit.search.embed import embed_pictures
    from mclip_kit.search.index import build
    from mclip_kit.search.search import Search

    own = work or (Path() if is_copy(model) else model.parent) / "search" / (Path(images).stem or "pictures")
    check_writable(own)
    loaded = load(model)
    embedded = embed_pictures(loaded, images, own, made_with=os.path.abspath(model), log=click.echo)
    for line in embedded.lines():
        click.echo(line)
    build(own, own / "index")
    return Search(own / "index", loaded)
