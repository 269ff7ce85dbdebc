"""Variants of one piece of work, measured in turns, so that what slows the computer slows them all."""

import time
from collections.abc import Callable
from statistics import median


def alternate(variants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure every variant once a round, in turns: A B A B.

    Args:
        variants: name -> what does the work once and returns a figure, such as its seconds.
        rounds: how often; one more round before them warms up and is not counted.
    Returns:
        name -> its figures, one a round.
    """
    figures: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, measure in variants.items():
            figure = measure()
            if number:
                figures[name].append(figure)
    return figures


def seconds(work: Callable[[], object]) -> float:
    """How long the work takes once."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(figures: dict[str, list[float]], above: str, below: str) -> list[float]:
    """One variant's figures over another's, round by round."""
    return [a / b for a, b in zip(figures[above], figures[below], strict=True)]


def spread(values: list[float]) -> str:
    """Median, least and greatest."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def last_line(name: str, value: float, goal: float) -> None:
    """What a program reads of a benchmark."""
    print(f"{name} ratio={value:.2f} goal={goal:g}")
