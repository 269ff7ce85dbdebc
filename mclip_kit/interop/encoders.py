"""Load an encoder by its name in a recipe: `hf:...` or `fairseq:...`."""

from mclip_kit.models.model_folder import check_part
from mclip_kit.models.text_encoder import Encoder, pretrained_encoder
from mclip_kit.storage import fetch, place
from mclip_kit.urls import is_copy


def named_encoder(name: str) -> Encoder:
    """A pretrained encoder in float32.

    Args:
        name: `hf:NAME_OR_DIR`, a transformers encoder; `fairseq:DIR`, a fairseq XLM-R folder or a checkpoint in one.
    Raises:
        CheckpointError: the encoder is neither on disk nor on the hub, or a file of it is damaged or does not fit.
    """
    kind, _, named = name.partition(":")
    path = fetch(place(named))
    if kind == "fairseq":
        from mclip_kit.interop import fairseq  # slow to import: it needs the package fairseq

        if is_copy(path) and path.is_file():
            fetch(path.parent)  # its dictionary and SentencePiece model
        return Encoder(*fairseq.read_folder(path))
    check_part(path)
    return pretrained_encoder(str(path))
