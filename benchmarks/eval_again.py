"""Seconds of a second `mclip-kit eval` of the same model, by another protocol, against the first.

    python benchmarks/eval_again.py [--pictures 300] [--rounds 3] [--threads 2] [--smoke]

Pictures are JPEG files of 640 x 480, each with a caption in four languages, those of `benchmarks/embed.py`. The model
has ViT-B/32 and the sizes of XLM-R base with 250,000 pieces under an X-projector, with random weights, float32 on the
CPU. Both are whole commands, start-up included, in turns:

- first: `eval MODEL --data DATA`, with an empty feature cache
- second: `eval MODEL --data DATA --protocol xtd`, which finds all vectors in the cache

The last line has the seconds of the first divided by those of the second (goal 5): loading, ranks, intervals and the
report are what is left. Before it come the tokens that the encoder reads, padding included, in batches of texts of
similar length, and in the order of the data: what sorting saves. `--smoke` takes small towers, in this process.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner
from embed import LANGUAGES, student
from embed_images import SMALL, pictures
from prefetch import prepare
from side_by_side import alternate, last_line, ratio, seconds, spread

from mclip_kit.cli import cli
from mclip_kit.models.clip import build_clip
from mclip_kit.models.encoding import texts_of_a_batch
from mclip_kit.models.multilingual_clip import MultilingualClip

GOAL = 5.0


def corpus(folder: Path, captions: list[str], count: int) -> Path:
    """A prepared folder of picture files, with a caption a language."""
    (folder / "source").mkdir()
    for number, path in enumerate(pictures(folder / "source" / "test", count)):
        for place, language in enumerate(LANGUAGES):
            own = captions[number * len(LANGUAGES) + place]
            path.with_suffix(f".{language}.txt").write_text(f"{own} {number}", encoding="utf-8")
    prepare("--folder", folder / "source", "--out", folder / "data")
    return folder / "data"


def tokens(model: MultilingualClip, texts: list[str], by_length: bool) -> int:
    """Tokens of all batches of a student, padding included."""
    lengths = np.array([len(ids) for ids in model.student_tokens(texts)])
    lengths = np.sort(lengths) if by_length else lengths
    size = texts_of_a_batch(torch.device("cpu"))
    parts = np.split(lengths, range(size, len(lengths), size))
    return sum(int(part.max()) * len(part) for part in parts)


def built(folder: Path, count: int, small: bool) -> tuple[MultilingualClip, list[str], Path]:
    """A model with random weights, its captions, and a prepared folder of so many pictures with them, split `test`."""
    given, captions = student(folder, count * len(LANGUAGES), small)
    clip = build_clip(SMALL if small else "ViT-B-32", "random")
    model = MultilingualClip(clip, given.encoder, {"kind": "transformer", "pool": "mean", "layers": 2}).eval()
    return model, captions, corpus(folder, captions, count)


def main() -> None:
    """Prepare, measure in turns, print, and end with the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    count = 24 if asked.smoke else asked.pictures
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, captions, data = built(folder, count, asked.smoke)
        sorted_tokens, given_tokens = (tokens(model, captions, by_length) for by_length in (True, False))
        model.save(folder / "model")
        del model

        def command(*more: str) -> None:
            words = ["eval", folder / "model", "--data", data, "--cache", folder / "kept", "--device", "cpu"]
            typed = [*map(str, words), "--out", str(folder / "out"), "--workers", str(asked.threads), *more]
            if asked.smoke:
                done = CliRunner().invoke(cli, typed)
                assert done.exit_code == 0, done.output
                return
            threads = f"import sys, torch; torch.set_num_threads({asked.threads}); from mclip_kit.cli import cli; cli()"
            subprocess.run([sys.executable, "-c", threads, *typed], check=True, stdout=subprocess.DEVNULL)

        def first() -> float:
            shutil.rmtree(folder / "kept", ignore_errors=True)
            return seconds(command)

        def second() -> float:
            return seconds(lambda: command("--protocol", "xtd"))

        figures = alternate({"first": first, "second": second}, 0 if asked.smoke else asked.rounds)
    print(f"{count:,} pictures, {len(captions):,} captions")
    for name, values in figures.items():
        print(f"{name}: {spread(values)} s")
    print(f"tokens with padding: {sorted_tokens:,} sorted by length, {given_tokens:,} in the order of the data")
    last_line("eval_again", ratio(figures, "first", "second"), GOAL)


if __name__ == "__main__":
    main()
