"""The decoder: what it writes is what transformers writes with the same weights, one sentence at a time."""

from pathlib import Path

import pytest
import torch
from transformers import EncoderDecoderModel, XLMRobertaForCausalLM, XLMRobertaModel

from mclip_kit.data.tokenizer import BOS, EOS, PAD, XlmrTokenizer
from mclip_kit.errors import CheckpointError, MclipError
from mclip_kit.models.text_encoder import Encoder, new_encoder
from mclip_kit.models.translator import Translator, load_translator, new_decoder, prompt
from tests import tiny

TEXTS = ["red square left, shade 2", "", "blue square", "a green square above, shade 3, and once more a green square"]
LANGUAGES = ["de", "fr"]


def translator(squares: Path, languages: list[str] = LANGUAGES) -> Translator:
    """Random weights that are far from zero, so that searches differ."""
    torch.manual_seed(1)
    tokenizer = XlmrTokenizer(squares / "bitext")
    encoder = new_encoder(2, 16, 2, 32, 0.1, 48, tokenizer)
    decoder = new_decoder(encoder, layers=2, languages=languages)
    with torch.no_grad():
        for weight in [*encoder.parameters(), *decoder.parameters()]:
            weight.add_(0.4 * torch.randn(weight.shape))
    return Translator(encoder, decoder)


@pytest.fixture(scope="module")
def made(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Translator, Path]:
    folder = tmp_path_factory.mktemp("translator") / "t"
    own = translator(squares)
    own.save(folder)
    return own, folder


@pytest.mark.parametrize("beams", [1, 4])
def test_translations_are_those_of_transformers(made: tuple[Translator, Path], beams: int) -> None:
    own, folder = made
    encoder = XLMRobertaModel.from_pretrained(folder / "encoder", add_pooling_layer=False)
    decoder = XLMRobertaForCausalLM.from_pretrained(folder / "decoder")
    reference = EncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
    tokenizer = XlmrTokenizer(folder / "encoder")
    tokens = tokenizer.encode(TEXTS)
    start = [EOS, *tokenizer.encode(["fr"])[0][1:-1].tolist()]
    room = min(2 * max(len(ids) for ids in tokens) + 10, 48 - len(start))
    wanted = []
    for ids in tokens:
        out = reference.generate(
            input_ids=torch.tensor(ids[None]).long(),
            decoder_input_ids=torch.tensor([start]),
            num_beams=beams,
            do_sample=False,
            max_new_tokens=room,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
            decoder_start_token_id=EOS,
        )
        wanted.append(tokenizer.decode(out[0, len(start) :].tolist()))
    assert own.translate(TEXTS, "en", "fr", beams) == wanted  # en has no layer of its own
    assert len(set(wanted)) > 2


def test_greedy_takes_the_likeliest_word_each_time(made: tuple[Translator, Path]) -> None:
    own, _ = made
    own.eval()
    tokenizer = own.encoder.tokenizer
    assert isinstance(tokenizer, XlmrTokenizer)
    for text, found in zip(TEXTS, own.translate(TEXTS, "de", "en", 1), strict=True):
        ids_BT, mask_BT = own.encoder.pad(tokenizer.encode([text]))
        written = prompt(tokenizer, "en")
        with torch.no_grad():
            states_BTH = own.decoder.languages(own.encoder(ids_BT, mask_BT), "de")
            while len(written) < 48:
                inputs_BT = torch.tensor([written])
                hidden_BTH = own.decoder(inputs_BT, torch.ones_like(inputs_BT), states_BTH, mask_BT)
                written.append(int(own.decoder.words(hidden_BTH[:, -1]).argmax()))
                if written[-1] == EOS:
                    break
        whole = tokenizer.decode(written[len(prompt(tokenizer, "en")) :])
        assert whole == found or whole.startswith(found)  # a batch's longest text bounds what is written
        assert found


def test_a_languages_layer_is_used_and_no_other(squares: Path) -> None:
    own = translator(squares)
    plain = own.translate(TEXTS, "en", "fr", 1)
    with torch.no_grad():
        own.decoder.languages.weight_LHH[LANGUAGES.index("de")].normal_()
    assert own.translate(TEXTS, "en", "fr", 1) == plain
    assert own.translate(TEXTS, "de", "fr", 1) != plain


def test_new_layers_are_the_identity(squares: Path) -> None:
    encoder = new_encoder(1, 16, 2, 32, 0.0, 48, XlmrTokenizer(squares / "bitext"))
    states_BTH = torch.randn(2, 3, 16)
    assert torch.equal(new_decoder(encoder, 1, languages=["de"]).languages(states_BTH, "de"), states_BTH)


def test_the_word_table_is_the_encoders(squares: Path, made: tuple[Translator, Path]) -> None:
    for own in (made[0], load_translator(made[1])):
        names = [name for name, _ in own.named_parameters() if "word_embeddings" in name or "lm_head.decoder" in name]
        assert names == ["encoder.model.embeddings.word_embeddings.weight"]
        words = own.encoder.model.get_input_embeddings().weight  # type: ignore[operator]
        assert own.decoder.model.lm_head.decoder.weight is words
        assert own.decoder.model.get_input_embeddings().weight is words


def test_a_saved_translator_is_the_same(made: tuple[Translator, Path]) -> None:
    own, folder = made
    again = load_translator(folder)
    assert again.translate(TEXTS, "de", "en", 3) == own.translate(TEXTS, "de", "en", 3)
    state = own.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("translator.json", "not a complete translator folder"),
        ("encoder", "encoder: missing"),
        ("decoder", "decoder: missing"),
        ("decoder/model.safetensors", "decoder cannot be loaded"),
        ("language_linear.safetensors", "decoder cannot be loaded"),
    ],
)
def test_what_is_missing_is_named(squares: Path, tmp_path: Path, lost: str, words: str) -> None:
    translator(squares).save(tmp_path / "t")
    tiny.without_hashes(tmp_path / "t")
    (tmp_path / "t" / lost).rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match=words):
        load_translator(tmp_path / "t")


def test_damage_is_named(squares: Path, tmp_path: Path) -> None:
    translator(squares).save(tmp_path / "t")
    tiny.without_hashes(tmp_path / "t")
    weights = tmp_path / "t" / "decoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="decoder cannot be loaded"):
        load_translator(tmp_path / "t")
    (tmp_path / "t" / "translator.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not the config of a translator"):
        load_translator(tmp_path / "t")


def test_only_encoders_with_xlmrs_vocabulary_and_fitting_heads(squares: Path) -> None:
    encoder = new_encoder(1, 16, 2, 32, 0.0, 48, XlmrTokenizer(squares / "bitext"))
    with pytest.raises(MclipError, match="width 16 is not a multiple of heads 3"):
        new_decoder(encoder, 1, heads=3)
    foreign = Encoder(encoder.model, object())  # type: ignore[arg-type]
    with pytest.raises(MclipError, match="SentencePiece"):
        new_decoder(foreign, 1)
