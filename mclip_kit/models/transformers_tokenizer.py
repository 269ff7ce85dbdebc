"""An encoder's own tokenizer, for encoders that do not use XLM-R's."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from mclip_kit.data.tokenizer import MODEL_FILE
from mclip_kit.errors import CheckpointError, first_line
from mclip_kit.models.special_tokens import read_as_text


class TransformersTokenizer:
    """An encoder's own tokenizer, loaded by transformers (WordPiece, BPE, ...), with the methods of XlmrTokenizer.

    Args:
        name: a name on the hub, or a folder.
        local_files_only: do not ask the hub.
    Raises:
        CheckpointError: the encoder has no tokenizer, or a tokenizer without a padding token.
    """

    def __init__(self, name: str, local_files_only: bool = False) -> None:
        try:
            self.hf = AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=local_files_only)
        except Exception as error:  # the tokenizers library raises plain Exception
            raise CheckpointError(f"encoder hf:{name}: has no tokenizer: {first_line(error)}") from None
        if self.hf.vocab_size <= len(self.hf.all_special_tokens):  # without files transformers builds an empty one
            raise CheckpointError(f"encoder hf:{name}: has no tokenizer, neither {MODEL_FILE} nor another")
        if self.hf.pad_token_id is None:
            raise CheckpointError(
                f"encoder hf:{name}: its tokenizer has no padding token; name one that it has as pad_token in "
                "tokenizer_config.json, such as its end token"
            )
        read_as_text(self.hf)
        self.pad = int(self.hf.pad_token_id)
        unknown = self.hf.unk_token_id  # GPT-2 calls its end of text unknown, although it spells everything in bytes
        others = {self.hf.pad_token_id, self.hf.eos_token_id, self.hf.bos_token_id}
        self.unknown = None if unknown is None or unknown in others else int(unknown)
        self.longest = int(self.hf.model_max_length) if self.hf.model_max_length < 2**31 else None

    @property
    def vocabulary(self) -> int:
        """Number of ids, those of a vocabulary with gaps included."""
        return max(len(self.hf), 1 + max(self.hf.get_vocab().values(), default=0))

    def encode(self, texts: Sequence[str], max_tokens: int | None = None) -> list[np.ndarray]:
        """Ids of each text with its special tokens, int32 (T,); texts beyond `max_tokens` lose their last pieces.

        A tokenizer without special tokens, as many decoders have, gives an empty text no token; it gets the end token.
        """
        limit = {"truncation": True, "max_length": max_tokens} if max_tokens else {}
        ids = self.hf(list(texts), return_attention_mask=False, **limit)["input_ids"] if len(texts) else []
        return [np.asarray(text or [self._of_empty_text], np.int32) for text in ids]

    @property
    def _of_empty_text(self) -> int:
        known = (self.hf.eos_token_id, self.hf.sep_token_id, self.hf.cls_token_id, self.hf.bos_token_id, self.pad)
        return int(next(token for token in known if token is not None))

    def pieces(self) -> list[str]:
        """Empty: no fairseq dictionary fits this tokenizer, so fairseq-binarised text is tokenised again."""
        return []

    def identity(self) -> str:
        """A hash of everything that decides the ids."""
        backend = getattr(self.hf, "backend_tokenizer", None)
        rules = json.loads(backend.to_str()) if backend is not None else {"vocabulary": self.hf.get_vocab()}
        facts = [type(self.hf).__name__, {**rules, "truncation": None, "padding": None}]  # set by every call
        return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self.hf.save_pretrained(folder)
