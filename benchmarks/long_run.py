"""Memory and open files in a long run: 5,000 tiny steps with 20 evaluations.

    python benchmarks/long_run.py [--steps 5000] [--evaluations 20] [--smoke]

One process trains the tiny towers of the tests. After every 50th step the memory that it holds (RSS) and its open files
are read from /proc. The slopes are least squares over the last four fifths. The last line has the memory at one fifth
of the run divided by that at its end: 1.00 is flat.
"""

import argparse
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import last_line

sys.path.insert(0, str(Path(__file__).parents[1]))

from mclip_kit.config.recipe import load
from mclip_kit.evaluate.validation import evaluator
from mclip_kit.train import run as train_run
from mclip_kit.train.callbacks import CALLBACKS, Callback, Progress
from tests import tiny

GOAL = 0.98
EPOCH = 9  # steps: 3 batches of 24 pictures in each of three languages


def main() -> None:
    """Train, sample, print the slopes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--evaluations", type=int, default=20)
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    steps, evaluations, every = (60, 2, 5) if asked.smoke else (asked.steps, asked.evaluations, 50)
    samples: list[tuple[int, float, int]] = []

    class Sampler(Callback):
        """Reads memory and open files."""

        at: Progress

        def after_step(self) -> None:
            if self.at.step % every == 0:
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                memory = pages * resource.getpagesize() / 1e6
                samples.append((self.at.step, memory, len(os.listdir("/proc/self/fd"))))

    train_run.CALLBACKS = [*CALLBACKS, Sampler]
    with tempfile.TemporaryDirectory() as temporary:
        data = tiny.corpus(Path(temporary) / "data")
        tree: dict[str, Any] = tiny.recipe(data) | {"checkpoint_every": 200}
        tree["teacher"]["weights"] = "random"
        tree["stages"] = [tree["stages"][2] | {"epochs": max(1, steps // EPOCH), "ema": 0.99}]
        tree["evaluation"] |= {"every_steps": steps // evaluations}
        recipe = load(tiny.write_recipe(tree, Path(temporary) / "tiny.yaml"))
        train_run.Run(recipe, Path(temporary) / "run", evaluator(recipe)).go()
    step, memory, opened = (np.array(column, float) for column in zip(*samples, strict=True))
    late = step > step[-1] / 5
    slope_memory, slope_files = (np.polyfit(step[late] / 1000, column[late], 1)[0] for column in (memory, opened))
    print(f"{step[-1]:,.0f} steps, {evaluations} evaluations")
    print(
        f"{memory[late][0]:.1f} MB at one fifth, {memory[-1]:.1f} MB at the end, {slope_memory:+.2f} MB per 1,000 steps"
    )
    print(f"{opened[-1]:.0f} open files, {slope_files:+.3f} per 1,000 steps")
    last_line("long_run", memory[late][0] / memory[-1], GOAL)


if __name__ == "__main__":
    main()
