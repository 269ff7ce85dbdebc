"""Memory of the contrastive loss: the matrix of all pairs against the rows in parts.

    python benchmarks/contrastive_memory.py [--smoke]
    python benchmarks/contrastive_memory.py --rows 32768 [--alone]

One process computes the loss of pairs of width 512 and its gradients, forward and backward, in a forked process each
time. The whole matrix is open_clip's ClipLoss; both must give the same loss and gradients, which is checked. Printed
are the seconds, and the peak memory beside the embeddings. The last line has the whole matrix's peak over ours for the
most rows. `--smoke` takes fewer rows. `--rows N` measures one size, and with `--alone` ours only.
"""

import argparse
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from side_by_side import alternate, last_line, memory, ratio, seconds, spread
from torch import Tensor

from mclip_kit.losses import contrastive

GOAL = 4
WIDTH, SCALE = 512, 1 / 0.07
SIZES = {False: ((2048, 4096, 8192), 3), True: ((1024, 2048), 1)}  # rows, rounds
SAMPLE = 64  # rows whose gradients are compared
FORK = multiprocessing.get_context("fork")


def whole_matrix(a_ND: Tensor, b_ND: Tensor, scale: Tensor) -> Tensor:
    """open_clip's loss."""
    loss: Tensor = ClipLoss()(F.normalize(a_ND), F.normalize(b_ND), scale)
    return loss


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"whole matrix": whole_matrix, "in parts": contrastive}


def step(way: str, rows: int, pipe: Connection) -> None:
    """Send seconds, MB and what was computed."""
    generator = torch.Generator().manual_seed(0)
    a_ND, b_ND = (torch.randn(rows, WIDTH, generator=generator).requires_grad_() for _ in range(2))
    scale = torch.tensor(SCALE, requires_grad=True)
    loss = torch.zeros(())

    def compute() -> None:
        nonlocal loss
        loss = WAYS[way](a_ND, b_ND, scale)
        loss.backward()

    before = memory("VmRSS")
    taken = seconds(compute)
    found = [leaf.grad[:SAMPLE] if leaf.dim() else leaf.grad for leaf in (a_ND, b_ND, scale) if leaf.grad is not None]
    pipe.send((taken, (memory("VmHWM") - before) / 2**20, [part.tolist() for part in (loss.detach(), *found)]))


def measure(way: str, rows: int) -> tuple[float, float, list[Any]]:
    """Seconds and MB of one step in a process of its own, and what it computed."""
    ours, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=step, args=(way, rows, theirs))
    process.start()
    theirs.close()
    found: tuple[float, float, list[Any]] = ours.recv()
    process.join()
    return found


def compare(rows: int, rounds: int, ways: list[str]) -> dict[str, list[float]]:
    """Print seconds and MB of each way, check that they agree, and return the MB of each round."""
    peaks: dict[str, list[float]] = {way: [] for way in ways}
    results: dict[str, list[Any]] = {}

    def once(way: str) -> float:
        taken, peak, results[way] = measure(way, rows)
        peaks[way].append(peak)
        return taken

    figures = alternate({way: lambda way=way: once(way) for way in ways}, rounds)  # type: ignore[misc]
    for way, values in figures.items():
        print(f"{rows:,} rows, {way}: {spread(values)} s, {median(peaks[way]):,.0f} MB", flush=True)
    for one, other in zip(results[ways[0]], results[ways[-1]], strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-4, atol=1e-6)
    return peaks


def main() -> None:
    """Measure all sizes, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--rows", type=int, help="measure this size alone")
    parser.add_argument("--alone", action="store_true", help="measure the parts alone")
    asked = parser.parse_args()
    sizes, rounds = SIZES[asked.smoke]
    ways = ["in parts"] if asked.alone else list(WAYS)
    for rows in [asked.rows] if asked.rows else sizes:
        peaks = compare(rows, rounds, ways)
    if not asked.alone:
        last_line("contrastive_memory", ratio(peaks, "whole matrix", "in parts"), GOAL)


if __name__ == "__main__":
    main()
