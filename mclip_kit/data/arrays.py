"""Opens arrays of NumPy's format."""

from pathlib import Path

import numpy as np

from mclip_kit.errors import first_line


def open_array(path: Path) -> np.ndarray:
    """The array of a .npy file, memory-mapped.

    Raises:
        OSError: it is missing, or cannot be read.
        ValueError: it is damaged, or has Python objects.
    """
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # the header is an expression of Python: tokenize and ast raise their own
        raise ValueError(f"not an array of NumPy: {first_line(error)}") from None
    return array
