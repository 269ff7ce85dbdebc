"""Round numbers for the axes of charts."""

import math


def ceiling(value: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below a value; 1 for zero.

    >>> ceiling(37.2), ceiling(0.03), ceiling(0)
    (50.0, 0.05, 1.0)
    """
    if not value > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return float(f"{next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9)):.12g}")


def ticks(low: float, high: float) -> list[float]:
    """Two to six round values; the first is not above `low`, the last not below `high`.

    >>> ticks(0.3, 2.2)
    [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    """
    step = ceiling((high - low) / 5 or abs(high) or 1.0)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, max(last, first + 1) + 1)]


def powers(low: float, high: float) -> list[float]:
    """The whole numbers around an interval, at most six of them."""
    first, last = math.floor(low + 1e-9), math.ceil(high - 1e-9)
    step = -(-max(last - first, 1) // 5)
    return [float(first + number * step) for number in range(-(-max(last - first, 1) // step) + 1)]
