"""Encoders of transformers that a user may bring: each encodes, trains, is saved and loads again, or is refused."""

from pathlib import Path

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn

from mclip_kit import losses
from mclip_kit.errors import CheckpointError, RecipeError
from mclip_kit.interop.onnx_graph import TextTower, ends_with_padding
from mclip_kit.models.clip import build_clip
from mclip_kit.models.freezing import freeze_all_but
from mclip_kit.models.lora import adapt, merge, query_value
from mclip_kit.models.projectors import build_projector
from mclip_kit.models.text_encoder import Encoder, is_causal, pretrained_encoder
from mclip_kit.train.layer_decay import layer_scales
from mclip_kit.train.optim import set_activation_checkpointing, trainable
from tests import tiny
from tests.models.kinds import (
    DECODERS,
    ENCODERS,
    KINDS,
    REFUSED,
    SHOWN,
    SIZES,
    TEXTS,
    TITLES,
    VOCABULARY,
    abilities,
    assert_exports,
    refusals,
    said,
    save,
    save_kind,
    students,
)

CANNOT = {
    "LoRA": {"xlnet"},
    "layer_decay": {"albert"},
    "checkpointing": {"albert", "flaubert", "mpnet", "xlm", "xlnet"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind of encoder."""
    root = tmp_path_factory.mktemp("kinds")
    return {kind: save_kind(kind, root / kind) for kind in KINDS}


@torch.no_grad()
def states(encoder: Encoder, texts: list[str]) -> list[Tensor]:
    """The states of each text's tokens, without the padding's."""
    ids_BT, mask_BT = encoder.pad(encoder.tokenizer.encode(texts, encoder.positions))
    return [row[mask.bool()] for row, mask in zip(encoder(ids_BT, mask_BT), mask_BT, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_it_encodes_and_comes_back_to_the_bit(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    encoder = pretrained_encoder(str(folders[kind])).eval()
    assert encoder.width == 16
    assert encoder.positions == 32
    assert is_causal(encoder) == (kind in DECODERS)
    together = states(encoder, TEXTS)
    for text, found in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(found, states(encoder, [text])[0], rtol=0, atol=2e-5)
    assert (together[0][-1] - together[3][-1]).abs().max() > 1e-3
    encoder.save(tmp_path / "saved")
    again = pretrained_encoder(str(tmp_path / "saved")).eval()
    assert type(again.model) is type(encoder.model)
    assert all(torch.equal(a, b) for a, b in zip(together, states(again, TEXTS), strict=True))
    for settings in ({"kind": "transformer", "pool": "mean", "layers": 1}, {"kind": "altclip", "pool": "eos"}):
        projector = build_projector(config=encoder.config, width=8, **settings)  # type: ignore[arg-type]
        ids_BT, mask_BT = encoder.pad(encoder.tokenizer.encode(TEXTS))
        assert projector(encoder(ids_BT, mask_BT), mask_BT).isfinite().all()


class Student(nn.Module):
    """An encoder and a linear map of its mean state."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encoder = pretrained_encoder(str(folder))
        self.projector = build_projector(config=self.encoder.config, width=8, kind="linear", pool="mean")

    def forward(self) -> Tensor:
        ids_BT, mask_BT = self.encoder.pad(self.encoder.tokenizer.encode(TEXTS))
        embedding_BD: Tensor = self.projector(self.encoder(ids_BT, mask_BT), mask_BT)
        return embedding_BD

    def step(self) -> tuple[dict[str, Tensor], int]:
        """The gradients of a step, without dropout's noise, and the bytes that are kept for the backward pass."""
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        self.zero_grad(set_to_none=True)
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = losses.mse(self.train()(), torch.ones(len(TEXTS), 8))
        loss.backward()
        return {name: p.grad.clone() for name, p in self.named_parameters() if p.grad is not None}, sum(sizes)


def assert_same(some: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert some.keys() == others.keys()
    for name, tensor in some.items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_and_what_it_cannot_is_said(kind: str, folders: dict[str, Path]) -> None:
    student = Student(folders[kind])
    gradients, kept = student.step()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    layer = [name for name in gradients if "word" in name or "embed" in name or "shared" in name or "wte" in name]
    assert any(gradients[name].abs().max() > 0 for name in layer)
    can = abilities(student.encoder)
    without = {name for name, answer in can.items() if answer == "no"}
    assert without == {name for name, kinds in CANNOT.items() if kind in kinds}
    if "layer_decay" not in without:
        assert set(layer_scales(student.encoder, 0.5).values()) == {0.25, 0.5, 1.0}
    if "checkpointing" in without:
        return
    set_activation_checkpointing(student, True)
    again, fewer = student.step()
    assert_same(again, gradients)
    assert fewer < kept
    set_activation_checkpointing(student, False)
    assert student.step()[1] == kept


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in CANNOT["LoRA"]])
def test_adapters_are_put_on_queries_and_values_and_merged(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    student = Student(folders[kind]).eval()
    before = student()
    adapt(student.encoder, rank=2, alpha=4, dropout=0.0)
    torch.testing.assert_close(student.eval()(), before, rtol=0, atol=1e-6)
    chosen = trainable(student, ["lora"])
    freeze_all_but(student, chosen)
    gradients, _ = student.step()
    assert set(gradients) == chosen
    parts = 2 * len(abilities(pretrained_encoder(str(folders[kind])))["LoRA"].split(", "))  # A and B of each
    assert len(chosen) == (1 if kind == "albert" else 2) * parts  # ALBERT's two layers are one
    if abilities(student.encoder)["checkpointing"] == "yes":
        set_activation_checkpointing(student, True)
        assert_same(student.step()[0], gradients)
        set_activation_checkpointing(student, False)
    torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=5).step()
    student.step()
    torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=5).step()
    trained = student.eval()()
    assert (trained - before).abs().max() > 1e-4
    merge(student.encoder)
    student.encoder.save(tmp_path)
    student.encoder = pretrained_encoder(str(tmp_path))
    torch.testing.assert_close(student.eval()(), trained, rtol=0, atol=1e-5)


def test_the_page_says_what_each_can_do(folders: dict[str, Path]) -> None:
    clip, rows = build_clip(tiny.TEACHER), said("Encoders")
    assert list(rows) == [TITLES.get(kind, kind) for kind in SHOWN]
    for kind, row in zip(SHOWN, rows.values(), strict=True):
        encoder = pretrained_encoder(str(folders[kind]))
        assert row["class"] == type(encoder.model).__name__
        assert abilities(encoder).items() <= row.items()
        assert_exports(row, refusals(students(encoder, clip)))


def test_frozen_lower_layers_are_not_computed_again(folders: dict[str, Path]) -> None:
    student = Student(folders["bert"])
    freeze_all_but(student, trainable(student, ["encoder.model.encoder.layer.1*", "projector"]))
    seen: list[bool] = []
    student.encoder.model.embeddings.register_forward_hook(lambda *given: seen.append(given[2].requires_grad))
    set_activation_checkpointing(student, True)
    gradients, _ = student.step()
    set_activation_checkpointing(student, False)
    assert_same(student.step()[0], gradients)
    assert seen == [False, False]


def test_a_decoder_keeps_no_keys_and_values(folders: dict[str, Path]) -> None:
    encoder = pretrained_encoder(str(folders["qwen3"]))
    kept: list[dict[str, Tensor]] = []
    encoder.model.register_forward_hook(lambda module, given, out: kept.append(out))
    states(encoder, TEXTS)
    assert list(kept[0].keys()) == ["last_hidden_state"]


def test_the_graph_finds_the_end_of_a_text_that_ends_with_padding(folders: dict[str, Path]) -> None:
    encoder = pretrained_encoder(str(folders["qwen3-embedding"]))
    model = students(encoder, build_clip(tiny.TEACHER))["onnx"]
    assert [ids.tolist() for ids in encoder.tokenizer.encode(["", "a"])] == [[0], [4, 0]]
    ids_BT, _ = encoder.pad(encoder.tokenizer.encode(TEXTS))
    with torch.no_grad():
        found_BD = TextTower(model)(torch.nn.functional.pad(ids_BT, (0, 5)))
    torch.testing.assert_close(found_BD, model.encode_text(TEXTS), rtol=0, atol=1e-6)
    assert not ends_with_padding(pretrained_encoder(str(folders["bert"])).tokenizer)
    only_empty = pretrained_encoder(str(folders["qwen3"])).tokenizer
    only_empty.pad = 3  # the end token, which empty texts alone have
    with pytest.raises(ValueError, match="part of texts"):
        ends_with_padding(only_empty)


def test_an_encoder_without_known_queries_is_refused_by_name(folders: dict[str, Path]) -> None:
    with pytest.raises(RecipeError, match=r"of type xlnet, are called query/value, .*; name some of layer_1, layer_2$"):
        query_value(pretrained_encoder(str(folders["xlnet"])))


@pytest.mark.parametrize("kind", ["t5", "mt5", "umt5"])
def test_a_whole_t5_gives_its_encoders_states(kind: str, tmp_path: Path) -> None:
    folder = save(ENCODERS[kind], tmp_path / "given")
    encoder = pretrained_encoder(str(folder)).eval()
    assert not [name for name in encoder.state_dict() if "decoder" in name]
    whole = hf.AutoModel.from_pretrained(folder).eval()
    ids_BT, mask_BT = encoder.pad(encoder.tokenizer.encode(TEXTS))
    with torch.no_grad():
        theirs = whole.get_encoder()(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        torch.testing.assert_close(encoder(ids_BT, mask_BT), theirs, rtol=0, atol=1e-6)


def test_an_encoder_that_reads_the_padding_is_refused(tmp_path: Path) -> None:
    maker = lambda: hf.ConvBertModel(hf.ConvBertConfig(**SIZES, embedding_size=16))  # noqa: E731
    with pytest.raises(CheckpointError, match="a convbert gives a text other states if a longer one is in its batch"):
        pretrained_encoder(str(save(maker, tmp_path)))


def test_an_empty_text_has_the_end_token_where_the_tokenizer_adds_none(tmp_path: Path) -> None:
    encoder = pretrained_encoder(str(save(DECODERS["llama"], tmp_path, ends="")))
    assert [ids.tolist() for ids in encoder.tokenizer.encode(["", "a"])] == [[3], [4]]


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_encoder_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    maker, message = REFUSED[kind]
    with pytest.raises(CheckpointError, match=f"^encoder hf:{tmp_path}: {message}") as error:
        pretrained_encoder(str(save(maker, tmp_path)))
    assert "\n" not in str(error.value)


def test_ids_beyond_the_word_table_are_refused_where_the_vocabulary_has_gaps(tmp_path: Path) -> None:
    save(ENCODERS["bert"], tmp_path)
    words = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "far": VOCABULARY}, unk_token="[UNK]"))
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=f"{VOCABULARY + 1} ids do not fit {VOCABULARY} word rows"):
        pretrained_encoder(str(tmp_path))


def test_an_encoder_that_fails_on_short_texts_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(ENCODERS["bert"], tmp_path)
    monkeypatch.setattr(hf.BertModel, "forward", lambda *given, **more: torch.zeros(2, 3) + torch.zeros(3, 2))
    with pytest.raises(CheckpointError, match=f"^encoder hf:{tmp_path}: a bert that does not encode a short text: "):
        pretrained_encoder(str(tmp_path))
