"""Folders of sentence-transformers, in the layout of 2021 and later, give its embeddings."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DistilBertConfig, DistilBertModel

from mclip_kit.errors import CheckpointError, RecipeError
from mclip_kit.interop.imports.sentence_transformers import import_sentence_transformers
from mclip_kit.models.multilingual_clip import load
from tests.interop.imports import published
from tests.models import test_text_encoder as encoders

SentenceTransformer: Any = pytest.importorskip(
    "sentence_transformers", reason="the extra `sentence-transformers` is not installed"
).SentenceTransformer

IDENTITY, GELU = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.GELU"
LENGTH = 12
TEXTS = [*published.TEXTS, "", "ein roter Apfel " * 30]


def source(folder: Path, heads: list[tuple[nn.Module, str]], pool: str = "mean_tokens", path: str = "") -> Path:
    """The layout of clip-ViT-B-32-multilingual-v1: DistilBERT in the folder itself, or in `path`."""
    torch.manual_seed(0)
    encoders.bert(folder / path)
    sizes = {"dim": 24, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 40}
    vocabulary = json.loads((folder / path / "config.json").read_text())["vocab_size"]
    model = published.disturbed(DistilBertModel(DistilBertConfig(vocab_size=vocabulary, **sizes)))
    (folder / path / "model.safetensors").unlink()
    model.config.save_pretrained(folder / path)
    torch.save(model.state_dict(), folder / path / "pytorch_model.bin")
    published.write_json(
        folder / path / "sentence_bert_config.json", {"max_seq_length": LENGTH, "do_lower_case": False}
    )
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
    pooling = {f"pooling_mode_{mode}": mode == pool for mode in modes}
    published.write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 24, **pooling})
    kinds = [("Transformer", path), ("Pooling", "1_Pooling")]
    for number, (module, activation) in enumerate(heads, 2):
        kind = "Dense" if isinstance(module, nn.Linear) else "LayerNorm"
        place = f"{number}_{kind}"
        kinds.append((kind, place))
        if isinstance(module, nn.Linear):
            published.save_dense(folder / place, module, activation)
        else:
            published.write_json(folder / place / "config.json", {"dimension": 24})
            state = {f"norm.{name}": tensor for name, tensor in published.disturbed(module).state_dict().items()}
            torch.save(state, folder / place / "pytorch_model.bin")
    entries = [
        {"idx": number, "name": str(number), "path": place, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, place) in enumerate(kinds)
    ]
    published.write_json(folder / "modules.json", entries)
    (folder / "README.md").write_text(published.CARD.replace("\n- en\n- de\n- zh", " multilingual"))
    return folder


HEADS: dict[str, tuple[Callable[[], list[tuple[nn.Module, str]]], str, str]] = {
    "clip-ViT-B-32-multilingual-v1": (
        lambda: [(nn.Linear(24, 16, bias=False), IDENTITY)],
        "mean_tokens",
        "linear mean",
    ),
    "no Dense": (list, "cls_token", "linear cls"),
    "two maps": (lambda: [(nn.Linear(24, 9), IDENTITY), (nn.Linear(9, 16), IDENTITY)], "lasttoken", "linear eos"),
    "mlp": (lambda: [(nn.Linear(24, 9), GELU), (nn.Linear(9, 16, bias=False), IDENTITY)], "mean_tokens", "mlp mean"),
    "norm": (lambda: [(nn.LayerNorm(24), ""), (nn.Linear(24, 16), IDENTITY)], "cls_token", "altclip cls"),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_model_gives_the_librarys_embeddings(tmp_path: Path, name: str) -> None:
    heads, pool, projector = HEADS[name]
    folder = source(tmp_path / "source", heads(), pool, "0_Transformer" if name == "mlp" else "")
    clip = published.clip(tmp_path / "clip", 16 if heads() else 24)
    wanted = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, convert_to_tensor=True)
    wanted = nn.functional.normalize(wanted.cpu(), dim=-1)
    model = import_sentence_transformers(folder, clip)
    model.save(tmp_path / "model")
    for ours in (model, load(tmp_path / "model", device="cpu")):
        torch.testing.assert_close(ours.encode_text(TEXTS), wanted, atol=1e-5, rtol=0)
        assert " ".join(str(ours.settings["projector"][key]) for key in ("kind", "pool")) == projector  # type: ignore[index]
        assert (ours.encoder.positions, ours.trained_languages) == (LENGTH, [])


def test_what_does_not_fit_is_refused_with_its_name(tmp_path: Path) -> None:
    clip = published.clip(tmp_path / "clip")

    def refused(folder: Path, words: str) -> None:
        with pytest.raises(CheckpointError, match=words):
            import_sentence_transformers(folder, clip)

    linear: list[tuple[nn.Module, str]] = [(nn.Linear(24, 16), IDENTITY)]
    refused(source(tmp_path / "max", linear, "max_tokens"), "its Pooling is max")
    refused(
        source(tmp_path / "tanh", [(nn.Linear(24, 16), "torch.nn.modules.activation.Tanh")]), "activation is .*Tanh"
    )
    refused(source(tmp_path / "width", [(nn.Linear(24, 12), IDENTITY)]), "have width 12, the given CLIP's 16")
    last_norm: list[tuple[nn.Module, str]] = [(nn.Linear(24, 24), IDENTITY), (nn.LayerNorm(24), "")]
    refused(source(tmp_path / "norm", last_norm), "a LayerNorm after a Dense")
    folder = source(tmp_path / "source", linear)
    with pytest.raises(RecipeError, match=r"has no image tower.*--clip"):
        import_sentence_transformers(folder)
    published.write_json(folder / "sentence_bert_config.json", {"max_seq_length": 12, "do_lower_case": True})
    refused(folder, "do_lower_case")
    settings = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    published.write_json(folder / "config_sentence_transformers.json", settings)
    refused(folder, "puts the prompt 'query'")
    (folder / "config_sentence_transformers.json").unlink()
    (folder / "2_Dense" / "pytorch_model.bin").write_bytes(b"PK not a file")
    refused(folder, "2_Dense.*damaged")
    entries = json.loads((folder / "modules.json").read_text())
    entries[2]["type"] = "sentence_transformers.models.LSTM"
    published.write_json(folder / "modules.json", entries)
    refused(folder, "Transformer, Pooling, LSTM")
    refused(tmp_path / "clip", "not a folder of sentence-transformers")
