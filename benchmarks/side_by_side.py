"""Measure variants of the same work in turns, so that other load on the computer slows all of them."""

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from statistics import median


def alternate(variants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure every variant once a round, in turns: A B A B.

    Args:
        variants: name -> a function that does the work once and returns a figure, such as its seconds.
        rounds: how many; one more round comes first as a warm-up and is not counted. 0: that round alone, counted.
    Returns:
        name -> its figures, one per round.
    """
    figures: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, measure in variants.items():
            figure = measure()
            if number or not rounds:
                figures[name].append(figure)
    return figures


def seconds(work: Callable[[], object]) -> float:
    """Seconds of doing the work once."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run(command: list[str], **environment: str) -> None:
    """Run a command; what it printed is shown if it fails.

    Args:
        environment: variables that it gets besides those of this process.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout[-1000:]}{done.stderr}")


def memory(figure: str, process: int | str | None = "self") -> int:
    """A figure of a process's memory now, such as VmRSS, VmHWM (the largest so far) or RssAnon; bytes."""
    with open(f"/proc/{process}/status", encoding="ascii") as handle:
        return next(int(line.split()[1]) << 10 for line in handle if line.startswith(figure))


def ratio(figures: dict[str, list[float]], above: str, below: str) -> list[float]:
    """The figures of one variant divided by those of another, round by round."""
    return [a / b for a, b in zip(figures[above], figures[below], strict=True)]


def spread(values: list[float]) -> str:
    """Median, minimum and maximum."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def compare(rates: dict[str, list[float]], what: str) -> None:
    """Print how many of something each variant does in a second, and how many times as fast `ours` is."""
    for name, values in rates.items():
        print(f"{name}: {spread(values)} {what}/s; ours is {spread(ratio(rates, 'ours', name))} times as fast")


def last_line(name: str, values: float | Sequence[float], goal: float, better: str = "higher") -> None:
    """Print the lines that programs read: the ratio of every round, then their median and its goal.

    Args:
        values: of all rounds, or the only one.
        better: `higher` or `lower`; at a ratio of the goal itself it is met.
    """
    rounds = list(values) if isinstance(values, Sequence) else [values]
    print(f"{name} rounds={','.join(f'{value:.4f}' for value in rounds)} better={better}")
    print(f"{name} ratio={median(rounds):.2f} goal={goal:g}")
