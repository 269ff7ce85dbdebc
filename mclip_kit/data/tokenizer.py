"""XLM-R's SentencePiece ids, in fairseq's alignment.

fairseq puts its own specials first: `<s>`=0 `<pad>`=1 `</s>`=2 `<unk>`=3, then the pieces in the order of dict.txt,
which is that of the SentencePiece model from its third piece on; `<mask>` comes last. So an id is the SentencePiece
id plus one, and `<unk>` is 3. transformers' XLM-R tokenizer has the same ids.
"""

import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import sentencepiece

from mclip_kit.data.sequences import Deduplicator
from mclip_kit.errors import CheckpointError, DataError, first_line
from mclip_kit.files import write_json, write_whole

BOS, PAD, EOS, UNK = 0, 1, 2, 3
MODEL_FILE = "sentencepiece.bpe.model"
SAMPLE = 4_000_000  # lines that SentencePiece holds while it trains


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

    def encode_flat(self, texts: list[str], max_tokens: int, threads: int = 1) -> tuple[np.ndarray, np.ndarray, int]:
        """Ids as fairseq stores them, all in one array: each text's, `</s>` at its end, no `<s>`.

        Args:
            texts: N of them.
            max_tokens: texts beyond lose their last pieces; `<s>` and `</s>` count.
            threads: of SentencePiece.
        Returns:
            ids int32 (sum of sizes,), sizes int64 (N,), and how many texts were cut.
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


def loading(path: Path) -> Future[XlmrTokenizer]:
    """A tokenizer that loads in a thread of its own; the same one when the same file is asked for again.

    A vocabulary of 250,000 pieces takes as long as reading a small corpus, or as importing what reads it.
    """
    return _loading(path, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(1)
def _loading(path: Path, changed: int) -> Future[XlmrTokenizer]:
    return ThreadPoolExecutor(1).submit(XlmrTokenizer, path)


def _with_specials(spm_ids: list[int]) -> np.ndarray:
    ids = np.empty(len(spm_ids) + 2, dtype=np.int32)
    ids[0], ids[-1] = BOS, EOS
    ids[1:-1] = fairseq_ids(np.asarray(spm_ids, np.int32))
    return ids


def fairseq_ids(spm_ids: np.ndarray) -> np.ndarray:
    """SentencePiece's ids in fairseq's alignment: one more, and `<unk>` is 3."""
    return np.where(spm_ids == 0, UNK, spm_ids + 1)


def train_sentencepiece(lines: Iterable[str], path: Path, pieces: int, coverage: float) -> XlmrTokenizer:
    """Train a unigram model with XLM-R's special pieces and normalisation, and write it to `path`.

    Args:
        lines: of any number; each counts once, and SentencePiece samples from more than it can hold.
        path: where the model goes.
        pieces: vocabulary size.
        coverage: share of characters that get a piece of their own.
    Raises:
        DataError: there are no lines to train on, or too few pieces for their characters.
    """
    seen, model = Deduplicator(), io.BytesIO()  # a file's name would stay in the model
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for line in lines if line and seen.add(line)),
            model_writer=model,
            vocab_size=pieces,
            character_coverage=coverage,
            hard_vocab_limit=False,
            model_type="unigram",
            input_sentence_size=SAMPLE,
            shuffle_input_sentence=True,  # when it samples
            minloglevel=2,
        )
    except RuntimeError as error:
        if not seen.count:
            raise DataError("there is no text to train a SentencePiece model on") from None
        if "sentences_.empty()" in str(error):
            raise DataError("no line is short enough to train a SentencePiece model on; give one: --spm FILE") from None
        wrong = f"SentencePiece cannot train {pieces} pieces: {first_line(error)}"  # fewer than characters
        raise DataError(f"{wrong}; raise vocabulary.pieces, or lower vocabulary.coverage") from None
    with write_whole(path) as temporary:
        temporary.write_bytes(model.getvalue())
    return XlmrTokenizer(path)
