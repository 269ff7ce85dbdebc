"""Recalls of both directions: this package against clip-benchmark, on the same embeddings.

    python benchmarks/recall.py [--smoke]

5,000 pictures and 25,000 captions of width 512, as in COCO's Karpathy split. Each run has a separate process with two
threads; the two sides take turns. Measured are the seconds from embeddings to R@1, R@5 and R@10 of both directions, and
the peak memory of the process, imports and embeddings included. The last line has the ratio of seconds, the line above
it the ratio of memory. `--smoke` uses 200 pictures.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
from side_by_side import alternate, last_line, memory, ratio, spread

GOAL, MEMORY_GOAL = 15, 8
CAPTIONS, WIDTH, NOISE = 5, 512, 6.0
SIZES = {False: (5000, 3), True: (200, 0)}  # pictures, rounds
KS = (1, 5, 10)
THREADS = {name: "2" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


def embeddings(images: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures, and captions near their picture; L2-normalised, float32."""
    draw = np.random.default_rng(1)
    image_GD = draw.standard_normal((images, WIDTH), np.float32)
    image_GD /= np.linalg.norm(image_GD, axis=1, keepdims=True)
    text_QD = draw.standard_normal((images * CAPTIONS, WIDTH), np.float32)
    text_QD *= NOISE / WIDTH**0.5
    for caption in range(CAPTIONS):
        text_QD[caption::CAPTIONS] += image_GD
    text_QD /= np.linalg.norm(text_QD, axis=1, keepdims=True)
    return image_GD, text_QD


def ours(image_GD: np.ndarray, text_QD: np.ndarray) -> tuple[float, list[float]]:
    """Seconds, and recalls in percent: R@1, R@5, R@10 text to image, then image to text."""
    from mclip_kit.evaluate.ranks import both_ranks, recall

    start = time.perf_counter()
    order = np.arange(len(image_GD))
    found = both_ranks(text_QD, image_GD, np.repeat(order, CAPTIONS), order)
    recalls = [value for way in found for value in recall(way).values()]
    return time.perf_counter() - start, recalls


def theirs(image_GD: np.ndarray, text_QD: np.ndarray) -> tuple[float, list[float]]:
    """The same by clip-benchmark; its towers get the embeddings in batches of its default size, 64."""
    import torch
    from clip_benchmark.metrics import zeroshot_retrieval

    class Given:
        encode_image = encode_text = staticmethod(lambda embedding_BD: embedding_BD)

    torch.set_num_threads(2)
    images, texts = torch.from_numpy(image_GD), torch.from_numpy(text_QD)
    rows = torch.arange(len(texts)).reshape(-1, CAPTIONS)
    batches = list(zip(images.split(64), rows.split(64), strict=True))
    pick: Any = lambda asked: texts[torch.stack(asked)]  # noqa: E731
    start = time.perf_counter()
    found = zeroshot_retrieval.evaluate(Given(), batches, pick, "cpu", amp=False, recall_k_list=list(KS))
    recalls = [100 * found[f"{way}_retrieval_recall@{k}"] for way in ("image", "text") for k in KS]
    return time.perf_counter() - start, recalls


def one(name: str, images: int) -> None:
    """Print the seconds, the recalls and the peak resident memory of this process, MB."""
    taken, recalls = (ours if name == "ours" else theirs)(*embeddings(images))
    print(json.dumps({"seconds": taken, "recalls": recalls, "peak": memory("VmHWM") / 2**20}))


def main() -> None:
    """Measure, and print the medians and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--one", choices=["ours", "clip-benchmark"], help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        return one(asked.one, asked.images)
    images, rounds = SIZES[asked.smoke]
    runs: dict[str, list[dict[str, Any]]] = {"clip-benchmark": [], "ours": []}

    def measure(name: str) -> float:
        command = [sys.executable, __file__, "--one", name, "--images", str(images)]
        environment = {**os.environ, **THREADS}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        runs[name].append(json.loads(done.stdout))
        return float(runs[name][-1]["seconds"])

    figures = alternate({name: lambda name=name: measure(name) for name in runs}, rounds)  # type: ignore[misc]
    peaks = {name: [run["peak"] for run in found] for name, found in runs.items()}
    for name, seconds in figures.items():
        recalls = " ".join(f"{value:.3f}" for value in runs[name][-1]["recalls"])
        print(f"{name}: {spread(seconds)} s, peak {spread(peaks[name])} MB, R@1/5/10 t2i and i2t {recalls}")
    last_line("recall_memory", ratio(peaks, "clip-benchmark", "ours"), MEMORY_GOAL)
    last_line("recall", ratio(figures, "clip-benchmark", "ours"), GOAL)


if __name__ == "__main__":
    main()
