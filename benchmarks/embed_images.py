"""Pictures per second of `mclip-kit embed` against a plain loop of open_clip over a DataLoader.

    python benchmarks/embed_images.py [--pictures 600] [--rounds 3] [--threads 2] [--smoke]

Pictures are JPEG files of 640 x 480 noise that was smoothed; the tower is ViT-B/32 with random weights, float32 on the
CPU:

- ours: `embed_pictures` into a new folder: names, hashes, vectors, metadata and checksums on disk
- loop: a DataLoader with as many workers reads with open_clip's transform, batches of 64, `encode_image`, one np.save
- tower: the tower alone on pixels that are in memory, batches of 64

The vectors must agree within 1e-5 before anything is measured. The last line has our pictures per second divided by
those of the loop (goal 1); the line before, by those of the tower (goal 0.9). `--smoke` takes a small tower.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from side_by_side import alternate, compare, last_line, ratio, seconds
from torch.utils.data import DataLoader, Dataset

from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.models.clip import build_clip
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.text_encoder import new_encoder
from mclip_kit.search.embed import embed_pictures

BATCH, CLOSE, GOAL, TOWER_GOAL = 64, 1e-5, 1.0, 0.9
SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 12, "width": 16, "heads": 2, "layers": 1},
}


class Files(Dataset[torch.Tensor]):
    """Pictures as open_clip's transform gives them."""

    def __init__(self, files: list[Path], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> torch.Tensor:
        with Image.open(self.files[number]) as picture:
            return self.transform(picture)


def pictures(folder: Path, count: int) -> list[Path]:
    """JPEG files that differ."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number:06}.jpg", quality=90)
    return sorted(folder.iterdir())


def model_of(folder: Path, small: bool) -> MultilingualClip:
    """A model with the measured image tower and a text tower as small as can be."""
    from prepare import made_up

    tokenizer = XlmrTokenizer(made_up(folder, 200))
    encoder = new_encoder(layers=1, width=16, heads=2, ffn=16, dropout=0.0, positions=32, tokenizer=tokenizer)
    clip = build_clip(SMALL if small else "ViT-B-32", "random")
    return MultilingualClip(clip, encoder, {"kind": "linear", "pool": "mean"}).eval()


def main() -> None:
    """Check, measure in turns, print, and end with the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1 if asked.smoke else asked.threads)
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        folder = Path(temporary)
        files = pictures(folder / "pictures", 70 if asked.smoke else asked.pictures)
        torch.manual_seed(0)
        model = model_of(folder, asked.smoke)
        clip = model.clip[0]
        transform = open_clip.image_transform(clip.preprocess["size"], is_train=False)
        pixels = torch.stack([transform(Image.open(file)) for file in files[:BATCH]])

        def ours() -> None:
            shutil.rmtree(folder / "ours", ignore_errors=True)
            embed_pictures(model, folder / "pictures", folder / "ours", workers=asked.threads)

        def loop() -> None:
            loader = DataLoader(Files(files, transform), BATCH, num_workers=asked.threads)
            parts = [clip.model.encode_image(batch, normalize=True).numpy() for batch in loader]
            np.save(folder / "loop.npy", np.concatenate(parts))

        def tower() -> None:
            for start in range(0, len(files), BATCH):
                clip.model.encode_image(pixels[: min(BATCH, len(files) - start)], normalize=True)

        ours()
        loop()
        apart = np.abs(np.load(folder / "ours" / "img_emb" / "img_emb_0000.npy") - np.load(folder / "loop.npy")).max()
        print(f"{len(files):,} pictures; the vectors differ by {apart:.1e} at most", flush=True)
        if not apart <= CLOSE:
            sys.exit(f"embed_images: the vectors differ by more than {CLOSE}")
        timed = {
            name: (lambda work=work: len(files) / seconds(work))
            for name, work in (("ours", ours), ("loop", loop), ("tower", tower))
        }
        rates = alternate(timed, 0 if asked.smoke else asked.rounds)
    compare(rates, "pictures")
    last_line("embed_images_tower", ratio(rates, "ours", "tower"), TOWER_GOAL)
    last_line("embed_images", ratio(rates, "ours", "loop"), GOAL)


if __name__ == "__main__":
    main()
