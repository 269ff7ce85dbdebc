"""Embedding a folder of pictures: `mclip-kit embed` against `clip-retrieval inference`, whole commands.

    python benchmarks/peers.py clip-retrieval
    python benchmarks/embed_vs_clip_retrieval.py [--pictures 1000] [--rounds 3] [--threads 2] [--smoke]

Pictures are JPEG files of 640 x 480 noise that was smoothed; the tower is ViT-B/32 with the same random weights, on the
CPU, batches of 64, two processes that decode. Start-up, loading the weights and writing are included; both write fp16
vectors in the same layout, which must agree within 2e-3 in every number. The peer runs in the environment that
`benchmarks/peers.py` makes, and does not need any other. The last line has its seconds divided by ours. `--smoke` takes
few pictures.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import peers
import torch
from embed_images import model_of, pictures
from side_by_side import alternate, last_line, ratio, run, seconds, spread

GOAL, CLOSE, BATCH = 1.2, 2e-3, 64


def vectors(folder: Path) -> np.ndarray:
    """What a command has written."""
    return np.concatenate([np.load(part) for part in sorted((folder / "img_emb").glob("*.npy"))]).astype(np.float32)


def main() -> None:
    """Measure in turns, compare the vectors, print, and end with the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    if "clip-retrieval" in peers.missing():
        sys.exit("embed_vs_clip_retrieval: run python benchmarks/peers.py clip-retrieval first")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = pictures(folder / "pictures", 20 if asked.smoke else asked.pictures)
        torch.manual_seed(0)
        model = model_of(folder, small=False)
        model.save(folder / "model")
        weights = folder / "weights.pt"
        state = model.clip[0].model.state_dict().items()  # of CustomTextCLIP; the peer loads CLIP
        torch.save({name.removeprefix("text."): tensor for name, tensor in state}, weights)
        del model
        ours = [sys.executable, "-m", "mclip_kit.cli", "embed", str(folder / "model"), "--dtype", "fp16"]
        ours += ["--images", str(folder / "pictures"), "--workers", "2", "--out", str(folder / "ours")]
        theirs = [peers.python("clip-retrieval"), "-m", "clip_retrieval.cli", "inference", "--enable_text", "False"]
        theirs += ["--input_dataset", str(folder / "pictures"), "--output_folder", str(folder / "theirs")]
        theirs += ["--clip_model", f"open_clip:ViT-B-32/{weights}", "--batch_size", str(BATCH)]
        theirs += ["--num_prepro_workers", "2", "--use_jit", "False"]

        def timed(command: list[str], out: Path) -> float:
            shutil.rmtree(out, ignore_errors=True)
            return seconds(lambda: run(command, OMP_NUM_THREADS=str(asked.threads)))

        commands = {"ours": (ours, folder / "ours"), "clip-retrieval": (theirs, folder / "theirs")}
        variants = {name: lambda own=own: timed(*own) for name, own in commands.items()}
        figures = alternate(variants, 0 if asked.smoke else asked.rounds)
        apart = np.abs(vectors(folder / "ours") - vectors(folder / "theirs")).max()
    print(f"{len(files):,} pictures; the vectors differ by {apart:.1e} at most")
    if not apart <= CLOSE:
        sys.exit(f"embed_vs_clip_retrieval: the vectors differ by more than {CLOSE}")
    for name, values in figures.items():
        print(f"{name}: {spread(values)} s")
    last_line("embed_vs_clip_retrieval", ratio(figures, "clip-retrieval", "ours"), GOAL)


if __name__ == "__main__":
    main()
