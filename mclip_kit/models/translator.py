"""A decoder for an encoder, and the translator that they form.

mCLIP's multilingual text encoder (MTE, ACL 2023) is an XLM-R that is trained to translate with a new transformer
decoder. The decoder is transformers' XLM-R as a causal model with cross-attention; it shares the encoder's word table
for input and output. The pieces of the target language's code are its first tokens.

Shapes: B batch, T target tokens, S source tokens, H encoder width, L languages, V vocabulary. `layout.py` lists the
files of a translator folder.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import EncoderDecoderModel, GenerationConfig, XLMRobertaForCausalLM
from transformers.modeling_outputs import BaseModelOutput

from mclip_kit import layout
from mclip_kit.data.tokenizer import BOS, EOS, PAD, XlmrTokenizer
from mclip_kit.errors import MALFORMED, CheckpointError, RecipeError, first_line
from mclip_kit.files import follow_umask, write_whole
from mclip_kit.models.freezing import evaluating
from mclip_kit.models.hub import quiet_transformers
from mclip_kit.models.model_folder import check_hashes, write_config
from mclip_kit.models.safe_load import UNFIT
from mclip_kit.models.text_encoder import Encoder, pretrained_encoder, xlmr_config
from mclip_kit.progress import SOON, tqdm
from mclip_kit.storage import fetch, place


class LanguageLinear(nn.Module):
    """One linear layer per source language between encoder and decoder; the identity at the start.

    States of a language without a layer are not changed. All layers are one tensor, so that every process has a
    gradient to average, whatever language its batch has.
    """

    def __init__(self, languages: Sequence[str], width: int) -> None:
        super().__init__()
        self.languages = list(languages)
        self.weight_LHH = nn.Parameter(torch.eye(width).repeat(len(self.languages), 1, 1))
        self.bias_LH = nn.Parameter(torch.zeros(len(self.languages), width))

    def forward(self, states_BTH: Tensor, language: str) -> Tensor:
        """States (B, T, H) of sentences in one language."""
        if language not in self.languages:
            return states_BTH
        number = self.languages.index(language)
        return nn.functional.linear(states_BTH, self.weight_LHH[number], self.bias_LH[number])


class Decoder(nn.Module):
    """Writes a translation from the token states of a sentence.

    Attributes:
        model: transformers' causal XLM-R with cross-attention.
        languages: the linear layers between encoder and decoder; often for no language.
    """

    def __init__(self, model: XLMRobertaForCausalLM, encoder: Encoder, languages: Sequence[str] = ()) -> None:
        super().__init__()
        words = encoder.model.get_input_embeddings()  # type: ignore[operator]
        model.set_input_embeddings(words)
        model.lm_head.decoder.weight = words.weight
        self.model = model
        self.languages = LanguageLinear(languages, encoder.width)

    def forward(self, ids_BT: Tensor, mask_BT: Tensor, states_BSH: Tensor, states_mask_BS: Tensor) -> Tensor:
        """Hidden states (B, T, H), each for the token after; `words` turns them into logits."""
        hidden: Tensor = self.model.roberta(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            encoder_hidden_states=states_BSH,
            encoder_attention_mask=states_mask_BS,
            use_cache=False,
        ).last_hidden_state
        return hidden

    def words(self, hidden_NH: Tensor) -> Tensor:
        """Logits (N, V) of the next token."""
        logits: Tensor = self.model.lm_head(hidden_NH)
        return logits


def prompt(tokenizer: XlmrTokenizer, language: str) -> list[int]:
    """The decoder's first tokens for a target language: `</s>` and the pieces of the language's code."""
    return [EOS, *(int(piece) for piece in tokenizer.encode([language])[0][1:-1])]


def new_decoder(
    encoder: Encoder,
    layers: int = 12,
    heads: int | None = None,
    ffn: int | None = None,
    dropout: float = 0.1,
    languages: Sequence[str] = (),
) -> Decoder:
    """A decoder with random weights for an encoder.

    Args:
        heads, ffn: attention heads and feed-forward width; None: the encoder's.
        languages: source languages that get a linear layer.
    Raises:
        RecipeError: the encoder's tokenizer is not XLM-R's, or the width is not a multiple of the heads.
    """
    if not isinstance(encoder.tokenizer, XlmrTokenizer):
        raise RecipeError("stages of kind translate need an encoder with XLM-R's SentencePiece vocabulary")
    given = encoder.config
    config = xlmr_config(
        width=encoder.width,
        layers=layers,
        heads=heads or given.num_attention_heads,
        ffn=ffn or int(getattr(given, "intermediate_size", 4 * encoder.width)),
        dropout=dropout,
        vocabulary=given.vocab_size,
        position_rows=given.max_position_embeddings,
        is_decoder=True,
        add_cross_attention=True,
    )
    if encoder.width % config.num_attention_heads:
        raise RecipeError(f"decoder: width {encoder.width} is not a multiple of heads {config.num_attention_heads}")
    return Decoder(XLMRobertaForCausalLM(config), encoder, languages)


class Translator(nn.Module):
    """An encoder and its decoder; without a decoder, an encoder that is trained alone.

    Attributes:
        trained_languages: language codes that it was trained to translate from or to.
        made_from: the encoder that training started from.
        sources: tower name -> name of its weights in the recipe.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder | None = None) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.trained_languages: list[str] = []
        self.made_from = ""
        self.sources: dict[str, str] = {}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def tower_config(self, tower: str) -> dict[str, Any]:
        """The config of `encoder`, as JSON values: part of the key of cached features."""
        return self.encoder.config_for_hash()

    def translate(
        self,
        texts: Sequence[str],
        source: str,
        target: str,
        beams: int = 5,
        max_tokens: int = 512,
        batch_size: int = 32,
    ) -> list[str]:
        """Translations of texts, by transformers' beam search.

        Args:
            source, target: language codes.
            beams: width of the search; 1 is greedy.
            max_tokens: longer texts are cut. A translation has at most 2 n + 10 tokens, where n is the length of the
                longest text in its batch.
            batch_size: texts per batch; texts of similar length share a batch.
        Returns:
            One translation for each text, in the given order.
        """
        tokenizer = self.encoder.tokenizer
        assert isinstance(tokenizer, XlmrTokenizer)
        assert self.decoder is not None
        given = prompt(tokenizer, target)
        tokens = tokenizer.encode(texts, min(max_tokens, self.encoder.positions))
        both = EncoderDecoderModel(encoder=self.encoder.model, decoder=self.decoder.model)
        ends = {"bos_token_id": BOS, "pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": EOS}
        order = sorted(range(len(texts)), key=lambda row: -len(tokens[row]))
        written = [""] * len(texts)
        with evaluating(self):
            starts = range(0, len(order), batch_size)
            for start in tqdm(starts, f"translate {source}-{target}", unit="batch", leave=False, delay=SOON):
                rows = order[start : start + batch_size]
                ids_BT, mask_BT = self.encoder.pad([tokens[row] for row in rows])
                room = min(2 * ids_BT.shape[1] + 10, self.encoder.positions - len(given))
                options = GenerationConfig(num_beams=beams, do_sample=False, max_new_tokens=room, **ends)
                states_BTH = self.decoder.languages(self.encoder(ids_BT, mask_BT), source)
                out_BT = both.generate(
                    encoder_outputs=BaseModelOutput(last_hidden_state=states_BTH),
                    attention_mask=mask_BT,
                    decoder_input_ids=torch.tensor([given] * len(rows), device=ids_BT.device),
                    generation_config=options,
                )
                for row, ids in zip(rows, out_BT[:, len(given) :].tolist(), strict=True):
                    written[row] = tokenizer.decode(ids)
        return written

    def save(self, folder: str | Path) -> None:
        """Write the translator folder; without a decoder, only the encoder's folder in it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / layout.TRANSLATOR_CONFIG).unlink(missing_ok=True)
        self.encoder.save(folder / layout.ENCODER)
        if self.decoder is None:
            return
        with quiet_transformers():
            self.decoder.model.save_pretrained(folder / layout.DECODER)
        follow_umask(folder / layout.DECODER)
        linears = self.decoder.languages
        if linears.languages:
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in linears.state_dict().items()}
            with write_whole(folder / layout.LANGUAGE_LINEAR) as temporary:
                save_file(state, temporary, {"format": "pt"})
        facts = {"trained_languages": self.trained_languages, "made_from": self.made_from}
        write_config(folder / layout.TRANSLATOR_CONFIG, {"language_linear": linears.languages, **facts})


def load_translator(folder: str | Path, verify: bool = True) -> Translator:
    """Load a translator folder.

    Args:
        verify: compare the files with the hashes in translator.json, as `mclip_kit.load` does.
    Raises:
        CheckpointError: the folder is not a translator folder, or it is damaged.
    """
    folder = fetch(place(folder))
    try:
        facts = json.loads((folder / layout.TRANSLATOR_CONFIG).read_text(encoding="utf-8"))
        languages, known = facts["language_linear"], (facts["trained_languages"], facts["made_from"])
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder / layout.TRANSLATOR_CONFIG}: missing; {folder} is not a complete translator folder"
        ) from None
    except (OSError, *MALFORMED) as error:
        raise CheckpointError(
            f"{folder / layout.TRANSLATOR_CONFIG}: not the config of a translator folder ({first_line(error)})"
        ) from None
    if verify:
        check_hashes(folder / layout.TRANSLATOR_CONFIG, facts)
    for part in (layout.ENCODER, layout.DECODER):
        if not (folder / part).is_dir():  # transformers would ask the hub for it
            raise CheckpointError(f"{folder / part}: missing; {folder} is not a complete translator folder")
    encoder = pretrained_encoder(str(folder / layout.ENCODER))
    try:
        with quiet_transformers():
            model = XLMRobertaForCausalLM.from_pretrained(folder / layout.DECODER, dtype=torch.float32)
        decoder = Decoder(model, encoder, languages)
        if languages:
            decoder.languages.load_state_dict(load_file(folder / layout.LANGUAGE_LINEAR))
    except UNFIT as error:
        raise CheckpointError(f"{folder}: its decoder cannot be loaded: {first_line(error)}") from None
    translator = Translator(encoder, decoder).eval()
    translator.trained_languages, translator.made_from = known
    return translator
