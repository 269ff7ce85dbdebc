"""XLM-R's SentencePiece ids, in fairseq's alignment.

fairseq puts its own specials first: `<s>`=0 `<pad>`=1 `</s>`=2 `<unk>`=3, then the pieces in the order of dict.txt,
which is that of the SentencePiece model from its third piece on; `<mask>` comes last. So an id is the SentencePiece
id plus one, and `<unk>` is 3. transformers' XLM-R tokenizer has the same ids.
"""

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from mclip_kit.errors import CheckpointError, DataError
from mclip_kit.files import write_json, write_whole

BOS, PAD, EOS, UNK = 0, 1, 2, 3
MODEL_FILE = "sentencepiece.bpe.model"


class XlmrTokenizer:
    """Texts to ids and back; bulk, threaded.

    Attributes:
        pad: the padding id.
        longest: tokens a text may have, as far as the tokenizer says; the encoder may take fewer.

    Args:
        path: a SentencePiece model whose first pieces are `<unk>`, `<s>`, `</s>`, or a folder that holds it.
    Raises:
        CheckpointError: the file is missing, unreadable, or has other special pieces.
    """

    pad = PAD
    longest: int | None = None

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path) / MODEL_FILE if Path(path).is_dir() else Path(path)
        if not self.path.is_file():
            raise CheckpointError(f"{self.path}: missing")
        try:
            self.spm = sentencepiece.SentencePieceProcessor(model_file=str(self.path))
        except (OSError, RuntimeError):
            raise CheckpointError(f"{self.path}: not a readable SentencePiece model") from None
        if (self.spm.unk_id(), self.spm.bos_id(), self.spm.eos_id()) != (0, 1, 2):
            raise CheckpointError(f"{self.path}: its first pieces are not <unk> <s> </s>, as XLM-R's are")

    @property
    def vocabulary(self) -> int:
        """Number of ids, `<mask>` included."""
        return int(self.spm.get_piece_size()) + 2

    def encode(self, texts: Sequence[str], max_tokens: int | None = None) -> list[np.ndarray]:
        """Ids of each text, `<s> ... </s>`, int32 (T,); texts beyond `max_tokens` lose their last pieces."""
        room = None if max_tokens is None else max_tokens - 2
        pieces = self.spm.encode(list(texts), out_type=int, num_threads=os.cpu_count() or 1)
        return [_with_specials(ids[:room]) for ids in pieces]

    def pieces(self) -> list[str]:
        """The pieces of dict.txt, in order."""
        return [self.spm.id_to_piece(index) for index in range(3, self.spm.get_piece_size())]

    def save(self, folder: Path) -> None:
        """Write what transformers' XLM-R tokenizer reads."""
        content = self.path.read_bytes()  # the folder may be its own
        with write_whole(folder / MODEL_FILE) as temporary:
            temporary.write_bytes(content)
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": "XLMRobertaTokenizer"})

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; specials are left out."""
        mask = self.vocabulary - 1
        return str(self.spm.decode([int(index) - 1 for index in ids if UNK < index < mask]))


def _with_specials(spm_ids: list[int]) -> np.ndarray:
    ids = np.empty(len(spm_ids) + 2, dtype=np.int32)
    ids[0], ids[-1] = BOS, EOS
    ids[1:-1] = spm_ids
    ids[1:-1] += 1
    ids[1:-1][ids[1:-1] == 1] = UNK
    return ids


def train_sentencepiece(lines: Iterable[str], path: Path, pieces: int, coverage: float) -> XlmrTokenizer:
    """Train a unigram model with XLM-R's special pieces and normalisation, and write it to `path`.

    Raises:
        DataError: there are no lines to train on, or too few pieces for their characters.
    """
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "lines.txt")
        text.write_text("\n".join(dict.fromkeys(lines)), encoding="utf-8")
        if not text.stat().st_size:
            raise DataError("there is no text to train a SentencePiece model on")
        try:
            sentencepiece.SentencePieceTrainer.train(
                input=str(text),
                model_prefix=str(Path(folder, "spm")),
                vocab_size=pieces,
                character_coverage=coverage,
                hard_vocab_limit=False,
                model_type="unigram",
                minloglevel=2,
            )
        except RuntimeError as error:  # fewer pieces than characters
            raise DataError(f"SentencePiece cannot train {pieces} pieces: {error}") from None
        with write_whole(path) as temporary:
            temporary.write_bytes(Path(folder, "spm.model").read_bytes())
    return XlmrTokenizer(path)
