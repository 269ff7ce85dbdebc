"""A checkpoint of Multilingual-CLIP's layout gives the embeddings of its own code, written again here."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, XLMRobertaTokenizer

from mclip_kit.errors import CheckpointError, RecipeError
from mclip_kit.interop.imports.multilingual_clip import import_multilingual_clip
from mclip_kit.models.hub import MissingWeights
from mclip_kit.models.multilingual_clip import load
from tests.interop.imports import published
from tests.models import test_text_encoder as encoders

TEXTS = published.TEXTS[:-1]  # its own code fails beyond the positions


@pytest.fixture(params=["xlmr", "bert"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """The checkpoint, and the encoder that its config calls modelBase: XLM-R, or BERT as LaBSE."""
    base, folder = tmp_path / "base", tmp_path / "M-CLIP"
    getattr(encoders, request.param)(base)
    model = published.disturbed(AutoModel.from_pretrained(base, dtype=torch.float32))
    head = nn.Linear(model.config.hidden_size, 16)
    state = {f"transformer.{name}": tensor for name, tensor in model.state_dict().items()}
    state["transformer.embeddings.position_ids"] = torch.arange(model.config.max_position_embeddings)[None]
    state |= {f"LinearTransformation.{name}": tensor for name, tensor in head.state_dict().items()}
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    sizes = {"numDims": 16, "transformerDimensions": model.config.hidden_size}
    facts = {"architectures": ["MultilingualCLIP"], "model_type": "M-CLIP", "modelBase": f"nowhere/{request.param}"}
    published.write_json(folder / "config.json", {**facts, **sizes})
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    (folder / "README.md").write_text(published.CARD)
    return folder, base


def own_code(folder: Path, base: Path, texts: list[str]) -> Tensor:
    """What the published class does: the mean over the mask of the encoder's states, then the linear map."""
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    model = AutoModel.from_pretrained(base, dtype=torch.float32).eval()
    encoder = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    model.load_state_dict({name: encoder[name] for name in model.state_dict()})
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch)[0]
        mask = batch["attention_mask"]
        mean = (states * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]
        found = mean @ state["LinearTransformation.weight"].T + state["LinearTransformation.bias"]
    return found / found.norm(dim=1, keepdim=True)


def test_the_model_gives_its_embeddings(source: tuple[Path, Path], tmp_path: Path) -> None:
    folder, base = source
    clip = published.clip(tmp_path / "clip")
    model = import_multilingual_clip(folder, clip, base=base)
    model.save(tmp_path / "model")
    wanted = own_code(folder, base, TEXTS)
    for ours in (model, load(tmp_path / "model", device="cpu")):
        torch.testing.assert_close(ours.encode_text(TEXTS), wanted, atol=1e-5, rtol=0)
        assert ours.settings["projector"] == {"kind": "linear", "pool": "mean"}
        assert ours.text_cleaning == "none"
        assert ours.trained_languages == ["de", "en", "zh"]
        assert ours.made_from == str(folder)


def test_what_is_wrong_is_one_line(source: tuple[Path, Path], tmp_path: Path) -> None:
    folder, base = source
    clip = published.clip(tmp_path / "clip")
    with pytest.raises(RecipeError, match=r"has no image tower; name the CLIP .*--clip local-dir:DIR"):
        import_multilingual_clip(folder, None, base=base)
    with pytest.raises(MissingWeights, match=r"config of nowhere/.*--base DIR"):
        import_multilingual_clip(folder, clip)
    with pytest.raises(CheckpointError, match="have width 16, the given CLIP's 12"):
        import_multilingual_clip(folder, published.clip(tmp_path / "narrow", 12), base=base)
    with pytest.raises(CheckpointError, match="not M-CLIP"):
        import_multilingual_clip(base, clip, base=base)
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    del weights["LinearTransformation.bias"]
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"it has no LinearTransformation.bias"):
        import_multilingual_clip(folder, clip, base=base)
    torch.save({"run": XLMRobertaTokenizer}, folder / "pytorch_model.bin")  # a class: unpickling would import it
    with pytest.raises(CheckpointError, match="nothing was run"):
        import_multilingual_clip(folder, clip, base=base)
