"""Seconds of one optimisation step of mCLIP's TriKD: frozen towers are computed in every step, or read from a cache.

    python benchmarks/cached_vs_live.py [--rounds 3] [--threads 2] [--smoke]

The stage is that of recipes/trikd_projectors.yaml in batches of 64: X-projector of 2 layers, linear clip projector,
LAMB. The towers have the sizes of XLM-R base (with 32,000 pieces) and ViT-B/32 and random weights, float32 on the CPU.
Captions are random: 8 to 30 tokens, 14.8 on average. Pictures are arrays of the tower's size: nothing is decoded. A
step is everything from row numbers to changed weights:

naive   like the official code: image tower, teacher's text tower at all 77 positions, and encoder with dropout;
        batches of mixed lengths
live    this package with cache: off: the same towers in eval mode, trimmed texts, batches of similar lengths
cached  this package with cache: tokens: image and teacher embeddings and token states from fp16 files that the system
        keeps in memory, batches of similar lengths
bare    no frozen towers: the step on random tensors in memory, padded to the longest text of a batch of mixed lengths

All variants use the same attention kernels. The batches of similar lengths are 8 of the 50 batches of a window of rows.
The filling epoch computes every distinct picture, English caption and student text once, then takes cached steps. Its
time, and the time of the naive epoch, is extrapolated from a part of the rows. `--smoke` runs small towers in seconds.
"""

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import mean, median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from side_by_side import alternate, last_line, ratio, spread

from mclip_kit.config.recipe import Cache, Recipe, load
from mclip_kit.config.stages import TriangleStage
from mclip_kit.data.batching import WINDOW, pad
from mclip_kit.data.captions import Captions, uncaptioned
from mclip_kit.data.content_keys import hash_texts, hash_tokens
from mclip_kit.data.tokenizer import BOS, EOS, PAD
from mclip_kit.data.transforms import read_pixels
from mclip_kit.data.triangle_rows import TriangleRows
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.models.clip import build_clip
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.text_encoder import new_encoder
from mclip_kit.tasks.triangle_batches import TriangleBatches
from mclip_kit.tasks.triangle_loss import Triangle, TriangleBatch
from mclip_kit.train.optim import build_optimizer, trainable

GOAL, GOAL_BARE, GOAL_FILL = 15.0, 1.1, 1.5
BATCH, BATCHES, PICTURES = 64, 8, 64
LANGUAGES = 4  # in the filling epoch; they share a picture and its English caption
FILLED = ("picture", "English caption", "student text")
VOCABULARY = 32_000
CLOSE = 1e-2  # relative difference of losses and gradients from fp16 features
WORDS = ["man", "woman", "dog", "red", "street", "in", "the", "a", "two", "playing", "standing", "water", "people"]
SMALL_IMAGE = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1}
SMALL_TEXT = {"width": 64, "heads": 1, "layers": 1}
Fields = dict[str, torch.Tensor]


def towers(recipe: Recipe, small: bool) -> MultilingualClip:
    """The recipe's model with random weights."""
    assert recipe.projector
    sizes = (1, 64, 2, 128) if small else (12, 768, 12, 3072)
    tokenizer: Any = SimpleNamespace(vocabulary=VOCABULARY, pad=PAD, longest=None)
    encoder = new_encoder(*sizes, dropout=0.1, positions=512, tokenizer=tokenizer)
    tiny = {"embed_dim": 32, "vision_cfg": SMALL_IMAGE, "text_cfg": SMALL_TEXT}
    clip = build_clip(tiny if small else "ViT-B-32", "random")
    model = MultilingualClip(clip, encoder, recipe.projector.model_dump(exclude={"init"}), recipe.clip_projector)
    model.image.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as a run does
    return model


def made(model: MultilingualClip) -> tuple[TriangleRows, Captions, np.ndarray]:
    """Rows with captions of many lengths, their pictures, and the rows of batches of similar lengths (batches, B)."""
    rng = np.random.default_rng(0)
    count, size = WINDOW * BATCH, int(model.clip[0].config["vision_cfg"]["image_size"])
    lengths_N = np.clip(np.rint(rng.lognormal(np.log(14.3), 0.3, count)), 8, 30).astype(int)
    tokens = [np.array([BOS, *rng.integers(5, VOCABULARY, length - 2), EOS], np.int32) for length in lengths_N]
    english = [" ".join(rng.choice(WORDS, length - 2)) for length in lengths_N]
    zeros, rows = np.zeros(count, int), np.arange(count)
    known, keys_N2 = np.ones(count, bool), (hash_tokens(tokens), hash_texts(english))
    examples = TriangleRows(["en"], zeros, tokens, lengths_N, english, known, rows % PICTURES, rows, zeros, *keys_N2)
    pixels = rng.integers(0, 256, (PICTURES, size, size, 3), np.uint8)
    captions = replace(uncaptioned(Path(), [""] * PICTURES, [""] * PICTURES, []), pixels=pixels)
    buckets_NB = np.argsort(lengths_N, kind="stable").reshape(WINDOW, BATCH)
    return examples, captions, buckets_NB[(2 * np.arange(BATCHES) + 1) * WINDOW // (2 * BATCHES)]


@dataclass
class Variants:
    """What all variants share: the rows, the rows of batches of similar lengths, the batches of live and of cached."""

    triangle: Triangle
    optimizer: torch.optim.Optimizer
    clip_norm: float
    examples: TriangleRows
    captions: Captions
    batches: np.ndarray
    read: dict[str, TriangleBatches]
    notes: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Variant -> share of each step before the projectors began; what is filled -> seconds for one."""

    def step(self, name: str, fetch: Callable[[], TriangleBatch]) -> float:
        """Seconds of one step."""
        start = time.perf_counter()
        batch = fetch()
        ready = time.perf_counter()
        self.optimizer.zero_grad()
        terms = self.triangle(batch)
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.triangle.parameters(), self.clip_norm)
        self.optimizer.step()
        float(terms["loss"].detach())
        end = time.perf_counter()
        self.notes[name].append((ready - start) / (end - start))
        return end - start


def columns(rows: np.ndarray) -> Fields:
    """The fields that every batch has; each row is a separate group."""
    ones = torch.ones(len(rows), dtype=torch.bool)
    return {"languages_B": ones.long(), "groups_B": torch.from_numpy(rows), "has_teacher_B": ones}


def naive(stage: Variants, rows: np.ndarray) -> TriangleBatch:
    """A batch as the official code computes it."""
    examples, model, clip = stage.examples, stage.triangle.model, stage.triangle.model.clip[0]
    pixels_BCHW, _ = read_pixels(stage.captions, examples.images_N[rows], clip.transform, clip.preprocess)
    teacher_ids_BT = clip.tokenizer([examples.teacher_texts[row] for row in rows])
    ids_BT, mask_BT = pad([examples.tokens[row] for row in rows])
    model.encoder.train()
    states_BTH = model.encoder(ids_BT, mask_BT)
    model.encoder.eval()
    vertices = {"image_BE": model.image(pixels_BCHW), "teacher_BE": model.teacher_text(teacher_ids_BT)}
    return TriangleBatch(**columns(rows), **vertices, states_BTH=states_BTH, mask_BT=mask_BT)


def bare(stage: Variants, rows: np.ndarray) -> TriangleBatch:
    """A batch of random tensors."""
    _, mask_BT = pad([stage.examples.tokens[row] for row in rows])
    vertices = {name: torch.randn(len(rows), stage.triangle.model.clip[0].width) for name in ("image_BE", "teacher_BE")}
    states_BTH = torch.randn(*mask_BT.shape, stage.triangle.model.encoder.width)
    return TriangleBatch(**columns(rows), **vertices, states_BTH=states_BTH, mask_BT=mask_BT)


def filled(stage: Variants, rows: np.ndarray) -> float:
    """Fill a new cache for some rows; seconds for a distinct picture and its texts. Each part is noted too."""
    some, parts = stage.read["cached"].rows.select(rows), []
    with tempfile.TemporaryDirectory() as folder:
        frozen = FrozenTowers(stage.triangle.model, FeatureCache(Path(folder), log=lambda line: None))
        image = lambda: frozen.images(stage.captions, some.images_N)  # noqa: E731
        english = lambda: frozen.teacher_texts(some.teacher_texts)  # noqa: E731
        student = lambda: frozen.token_states(some.tokens, some.lengths_N)  # noqa: E731
        for name, fill in zip(FILLED, (image, english, student), strict=True):
            start = time.perf_counter()
            distinct = len(np.unique(fill().rows))
            parts.append((time.perf_counter() - start) / distinct)
            stage.notes[name].append(parts[-1])
    return sum(parts)


def prepared(small: bool, root: Path) -> Variants:
    """The stage with its cache filled."""
    recipe = load("trikd_projectors")
    wanted, model = recipe.stages[0], towers(recipe, small)
    assert isinstance(wanted, TriangleStage)
    triangle = Triangle(model, wanted.edges, trainable(model, wanted.train)).train()
    settings = wanted.optimizer, wanted.lr / wanted.warmup_steps, wanted.weight_decay, wanted.betas, wanted.eps
    examples, captions, batches = made(model)
    some = examples.select(batches.ravel())
    frozen = FrozenTowers(model, FeatureCache(root, log=lambda line: None))
    read = {
        name: TriangleBatches(frozen, some, wanted, wanted.train, Cache(features=features), captions)
        for name, features in (("live", "off"), ("cached", "tokens"))
    }
    parts = triangle, build_optimizer(triangle, *settings), float(wanted.clip_norm or 0), examples, captions
    return Variants(*parts, np.arange(batches.size).reshape(batches.shape), read)


def check(stage: Variants) -> None:
    """Stop unless the first cached step has the loss and gradients of the live step."""
    losses, gradients = [], []
    for name in ("live", "cached"):
        torch.manual_seed(1)  # the same dropout in the X-projector
        loss = stage.triangle(stage.read[name].batch(stage.batches[BATCHES // 2]))["loss"]
        trained = [parameter for parameter in stage.triangle.parameters() if parameter.requires_grad]
        gradients.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, trained)]))
        losses.append(float(loss.detach()))
    apart = abs(losses[1] / losses[0] - 1), float((gradients[1] - gradients[0]).norm() / gradients[0].norm())
    print(f"first step, live and cached: losses differ by {apart[0]:.1e}, gradients by {apart[1]:.1e}, relatively")
    if not max(apart) <= CLOSE:
        sys.exit(f"cached_vs_live: they differ by more than {CLOSE}")


def measured(stage: Variants, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of every variant, and of filling a row, one figure per round."""
    rng = np.random.default_rng(1)
    draw = lambda: rng.choice(len(stage.examples), BATCH, replace=False)  # noqa: E731
    mirrored = cycle(stage.batches[[number, BATCHES - 1 - number]] for number in range(BATCHES // 2))
    tensors = bare(stage, draw())

    def fed(name: str, batches: np.ndarray) -> float:
        return mean(stage.step(name, partial(stage.read[name].batch, rows)) for rows in batches)

    variants = {
        "naive": lambda: stage.step("naive", lambda: naive(stage, draw())),
        "live": lambda: fed("live", next(mirrored)),
        "cached": lambda: fed("cached", stage.batches),
        "bare": lambda: mean(stage.step("bare", lambda: tensors) for _ in range(BATCHES // 2)),
        "fill": lambda: filled(stage, stage.batches[[1, BATCHES - 2]].ravel()),
    }
    return alternate(variants, rounds)


def main() -> None:
    """Measure, print, and end with the ratio of naive to cached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1 if asked.smoke else asked.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        stage = prepared(asked.smoke, Path(folder))
        check(stage)
        figures = measured(stage, 0 if asked.smoke else asked.rounds)
    fill = figures.pop("fill")
    for name, values in figures.items():
        share = "within the step" if name == "live" else f"{median(stage.notes[name]):.1%} of it"
        print(f"{name:7}{spread(values)} s a step, {BATCH / median(values):.1f} pairs/s; frozen towers {share}")
    notes = {name: stage.notes[name][-len(fill) :] for name in FILLED}
    print("filling: " + ", ".join(f"{1000 * median(values):.0f} ms a {name}" for name, values in notes.items()))
    shared = [(whole - own) / LANGUAGES + own for whole, own in zip(fill, notes["student text"], strict=True)]
    steps = list(zip(figures["naive"], figures["cached"], strict=True))
    gains = [[a / (c + BATCH * rate) for (a, c), rate in zip(steps, rates, strict=True)] for rates in (fill, shared)]
    for kind, values in zip(("no picture or caption twice", f"{LANGUAGES} languages a picture"), gains, strict=True):
        print(f"filling epoch, {kind}: naive takes {spread(values)} times as long")
    last_line("live_vs_naive", ratio(figures, "naive", "live"), 1)
    last_line("cached_vs_bare", ratio(figures, "cached", "bare"), GOAL_BARE, "lower")
    last_line("fill_vs_live", gains[1], GOAL_FILL)
    last_line("cached_vs_live", ratio(figures, "naive", "cached"), GOAL)


if __name__ == "__main__":
    main()
