"""Pooling and projectors: against explicit formulas, against XLM-R's own layers, and blind to padding."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import XLMRobertaConfig, XLMRobertaModel

from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.models.clip import build_clip
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.projectors import Blocks, NoisyStandardization, Projector, build_projector, pool
from mclip_kit.models.text_encoder import new_encoder
from tests import tiny

B, T, H, D = 4, 7, 24, 10
LENGTHS = [7, 2, 5, 3]
KINDS = ("linear", "mlp", "altclip", "transformer")


@pytest.fixture
def states() -> tuple[Tensor, Tensor]:
    """States (B, T, H) with rubbish at the padding, and their mask (B, T)."""
    torch.manual_seed(0)
    mask_BT = (torch.arange(T) < torch.tensor(LENGTHS)[:, None]).long()
    return torch.randn(B, T, H) + 1000 * (1 - mask_BT)[..., None], mask_BT


def config(layers: int = 2, dropout: float = 0.0) -> XLMRobertaConfig:
    return XLMRobertaConfig(
        vocab_size=50,
        hidden_size=H,
        num_hidden_layers=layers,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=20,
        type_vocab_size=1,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        layer_norm_eps=1e-5,
    )


def projector(kind: str, how: str = "cls", **settings: object) -> Projector:
    torch.manual_seed(1)
    return build_projector(kind, how, config(), D, **settings).eval()


@pytest.mark.parametrize("how", ["eos", "cls", "mean"])
def test_pooling_with_padding_is_pooling_row_by_row(states, how):
    states_BTH, mask_BT = states
    slow = {"eos": lambda row: row[-1], "cls": lambda row: row[0], "mean": lambda row: row.mean(0)}[how]
    expected = [slow(row[:length]) for row, length in zip(states_BTH, LENGTHS, strict=True)]
    torch.testing.assert_close(pool(states_BTH, mask_BT, how), torch.stack(expected))


def test_a_mean_of_states_of_half_precision_is_that_of_float32():
    states_BTH = torch.randn(3, 40, 8, generator=torch.Generator().manual_seed(1)).bfloat16() + 1
    mask_BT = (torch.arange(40) < torch.tensor([[40], [33], [7]])).long()
    assert torch.equal(pool(states_BTH, mask_BT, "mean"), pool(states_BTH.float(), mask_BT, "mean"))


@pytest.mark.parametrize("how", ["eos", "cls", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_an_embedding_a_row(states, kind, how):
    part = projector(kind, how)
    assert part(*states).shape == (B, D)
    assert part.pool(*states).shape == (B, H)


@pytest.mark.parametrize("how", ["eos", "cls", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_change_an_embedding(states, kind, how):
    states_BTH, mask_BT = states
    part = projector(kind, how)
    ones_BT = torch.ones_like(mask_BT)
    alone = [part(states_BTH[i : i + 1, :n], ones_BT[:1, :n]) for i, n in enumerate(LENGTHS)]
    torch.testing.assert_close(part(states_BTH, mask_BT), torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_of_pooled_states_is_the_projector(states, kind):
    part = projector(kind, "mean")
    torch.testing.assert_close(part.head(part.pool(*states)), part(*states), rtol=0, atol=0)


def test_only_the_transformer_has_blocks():
    assert [kind for kind in KINDS if projector(kind).blocks is not None] == ["transformer"]


@pytest.mark.parametrize("hidden", [None, 16])
def test_the_altclip_head_is_norm_linear_and_a_projection_without_bias(states, hidden):
    part = projector("altclip", hidden=hidden)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.normal_(std=0.3)
    norm, linear, projection = (dict(layer.named_parameters()) for layer in part.head)
    pooled_BH = states[0][:, 0]
    normed_BH = F.layer_norm(pooled_BH, (H,), norm["weight"], norm["bias"])
    expected = F.linear(F.linear(normed_BH, linear["weight"], linear["bias"]), projection["weight"])
    torch.testing.assert_close(part(*states), expected)
    assert linear["weight"].shape == (hidden or D, H)
    assert set(projection) == {"weight"}


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_two_linear_maps_have_no_activation_between_them_and_one_map_computes_the_same(states, noise):
    part = projector("linear", hidden=16, noise=noise)
    first, last = part.head[-2:]
    inputs_BH = part.head[0](states[0][:, 0]) if noise else states[0][:, 0]
    torch.testing.assert_close(part(*states), last(first(inputs_BH)))
    one = part.one_map()
    assert [layer.weight.shape for layer in one if isinstance(layer, nn.Linear)] == [(D, H)]
    torch.testing.assert_close(one(states[0][:, 0]), part(*states), rtol=1e-5, atol=1e-6)


def test_the_mlp_is_linear_gelu_linear_of_four_times_the_width(states):
    part = projector("mlp", dropout=0.5)
    first, last = part.head[0], part.head[-1]
    expected = last(F.gelu(first(states[0][:, 0])))
    torch.testing.assert_close(part(*states), expected)
    assert first.out_features == 4 * H


def test_dropout_of_the_mlp_is_on_only_in_training(states):
    part = projector("mlp", dropout=0.5)
    torch.testing.assert_close(part(*states), part(*states), rtol=0, atol=0)
    part.train()
    assert not torch.equal(part(*states), part(*states))


def test_noise_standardises_pooled_states_and_blurs_them_only_in_training():
    torch.manual_seed(0)
    noise, pooled_BH = NoisyStandardization(H, 0.5), 3 * torch.randn(4000, H) + 7
    for _ in range(60):  # the running statistics settle
        blurred_BH = noise(pooled_BH)
    assert blurred_BH.std().item() == pytest.approx((1 + 0.5**2) ** 0.5, rel=0.02)
    still_BH = noise.eval()(pooled_BH)
    assert still_BH.mean().item() == pytest.approx(0, abs=0.02)
    assert still_BH.std().item() == pytest.approx(1, rel=0.02)
    assert torch.equal(still_BH, noise(pooled_BH))


@pytest.fixture(scope="module")
def deep() -> XLMRobertaModel:
    """A four-layer XLM-R, none of whose weights are trivial."""
    torch.manual_seed(2)
    model = XLMRobertaModel(config(4), add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def blocks_of(model: XLMRobertaModel, layers: slice) -> Blocks:
    """Blocks with the weights of some of a model's layers."""
    own = list(model.encoder.layer[layers])
    blocks = Blocks(model.config, len(own), 0.0).eval()
    for block, layer in zip(blocks.layers, own, strict=True):
        block.load_state_dict(layer.state_dict())
    return blocks


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_blocks_are_the_encoders_own_last_layers(deep, layers):
    mask_BT = (torch.arange(T) < torch.tensor(LENGTHS)[:, None]).long()
    ids_BT = torch.where(mask_BT == 1, torch.randint(4, 50, (B, T)), 1)
    with torch.no_grad():
        outputs = deep(input_ids=ids_BT, attention_mask=mask_BT, output_hidden_states=True)
        continued_BTH = blocks_of(deep, slice(4 - layers, 4))(outputs.hidden_states[4 - layers], mask_BT)
    real_BT = mask_BT == 1
    torch.testing.assert_close(continued_BTH[real_BT], outputs.last_hidden_state[real_BT])
    assert not torch.allclose(outputs.hidden_states[4 - layers][real_BT], continued_BTH[real_BT])


@pytest.mark.parametrize("how", ["eos", "cls", "mean"])
@pytest.mark.parametrize("layers", [1, 3])
def test_the_pooled_token_alone_is_as_all_of_them(deep, how, layers):
    blocks, lengths = blocks_of(deep, slice(0, layers)), [5, 2, 7]
    generator = torch.Generator().manual_seed(1)
    states_BTH = torch.randn(3, 7, deep.config.hidden_size, generator=generator)
    mask_BT = (torch.arange(7) < torch.tensor(lengths)[:, None]).long()
    found, gradients = [], []
    for pooled_BH in (blocks.pooled(states_BTH, mask_BT, how), pool(blocks(states_BTH, mask_BT), mask_BT, how)):
        blocks.zero_grad()
        pooled_BH.pow(2).sum().backward()
        found.append(pooled_BH.detach())
        gradients.append([parameter.grad.clone() for parameter in blocks.parameters()])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_blocks_take_their_dropout_from_the_recipe_and_not_from_the_encoder(dropout):
    blocks = Blocks(config(dropout=0.1), 2, dropout)
    assert {part.p for name, part in blocks.named_modules() if name.endswith("output.dropout")} == {dropout}


def test_building_blocks_leaves_the_encoders_config_alone():
    given = config(dropout=0.3)
    Blocks(given, 1, 0.0)
    assert given.hidden_dropout_prob == 0.3


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def mclip(squares: Path) -> MultilingualClip:
    """mCLIP's projectors in their real sizes on towers that are tiny but for their widths."""
    encoder = new_encoder(1, 768, 12, 3072, 0.1, 8, XlmrTokenizer(squares / "bitext"))
    clip = build_clip({**tiny.TEACHER, "embed_dim": 512})
    return MultilingualClip(clip, encoder, {"kind": "transformer", "pool": "eos", "layers": 2}, "linear")


def test_mclips_x_projector_has_the_parameters_of_the_reference(mclip):
    assert parameters(mclip.projector) == 14_175_744


def test_mclips_clip_projector_has_the_parameters_of_the_reference(mclip):
    assert parameters(mclip.clip_projector) == 393_216
    assert mclip.clip_projector.bias is None


def test_a_transformer_projector_of_another_width_ends_in_a_map_without_bias(states):
    part = projector("transformer")
    assert [name for name, _ in part.head.named_parameters()] == ["weight"]
    assert isinstance(build_projector("transformer", "eos", config(), H).head, nn.Identity)
