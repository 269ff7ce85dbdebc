"""A special token in a user's text is text: `<s>`, `[CLS]` or `<mask>` become pieces, as in SentencePiece itself.

transformers reads them as the special token. Its option `split_special_tokens` is not enough for vocabularies of the
kind Unigram (XLM-R, ALBERT, T5), in which the special tokens are pieces like others.
"""

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Regex
from tokenizers.pre_tokenizers import Sequence, Split
from transformers import AutoTokenizer

from mclip_kit.data.tokenizer import MODEL_FILE
from mclip_kit.files import write_json


def read_as_text(tokenizer: Any) -> None:
    """Change a tokenizer of transformers so that no text gives the id of a special token, except for unknown pieces.

    A special token whose name is still found in a text is cut in two before the vocabulary is asked.
    """
    tokenizer.split_special_tokens = tokenizer.init_kwargs["split_special_tokens"] = True  # the latter is saved
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # written in Python: the option is enough
        return
    backend.encode_special_tokens = True
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    found = sorted(token for token in special if _is_found(backend, token))
    if found:
        pieces = backend.get_vocab()
        cut = Regex("|".join(_cut(token, [piece for piece in pieces if piece not in special]) for token in found))
        before = [backend.pre_tokenizer] if backend.pre_tokenizer else []
        backend.pre_tokenizer = Sequence([*before, Split(cut, "merged_with_previous")])


def _is_found(backend: Any, token: str) -> bool:
    number = backend.token_to_id(token)
    return any(number in backend.encode(text, add_special_tokens=False).ids for text in (token, f"x{token} x"))


def _cut(token: str, pieces: list[str]) -> str:
    """A pattern that cuts a special token where the fewest pieces of the vocabulary would be cut too."""
    known = set(pieces)

    def cost(place: int) -> tuple[int, bool]:
        pair = token[place - 1 : place + 1]
        return sum(pair in piece for piece in pieces), not known & set(pair)  # two unknown letters are one unknown id

    place = min(range(1, len(token)), key=cost)
    return f"{re.escape(token[:place])}(?={re.escape(token[place:])})"


def save_as_text(folder: Path) -> None:
    """Write a folder's tokenizer again, with these changes, in the form that transformers loads as it stands."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    read_as_text(tokenizer)
    tokenizer.save_pretrained(folder)
    if (folder / "tokenizer.json").is_file():
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # others build their own rules in place of the file's
        write_json(folder / "tokenizer_config.json", settings)
        (folder / MODEL_FILE).unlink(missing_ok=True)
