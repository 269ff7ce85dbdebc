"""Centroids: where the student puts a sentence and its translations on average, as a stage starts.

Trunk calibration (arXiv 2608.30725) pulls each language to them: its anchors are the normalised means of the frozen
starting encoder's embeddings of a caption in all languages. Rows belong together as they do for positives: captions of
one picture, or parallel sentences with the same text in the teacher's language.

Shapes: N rows, G groups, B rows of a batch, D embedding width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mclip_kit.data.row_files import ColumnWriter, open_folder
from mclip_kit.data.sequences import blocks_of
from mclip_kit.data.triangle_rows import TriangleRows
from mclip_kit.progress import SOON, tqdm

GROUPS = 2048  # of a block
Embed = Callable[[Sequence[np.ndarray]], Tensor]
"""Token ids of texts -> their L2-normalised embeddings (B, D)."""


@dataclass(frozen=True)
class Centroids:
    """Where groups of rows have their targets.

    Attributes:
        groups_G: numbers of the groups, in order.
        centroid_GD: L2-normalised, float32.
    """

    groups_G: np.ndarray
    centroid_GD: np.ndarray

    def of(self, groups_B: np.ndarray) -> Tensor:
        """The centroids (B, D) of rows, by the numbers of their groups."""
        return torch.from_numpy(self.centroid_GD[np.searchsorted(self.groups_G, groups_B)])


def have_translations(rows: TriangleRows) -> bool:
    """Whether some group has rows in two languages."""
    order = np.lexsort((rows.languages_N, rows.groups_N))
    groups_N, languages_N = rows.groups_N[order], rows.languages_N[order]
    return bool(((groups_N[1:] == groups_N[:-1]) & (languages_N[1:] != languages_N[:-1])).any())


def write_centroids(folder: Path, rows: TriangleRows, embed: Embed) -> None:
    """Embed all rows once and write the mean of each group into a folder that is empty."""
    order = np.argsort(rows.groups_N, kind="stable")
    groups_G, starts_G = np.unique(rows.groups_N[order], return_index=True)
    bounds = np.append(starts_G, len(order))
    bar = tqdm(total=len(order), desc="centroids", unit=" rows", unit_scale=True, leave=False, delay=SOON)
    with bar, ColumnWriter(folder, {}) as writer:
        for part in blocks_of(len(groups_G), GROUPS):
            own = order[bounds[part.start] : bounds[part.stop]]
            place_B = torch.from_numpy(np.searchsorted(groups_G[part], rows.groups_N[own]))
            embedding_BD = embed([rows.tokens[row] for row in own.tolist()])
            sum_GD = torch.zeros(part.stop - part.start, embedding_BD.shape[1]).index_add_(0, place_B, embedding_BD)
            writer.add("group", groups_G[part])
            writer.add("centroid", F.normalize(sum_GD, dim=-1).numpy())
            bar.update(len(own))


def open_centroids(folder: Path) -> Centroids:
    """Map centroids that were written.

    Raises:
        DataError: a file is damaged.
    """
    _, columns = open_folder(folder)
    return Centroids(columns["group"], columns["centroid"])
