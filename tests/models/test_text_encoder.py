"""Encoders of many kinds by name: the states are transformers', every projector works on them, the rest is refused."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLMRobertaTokenizer,
    XLMRobertaXLConfig,
    XLMRobertaXLModel,
)

from mclip_kit.data.tokenizer import MODEL_FILE, XlmrTokenizer, train_sentencepiece
from mclip_kit.errors import CheckpointError
from mclip_kit.interop.encoders import named_encoder
from mclip_kit.models.clip import build_clip
from mclip_kit.models.multilingual_clip import MultilingualClip, load
from mclip_kit.models.projectors import build_projector
from mclip_kit.models.text_encoder import Encoder, TransformersTokenizer, pretrained_encoder
from tests import tiny

LINES = [
    "two dogs run along the beach",
    "zwei hunde laufen am strand entlang",
    "deux chiens courent le long de la plage",
]
TEXTS = ["the dogs run", "zwei hunde", "", LINES[2], "☃ chiens"]
LONG = " ".join(LINES * 6)
POSITIONS = 48
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": POSITIONS,
}


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write a model of random weights, no bias zero and no norm the identity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator) + (weight.dim() == 1))
    model.save_pretrained(folder)


def wordpiece(folder: Path) -> int:
    """Write BERT's tokenizer; its padding is 0."""
    words = sorted(set(" ".join(LINES).split()))
    parts = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *parts]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return len(vocabulary)


def sentencepiece(folder: Path) -> int:
    """Write XLM-R's tokenizer; its padding is 1."""
    tokenizer = train_sentencepiece(LINES, folder / MODEL_FILE, 90, 1.0)
    tokenizer.save(folder)
    return tokenizer.vocabulary


def bert(folder: Path) -> None:
    """mBERT and LaBSE."""
    save_model(BertModel(BertConfig(vocab_size=wordpiece(folder), **SIZES)), folder)


def e5(folder: Path) -> None:
    """multilingual-e5-small: BERT's encoder behind XLM-R's tokenizer."""
    save_model(BertModel(BertConfig(vocab_size=sentencepiece(folder), **SIZES)), folder)


def xlmr(folder: Path) -> None:
    """XLM-R, with a pooler that nothing here reads."""
    save_model(XLMRobertaModel(XLMRobertaConfig(vocab_size=sentencepiece(folder), **SIZES)), folder)


def xlmr_xl(folder: Path) -> None:
    """XLM-R XL."""
    save_model(XLMRobertaXLModel(XLMRobertaXLConfig(vocab_size=sentencepiece(folder), **SIZES)), folder)


def xlmr_fast(folder: Path) -> None:
    """XLM-R as some sentence encoders are published: tokenizer.json and no SentencePiece model."""
    xlmr(folder)
    XLMRobertaTokenizer.from_pretrained(folder).save_pretrained(folder)
    (folder / MODEL_FILE).unlink()
    assert (folder / "tokenizer.json").is_file()


def distilbert(folder: Path) -> None:
    """distilbert-base-multilingual-cased."""
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": POSITIONS}
    save_model(DistilBertModel(DistilBertConfig(vocab_size=wordpiece(folder), **sizes)), folder)


def modernbert(folder: Path) -> None:
    """mmBERT: no table of positions."""
    ends = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    save_model(ModernBertModel(ModernBertConfig(vocab_size=wordpiece(folder), **SIZES, **ends)), folder)


Maker = Callable[[Path], None]
# the maker -> its model, its tokenizer, the longest text, the padding
KINDS: dict[Maker, tuple[type, type, int, int]] = {
    bert: (BertModel, TransformersTokenizer, POSITIONS, 0),
    e5: (BertModel, XlmrTokenizer, POSITIONS, 1),
    xlmr: (XLMRobertaModel, XlmrTokenizer, POSITIONS - 2, 1),
    xlmr_xl: (XLMRobertaXLModel, XlmrTokenizer, POSITIONS - 2, 1),
    xlmr_fast: (XLMRobertaModel, TransformersTokenizer, POSITIONS - 2, 1),
    distilbert: (DistilBertModel, TransformersTokenizer, POSITIONS, 0),
    modernbert: (ModernBertModel, TransformersTokenizer, POSITIONS, 0),
}


@pytest.fixture(scope="module", params=KINDS, ids=lambda maker: maker.__name__)
def kind(request: pytest.FixtureRequest) -> Maker:
    return request.param


@pytest.fixture(scope="module")
def folder(kind: Maker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / kind.__name__
    kind(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return named_encoder(f"hf:{folder}").eval()


def transformers_own(kind: Maker, folder: Path) -> Any:
    """transformers' tokenizer; of XL it finds the class by itself only beside a tokenizer.json."""
    return (XLMRobertaTokenizer if kind is xlmr_xl else AutoTokenizer).from_pretrained(folder)


def states(encoder: Encoder, texts: list[str]) -> list[Tensor]:
    """The states of each text's tokens, without the padding's."""
    ids_BT, mask_BT = encoder.pad(encoder.tokenizer.encode(texts, encoder.positions))
    with torch.no_grad():
        states_BTH = encoder(ids_BT, mask_BT)
    return [row[mask.bool()] for row, mask in zip(states_BTH, mask_BT, strict=True)]


def same(ours: list[Tensor], theirs: list[Tensor], bound: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=bound)


def test_it_is_what_was_saved(kind: Maker, encoder: Encoder) -> None:
    model, tokenizer, positions, padding = KINDS[kind]
    assert (type(encoder.model), type(encoder.tokenizer)) == (model, tokenizer)
    assert encoder.positions == positions
    assert encoder.tokenizer.pad == padding
    assert encoder.width == 16
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}
    assert not [name for name in encoder.state_dict() if "pooler" in name]


def test_states_are_those_of_transformers(kind: Maker, folder: Path, encoder: Encoder) -> None:
    theirs, tokenizer = AutoModel.from_pretrained(folder).eval(), transformers_own(kind, folder)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert len(set(batch["attention_mask"].sum(1).tolist())) > 2
    with torch.no_grad():
        states_BTH = theirs(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    expected = [row[mask.bool()] for row, mask in zip(states_BTH, batch["attention_mask"], strict=True)]
    same(states(encoder, TEXTS), expected, 1e-6)


def test_ids_are_those_of_transformers(kind: Maker, folder: Path, encoder: Encoder) -> None:
    ours = encoder.tokenizer.encode(TEXTS)
    assert all(ids.dtype == np.int32 for ids in ours)
    assert [ids.tolist() for ids in ours] == transformers_own(kind, folder)(TEXTS)["input_ids"]
    assert encoder.tokenizer.encode([]) == []


def test_padding_does_not_leak(encoder: Encoder) -> None:
    texts = [*TEXTS, LONG]
    alone = [state for text in texts for state in states(encoder, [text])]
    same(states(encoder, texts), alone, 1e-5)
    ids_BT, mask_BT = encoder.pad(encoder.tokenizer.encode(texts))
    assert set(ids_BT[mask_BT == 0].tolist()) == {encoder.tokenizer.pad}


def test_a_text_beyond_the_positions_is_cut_and_keeps_its_end(encoder: Encoder) -> None:
    short, whole = encoder.tokenizer.encode([TEXTS[0], LONG])
    (cut,) = encoder.tokenizer.encode([LONG], encoder.positions)
    assert len(whole) > encoder.positions == len(cut)
    assert cut.tolist() == [*whole[: encoder.positions - 1], short[-1]]
    assert states(encoder, [LONG])[0].isfinite().all()


PROJECTORS: list[dict[str, Any]] = [
    {"kind": "linear", "pool": "mean", "noise": 0.1},
    {"kind": "mlp", "pool": "eos", "hidden": 8},
    {"kind": "altclip", "pool": "cls"},
    {"kind": "transformer", "pool": "eos", "layers": 1},
]


@pytest.mark.parametrize("settings", PROJECTORS, ids=lambda settings: settings["kind"])
def test_every_projector_works_on_it(encoder: Encoder, settings: dict[str, Any]) -> None:
    projector = build_projector(config=encoder.config, width=12, **settings).eval()

    def embed(texts: list[str]) -> Tensor:
        ids_BT, mask_BT = encoder.pad(encoder.tokenizer.encode(texts, encoder.positions))
        with torch.no_grad():
            embedding_BD: Tensor = projector(encoder(ids_BT, mask_BT), mask_BT)
        return embedding_BD

    together = embed([*TEXTS, LONG])
    assert together.shape == (len(TEXTS) + 1, 12)
    torch.testing.assert_close(together, torch.cat([embed([text]) for text in [*TEXTS, LONG]]), rtol=0, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_a_model_with_it_comes_back_to_the_bit_and_needs_no_other_folder(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "encoder")
    model = MultilingualClip(build_clip(tiny.TEACHER), named_encoder(f"hf:{tmp_path / 'encoder'}"), PROJECTORS[-1])
    model.save(tmp_path / "model")
    shutil.rmtree(tmp_path / "encoder")
    texts = [*TEXTS, LONG]
    again = load(tmp_path / "model")
    assert again.encoder.positions == model.encoder.positions
    assert torch.equal(again.encode_text(texts), model.encode_text(texts))


def test_a_tokenizer_json_gives_the_ids_of_the_sentencepiece_model(tmp_path: Path) -> None:
    xlmr(tmp_path / "pieces")
    xlmr_fast(tmp_path / "json")
    ours, theirs = (named_encoder(f"hf:{tmp_path / name}").tokenizer for name in ("pieces", "json"))
    assert (type(ours), type(theirs)) == (XlmrTokenizer, TransformersTokenizer)
    for limit in (None, 6):
        found = [[ids.tolist() for ids in tokenizer.encode([*TEXTS, LONG], limit)] for tokenizer in (ours, theirs)]
        assert found[0] == found[1]


def test_a_sentencepiece_model_of_another_tokenizer_is_not_taken_for_xlmrs(tmp_path: Path) -> None:
    bert(tmp_path)
    train_sentencepiece(LINES, tmp_path / MODEL_FILE, 90, 1.0)  # as CamemBERT has one
    encoder = named_encoder(f"hf:{tmp_path}")
    assert type(encoder.tokenizer) is TransformersTokenizer
    assert encoder.tokenizer.pad == 0


@pytest.mark.parametrize("maker", [xlmr, xlmr_xl], ids=lambda maker: maker.__name__)
def test_an_xlmr_that_does_not_name_its_tokenizer_has_xlmrs(tmp_path: Path, maker: Maker) -> None:
    maker(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert type(named_encoder(f"hf:{tmp_path}").tokenizer) is XlmrTokenizer


def test_a_tokenizers_own_limit_counts(tmp_path: Path) -> None:
    bert(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 11}))
    encoder = named_encoder(f"hf:{tmp_path}")
    assert encoder.positions == 11
    assert states(encoder.eval(), [LONG])[0].shape == (11, 16)


def test_half_precision_weights_are_cast(tmp_path: Path) -> None:
    bert(tmp_path)
    state = {name: tensor.half() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    assert {weight.dtype for weight in named_encoder(f"hf:{tmp_path}").parameters()} == {torch.float32}


def refusal(name: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        pretrained_encoder(name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    return str(caught.value)


def test_a_tokenizer_that_cannot_pad_is_refused(tmp_path: Path) -> None:
    save_model(BertModel(BertConfig(vocab_size=10, **SIZES)), tmp_path)
    words = Tokenizer(WordLevel({"[UNK]": 0, "two": 1, "dogs": 2}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(tmp_path)
    assert "no padding token" in refusal(str(tmp_path))


@pytest.mark.parametrize("maker", [bert, e5, xlmr, distilbert, modernbert], ids=lambda maker: maker.__name__)
def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, maker: Maker) -> None:
    maker(tmp_path)
    for path in tmp_path.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    assert "has no tokenizer" in refusal(str(tmp_path))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_without_a_model_is_refused(tmp_path: Path, name: str) -> None:
    bert(tmp_path)
    (tmp_path / name).unlink()
    refusal(str(tmp_path))


def test_more_pieces_than_word_rows_are_refused(tmp_path: Path) -> None:
    vocabulary = sentencepiece(tmp_path)
    save_model(XLMRobertaModel(XLMRobertaConfig(vocab_size=vocabulary - 1, **SIZES)), tmp_path)
    assert f"{vocabulary} ids do not fit {vocabulary - 1} word rows" in refusal(str(tmp_path))
    save_model(XLMRobertaModel(XLMRobertaConfig(vocab_size=vocabulary + 6, **SIZES)), tmp_path)
    assert pretrained_encoder(str(tmp_path)).config.vocab_size == vocabulary + 6


def test_a_lost_weight_is_refused_and_a_lost_pooler_is_not(tmp_path: Path) -> None:
    bert(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    less = {name: tensor for name, tensor in state.items() if "pooler" not in name}
    assert len(less) == len(state) - 2
    save_file(less, tmp_path / "model.safetensors", {"format": "pt"})
    pretrained_encoder(str(tmp_path))
    lost = "encoder.layer.1.output.dense.bias"
    del less[lost]
    save_file(less, tmp_path / "model.safetensors", {"format": "pt"})
    assert f"its weights lack {lost}" in refusal(str(tmp_path))


def hub_cache(folder: Path, cache: Path, name: str) -> None:
    """Put a folder into a cache as the hub's client lays it out."""
    place = cache / f"models--{name.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    for kind in ("blobs", "refs", f"snapshots/{commit}"):
        (place / kind).mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    for path in folder.iterdir():
        blob = place / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        (place / "snapshots" / commit / path.name).symlink_to(Path("../../blobs", blob.name))


SCRIPT = """
import json, sys, torch
from mclip_kit.errors import CheckpointError
from mclip_kit.interop.encoders import named_encoder
found = {}
for name in sys.argv[2:]:
    try:
        encoder = named_encoder(f"hf:{name}").eval()
        ids_BT, mask_BT = encoder.pad(encoder.tokenizer.encode([sys.argv[1]]))
        with torch.no_grad():
            found[name] = [type(encoder.tokenizer).__name__, encoder(ids_BT, mask_BT)[0].tolist()]
    except CheckpointError as error:
        found[name] = str(error)
print("found", json.dumps(found))
"""


def test_names_are_found_in_the_hubs_local_cache_while_the_hub_is_away(tmp_path: Path) -> None:
    makers = {"some-org/bert": bert, "some-org/xlmr": xlmr, "some-org/xlmr-fast": xlmr_fast}
    for name, maker in makers.items():
        maker(tmp_path / name)
        hub_cache(tmp_path / name, tmp_path / "cache", name)
    away = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    away["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nobody listens
    kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower() and not k.startswith(("HF_", "HUGGING"))}
    command = [sys.executable, "-c", SCRIPT, TEXTS[0], *makers, "some-org/absent"]
    root = Path(__file__).parents[2]
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(root)])
    run = subprocess.run(
        command, env={**kept, **away, "PYTHONPATH": path}, cwd=tmp_path / "cache", capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.partition("found ")[2])
    assert found.pop("some-org/absent").startswith("missing weights: encoder hf:some-org/absent - not in the local")
    for name in makers:
        encoder = named_encoder(f"hf:{tmp_path / name}").eval()
        assert found[name][0] == type(encoder.tokenizer).__name__
        same([torch.tensor(found[name][1])], states(encoder, TEXTS[:1]), 1e-6)


def rewrite(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("config", [ViTConfig, CLIPConfig])
def test_an_encoder_that_reads_no_text_is_refused(tmp_path: Path, config: Any) -> None:
    wordpiece(tmp_path)
    config().save_pretrained(tmp_path)
    assert "is not a text encoder" in refusal(str(tmp_path))


def test_code_that_comes_with_an_encoder_is_never_offered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bert(tmp_path)
    (tmp_path / "own.py").write_text("raise SystemExit('ran')\n")
    rewrite(tmp_path / "config.json", model_type="own", auto_map={"AutoConfig": "own.A", "AutoModel": "own.B"})
    assert "custom code" in refusal(str(tmp_path))
    assert "custom code" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("config.json", {"hidden_size": "x"}, "hidden_size"),
        ("config.json", {"hidden_size": 0}, "cannot load it"),
        ("config.json", {"model_type": ["bert"]}, "cannot load it"),
        ("config.json", {"hidden_size": 32}, "do not fit its config: embeddings.LayerNorm.bias"),
        ("tokenizer_config.json", {"tokenizer_class": 5}, "has no tokenizer"),
        ("tokenizer.json", {"model": {"type": "Nonsense"}}, "has no tokenizer"),
    ],
)
def test_nonsense_in_a_folder_is_one_line(tmp_path: Path, name: str, values: dict[str, Any], message: str) -> None:
    bert(tmp_path)
    rewrite(tmp_path / name, **values)
    assert message in refusal(str(tmp_path))
