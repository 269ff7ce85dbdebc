"""What is done to a block of pictures, or of texts: its vectors and its metadata, in this process or in an engine's.

Shapes: N pictures or texts, D embedding.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mclip_kit.data import content_keys, images
from mclip_kit.errors import DataError
from mclip_kit.evaluate.embedder import Embedder
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.features.item_format import Dtype
from mclip_kit.files import printable
from mclip_kit.interop.vector_files import IMAGES, TEXTS
from mclip_kit.models.student import Student, load_student
from mclip_kit.progress import set_quiet
from mclip_kit.search.pictures import Block
from mclip_kit.urls import named

if TYPE_CHECKING:
    from mclip_kit.models.multilingual_clip import MultilingualClip

COLUMNS = {
    IMAGES: pa.schema(
        [
            ("image_path", pa.string()),  # a file, a tar member or a row of an array, see `data.images`
            ("caption", pa.string()),
            ("image", pa.string()),  # its name in its source
            ("key", pa.string()),  # hash of the content
            ("width", pa.int32()),
            ("height", pa.int32()),
        ]
    ),
    TEXTS: pa.schema([("caption", pa.string()), ("key", pa.string())]),
}
"""Kind of vectors -> columns of their metadata."""
READERS = 8  # threads that look at the sizes of pictures

EmbeddedBlock = tuple[np.ndarray, pa.Table, dict[str, str]]
"""Vectors, float (N, D); a row of metadata for each; file -> why it could not be read, for those without a vector."""


class PictureEmbedder:
    """Embeds blocks of pictures.

    Args:
        model: the model.
        cache: features of its image tower.
    """

    def __init__(self, model: "MultilingualClip", cache: FeatureCache) -> None:
        self._towers, self._embedder = FrozenTowers(model, cache), Embedder(model, cache)

    def __call__(self, block: Block) -> EmbeddedBlock:
        """The vectors of a block."""
        keys_N2 = self._towers.picture_keys(block.captions, block.images)
        image_ND, bad_N = self._embedder.images(block.captions, block.images, keys_N2)
        return image_ND[~bad_N], _rows(block, keys_N2, np.flatnonzero(~bad_N)), _why(block, bad_N)


class TextEmbedder:
    """Embeds blocks of texts by the student; arguments as of `PictureEmbedder`."""

    def __init__(self, model: Student, cache: FeatureCache) -> None:
        without_clip: Any = model  # which texts of a student need not
        self._embedder = Embedder(without_clip, cache)

    def __call__(self, texts: list[str]) -> EmbeddedBlock:
        """The vectors of some texts."""
        known = [key.tobytes().hex() for key in content_keys.hash_texts(texts)]
        table = pa.table({"caption": texts, "key": known}, schema=COLUMNS[TEXTS])
        return self._embedder.student(texts), table, {}


def load_embedder(
    kind: type[PictureEmbedder] | type[TextEmbedder], model: Path, features: Path, dtype: Dtype, workers: int
) -> PictureEmbedder | TextEmbedder:
    """An embedder in an engine's process, which loads the model.

    Args:
        kind: of the embedder.
        model: its folder.
        features: the cache's folder, which all processes share.
        dtype: of stored numbers.
        workers: processes that decode pictures.
    """
    set_quiet(True)  # the bar of all blocks is enough
    if kind is TextEmbedder:
        student = load_student(model)
        return TextEmbedder(student, FeatureCache(features, dtype, workers=workers, device=student.device))
    from mclip_kit.models.multilingual_clip import load

    loaded = load(model)
    return PictureEmbedder(loaded, FeatureCache(features, dtype, workers=workers, device=loaded.device))


def _why(block: Block, bad_N: np.ndarray) -> dict[str, str]:
    """File -> why it is no picture, for those without a vector."""
    found = {}
    for place in np.flatnonzero(bad_N).tolist():
        try:
            block.captions.picture(int(block.images[place]))
            found[block.files[place]] = "it could not be read when it was embedded; embed again"
        except DataError as error:
            _, start, rest = str(error).partition("not a readable picture")
            found[block.files[place]] = f"{start}{rest}" or str(error)
    return found


def _rows(block: Block, keys_N2: np.ndarray, places: np.ndarray) -> pa.Table:
    """The metadata of some pictures of a block."""
    files = [block.files[place] for place in places]
    if block.captions.pixels is not None:
        height, width = block.captions.pixels.shape[1:3]
        sizes = [(width, height)] * len(files)
    else:
        with ThreadPoolExecutor(READERS) as readers:
            sizes = list(readers.map(_size, files))
    columns = {
        "image_path": [printable(named(file)) for file in files],
        "caption": [block.texts[place] for place in places],
        "image": [printable(block.captions.names[block.images[place]]) for place in places],
        "key": [keys_N2[place].tobytes().hex() for place in places],
        "width": [width for width, _ in sizes],
        "height": [height for _, height in sizes],
    }
    return pa.table(columns, schema=COLUMNS[IMAGES])


def _size(file: str) -> tuple[int, int]:
    """Width and height of a picture that was read before; 0, 0 if it has vanished."""
    try:
        with images.open_file(Path(file)) as handle, images.open_picture(handle) as picture:
            return picture.size
    except Exception:  # PIL's decoders raise many classes
        return 0, 0
