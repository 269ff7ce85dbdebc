"""XLM-R's tokenizer: SentencePiece ids in fairseq's order.

fairseq's special tokens come first: `<s>`=0 `<pad>`=1 `</s>`=2 `<unk>`=3. Then come the pieces in the order of
dict.txt, which is the order of the SentencePiece model without its own three special pieces. `<mask>` is the last id.
So an id is the SentencePiece id plus one, and `<unk>` is 3. transformers' XLM-R tokenizer has the same ids.
"""

import hashlib
import io
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from mclip_kit.data.sequences import Deduplicator, split
from mclip_kit.errors import CheckpointError, DataError, first_line
from mclip_kit.files import write_json, write_whole
from mclip_kit.storage import fetch

BOS, PAD, EOS, UNK = 0, 1, 2, 3
MODEL_FILE = "sentencepiece.bpe.model"
SAMPLE = 4_000_000  # lines that SentencePiece holds in memory while it trains


class XlmrTokenizer:
    """Converts texts to ids and back, many at once and in threads.

    Attributes:
        pad: the padding id.
        unknown: the id of `<unk>`.
        longest: most tokens that a text may have, if the tokenizer has such a limit; the encoder's may be lower.

    Args:
        path: a SentencePiece model that starts with the pieces `<unk>`, `<s>`, `</s>`, or a folder that holds it.
    Raises:
        CheckpointError: the file is missing, unreadable, or has other special pieces.
    """

    pad = PAD
    unknown: int | None = UNK
    longest: int | None = None

    def __init__(self, path: str | Path) -> None:
        inside = fetch(Path(path) / MODEL_FILE)
        self.path = inside if Path(path).is_dir() else fetch(Path(path))
        if not self.path.is_file():
            raise CheckpointError(f"{self.path}: missing; a SentencePiece model in XLM-R's form is needed")
        try:
            self.spm = sentencepiece.SentencePieceProcessor(model_file=str(self.path))
        except (OSError, RuntimeError):
            raise CheckpointError(f"{self.path}: not a readable SentencePiece model; give another") from None
        if (self.spm.unk_id(), self.spm.bos_id(), self.spm.eos_id()) != (0, 1, 2):
            raise CheckpointError(f"{self.path}: its first pieces are not <unk> <s> </s>, as in XLM-R's; give another")

    @property
    def vocabulary(self) -> int:
        """Number of ids, `<mask>` included."""
        return int(self.spm.get_piece_size()) + 2

    def encode(self, texts: Sequence[str], max_tokens: int | None = None) -> list[np.ndarray]:
        """Ids of each text, `<s> ... </s>`, int32 (T,); texts longer than `max_tokens` lose their last pieces."""
        room = sys.maxsize if max_tokens is None else max_tokens
        stored, sizes_N, _ = self.encode_flat(list(texts), room, os.cpu_count() or 1)
        ids, first = np.full(len(stored) + len(sizes_N), BOS, np.int32), np.zeros(len(stored) + len(sizes_N), bool)
        first[np.cumsum(sizes_N + 1) - sizes_N - 1] = True
        ids[~first] = stored
        return split(ids, sizes_N + 1)

    def encode_flat(self, texts: list[str], max_tokens: int, threads: int = 1) -> tuple[np.ndarray, np.ndarray, int]:
        """Ids of all texts in one array, as fairseq stores them: each text ends with `</s>` and has no `<s>`.

        Args:
            texts: N texts.
            max_tokens: longer texts lose their last pieces; `<s>` and `</s>` count.
            threads: number of SentencePiece's threads.
        Returns:
            ids int32 (sum of sizes,), sizes int64 (N,), and the number of texts that were cut.
        """
        arrays = self.spm.encode(texts, return_type="numpy", num_threads=threads)
        pieces_N = np.fromiter(map(len, arrays), np.int64, len(arrays))
        cut_N = pieces_N > max_tokens - 2
        if cut_N.any():
            arrays = [array[: max_tokens - 2] for array in arrays]
            pieces_N = np.minimum(pieces_N, max_tokens - 2)
        sizes_N = pieces_N + 1
        ids = np.full(int(sizes_N.sum()), EOS, np.int32)
        piece = np.ones(len(ids), bool)
        piece[sizes_N.cumsum() - 1] = False
        ids[piece] = fairseq_ids(np.concatenate([np.zeros(0, np.int32), *arrays]))
        return ids, sizes_N, int(cut_N.sum())

    def pieces(self) -> list[str]:
        """The pieces of dict.txt, in order."""
        return list(self.spm.id_to_piece(list(range(3, self.spm.get_piece_size()))))

    def identity(self) -> str:
        """A hash of everything that decides the ids."""
        return hashlib.blake2b(fetch(self.path).read_bytes(), digest_size=16).hexdigest()

    def save(self, folder: Path) -> None:
        """Write the files that transformers' XLM-R tokenizer reads."""
        content = fetch(self.path).read_bytes()  # read first: the folder may be the one that it was loaded from
        with write_whole(folder / MODEL_FILE) as temporary:
            temporary.write_bytes(content)
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": "XLMRobertaTokenizer"})

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens are left out."""
        mask = self.vocabulary - 1
        return str(self.spm.decode([int(index) - 1 for index in ids if UNK < index < mask]))


def fairseq_ids(spm_ids: np.ndarray) -> np.ndarray:
    """SentencePiece's ids as fairseq's: one more, and `<unk>` is 3."""
    return np.where(spm_ids == 0, UNK, spm_ids + 1)


def train_sentencepiece(lines: Iterable[str], path: Path, pieces: int, coverage: float) -> XlmrTokenizer:
    """Train a unigram model with XLM-R's special pieces and normalisation, and write it to `path`.

    Args:
        lines: any number; a line that occurs again is skipped, and SentencePiece takes a sample if there are too many.
        path: where the model goes.
        pieces: vocabulary size.
        coverage: share of the characters that get a piece.
    Raises:
        DataError: there are no lines to train on, or fewer pieces than characters.
    """
    seen, model = Deduplicator(), io.BytesIO()  # in memory: the model would contain the name of a file
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for line in lines if line and seen.add(line)),
            model_writer=model,
            vocab_size=pieces,
            character_coverage=coverage,
            hard_vocab_limit=False,
            model_type="unigram",
            input_sentence_size=SAMPLE,
            shuffle_input_sentence=True,  # only used if it takes a sample
            minloglevel=2,
        )
    except RuntimeError as error:
        if not seen.count:
            raise DataError("no text to train a SentencePiece model on; give a model: --spm FILE") from None
        if "sentences_.empty()" in str(error):
            raise DataError("all lines are too long to train SentencePiece on; give a model: --spm FILE") from None
        wrong = f"SentencePiece cannot train {pieces} pieces: {first_line(error)}"  # fewer pieces than characters
        raise DataError(f"{wrong}; raise vocabulary.pieces, or lower vocabulary.coverage") from None
    with write_whole(path) as temporary:
        temporary.write_bytes(model.getvalue())
    return XlmrTokenizer(path)
