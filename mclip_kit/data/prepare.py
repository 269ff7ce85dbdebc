"""A corpus becomes a prepared folder.

manifest.json               counts, hashes, licences, tool version
images.npy                  uint8 (N, S, S, 3)
images.tsv                  image, group, stratum; row order is that of images.npy
captions.tsv                image, language, split, caption; one row a caption
bitext/                     fairseq-binarised parallel sentences: sentencepiece.bpe.model, dict.LANG.txt,
                            SPLIT.en-LANG.LANG.bin/.idx and the raw text beside, .txt
"""

import csv
import hashlib
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mclip_kit import __version__
from mclip_kit.data import fairseq_io
from mclip_kit.data.bitext import raw_text
from mclip_kit.data.corpora import Content, Corpus, reader
from mclip_kit.data.tokenizer import MODEL_FILE, XlmrTokenizer, train_sentencepiece
from mclip_kit.errors import DataError
from mclip_kit.files import write_json, write_text, write_whole

Bitext = dict[tuple[str, str], tuple[list[str], list[str]]]  # (split, language): lines of both sides


def prepare(corpus: Corpus, out: Path, spm: Path | None = None) -> dict[str, Any]:
    """Read a corpus and write its folder, whole or not at all.

    Args:
        corpus: the declaration.
        out: the folder; one that already holds the same preparation is kept as it is.
        spm: a SentencePiece model in XLM-R's form; None trains one on the training text.
    Returns:
        The manifest.
    Raises:
        DataError: the source is missing or wrong, or `out` holds something else.
    """
    if out.exists():
        return _already_prepared(out, _wanted(corpus, spm))
    if spm:
        XlmrTokenizer(spm)  # a wrong file is refused before the work begins
    return write(reader(corpus)(corpus), corpus, out, spm)


def write(content: Content, corpus: Corpus, out: Path, spm: Path | None = None) -> dict[str, Any]:
    """Write what a reader found as a prepared folder, and return its manifest; arguments as in `prepare`."""
    if not content.names or not content.captions:
        raise DataError(f"{corpus.reader}: the corpus is empty; {corpus.obtain}")
    if len(set(content.names)) < len(content.names):
        twice = next(name for name, count in Counter(content.names).items() if count > 1)
        raise DataError(f"{corpus.reader}: two pictures have the name {twice}")
    out.parent.mkdir(parents=True, exist_ok=True)
    building = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        _write_pictures(content, building)
        bitext = parallel(content, corpus.languages)
        write_bitext(bitext, building / "bitext", corpus, spm)
        manifest = _wanted(corpus, spm) | {
            "tool": f"mclip_kit {__version__}",
            "licences": [licence.model_dump() for licence in corpus.licences],
            "counts": _counts(content, bitext),
            "files": {str(p.relative_to(building)): _hash(p) for p in sorted(building.rglob("*")) if p.is_file()},
        }
        write_json(building / "manifest.json", manifest)
        os.replace(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return manifest


def _wanted(corpus: Corpus, spm: Path | None) -> dict[str, Any]:
    """What a manifest must say for its folder to be this preparation."""
    return {"corpus": corpus.model_dump(mode="json"), "spm": _hash(spm) if spm else None}


def _already_prepared(out: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        found = {key: manifest.get(key) for key in wanted}
    except (OSError, ValueError, AttributeError):
        raise DataError(f"{out}: exists and is not a prepared corpus; remove it or choose another --out") from None
    if found != wanted:
        raise DataError(f"{out}: prepared from another declaration; remove it or choose another --out")
    for name in manifest["files"]:
        if not (out / name).is_file():
            raise DataError(f"{out / name}: missing; remove {out} and prepare it again")
    return manifest


def parallel(content: Content, languages: Sequence[str]) -> Bitext:
    """Captions of the same picture, paired with those of the first language."""
    first, *others = languages
    by_image: dict[int, dict[str, str]] = defaultdict(dict)
    for caption in content.captions:
        by_image[caption.image].setdefault(caption.language, " ".join(caption.text.split()))
    pairs: Bitext = {(split, language): ([], []) for split in dict.fromkeys(content.splits) for language in others}
    for image, texts in by_image.items():
        for language in others:
            if first in texts and language in texts:
                source, target = pairs[content.splits[image], language]
                source.append(texts[first])
                target.append(texts[language])
    return {key: sides for key, sides in pairs.items() if sides[0]}  # fairseq cannot open an empty side


def write_bitext(bitext: Bitext, folder: Path, corpus: Corpus, spm: Path | None = None) -> None:
    """Binarise parallel sentences into `folder`, with the raw text beside."""
    source = corpus.languages[0]
    for (split, language), (left, right) in bitext.items():
        if len(left) != len(right):
            raise DataError(f"{split} {source}-{language}: {len(left)} lines against {len(right)}")
    if spm:
        with write_whole(folder / MODEL_FILE) as temporary:
            shutil.copyfile(spm, temporary)
        tokenizer = XlmrTokenizer(folder)
    else:
        lines = [line for (split, _), sides in bitext.items() if split == "train" for side in sides for line in side]
        vocabulary = corpus.vocabulary
        tokenizer = train_sentencepiece(lines, folder / MODEL_FILE, vocabulary.pieces, vocabulary.coverage)
    for language in corpus.languages:
        fairseq_io.write_dictionary(tokenizer.pieces(), folder / f"dict.{language}.txt")
    for (split, language), sides in tqdm(bitext.items(), "binarising", unit="pair", dynamic_ncols=True):
        for side, lines in zip((source, language), sides, strict=True):
            prefix = folder / f"{split}.{source}-{language}.{side}"
            sentences = [ids[1:] for ids in tokenizer.encode(lines)]
            fairseq_io.write_sentences(sentences, prefix, tokenizer.vocabulary)
            write_text(raw_text(prefix), "".join(f"{line}\n" for line in lines))


def _write_pictures(content: Content, folder: Path) -> None:
    with write_whole(folder / "images.npy") as temporary:
        np.save(temporary, content.pixels)
    rows = zip(content.names, content.groups, content.strata, strict=True)
    _write_table(folder / "images.tsv", ("image", "group", "stratum"), list(rows))
    captions = [(content.names[c.image], c.language, content.splits[c.image], c.text) for c in content.captions]
    _write_table(folder / "captions.tsv", ("image", "language", "split", "caption"), captions)


def _write_table(path: Path, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    with write_whole(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
        writer.writerow(columns)
        writer.writerows([[" ".join(str(cell).split()) for cell in row] for row in rows])


def _counts(content: Content, bitext: Bitext) -> dict[str, Any]:
    return {
        "images": len(content.names),
        "splits": dict(Counter(content.splits)),
        "strata": {
            split: dict(Counter(s for s, p in zip(content.strata, content.splits, strict=True) if p == split))
            for split in dict.fromkeys(content.splits)
        },
        "captions": dict(Counter(caption.language for caption in content.captions)),
        "sentence_pairs": sum(len(left) for left, _ in bitext.values()),
    }


def _hash(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
