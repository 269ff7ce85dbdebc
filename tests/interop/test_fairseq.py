"""fairseq's XLM-R against fairseq itself: the states are the same, in every style of file, and damage is named."""

import lzma
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from transformers import XLMRobertaModel, XLMRobertaXLModel

from mclip_kit.cli import cli
from mclip_kit.data import fairseq_io
from mclip_kit.data.batching import pad
from mclip_kit.data.tokenizer import BOS, EOS, MODEL_FILE, PAD, UNK, train_sentencepiece
from mclip_kit.errors import MclipError
from mclip_kit.interop.encoders import named_encoder
from mclip_kit.interop.fairseq import write_folder
from mclip_kit.models.text_encoder import Encoder, encoder_within, pretrained_encoder
from tests import tiny
from tests.interop.models import build
from tests.models.test_translator import translator

# isort: split
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE
from fairseq.models.roberta import RobertaHubInterface, XLMRModel
from fairseq.tasks.multilingual_masked_lm import MultiLingualMaskedLMTask

LINES = [
    "two dogs run along the beach",
    "zwei Hunde laufen am Strand entlang",
    "deux chiens courent le long de la plage",
    "ein Mann in einem grünen Mantel hält eine Tüte",
]
TEXTS = ["the dogs", "zwei Hunde am Strand", "", LINES[3], "ein ☃ hält"]
SIZES = {"encoder_layers": 2, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 24, "encoder_attention_heads": 4}
POST_NORM = {"layernorm_embedding": True}
PRE_NORM = {"encoder_normalize_before": True, "layernorm_embedding": False}  # XLM-R XL and XXL

State = dict[str, Tensor]


def official(folder: Path, **options: Any) -> RobertaHubInterface:
    """fairseq's own XLM-R of random weights, with the task and the SentencePiece model of a folder."""
    args = Namespace(**SIZES, **{"max_positions": 512, "bpe": None, **options})
    task = MultiLingualMaskedLMTask.setup_task(Namespace(data=str(folder), seed=1))
    hub = RobertaHubInterface(args, task, XLMRModel.build_model(args, task)).eval()
    spm = {"sentencepiece_model": str(folder / MODEL_FILE), "sentencepiece_alpha": None}
    hub.bpe = SentencepieceBPE(Namespace(sentencepiece_enable_sampling=False, **spm))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # no bias zero, no norm the identity, no unused row empty
        for weight in hub.model.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator) + (weight.dim() == 1))
    return hub


def args_of(hub: RobertaHubInterface) -> Namespace:
    return Namespace(**{**vars(hub.cfg), "bpe": "sentencepiece", "dropout": 0.2, "attention_dropout": 0.3})


def states(hub: RobertaHubInterface, tokens: list[Tensor]) -> list[Tensor]:
    """fairseq's states of each sequence, from one padded batch."""
    ids_BT, mask_BT = pad([ids.numpy() for ids in tokens], PAD)
    with torch.no_grad():
        features_BTH = hub.extract_features(ids_BT)
    return [row[mask.bool()] for row, mask in zip(features_BTH, mask_BT, strict=True)]


def our_states(encoder: Encoder, tokens: list[Any]) -> list[Tensor]:
    ids_BT, mask_BT = encoder.pad(tokens)
    with torch.no_grad():
        states_BTH = encoder.eval()(ids_BT, mask_BT)
    return [row[mask.bool()] for row, mask in zip(states_BTH, mask_BT, strict=True)]


def same(ours: list[Tensor], theirs: list[Tensor], bound: float = 1e-5) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=bound)


def legacy(state: State) -> State:
    """The names of fairseq's first XLM-R files: q, k and v in one, the model called a decoder."""
    old = {}
    for name, tensor in state.items():
        if "q_proj" in name:
            parts = [state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            name, tensor = name.replace("q_proj.", "in_proj_"), torch.cat(parts)
        elif "k_proj" in name or "v_proj" in name:
            continue
        name = name.replace("layernorm_embedding", "emb_layer_norm").replace("encoder.", "decoder.", 1)
        old[name] = tensor
    return old


class Files(NamedTuple):
    """What all tests read."""

    folder: Path
    hub: RobertaHubInterface

    def content(self) -> dict[str, Any]:
        return {"args": args_of(self.hub), "model": self.hub.model.state_dict()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A fairseq XLM-R folder, and fairseq's model of it."""
    folder = tmp_path_factory.mktemp("xlmr")
    tokenizer = train_sentencepiece(LINES, folder / MODEL_FILE, 120, 1.0)
    fairseq_io.write_dictionary(tokenizer.pieces(), folder / "dict.txt")
    files = Files(folder, official(folder, **POST_NORM))
    torch.save(files.content(), folder / "model.pt")
    return files


@pytest.fixture
def copy(files: Files, tmp_path: Path) -> Path:
    """A copy of the folder, to be changed."""
    return Path(shutil.copytree(files.folder, tmp_path / "xlmr"))


def as_args(content: dict[str, Any]) -> dict[str, Any]:
    return content


def as_legacy(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, "model": legacy(content["model"])}


def as_cfg_namespace(content: dict[str, Any]) -> dict[str, Any]:
    cfg = {"_name": None, "model": content["args"], "task": Namespace(data="."), "common": {"seed": 1}}
    return {"args": None, "cfg": cfg, "model": content["model"], "optimizer_history": [], "extra_state": {"epoch": 1}}


def as_cfg_dict(content: dict[str, Any]) -> dict[str, Any]:
    return {"cfg": {"model": vars(content["args"])}, "model": content["model"]}


def as_half(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, "model": {name: t.half() for name, t in content["model"].items()}}


def with_heads(content: dict[str, Any]) -> dict[str, Any]:
    heads = {f"classification_heads.mnli.{part}.weight": torch.ones(3, 16) for part in ("dense", "out_proj")}
    return {**content, "model": {**content["model"], **heads, "sentence_projection_layer.weight": torch.ones(16, 16)}}


def inside_another(content: dict[str, Any]) -> dict[str, Any]:
    model = {f"encoder.xlmr.model.{name}": tensor for name, tensor in content["model"].items()}
    return {**content, "model": {**model, "encoder.other.weight": torch.ones(2)}}


STYLES = [as_args, as_legacy, as_cfg_namespace, as_cfg_dict, with_heads, inside_another]


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.__name__)
def test_states_are_fairseqs(files: Files, copy: Path, style: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    torch.save(style(files.content()), copy / "model.pt")
    tokens = [files.hub.encode(text) for text in TEXTS]
    assert len({len(ids) for ids in tokens}) > 3  # there is padding
    encoder = named_encoder(f"fairseq:{copy}")
    same(our_states(encoder, tokens), states(files.hub, tokens))


def test_fairseq_itself_takes_the_legacy_names_for_the_same_weights(files: Files) -> None:
    own = files.hub.model.state_dict()
    state = legacy(own)
    assert sum("in_proj" in name for name in state) == 2 * SIZES["encoder_layers"]
    assert not [name for name in state if name.startswith("encoder.sentence_encoder") or "layernorm_emb" in name]
    files.hub.model.upgrade_state_dict(state)
    assert state.keys() == own.keys()
    assert all(torch.equal(state[name], own[name]) for name in own)


def test_the_tokenizers_ids_are_fairseqs(files: Files) -> None:
    ours = named_encoder(f"fairseq:{files.folder}").tokenizer.encode(TEXTS)
    assert [ids.tolist() for ids in ours] == [files.hub.encode(text).tolist() for text in TEXTS]
    assert any(UNK in ids for ids in ours)


def test_a_pre_norm_model_becomes_an_xlmr_xl(copy: Path) -> None:
    hub = official(copy, **PRE_NORM)
    for state in (hub.model.state_dict(), legacy(hub.model.state_dict())):
        torch.save({"args": args_of(hub), "model": state}, copy / "model.pt")
        encoder = named_encoder(f"fairseq:{copy}")
        assert type(encoder.model) is XLMRobertaXLModel
        assert encoder.positions == 512
        tokens = [hub.encode(text) for text in TEXTS]
        same(our_states(encoder, tokens), states(hub, tokens))
    encoder.save(copy / "saved")
    again = pretrained_encoder(str(copy / "saved"))
    assert all(torch.equal(a, b) for a, b in zip(our_states(again, tokens), our_states(encoder, tokens), strict=True))


@pytest.mark.parametrize("write", ["legacy format", "xz", "named", "named xz", "xz of the legacy format"])
def test_every_container_gives_the_same_states(files: Files, copy: Path, write: str) -> None:
    (copy / "model.pt").unlink()
    plain = copy / ("other.pt" if write.startswith("named") else "model.pt")
    torch.save(files.content(), plain, _use_new_zipfile_serialization="legacy" not in write)
    name = plain if write.startswith("named") else copy
    if "xz" in write:
        packed = plain.with_name(f"{plain.name}.xz")
        packed.write_bytes(lzma.compress(plain.read_bytes(), preset=0))
        plain.unlink()
        name = packed if write.startswith("named") else copy
    tokens = [files.hub.encode(text) for text in TEXTS]
    same(our_states(named_encoder(f"fairseq:{name}"), tokens), states(files.hub, tokens))


def test_half_precision_weights_are_cast(files: Files, copy: Path) -> None:
    torch.save(as_half(files.content()), copy / "model.pt")
    encoder = named_encoder(f"fairseq:{copy}")
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}
    tokens = [files.hub.encode(text) for text in TEXTS]
    found = our_states(encoder, tokens)
    same(found, states(files.hub, tokens), bound=2e-2)
    rounded = official(copy, **POST_NORM)
    rounded.model.load_state_dict({name: t.half().float() for name, t in files.hub.model.state_dict().items()})
    same(found, states(rounded, tokens))


def test_a_dictionary_in_another_order_is_put_in_ours(files: Files, copy: Path) -> None:
    pieces = fairseq_io.read_dictionary(copy / "dict.txt")
    lost = "▁"  # in many texts
    kept = sorted(set(pieces) - {lost}, reverse=True)
    lines = [f"{piece} {len(kept) - i}\n" for i, piece in enumerate(kept)]
    (copy / "dict.txt").write_text("".join(lines) + "madeupword0000 0\n", encoding="utf-8")
    hub = official(copy, **POST_NORM)
    torch.save({"args": args_of(hub), "model": hub.model.state_dict()}, copy / "model.pt")
    encoder = named_encoder(f"fairseq:{copy}")
    theirs, ours = [hub.encode(text) for text in LINES + TEXTS], encoder.tokenizer.encode(LINES + TEXTS)
    assert any(a.tolist() != b.tolist() for a, b in zip(theirs, ours, strict=True))
    assert sum((ids == UNK).sum() for ids in theirs) > sum((ids == UNK).sum() for ids in ours) > 0
    same(our_states(encoder, ours), states(hub, theirs))
    mask = encoder.tokenizer.vocabulary - 1  # type: ignore[union-attr]
    theirs, ours = [torch.tensor([BOS, hub.task.mask_idx, EOS])], [torch.tensor([BOS, mask, EOS]).numpy()]
    same(our_states(encoder, ours), states(hub, theirs))


def test_all_512_positions_work_and_longer_texts_are_cut(files: Files) -> None:
    encoder = named_encoder(f"fairseq:{files.folder}")
    assert encoder.positions == 512 == files.hub.model.max_positions()
    text = "dogs run " * 300
    (whole,) = encoder.tokenizer.encode([text])
    assert len(whole) > 512
    (cut,) = encoder.tokenizer.encode([text], encoder.positions)
    assert cut.tolist() == [*whole[:511], EOS]
    tokens = [torch.from_numpy(cut).long(), files.hub.encode(TEXTS[0])]
    same(our_states(encoder, tokens), states(files.hub, tokens))
    just = [*whole[:511].tolist(), EOS]
    for pieces in (510, 511):  # of 512 and 513 tokens with both ends
        exact = encoder.tokenizer.spm.decode([int(i) - 1 for i in whole[1 : pieces + 1]])  # type: ignore[union-attr]
        (ids,) = encoder.tokenizer.encode([exact])
        assert len(ids) == pieces + 2
        assert encoder.tokenizer.encode([exact], encoder.positions)[0].tolist() == just


def test_the_position_table_has_514_rows_and_two_are_unused(files: Files) -> None:
    encoder = named_encoder(f"fairseq:{files.folder}")
    table: Any = encoder.model.embeddings.position_embeddings.weight  # type: ignore[union-attr]
    assert len(table) == 514
    tokens = [files.hub.encode(text) for text in TEXTS]
    before = our_states(encoder, tokens)
    with torch.no_grad():
        table[:2] += 100
    same(our_states(encoder, tokens), before, bound=0)
    with torch.no_grad():
        table[2] += 1
    assert not torch.equal(our_states(encoder, tokens)[0], before[0])


def test_a_saved_encoder_comes_back_to_the_bit(files: Files, tmp_path: Path) -> None:
    encoder = named_encoder(f"fairseq:{files.folder}")
    encoder.save(tmp_path)
    again = pretrained_encoder(str(tmp_path))
    ours, theirs = encoder.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    tokens = encoder.tokenizer.encode(TEXTS)
    assert [ids.tolist() for ids in again.tokenizer.encode(TEXTS)] == [ids.tolist() for ids in tokens]
    same(our_states(again, tokens), our_states(encoder, tokens), bound=0)
    assert again.positions == encoder.positions


def test_what_the_encoder_is(files: Files) -> None:
    encoder = named_encoder(f"fairseq:{files.folder}")
    assert type(encoder.model) is XLMRobertaModel
    assert encoder.config._attn_implementation == "sdpa"
    assert not [name for name in encoder.state_dict() if "pooler" in name]
    assert (encoder.config.hidden_dropout_prob, encoder.config.attention_probs_dropout_prob) == (0.2, 0.3)
    assert encoder.width == 16


def refusal(name: Path) -> str:
    with pytest.raises(MclipError) as caught:
        named_encoder(f"fairseq:{name}")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["model.pt", "dict.txt", MODEL_FILE])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    assert refusal(copy).startswith(str(copy / name))


def test_a_named_checkpoint_that_is_missing_is_named(copy: Path) -> None:
    assert refusal(copy / "other.pt") == f"{copy / 'other.pt'}: missing"


def test_no_folder_at_all_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "nothing") in refusal(tmp_path / "nothing")


@pytest.mark.parametrize("lines", [-1, 1])
def test_a_dictionary_of_another_length_is_refused(copy: Path, lines: int) -> None:
    text = (copy / "dict.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    more = [*text, "madeupword0000 0\n"] if lines > 0 else text[:lines]
    (copy / "dict.txt").write_text("".join(more), encoding="utf-8")
    message = refusal(copy)
    assert str(copy / "model.pt") in message
    assert f"{len(text) + 5} word rows do not fit a dictionary of {len(more)} + 5" in message


def test_a_dictionary_that_is_none_is_refused(copy: Path) -> None:
    (copy / "dict.txt").write_text("a b c\n", encoding="utf-8")
    assert refusal(copy).startswith(f"{copy / 'dict.txt'}: not a readable fairseq dictionary")


def encoder_weights(hub: RobertaHubInterface) -> list[str]:
    return [name for name in hub.model.state_dict() if "sentence_encoder" in name and not name.endswith("version")]


@pytest.mark.parametrize("options", [POST_NORM, PRE_NORM], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("damage", ["lost", "of another shape"])
def test_every_weight_must_be_there_and_fit(copy: Path, options: dict[str, bool], damage: str) -> None:
    hub = official(copy, **options)
    for name in encoder_weights(hub):
        state = hub.model.state_dict()
        tensor = state.pop(name)
        if damage != "lost":
            state[name] = torch.zeros(tensor.shape[0] + 1, *tensor.shape[1:])
            if name.endswith("embed_positions.weight"):
                continue  # its length is not told elsewhere
        torch.save({"args": args_of(hub), "model": state}, copy / "model.pt")
        assert refusal(copy).startswith(f"{copy / 'model.pt'}: "), name


def test_a_strange_weight_is_refused(files: Files, copy: Path) -> None:
    content = files.content()
    content["model"]["encoder.sentence_encoder.layers.0.self_attn.bias_k"] = torch.zeros(1, 1, 16)
    torch.save(content, copy / "model.pt")
    assert "self_attn.bias_k" in refusal(copy)


@pytest.mark.parametrize("heads", [None, 3, 0, -4, "four"])
def test_heads_that_cannot_be_are_refused(files: Files, copy: Path, heads: Any) -> None:
    args = Namespace(**{**vars(args_of(files.hub)), "encoder_attention_heads": heads})
    torch.save({**files.content(), "args": args}, copy / "model.pt")
    assert "attention heads" in refusal(copy)


def test_another_activation_is_refused(files: Files, copy: Path) -> None:
    args = Namespace(**{**vars(args_of(files.hub)), "activation_fn": "relu"})
    torch.save({**files.content(), "args": args}, copy / "model.pt")
    assert "activation relu" in refusal(copy)


@pytest.mark.parametrize(
    "content",
    [
        {"weight": torch.ones(2)},
        {"model": {"encoder.layers.0.fc1.weight": torch.ones(2)}},
        {"model": [1, 2]},
        [torch.ones(2)],
        {"model": {}},
    ],
    ids=["a state dict", "another model of fairseq", "a list of weights", "a list", "empty"],
)
def test_a_checkpoint_that_is_not_fairseqs_xlmr_is_refused(copy: Path, content: Any) -> None:
    torch.save(content, copy / "model.pt")
    message = refusal(copy)
    assert message.startswith(f"{copy / 'model.pt'}: ")
    assert "not a fairseq checkpoint" in message or "contains no XLM-R" in message


@pytest.mark.parametrize("kept", [0, 3, 100, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("form", ["zip", "legacy", "xz"])
def test_a_truncated_file_is_refused(files: Files, copy: Path, form: str, kept: float) -> None:
    path = copy / "model.pt"
    torch.save(files.content(), path, _use_new_zipfile_serialization=form != "legacy")
    content = path.read_bytes()
    if form == "xz":
        path.unlink()
        path, content = copy / "model.pt.xz", lzma.compress(content, preset=0)
    path.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
    assert refusal(copy).startswith(f"{path}: damaged")


ODD: dict[str, Callable[[dict[str, Any]], Any]] = {
    "args: a list": lambda content: content.update(args=[1]),
    "dropout: a word": lambda content: setattr(content["args"], "dropout", "much"),
    "a word for a weight": lambda content: content["model"].update({f"{PREFIX}layers.0.fc1.weight": "x"}),
    "a number for a name": lambda content: content["model"].update({5: torch.zeros(1)}),
    "a number for a matrix": lambda content: content["model"].update({f"{PREFIX}embed_tokens.weight": torch.zeros(())}),
    "a layer without a number": lambda content: content["model"].update({f"{PREFIX}layers.x.fc1.bias": torch.zeros(1)}),
}
PREFIX = "encoder.sentence_encoder."


@pytest.mark.parametrize("kind", ODD)
def test_odd_content_is_refused(files: Files, copy: Path, kind: str) -> None:
    content = files.content()
    content["model"] = dict(content["model"])
    ODD[kind](content)
    torch.save(content, copy / "model.pt")
    assert refusal(copy).startswith(f"{copy / 'model.pt'}: ")


def test_options_may_be_namespaces_throughout(files: Files, copy: Path) -> None:
    content = files.content()
    torch.save({"cfg": Namespace(model=content["args"]), "model": content["model"]}, copy / "model.pt")
    assert named_encoder(f"fairseq:{copy}").config.num_attention_heads == SIZES["encoder_attention_heads"]


def test_a_folder_that_we_write_is_read_by_fairseq_with_the_same_states(files: Files, tmp_path: Path) -> None:
    encoder = named_encoder(f"fairseq:{files.folder}")
    with torch.no_grad():
        encoder.model.embeddings.token_type_embeddings.weight.normal_()  # type: ignore[union-attr]
    write_folder(encoder, tmp_path / "out")
    hub = XLMRModel.from_pretrained(str(tmp_path / "out")).eval()
    tokens = [hub.encode(text) for text in TEXTS]
    assert [ids.tolist() for ids in encoder.tokenizer.encode(TEXTS)] == [ids.tolist() for ids in tokens]
    same(our_states(encoder, tokens), states(hub, tokens))
    same(our_states(named_encoder(f"fairseq:{tmp_path / 'out'}"), tokens), our_states(encoder, tokens))
    with pytest.raises(MclipError, match="exists already"):
        write_folder(encoder, tmp_path / "out")


def test_the_command_exports_the_encoder_of_models_and_translators(squares: Path, tmp_path: Path) -> None:
    model = build(squares, {"kind": "linear", "pool": "mean"}, "none", 24, tiny.TEACHER)
    model.save(tmp_path / "model")
    translator(squares).save(tmp_path / "translator")
    model.encoder.save(tmp_path / "encoder")
    for name in ("model", "translator", "encoder"):
        out = tmp_path / f"{name}.fairseq"
        done = CliRunner().invoke(cli, ["export", "fairseq", str(tmp_path / name), "--out", str(out)])
        assert done.exit_code == 0, done.output
        hub = XLMRModel.from_pretrained(str(out)).eval()
        tokens = [hub.encode(text) for text in ("red", "grün links", "")]
        same(our_states(encoder_within(tmp_path / name), tokens), states(hub, tokens))


def test_only_an_xlmr_becomes_a_fairseq_folder(copy: Path, tmp_path: Path) -> None:
    torch.save({"args": args_of(hub := official(copy, **PRE_NORM)), "model": hub.model.state_dict()}, copy / "model.pt")
    with pytest.raises(MclipError, match="not a xlm-roberta-xl"):
        write_folder(named_encoder(f"fairseq:{copy}"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
