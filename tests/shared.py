"""Files that are no part of the project: tests that need them are skipped where they are missing, and say so.

They are searched in the folder that the environment variable MCLIP_SHARED names, by default in `shared` next to the
checkout.
"""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("MCLIP_SHARED") or Path(__file__).parents[2] / "shared")
MCLIP_TINY = SHARED / "fixtures" / "mclip_tiny"  # checkpoints, inputs and outputs of the official mCLIP code
MULTI30K = SHARED / "data" / "multi30k"  # text and lists of pictures


def missing(path: Path) -> str:
    """Why a test is skipped."""
    return f"{path} is missing (MCLIP_SHARED=DIR names another folder)"


def needs(path: Path) -> pytest.MarkDecorator:
    """Skip a test where a folder is missing."""
    return pytest.mark.skipif(not path.is_dir(), reason=missing(path))
