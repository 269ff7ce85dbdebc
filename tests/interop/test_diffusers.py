"""What is exported conditions a Stable Diffusion pipeline of diffusers, in any language."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mclip_kit.errors import CheckpointError
from mclip_kit.interop.diffusers import CONTEXT, FORMAT, token_states
from mclip_kit.interop.export import export
from tests import tiny
from tests.interop.models import build
from tests.interop.models import stable_diffusion as stable_diffusion_of

diffusers = pytest.importorskip("diffusers", reason="the extra `diffusers` is not installed")

PROMPTS = ["红苹果", "تفاحة حمراء", "a red apple"]
HIDDEN = 12


@pytest.fixture(scope="module")
def student(squares):
    return build(squares, {"kind": "altclip", "pool": "cls", "hidden": HIDDEN}, "none", 24, tiny.TEACHER)


@pytest.fixture(scope="module")
def folder(student, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("diffusers") / "out"
    found = export(student, "diffusers", place, context=20).differences
    assert max(found[group] for group in ("texts", "long texts", "dirty texts")) < 1e-5
    assert not {"pictures", "photos"} & found.keys()
    return place


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory) -> Path:
    """A Stable Diffusion of random weights, whose own text encoder is CLIP's."""
    return stable_diffusion_of(tmp_path_factory.mktemp("pipeline") / "stable_diffusion", HIDDEN)


def pipeline(stable_diffusion: Path, folder: Path):
    """The pipeline as the card's lines make it."""
    lines = (folder / "README.md").read_text().split("```python")[1].split("```")[0]
    lines = lines.replace("ALT_DIFFUSION", str(stable_diffusion)).replace("THIS_FOLDER", str(folder))
    made, drawn = lines.split("pipe(")
    assert drawn.startswith('"一只狗").images[0].save(')
    names: dict = {}
    exec(made, names)
    names["pipe"].set_progress_bar_config(disable=True)
    return names["pipe"]


def test_a_pipeline_draws_from_prompts_of_any_language(student, folder, stable_diffusion):
    pipe = pipeline(stable_diffusion, folder)

    def drawn(**prompts):
        noise = torch.Generator().manual_seed(0)
        return pipe(num_inference_steps=2, output_type="np", generator=noise, height=16, width=16, **prompts).images

    pictures = [drawn(prompt=prompt)[0] for prompt in PROMPTS]
    assert all(picture.shape == (16, 16, 3) and np.isfinite(picture).all() for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == len(PROMPTS)
    states, nothing = token_states(student, PROMPTS, 20), token_states(student, [""], 20)
    for picture, state in zip(pictures, states, strict=True):
        own = drawn(prompt_embeds=state[None], negative_prompt_embeds=nothing)[0]
        np.testing.assert_allclose(picture, own, atol=1e-4)


def test_a_pipeline_keeps_the_student_when_it_is_saved(folder, stable_diffusion, tmp_path):
    pipe = pipeline(stable_diffusion, folder)
    pipe.save_pretrained(tmp_path / "saved")
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    one, other = (p.encode_prompt(PROMPTS, "cpu", 1, False)[0] for p in (pipe, again))
    assert type(again.text_encoder).__name__ == "AltCLIPTextModel"
    assert torch.equal(one, other)


def test_token_states_have_the_documented_shape_and_the_pooled_one_is_the_embedding(student):
    states = token_states(student, PROMPTS, 20)
    assert states.shape == (3, 20, HIDDEN)
    assert token_states(student, PROMPTS, CONTEXT).shape == (3, student.encoder.positions, HIDDEN)
    embeddings = F.normalize(student.projector.head[2](states[:, 0]), dim=-1)
    torch.testing.assert_close(embeddings, student.encode_text(PROMPTS), atol=1e-6, rtol=0)


def test_other_heads_are_refused_and_what_differs_is_told(squares, student, tmp_path):
    linear = build(squares, {"kind": "linear", "pool": "cls"}, "none", 24, tiny.TEACHER)
    with pytest.raises(CheckpointError, match=r"train with projector\.kind: altclip"):
        export(linear, "diffusers", tmp_path / "out")
    assert not list(tmp_path.iterdir())
    assert f"cross_attention_dim: {HIDDEN}" in " ".join(FORMAT.notes(student, {"context": 77}))
