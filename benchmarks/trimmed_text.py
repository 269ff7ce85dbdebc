"""Sentences per second of a frozen text tower of CLIP: all 77 positions, or texts trimmed to the batch's longest.

    python benchmarks/trimmed_text.py [--captions FILE] [--rounds 5] [--threads 2] [--smoke]

The tower has the sizes of ViT-B/32's and random weights, float32 on the CPU; the embeddings must agree within 1e-5.
The captions are generated, or read from a file with one caption per line. Batches are measured in random order of
length, and again sorted by length. `--smoke` runs a small tower in seconds.
"""

import argparse
import random
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from side_by_side import alternate, last_line, ratio, seconds, spread
from torch import Tensor

from mclip_kit.models.clip import Clip, build_clip
from mclip_kit.models.freezing import evaluating

GOAL = 2.0
BATCH = 64
CLOSE = 1e-5
WHO = ["A man", "A young woman", "Two children", "A large group of people", "An old man", "A little girl", "A dog"]
LOOK = ["in a red jacket", "wearing a straw hat", "with curly hair", "in blue jeans and a white shirt", "in uniform"]
DOING = ["riding a bicycle", "sitting", "playing soccer", "standing", "taking a photograph", "walking", "talking"]
WHERE = ["down a busy street", "on a wooden bench", "in front of a brick building", "in the park", "at the beach"]
BESIDES = ["while others look on", "next to a parked car", "under an umbrella", "with mountains in the background"]
WHEN = ["on a sunny day", "at night", "during a festival in the middle of the city", "as it starts to rain"]
PARTS = [(WHO, 1.0), (LOOK, 0.5), (DOING, 1.0), (WHERE, 0.9), (BESIDES, 0.5), (WHEN, 0.3)]
"""The parts of a caption, and how often it has each of them."""


def made(count: int) -> list[str]:
    """Captions like those of photographs, about 13 words long; always the same."""
    rng = random.Random(0)
    return [" ".join(rng.choice(texts) for texts, often in PARTS if rng.random() < often) + "." for _ in range(count)]


def read(path: str, count: int) -> list[str]:
    """Captions of a file in random order; always the same."""
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(lines) < BATCH:
        sys.exit(f"{path}: {len(lines)} captions, a batch has {BATCH}")
    random.Random(0).shuffle(lines)
    return lines[: min(count, len(lines) // BATCH * BATCH)]


def teacher(width: int, layers: int) -> Clip:
    """A CLIP with a text tower of these sizes and the smallest image tower."""
    text = {"width": width, "heads": width // 64, "layers": layers}
    vision = {"image_size": 32, "patch_size": 32, "width": 64, "layers": 1}
    return build_clip({"embed_dim": width, "vision_cfg": vision, "text_cfg": text}, "random")


def embed(clip: Clip, ids_NT: Tensor, trim: bool) -> Tensor:
    """Embeddings (N, E), batch by batch."""
    text: Any = clip.model.text
    return torch.cat([text(clip.trim(ids_BT) if trim else ids_BT) for ids_BT in ids_NT.split(BATCH)])


def check(clip: Clip, ids_NT: Tensor) -> None:
    """Stop unless trimmed texts have the same embeddings as whole texts."""
    apart = float((embed(clip, ids_NT, True) - embed(clip, ids_NT, False)).abs().max())
    print(f"embeddings of both differ by {apart:.1e} at most")
    if not apart <= CLOSE:
        sys.exit(f"trimmed_text: the embeddings differ by more than {CLOSE}")


def describe(captions: list[str], clip: Clip, ids_NT: Tensor) -> None:
    """Print what is embedded."""
    words = [len(caption.split()) for caption in captions]
    trimmed = [clip.trim(ids_BT).shape[1] for ids_BT in ids_NT.split(BATCH)]
    print(f"{len(words)} captions of {mean(words):.1f} ± {stdev(words):.1f} words, the longest {max(words)}")
    print(f"batches of {BATCH}: {ids_NT.shape[1]} positions, trimmed {mean(trimmed):.1f}")


def main() -> None:
    """Measure, print, and end with the ratio on unsorted batches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1 if asked.smoke else asked.threads)
    torch.manual_seed(0)
    count = BATCH * (1 if asked.smoke else asked.batches)
    captions = read(asked.captions, count) if asked.captions else made(count)
    clip = teacher(64, 2) if asked.smoke else teacher(512, 12)
    ids_NT = clip.tokenizer(captions)
    sorted_NT = ids_NT[ids_NT.argmax(1).argsort()]
    describe(captions, clip, ids_NT)
    with evaluating(clip):
        check(clip, ids_NT)
        check(clip, sorted_NT)
        variants = {
            "whole": lambda: len(captions) / seconds(lambda: embed(clip, ids_NT, False)),
            "trimmed": lambda: len(captions) / seconds(lambda: embed(clip, ids_NT, True)),
            "trimmed, sorted by length": lambda: len(captions) / seconds(lambda: embed(clip, sorted_NT, True)),
        }
        rates = alternate(variants, 0 if asked.smoke else asked.rounds)
    for name, values in rates.items():
        print(f"{name}: {spread(values)} sentences/s, {spread(ratio(rates, name, 'whole'))} of whole")
    last_line("trimmed_text", ratio(rates, "trimmed", "whole"), GOAL)


if __name__ == "__main__":
    main()
