"""What `torture_inputs.py` damages: real inputs of every kind, and the product's own functions that read them."""

import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

import mclip_kit
from mclip_kit.cli import cli
from mclip_kit.config import recipe as recipes
from mclip_kit.config.yaml import parse
from mclip_kit.data import leakage
from mclip_kit.data.bitext import open_bitext
from mclip_kit.data.captions import read_captions
from mclip_kit.data.corpora import Corpus, declaration
from mclip_kit.data.corpora.source import Source
from mclip_kit.data.prepare import adhoc, summary
from mclip_kit.data.prepare.prepare import prepare
from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.data.triangle_rows import open_rows
from mclip_kit.errors import DataError
from mclip_kit.evaluate.class_names import read_file
from mclip_kit.evaluate.report import html
from mclip_kit.features.copies import shard_folders
from mclip_kit.features.job import ExtractionJob
from mclip_kit.features.manage import ROWS, list_tables
from mclip_kit.features.shards import Shard
from mclip_kit.features.table import Table
from mclip_kit.interop.card import record
from mclip_kit.interop.encoders import named_encoder
from mclip_kit.models.clip import build_clip
from mclip_kit.models.safe_load import read_pickle
from mclip_kit.models.translator import Translator, load_translator, new_decoder
from mclip_kit.search.embed import embed_pictures
from mclip_kit.search.index import build
from mclip_kit.train import checkpoint
from mclip_kit.train.logging import read_log
from mclip_kit.train.resume import check_folder

COLOURS = {"red": "rot", "green": "grün", "blue": "blau", "yellow": "gelb", "black": "schwarz", "grey": "grau"}
CORPUS = """\
about: parallel lines
languages: [en, de]
reader: lines
licences: [{what: all, licence: none needed, by: this benchmark}]
obtain: made by this benchmark
vocabulary: {pieces: 60, coverage: 1.0}
options:
  parts:
    - {split: train, texts: "train.{language}", parallel: true}
    - {split: valid, texts: "valid.{language}", parallel: true}
"""
RECIPE = """\
about: tiny
teacher:
  model:
    embed_dim: 16
    vision_cfg: {image_size: 16, patch_size: 8, width: 32, layers: 1, head_width: 16}
    text_cfg: {context_length: 12, width: 16, heads: 2, layers: 1}
  weights: random
encoder: {layers: 1, width: 16, heads: 2, ffn: 32, dropout: 0.1, positions: 32}
projector: {kind: altclip, pool: cls}
data: {captions: "DATA", bitext: "BITEXT"}
evaluation: {split: valid, languages: [en, de], keep: best}
precision: fp32
stages:
  - {name: distill, train: [student], edges: {teacher_text-student_text: {loss: mse}}, data: bitext, epochs: 2,
     batch_size: 8, lr: 1.0e-3}
  - {name: contrast, train: [student], edges: {image-student_text: {loss: contrastive}}, data: captions, epochs: 2,
     batch_size: 8, lr: 1.0e-3}
"""
CLASSES = "".join(
    f"{code}:\n  classnames: {{red: {a}, blue: {b}}}\n  templates: ['{{c}}', 'a {{c}} square']\n"
    for code, a, b in (("en", "red", "blue"), ("de", "rot", "blau"))
)


class Kind(NamedTuple):
    """A kind of input.

    Attributes:
        place: the file or the folder, whole.
        files: names of the files that are damaged, as patterns in the folder; empty: the file itself.
        read: reads it as the product does; what it returns is compared if
        exact: what a damaged one gives must be what the whole one gives: it has checksums. `raw`: of bytes alone.
        command: the command line that reads it, if there is a quick one.
    """

    place: Path
    files: tuple[str, ...]
    read: Callable[[Path], Any]
    exact: bool | str = False
    command: Callable[[Path], list[str]] | None = None


def digest(*parts: Any) -> str:
    """A hash of tensors, arrays, and of other values as text."""
    found = blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, dict):
            found.update(digest(*(item for pair in sorted(part.items(), key=str) for item in pair)).encode())
        elif isinstance(part, list | tuple):
            found.update(digest(*part).encode())
        else:
            raw = part.detach().cpu().contiguous().numpy() if isinstance(part, Tensor) else part
            found.update(raw.tobytes() if isinstance(raw, np.ndarray) else repr(raw).encode())
    return found.hexdigest()


def run(*words: str) -> None:
    """A command, which must succeed."""
    done = CliRunner().invoke(cli, list(words))
    if done.exit_code:
        raise SystemExit(f"mclip-kit {' '.join(words)}: {done.output[-2000:]}{done.exception!r}")


def texts(colours: dict[str, str]) -> list[tuple[str, str]]:
    """English and German, 24 lines."""
    return [
        (f"a {en} square, shade {n}", f"ein Quadrat, {de}, Ton {n}") for en, de in colours.items() for n in range(4)
    ]


def write_sources(base: Path) -> None:
    """Pictures, tables of them, shards, a folder with captions beside, parallel lines."""
    (base / "pictures").mkdir(parents=True)
    rows = []
    for number, (colour, (en, de)) in enumerate(
        zip([c for c in COLOURS for _ in range(4)], texts(COLOURS), strict=True)
    ):
        picture = Image.new("RGB", (16 + number % 3, 16), colour)
        picture.paste((10 * number, 5, 5), (0, 0, 5, 5))
        picture.save(base / "pictures" / f"{number}.png")
        split = ("train", "train", "train", "valid")[number % 4]
        rows += [(f"pictures/{number}.png", en, "en", split), (f"pictures/{number}.png", de, "de", split)]
    write_tables(base, rows)
    for kind in ("jpg", "gif", "webp", "bmp", "tiff", "ppm"):
        picture.save(base / f"p.{kind}")
    picture.convert("RGBA").save(base / "p.png")
    Image.new("I;16", (20, 20), 900).save(base / "deep.png")
    shutil.copytree(base / "pictures", base / "folder")
    described = [{"file_name": Path(name).name, "text": text} for name, text, code, _ in rows if code == "en"]
    lines = "".join(json.dumps(row) + "\n" for row in described[:12])
    (base / "folder" / "metadata.jsonl").write_text(lines)
    for number in range(12, 18):
        (base / "folder" / f"{number}.txt").write_text(rows[2 * number][1])
        (base / "folder" / f"{number + 6}.json").write_text(json.dumps({"caption": [rows[2 * number][1]]}))
    with tarfile.open(base / "00000.tar", "w") as tar:
        for number in range(24):
            members = {"png": (base / "pictures" / f"{number}.png").read_bytes(), "txt": rows[2 * number][1].encode()}
            members["json"] = json.dumps({"caption": rows[2 * number][1], "width": 16}).encode()
            for ending, content in members.items():
                info = tarfile.TarInfo(f"{number:05}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    write_lines(base)


def write_tables(base: Path, rows: list[tuple[str, ...]]) -> None:
    """The same table in every form."""
    import bz2
    import gzip
    import lzma

    import openpyxl
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ("image", "caption", "language", "split")
    objects = [dict(zip(names, row, strict=True)) for row in rows]
    tsv = "".join("\t".join(row) + "\n" for row in (names, *rows)).encode()
    (base / "t.tsv").write_bytes(tsv)
    (base / "t.csv").write_text("".join(",".join(f'"{cell}"' for cell in row) + "\n" for row in (names, *rows)))
    (base / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in objects))
    (base / "t.json").write_text(json.dumps(objects))
    for ending, pack in ((".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)):
        (base / f"t.tsv{ending}").write_bytes(pack(tsv))
    pq.write_table(pa.Table.from_pylist(objects), base / "t.parquet")
    inside = [{**row, "image": {"bytes": (base / row["image"]).read_bytes(), "path": row["image"]}} for row in objects]
    pq.write_table(pa.Table.from_pylist(inside), base / "p.parquet", compression="zstd")
    book = openpyxl.Workbook()
    for row in (names, *rows):
        book.active.append(row)  # type: ignore[union-attr]
    book.save(base / "t.xlsx")
    pictures = [{"id": n, "file_name": f"pictures/{n}.png"} for n in range(24)]
    captions = [{"id": n, "image_id": n, "caption": row[1]} for n, row in enumerate(rows[::2])]
    (base / "coco.json").write_text(json.dumps({"images": pictures, "annotations": captions}))


def write_lines(base: Path) -> None:
    """Parallel lines in a zip, and its declaration."""
    (base / "lines").mkdir()
    (base / "lines" / "own.yaml").write_text(CORPUS)
    with zipfile.ZipFile(base / "lines" / "source.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for split in ("train", "valid"):
            for side, language in enumerate(("en", "de")):
                lines = [f"{pair[side]} {split}\n" for pair in texts(COLOURS)]
                archive.writestr(f"{split}.{language}", "".join(lines))


def kinds(base: Path) -> dict[str, Kind]:
    """Write every kind of input into a folder; name -> kind."""
    write_sources(base)
    table, lines = base / "t.tsv", base / "lines"
    run("prepare", "--pairs", str(table), "--out", str(base / "data"))
    run("prepare", str(lines / "own.yaml"), "--source", str(lines), "--out", str(base / "lines.data"))
    spm = base / "lines.data" / "bitext" / "sentencepiece.bpe.model"
    recipe = base / "tiny.yaml"
    recipe.write_text(RECIPE.replace("DATA", str(base / "data")).replace("BITEXT", str(base / "lines.data" / "bitext")))
    run("train", str(recipe), "--out", str(base / "runs" / "run"))
    run_folder, model_folder = base / "runs" / "run", base / "runs" / "run" / "model"
    run("eval", str(model_folder), "--data", str(base / "data"), "--split", "valid")
    (base / "classes.yaml").write_text(CLASSES)
    model = mclip_kit.load(model_folder, "cpu")
    embed_pictures(model, base / "pictures", base / "vectors", made_with=str(model_folder))
    build(base / "vectors", base / "index")
    model.clip[0].save(base / "clip")
    model.encoder.save(base / "encoder")
    torch.save(model.encoder.state_dict(), base / "weights.pt")
    Translator(model.encoder, new_decoder(model.encoder, 1, languages=["de"])).save(base / "translator")
    wanted = recipes.load(recipe)
    picture, corpus = base / "p.png", declaration(str(lines / "own.yaml"))

    def of_table(path: Path) -> Any:
        name, tree = adhoc.declare([], path, None, None, [])
        return of_prepared(path, prepare(parse(tree, Corpus, name), _out(path), source=Source(base)))

    def of_prepared(path: Path, manifest: dict[str, Any]) -> None:
        summary.describe(_out(path), manifest)
        captions = read_captions(_out(path))
        for row in range(len(captions.names)):
            if captions.pixels is not None or os.path.isfile(captions.files[row]):
                read_or_refuse(lambda row=row: captions.picture(row))

    def of_folder(path: Path) -> None:
        name, tree = adhoc.declare([], None, None, path, [])
        of_prepared(path, prepare(parse(tree, Corpus, name), _out(path), source=Source(path)))

    def of_shards(path: Path) -> None:
        name, tree = adhoc.declare([], None, str(path), None, [])
        of_prepared(path, prepare(parse(tree, Corpus, name), _out(path), source=Source(None)))

    def of_lines(path: Path) -> Any:
        found = declaration(str(path / "own.yaml"))
        prepare(found, _out(path), spm, Source(path, None, found.obtain), workers=1)
        return [file.read_bytes() for file in sorted(_out(path).rglob("*.txt"))]

    def of_data(path: Path) -> Any:
        name, tree = adhoc.declare([], table, None, None, [])
        summary.list_corpora(path.parent)
        summary.describe(path, prepare(parse(tree, Corpus, name), path, source=Source(base)))
        captions = read_captions(path)
        for row in range(len(captions.names)):
            read_or_refuse(lambda row=row: captions.picture(row))
        columns = (captions.names, captions.languages, captions.splits, captions.texts)
        return captions.select("train"), captions.gallery("valid"), [list(column) for column in columns]

    def of_bitext(path: Path) -> Any:
        summary.describe(path, prepare(corpus, path, None, Source(lines, None, corpus.obtain)))
        bitext, found = open_bitext(path / "bitext"), []
        known = len(bitext.pieces("en")) + 5
        for split in sorted(bitext.splits):
            for pair in bitext.pairs(split):
                for side in bitext.read(split, *pair, 32):
                    for row in range(len(side.tokens)):
                        torch.zeros(known, 1)[torch.from_numpy(side.tokens[row]).long()]  # as an encoder reads them
                        found.append((side.tokens[row], side.texts[row]))
        leakage.leaks_of(path)
        return found

    def of_cache(path: Path) -> Any:
        found = []
        tables = [table for table in list_tables(path) if table.kind != ROWS]
        for table in sorted(tables, key=lambda table: table.folder.name):
            opened = Table(table.folder, table.item_format, "table", log=lambda _: None)
            keys_N2, values = known[table.folder.name]
            sizes = np.array([len(one) for one in values])

            def load(rows: Any, values: Any = values) -> tuple[Any, list[int]]:
                return torch.from_numpy(np.concatenate([values[row] for row in rows])), []

            job = ExtractionJob(load, lambda given: given, sizes, ragged=True, batch_items=1000)
            rows = opened.fill(keys_N2, job)
            found.append([opened.take(rows[place : place + 1]) for place in range(len(rows))])
        return found

    def of_rows(path: Path) -> Any:
        rows = open_rows(path)
        return [np.asarray(getattr(rows, name)) for name in vars(rows) if name.endswith(("_N", "_N2"))], *rows.tokens

    def of_model(path: Path) -> Any:
        found = mclip_kit.load(path, "cpu")
        facts = found.trained_languages, found.made_from, found.settings, found.text_cleaning
        return found.encode_text(["ein Quadrat", "“x”"]), found.encode_image(picture), found.state_dict(), facts

    def of_card(path: Path) -> None:
        record(path, {"recipe": "x"})

    def of_results(path: Path) -> None:
        html.write([html.read(path, read_log(path))], path.parent / "report.html")
        check_folder(path, wanted, resume=True)
        leakage.read_json(path / "leakage.json")

    def of_index(path: Path) -> Any:
        return mclip_kit.Search(path, model).texts(["rot"])

    def of_clip(path: Path) -> None:
        clip = build_clip(f"local-dir:{path}")
        clip.model.visual(clip.transform(Image.open(picture))[None])  # type: ignore[operator]
        clip.model.text(clip.tokenize(["red"]))  # type: ignore[operator]

    known = _known(base / "runs" / "features")
    forms = {
        f"table {path.name}": Kind(
            path, (), of_table, False, lambda p: ["prepare", "--pairs", str(p), "--out", f"{p}.o"]
        )
        for path in [*base.glob("t.*"), base / "p.parquet", base / "coco.json"]
    }
    pictures = {
        f"picture {path.name}": Kind(path, (), model.encode_image)
        for path in [*base.glob("p.*g"), *base.glob("p.[wbtpg]*")]
        if path.suffix != ".parquet"
    }
    weights = ("config.json", "*/*.json", "*.safetensors", "*/*.safetensors", "*/*.model")
    return {
        **forms,
        **pictures,
        "picture 16 bit": Kind(base / "deep.png", (), model.encode_image),
        "recipe": Kind(recipe, (), recipes.load, False, lambda p: ["train", str(p), "--out", f"{p}.run", "--dry-run"]),
        "classes": Kind(base / "classes.yaml", (), lambda path: read_file(path, ["red", "blue"])),
        "declaration": Kind(
            lines, ("own.yaml",), of_lines, False, lambda p: ["prepare", f"{p}/own.yaml", "--out", f"{p}.o"]
        ),
        "zip": Kind(lines, ("source.zip",), of_lines, "raw"),
        "folder": Kind(base / "folder", ("*.jsonl", "*.txt", "*.json", "*.png"), of_folder),
        "shards": Kind(
            base / "00000.tar", (), of_shards, False, lambda p: ["prepare", "--webdataset", str(p), "--out", f"{p}.o"]
        ),
        "prepared": Kind(
            base / "data",
            ("*.arrow", "*.json", "fingerprints/*"),
            of_data,
            True,
            lambda p: ["prepare", "--list", "--out", f"{p}"],
        ),
        "bitext": Kind(
            base / "lines.data", ("bitext/*.bin", "bitext/*.idx", "bitext/*.txt", "manifest.json"), of_bitext, True
        ),
        "vocabulary": Kind(spm, (), lambda path: XlmrTokenizer(path).encode(["a red square"])),
        "rows": Kind(next((base / "runs" / "features").glob("rows-*")), ("*.json", "*.bin"), of_rows, True),
        "cache": Kind(
            base / "runs" / "features",
            ("*/*.json", "*/*.bin", "*/*/*"),
            of_cache,
            True,
            lambda p: ["cache", "ls", "--root", str(p)],
        ),
        "checkpoint": Kind(run_folder / "checkpoints" / "last.pt", (), lambda path: vars(checkpoint.read(path)), "raw"),
        "weights": Kind(base / "weights.pt", (), read_pickle, "raw"),
        "model": Kind(model_folder, weights, of_model, True),
        "translator": Kind(
            base / "translator", ("translator.json", *weights), lambda path: load_translator(path).state_dict(), True
        ),
        "clip": Kind(base / "clip", ("*",), of_clip),
        "encoder": Kind(base / "encoder", ("*",), lambda path: named_encoder(f"hf:{path}")),
        "card": Kind(model_folder, ("card.json", "README.md"), of_card),
        "results": Kind(
            run_folder,
            ("eval/*/results.json", "metrics.jsonl", "recipe.yaml", "leakage.json"),
            of_results,
            False,
            lambda p: ["report", str(p), "--out", f"{p}.html"],
        ),
        "vectors": Kind(base / "vectors", ("*.json", "*/*.npy", "*/*.parquet"), lambda path: build(path, _out(path))),
        "index": Kind(base / "index", ("*",), of_index, True),
    }


def read_or_refuse(read: Callable[[], Any]) -> None:
    """A picture that is none is left out by the product."""
    with suppress(DataError):
        read()


def _out(path: Path) -> Path:
    return path.parent / "out" / "data"


def _known(root: Path) -> dict[str, tuple[np.ndarray, list[np.ndarray]]]:
    """Table -> its keys and the items of each."""
    found = {}
    for table in (table for table in list_tables(root) if table.kind != ROWS):
        opened = Table(table.folder, table.item_format, "table")
        keys_N2 = np.concatenate([Shard(one, table.item_format).keys_N2 for one in shard_folders(table.folder)])
        rows = opened.find(keys_N2)
        values = [opened.take(rows[place : place + 1]).numpy() for place in range(len(rows))]
        found[table.folder.name] = (keys_N2, values)
    return found
