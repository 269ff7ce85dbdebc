"""The given CLIP: trimmed texts embed as whole ones, weights of every origin arrive, and mistakes are named."""

import json
import lzma
import os
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import build_model_from_openai_state_dict, convert_weights_to_fp16
from open_clip.utils import to_2tuple
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig

from mclip_kit.errors import CheckpointError, MclipError, RecipeError
from mclip_kit.models.clip import Clip, build_clip
from mclip_kit.models.hub import MissingWeights

State = dict[str, Tensor]
CONTEXT = 16
FEW = 60  # ids, where no text is read
BATCHES = {
    "short": ["a dog", "two dogs run"],
    "cut at the context length": ["a man and a dog " * 9],
    "empty": [""],
    "mixed": ["", "a dog", "a man and a dog " * 9, "☃", "two dogs run"],
}
VISION = {"ViT": {"width": 64, "layers": 2, "patch_size": 16, "image_size": 32}}
VISION["ResNet"] = {"width": 4, "layers": [1, 2, 1, 1], "patch_size": None, "image_size": 64}  # type: ignore[dict-item]
TEXT = {"context_length": CONTEXT, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2}
MARKS = ("input_resolution", "context_length", "vocab_size")  # what OpenAI's files hold besides weights
PREPROCESS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.5], "interpolation": "bilinear", "resize_mode": "squash"}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub, and nothing of a cache that may be on this computer."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no cache"))


def configured(kind: str = "ViT", **text: Any) -> dict[str, Any]:
    return {"embed_dim": 32, "vision_cfg": VISION[kind], "text_cfg": {**TEXT, **text}}


def random_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and statistics that all matter: open_clip starts biases at zero and scales at one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(model.state_dict().items()):
            if tensor.is_floating_point() and "token" not in name:
                noise = torch.randn(tensor.shape, generator=generator) * 0.05
                tensor.add_(noise.abs() if name.endswith("running_var") else noise)
    return model.eval()


def pixels(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def embeddings(clip: Clip) -> tuple[Tensor, Tensor]:
    clip.eval()
    size = clip.config["vision_cfg"]["image_size"]
    return clip.model.visual(pixels(size)), clip.model.text(clip.tokenize(BATCHES["mixed"]))  # type: ignore[operator]


@torch.no_grad()
def theirs(model: Any, tokenizer: Any = None) -> tuple[Tensor, Tensor]:
    """open_clip's own embeddings, of texts at full length."""
    ids_BT = (tokenizer or open_clip.SimpleTokenizer(context_length=CONTEXT))(BATCHES["mixed"])
    return model.encode_image(pixels(to_2tuple(model.visual.image_size)[0])), model.encode_text(ids_BT)


def assert_same(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], atol: float = 1e-5) -> None:
    for ours, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=atol)


def save_tokenizer(folder: Path) -> Path:
    """A word tokenizer whose end of text is no highest id, as XLM-R's is."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "a", "man", "and", "dog", "two", "dogs", "run"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("words"))


# Trimming


CAUSAL = {
    "argmax": {},
    "eos": {"pool_type": "eos", "eos_id": 49407},
    "eos of a Hugging Face tokenizer": {"pool_type": "eos", "eos_id": 2, "pad_id": 1},
    "biased projection": {"proj_bias": True},
    "open_clip's custom blocks": {"scale_attn": True, "scale_heads": True, "ls_init_value": 0.5},
}
LOOKS_FURTHER = {
    "both directions": {"no_causal_mask": True},
    "pooled at the last": {"pool_type": "last"},
    "pooled at the first": {"pool_type": "first"},
    "SigLIP": {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    "CoCa": {"embed_cls": True},
    "CoCa in both directions": {"embed_cls": True, "no_causal_mask": True},
}


def pair(text: dict[str, Any], words: Path) -> tuple[Clip, Any]:
    """Our towers, and open_clip's own with the same weights: they load strictly, so the names are the same too."""
    if text.get("eos_id") == 2:
        text = {**text, "hf_tokenizer_name": str(words)}
    clip = build_clip(configured(**text), "random")
    random_weights(clip)
    plain = open_clip.CustomTextCLIP(**clip.config)
    plain.load_state_dict(clip.model.state_dict())
    return clip.eval(), plain.eval()


@pytest.fixture(scope="module", params=CAUSAL.values(), ids=CAUSAL)
def causal(request: pytest.FixtureRequest, words: Path) -> tuple[Clip, Any]:
    return pair(request.param, words)


def test_trimmed_texts_embed_as_whole_ones(causal: tuple[Clip, Any]) -> None:
    clip, plain = causal
    for texts in BATCHES.values():
        whole_BT, ids_BT = clip.tokenizer(texts), clip.tokenize(texts)
        assert whole_BT.shape[1] == CONTEXT
        with torch.no_grad():
            wanted_BE = plain.encode_text(whole_BT)
            torch.testing.assert_close(clip.model.text(ids_BT), wanted_BE, rtol=0, atol=1e-5)  # type: ignore[operator]
            assert torch.equal(clip.model.text(whole_BT), wanted_BE)  # type: ignore[operator]


def test_trimmed_texts_train_as_whole_ones(causal: tuple[Clip, Any]) -> None:
    """In double precision, so that a difference is not rounding."""
    clip, plain = causal
    ours, other = (deepcopy(model.text).double().train() for model in (clip.model, plain))
    weights_E = torch.randn(32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    trimmed_BT, whole_BT = clip.tokenize(BATCHES["mixed"][:2]), clip.tokenizer(BATCHES["mixed"][:2])
    assert trimmed_BT.shape[1] < whole_BT.shape[1]
    (ours(trimmed_BT) @ weights_E).sum().backward()
    (other(whole_BT) @ weights_E).sum().backward()
    for (name, found), (_, wanted) in zip(ours.named_parameters(), other.named_parameters(), strict=True):
        assert found.grad is not None
        assert (found.grad - wanted.grad).abs().max() < 1e-5, name


def test_ids_are_as_long_as_the_longest_text(causal: tuple[Clip, Any]) -> None:
    clip, _ = causal
    assert clip.trims
    lengths = {name: clip.tokenize(texts).shape for name, texts in BATCHES.items()}
    assert lengths == {
        "short": (2, 5),
        "cut at the context length": (1, CONTEXT),
        "empty": (1, 2),
        "mixed": (5, CONTEXT),
    }
    whole_BT = clip.tokenizer(BATCHES["short"])
    assert torch.equal(clip.tokenize(tuple(BATCHES["short"])), whole_BT[:, :5])


@pytest.mark.parametrize("text", LOOKS_FURTHER.values(), ids=LOOKS_FURTHER)
def test_towers_that_look_further_keep_their_length_and_their_output(text: dict[str, Any], words: Path) -> None:
    clip, plain = pair(text, words)
    assert not clip.trims
    for texts in BATCHES.values():
        ids_BT = clip.tokenize(texts)
        assert torch.equal(ids_BT, clip.tokenizer(texts))
        with torch.no_grad():
            assert torch.equal(clip.model.text(ids_BT), plain.encode_text(ids_BT))  # type: ignore[operator]


def test_a_hugging_face_text_tower_keeps_its_length_and_its_output(words: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    tower = XLMRobertaConfig(vocab_size=11, max_position_embeddings=CONTEXT + 2, pad_token_id=1, **sizes)
    tower.save_pretrained(tmp_path)
    names = {"hf_model_name": str(tmp_path), "hf_model_pretrained": False, "hf_tokenizer_name": str(words)}
    config = {**configured(), "text_cfg": {"context_length": CONTEXT, **names}}
    clip = build_clip(config, "random").eval()
    plain = open_clip.CustomTextCLIP(**config)
    plain.load_state_dict(clip.model.state_dict())
    ids_BT = clip.tokenize(BATCHES["short"])
    assert not clip.trims
    assert ids_BT.shape == (2, CONTEXT)
    with torch.no_grad():
        assert torch.equal(clip.model.text(ids_BT), plain.eval().encode_text(ids_BT))  # type: ignore[operator]


# Weights in OpenAI's naming


def openai_state(kind: str, vocabulary: int = 49408) -> State:
    """What OpenAI publishes: weights that are half precision in part, and three numbers."""
    model = random_weights(open_clip.CLIP(**configured(kind, vocab_size=vocabulary), quick_gelu=True))
    ids = torch.arange(vocabulary) % 101  # many tokens share an embedding, so that it packs fast
    model.token_embedding.weight.data = model.token_embedding.weight.data[ids]  # type: ignore[union-attr,index,operator]
    convert_weights_to_fp16(model)
    numbers = torch.tensor([VISION[kind]["image_size"], CONTEXT, vocabulary])
    return {**model.state_dict(), **dict(zip(MARKS, numbers, strict=True))}


class Held(nn.Module):
    """Weights under their dotted names, which is all that we read of a TorchScript archive."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def hold(self, name: str, tensor: Tensor) -> None:
        place, _, rest = name.partition(".")
        if not rest:
            self.register_buffer(name, tensor)
            return
        if place not in self._modules:
            self.add_module(place, Held())
        self.get_submodule(place).hold(rest, tensor)  # type: ignore[operator]


def torchscript(state: State, path: Path) -> None:
    held = Held()
    for name, tensor in state.items():
        held.hold(name, tensor)
    torch.jit.save(torch.jit.trace(held, torch.zeros(1)), path)


def packed(content: Any, path: Path) -> None:
    torch.save(content, path.with_suffix(""))
    with open(path.with_suffix(""), "rb") as plain, lzma.open(path, "wb", preset=0) as target:
        shutil.copyfileobj(plain, target)


@pytest.fixture(scope="module")
def states() -> dict[str, State]:
    return {kind: openai_state(kind) for kind in VISION}


@pytest.fixture(params=VISION, scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def wanted(kind: str, states: dict[str, State]) -> tuple[Tensor, Tensor]:
    """The embeddings of open_clip's own reader of these weights."""
    return theirs(build_model_from_openai_state_dict(dict(states[kind])).float())


@pytest.fixture(scope="module")
def file(kind: str, states: dict[str, State], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(kind) / "openai.pt"
    torch.save(states[kind], path)
    return path


def test_openai_weights_embed_as_in_open_clip(file: Path, wanted: tuple[Tensor, Tensor]) -> None:
    clip = build_clip(f"openai:{file}")
    assert_same(embeddings(clip), wanted)
    assert clip.trims
    assert {tensor.dtype for tensor in clip.model.parameters()} == {torch.float32}


def test_compressed_openai_weights_are_the_same(
    kind: str, states: dict[str, State], wanted: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    packed(states[kind], tmp_path / "openai.pt.xz")
    assert_same(embeddings(build_clip(f"openai:{tmp_path / 'openai.pt.xz'}")), wanted)


def test_a_torchscript_archive_of_openai_weights_is_the_same(
    kind: str, states: dict[str, State], wanted: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    torchscript(states[kind], tmp_path / "archive.pt")
    assert_same(embeddings(build_clip(f"openai:{tmp_path / 'archive.pt'}")), wanted)


def test_openai_weights_become_a_folder(file: Path, tmp_path: Path) -> None:
    clip = build_clip(f"openai:{file}")
    clip.save(tmp_path / "clip")
    again = build_clip(f"local-dir:{tmp_path / 'clip'}")
    assert_same(embeddings(again), embeddings(clip), atol=0)
    assert again.config["quick_gelu"] is True
    assert json.dumps(again.preprocess) == json.dumps(clip.preprocess)


def test_open_clip_opens_that_folder(file: Path, wanted: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    clip = build_clip(f"openai:{file}")
    clip.save(tmp_path / "clip")
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'clip'}")
    assert_same(theirs(model.eval(), open_clip.get_tokenizer(f"local-dir:{tmp_path / 'clip'}")), wanted)
    picture = Image.effect_noise((45, 20), 99)
    assert torch.equal(transform(picture), clip.transform(picture))


# A named model and a weight file


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A name that open_clip knows in this test only; Few-16 has few ids."""
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    (tmp_path / "Tiny-16.json").write_text(json.dumps(configured()))
    (tmp_path / "Few-16.json").write_text(json.dumps(configured(vocab_size=FEW)))
    open_clip.add_model_config(tmp_path)
    return "Tiny/16"


def test_a_named_model_takes_openai_weights(named: str, states: dict[str, State], tmp_path: Path) -> None:
    wanted = theirs(build_model_from_openai_state_dict(dict(states["ViT"])).float())
    torch.save(states["ViT"], tmp_path / "openai.pt")
    torchscript(states["ViT"], tmp_path / "archive.pt")
    for name in ("openai.pt", "archive.pt"):
        clip = build_clip(named, str(tmp_path / name))
        assert_same(embeddings(clip), wanted)
    clip.save(tmp_path / "clip")
    assert_same(embeddings(build_clip(f"local-dir:{tmp_path / 'clip'}")), embeddings(clip), atol=0)


def training_checkpoint(state: State, path: Path, half: bool = False) -> Path:
    """What open_clip's training writes: NumPy's number as learning rate, names of DistributedDataParallel."""
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], lr=np.float64(1e-4))
    parameter.sum().backward()
    optimizer.step()
    weights = {f"module.{name}": t.half() if half else t for name, t in state.items()}
    torch.save({"epoch": 1, "name": "x", "state_dict": weights, "optimizer": optimizer.state_dict()}, path)
    return path


@pytest.mark.parametrize("form", ["state dict", "training checkpoint", "safetensors", "separate towers"])
def test_a_named_model_takes_open_clips_weights(named: str, form: str, tmp_path: Path) -> None:
    original = random_weights(open_clip.CLIP(**configured()))
    state = original.state_dict()
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pt")
    if form == "safetensors":
        save_file(state, path)
    elif form == "training checkpoint":
        training_checkpoint(state, path)
    elif form == "separate towers":
        torch.save(open_clip.model.convert_to_custom_text_state_dict(state), path)
    else:
        torch.save(state, path)
    clip = build_clip(named, str(path))
    assert_same(embeddings(clip), theirs(original))
    clip.save(tmp_path / "clip")
    assert_same(embeddings(build_clip(f"local-dir:{tmp_path / 'clip'}")), embeddings(clip), atol=0)


# The hub's cache


HUB = """
import json, sys
from pathlib import Path
import torch
from mclip_kit.errors import CheckpointError
from mclip_kit.models.clip import build_clip

folder, texts, refusals = Path(sys.argv[1]), json.loads(sys.argv[2]), {}
for name in sys.argv[3:]:
    try:
        clip = build_clip(f"hf-hub:tests/{name}").eval()
    except CheckpointError as error:
        refusals[name] = [type(error).__name__, str(error)]
        continue
    with torch.no_grad():
        torch.save(clip.model.text(clip.tokenize(texts)), folder / f"{name}.pt")
    clip.save(folder / name)
(folder / "refusals.json").write_text(json.dumps(refusals))
"""


def put_into_cache(cache: Path, name: str, source: Path) -> None:
    """The layout of the hub's own client: blobs, snapshots that link to them, and a ref."""
    repository = cache / f"models--tests--{name}"
    snapshot = repository / "snapshots" / ("0" * 40)
    for folder in (repository / "blobs", snapshot, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(snapshot.name)
    for number, path in enumerate(sorted(source.iterdir())):
        shutil.copyfile(path, repository / "blobs" / f"{number:040}")
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", f"{number:040}"))


def hub_model(folder: Path, **text: Any) -> Any:
    """A repository as open_clip's older ones are: one pickled CLIP, with preprocessing of its own."""
    folder.mkdir()
    config = configured(**text)
    model = random_weights(open_clip.CLIP(**config), seed=3)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    preprocess = {**PREPROCESS, "size": [32, 32]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return model


@pytest.fixture(scope="module")
def from_hub(words: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """What a fresh process, offline, makes of the repositories of a cache; and the model that is in one of them."""
    sources, cache, out = (tmp_path_factory.mktemp(name) for name in ("sources", "cache", "out"))
    text = {"hf_tokenizer_name": "tests/words", "tokenizer_kwargs": {"clean": "lower"}}
    model = hub_model(sources / "whole", pool_type="eos", eos_id=2, pad_id=1, **text)
    hub_model(sources / "weightless")
    (sources / "weightless" / "open_clip_pytorch_model.bin").unlink()
    for name in ("whole", "weightless"):
        put_into_cache(cache, name, sources / name)
    shutil.copytree(words, sources / "words")
    XLMRobertaConfig(vocab_size=11).save_pretrained(sources / "words")  # transformers asks for it, online too
    put_into_cache(cache, "words", sources / "words")
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    arguments = [str(out), json.dumps([text.upper() for text in BATCHES["mixed"]]), "whole", "weightless", "absent"]
    subprocess.run([sys.executable, "-c", HUB, *arguments], check=True, env=environment)
    return out, model


def test_a_model_of_the_hubs_cache_embeds_as_it_should(from_hub: tuple[Path, Any], words: Path) -> None:
    out, model = from_hub
    tokenizer = open_clip.tokenizer.HFTokenizer(str(words), context_length=CONTEXT)
    torch.testing.assert_close(
        torch.load(out / "whole.pt", weights_only=True), theirs(model, tokenizer)[1], rtol=0, atol=1e-5
    )


def test_a_model_of_the_hub_becomes_a_folder_that_needs_no_hub(from_hub: tuple[Path, Any], words: Path) -> None:
    out, model = from_hub
    clip = build_clip(f"local-dir:{out / 'whole'}")
    tokenizer = open_clip.tokenizer.HFTokenizer(str(words), context_length=CONTEXT)
    assert_same(embeddings(clip), theirs(model, tokenizer))
    assert torch.equal(clip.tokenize(["A DOG"]), clip.tokenize(["a dog"]))
    assert {name: clip.preprocess[name] for name in PREPROCESS} == PREPROCESS
    assert list(clip.preprocess["size"]) == [32, 32]


@pytest.mark.parametrize("name", ["weightless", "absent"])
def test_a_model_without_its_weights_is_never_random(from_hub: tuple[Path, Any], name: str) -> None:
    error, message = json.loads((from_hub[0] / "refusals.json").read_text())[name]
    assert error == "MissingWeights"
    assert f"hf-hub:tests/{name}" in message
    assert "\n" not in message
    assert not (from_hub[0] / name).exists()


# Tokenizers travel


def test_a_hugging_face_tokenizer_travels_in_the_folder(tmp_path: Path) -> None:
    source = save_tokenizer(tmp_path / "source")
    own = {"hf_tokenizer_name": str(source), "tokenizer_kwargs": {"clean": "lower"}}
    clip = build_clip(configured(pool_type="eos", eos_id=2, pad_id=1, **own), "random")
    texts = [*BATCHES["mixed"], "Two DOGS"]
    wanted = clip.tokenize(texts), *embeddings(clip)
    clip.save(tmp_path / "clip")
    shutil.rmtree(source)
    again = build_clip(f"local-dir:{tmp_path / 'clip'}")
    for found, other in zip((again.tokenize(texts), *embeddings(again)), wanted, strict=True):
        assert torch.equal(found, other)
    again.save(tmp_path / "again")
    assert torch.equal(build_clip(f"local-dir:{tmp_path / 'again'}").tokenize(texts), wanted[0])


# Mistakes


def refusal(model: str | dict[str, Any], weights: str | None = None) -> MclipError:
    with pytest.raises(MclipError) as caught:
        build_clip(model, weights)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("model", "weights", "words"),
    [
        ("ViT-B-23", "random", ["teacher.model", "ViT-B-23", "did you mean ViT-B"]),
        ("ViT-B-32", "laion9b", ["teacher.weights", "laion9b", "ViT-B-32", "laion2b_s34b_b79k"]),
        (configured(hf_tokenizer_name="tests/absent"), "random", ["teacher.model"]),
        (configured(pool_type="middle"), "random", ["teacher.model"]),
        (configured(width=129), "random", ["teacher.model"]),
        (configured(wide=128), "random", ["teacher.model", "wide"]),
    ],
    ids=["name", "tag", "tokenizer", "pool", "width", "key"],
)
def test_a_wrong_recipe_is_refused(model: str | dict[str, Any], weights: str, words: list[str]) -> None:
    error = refusal(model, weights)
    assert isinstance(error, RecipeError)
    assert [word for word in words if word not in str(error)] == []


def test_weights_that_are_not_to_be_had_are_missing() -> None:
    error = refusal("ViT-B/32", "laion2b_s34b_b79k")
    assert isinstance(error, MissingWeights)
    assert "ViT-B-32 (laion2b_s34b_b79k)" in str(error)


@pytest.fixture(scope="module")
def few() -> State:
    return openai_state("ViT", FEW)


def unmarked(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name not in MARKS}


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damaged(what: str, path: Path, state: State) -> None:
    """Write a file that holds no CLIP, or only a part of one."""
    narrow = configured(width=48, heads=2, vocab_size=FEW)
    proj = "visual.proj"
    contents: dict[str, Any] = {
        "no CLIP": {"weight": torch.zeros(2, 2)},
        "nothing": {},
        "numbers": {name: 1.0 for name in state},
        "a list": [1, 2],
        "a list of tensors": [torch.zeros(2)],
        "a tensor": torch.zeros(2),
        "a number": 5,
        "a lost weight": {name: tensor for name, tensor in state.items() if name != "ln_final.bias"},
        "one weight more": {**state, "visual.more": torch.zeros(2)},
        "another shape": {**state, proj: state[proj][:, :-1]},
        "a flat matrix": {**state, "positional_embedding": state["positional_embedding"].flatten()},
        "a flat patch": {**state, "visual.conv1.weight": state["visual.conv1.weight"].flatten()},
        "narrow heads": open_clip.CLIP(**narrow).state_dict(),
    }
    if what == "garbage":
        path.write_bytes(b"garbage" * 99)
    elif what == "empty":
        path.write_bytes(b"")
    elif path.suffix == ".safetensors":
        save_file(contents.get(what, state), path)
    elif path.suffix == ".xz":
        packed(contents.get(what, state), path)
    else:
        torch.save(contents.get(what, state), path)
    if what == "truncated":
        half(path)


NO_CLIPS = ["no CLIP", "nothing", "numbers", "a list", "a list of tensors", "a tensor", "a number", "a lost weight"]
NO_CLIPS += ["one weight more", "another shape", "garbage", "empty", "truncated"]
ANY_SIZE = ["a flat matrix", "a flat patch", "narrow heads"]


@pytest.mark.usefixtures("named")
def test_the_undamaged_file_is_taken(few: State, tmp_path: Path) -> None:
    """So the refusals below are those of the damage."""
    for name in ("file.pt", "file.safetensors"):
        state = few if name == "file.pt" else unmarked(few)
        damaged("not", tmp_path / name, state)
        build_clip("Few-16", str(tmp_path / name))
    build_clip(f"openai:{tmp_path / 'file.pt'}")


@pytest.mark.parametrize("what", [*NO_CLIPS, *ANY_SIZE])
def test_a_file_that_is_no_openai_clip_is_named(what: str, few: State, tmp_path: Path) -> None:
    damaged(what, tmp_path / "file.pt", few)
    error = refusal(f"openai:{tmp_path / 'file.pt'}")
    assert isinstance(error, CheckpointError)
    assert str(tmp_path / "file.pt") in str(error)


def test_a_missing_or_truncated_openai_file_is_named(few: State, tmp_path: Path) -> None:
    assert f"{tmp_path / 'none.pt'}: missing" in str(refusal(f"openai:{tmp_path / 'none.pt'}"))
    damaged("truncated", tmp_path / "file.pt.xz", few)
    torchscript(few, tmp_path / "archive.pt")
    half(tmp_path / "archive.pt")
    for name in ("file.pt.xz", "archive.pt"):
        assert str(tmp_path / name) in str(refusal(f"openai:{tmp_path / name}"))


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("marks", [True, False], ids=["OpenAI's", "open_clip's"])
@pytest.mark.parametrize("what", NO_CLIPS)
def test_a_file_that_is_not_the_named_model_is_named(what: str, marks: bool, few: State, tmp_path: Path) -> None:
    damaged(what, tmp_path / "file.pt", few if marks else unmarked(few))
    error = refusal("Few-16", str(tmp_path / "file.pt"))
    assert isinstance(error, CheckpointError)
    assert not isinstance(error, MissingWeights)
    assert str(tmp_path / "file.pt") in str(error)


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("what", ["no CLIP", "nothing", "garbage", "empty", "truncated"])
def test_safetensors_that_are_not_the_named_model_are_named(what: str, few: State, tmp_path: Path) -> None:
    damaged(what, tmp_path / "file.safetensors", unmarked(few))
    error = refusal("Few-16", str(tmp_path / "file.safetensors"))
    assert isinstance(error, CheckpointError)
    assert str(tmp_path / "file.safetensors") in str(error)


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("marks", [True, False], ids=["OpenAI's", "open_clip's"])
def test_weights_of_another_model_are_named(marks: bool, tmp_path: Path) -> None:
    plain = open_clip.CLIP(**configured("ResNet", vocab_size=FEW)).state_dict()
    state = openai_state("ResNet", FEW) if marks else plain
    torch.save(state, tmp_path / "file.pt")
    error = refusal("Few-16", str(tmp_path / "file.pt"))
    assert isinstance(error, CheckpointError)
    assert str(tmp_path / "file.pt") in str(error)
    assert "visual" in str(error)


@pytest.mark.parametrize("what", ["a list", "nothing", "garbage", "empty", "truncated"])
def test_a_folder_with_an_older_kind_of_weights_is_named(what: str, few: State, tmp_path: Path) -> None:
    """open_clip also takes pickled weights in a folder."""
    config = {"model_cfg": configured(vocab_size=FEW), "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    damaged(what, tmp_path / "open_clip_pytorch_model.bin", unmarked(few))
    error = refusal(f"local-dir:{tmp_path}")
    assert isinstance(error, CheckpointError)
    assert str(tmp_path) in str(error)


def small_folder(folder: Path, **vision: Any) -> dict[str, Any]:
    folder.mkdir()
    config = configured(vocab_size=FEW)
    config["vision_cfg"] = vision or config["vision_cfg"]
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return config


def test_a_folder_with_a_training_checkpoint_in_half_precision_is_read(tmp_path: Path) -> None:
    original = open_clip.CLIP(**small_folder(tmp_path / "clip")).half().float()
    path = training_checkpoint(original.state_dict(), tmp_path / "clip" / "open_clip_pytorch_model.bin", half=True)
    clip = build_clip(f"local-dir:{tmp_path / 'clip'}")
    assert {weight.dtype for weight in clip.parameters()} == {torch.float32}
    assert torch.equal(clip.model.visual.proj, original.visual.proj)  # type: ignore[union-attr]
    path.rename(path.with_name("epoch_1.pt"))
    message = str(refusal(f"local-dir:{tmp_path / 'clip'}"))
    assert message.endswith("rename epoch_1.pt to open_clip_pytorch_model.bin")
    path.with_name("epoch_1.pt").rename(path)
    build_clip(f"local-dir:{tmp_path / 'clip'}")


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("content", ["a whole model", "beside weights"])
def test_what_would_run_code_in_open_clip_is_refused(content: str, tmp_path: Path) -> None:
    small_folder(tmp_path / "clip")
    model = nn.Linear(2, 2)
    path = tmp_path / "clip" / "open_clip_pytorch_model.bin"
    torch.save(model if content == "a whole model" else {"state_dict": {}, "args": model}, path)
    for message in (str(refusal(f"local-dir:{path.parent}")), str(refusal("Few-16", str(path)))):
        assert "reading it would run torch.nn.modules.linear.Linear; nothing was run" in message
        assert message.startswith(str(path.parent))


def test_a_folder_whose_image_size_is_not_its_timm_models_is_named(tmp_path: Path) -> None:
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 32}
    config = small_folder(tmp_path / "clip", **vision)
    model = open_clip.CustomTextCLIP(**config)
    torch.save(model.state_dict(), tmp_path / "clip" / "open_clip_pytorch_model.bin")
    message = str(refusal(f"local-dir:{tmp_path / 'clip'}"))
    assert message.startswith(str(tmp_path / "clip"))
    assert "32" in message


def test_a_folder_without_its_config_or_its_weights_is_named(tmp_path: Path) -> None:
    assert "open_clip_config.json: missing" in str(refusal(f"local-dir:{tmp_path}"))
    config = {"model_cfg": configured(vocab_size=FEW), "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert str(tmp_path) in str(refusal(f"local-dir:{tmp_path}"))


def test_pictures_of_any_size_become_the_towers(file: Path) -> None:
    clip = build_clip(f"openai:{file}")
    size = clip.config["vision_cfg"]["image_size"]
    assert clip.transform(Image.new("RGB", (45, 20))).shape == (3, size, size)
    assert clip.width == 32
