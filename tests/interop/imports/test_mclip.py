"""The official mCLIP code's own checkpoint and numbers, and what must be refused.

The fixture is no part of the project: tests/shared.py tells where it is searched.
"""

import json
import lzma
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mclip_kit.config.stages import Edge
from mclip_kit.data.batching import pad
from mclip_kit.errors import CheckpointError
from mclip_kit.interop import fairseq
from mclip_kit.interop.imports.mclip import Imported, import_mclip
from mclip_kit.models.multilingual_clip import MultilingualClip, load
from mclip_kit.tasks.triangle_loss import Triangle, TriangleBatch
from tests.shared import MCLIP_TINY as FIXTURE
from tests.shared import needs

pytestmark = needs(FIXTURE)

CHECKPOINT = FIXTURE / "mclip_tiny" / "checkpoint_best.pt.xz"
XLMR = FIXTURE / "xlmr_base"
CLIP = FIXTURE / "clip_base" / "ViT-B-32.pt.xz"
TTC, TTC_COCO = 1 / math.log(1 / 0.07), 1 / math.log(1 / 0.01)  # the released scales are not exponentiated
TRAINED = ("projector.", "clip_projector.")


@pytest.fixture(scope="module")
def imported() -> Imported:
    return import_mclip(CHECKPOINT, XLMR, CLIP)


@pytest.fixture(scope="module")
def model(imported: Imported) -> MultilingualClip:
    return imported.model


@pytest.fixture(scope="module")
def arrays() -> dict[str, Tensor]:
    with np.load(FIXTURE / "official_outputs.npz") as held:
        return {name: torch.from_numpy(held[name]) for name in held.files}


@pytest.fixture(scope="module")
def official() -> dict[str, Any]:
    return dict(json.loads((FIXTURE / "official.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def texts() -> dict[str, Any]:
    return dict(json.loads((FIXTURE / "texts.json").read_text(encoding="utf-8")))


def pixels(model: MultilingualClip, arrays: dict[str, Tensor]) -> Tensor:
    mean, std = (torch.tensor(model.clip[0].preprocess[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (arrays["pixels_u8"] / 255 - mean) / std


def batch(
    model: MultilingualClip, arrays: dict[str, Tensor], texts: dict[str, Any], language: str, images: list[int]
) -> TriangleBatch:
    ids_BT, mask_BT = pad(model.student_tokens(texts[language]))
    return TriangleBatch(
        languages_B=torch.zeros(16, dtype=torch.int64),
        groups_B=torch.tensor(texts["image_ids"])[images],
        pixels_BCHW=pixels(model, arrays)[images],
        teacher_ids_BT=model.teacher_tokens(texts["en"]),
        has_teacher_B=torch.full((16,), language == "en"),
        ids_BT=ids_BT,
        mask_BT=mask_BT,
    )


def edges(it: float, positives: str, ttc: float) -> dict[str, Edge]:
    options: dict[str, Any] = {"loss": "contrastive", "positives": positives}
    return {
        "image-student_text": Edge(weight=1.0, temperature=it, learned=True, **options),
        "teacher_text-student_text": Edge(weight=0.1, temperature=ttc, missing_teacher="image", **options),
    }


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs.reshape(ours.shape)).abs().max() <= 1e-5)


def test_the_tokenizer_gives_the_official_ids(model: MultilingualClip, texts: dict[str, Any]) -> None:
    for language in ("en", "de"):
        assert [ids.tolist() for ids in model.student_tokens(texts[language])] == texts[
            f"{language}_token_ids_without_padding"
        ]


@pytest.mark.parametrize("language", ["en", "de"])
def test_the_x_projector_gives_the_official_states(
    model: MultilingualClip, arrays: dict[str, Tensor], texts: dict[str, Any], language: str
) -> None:
    tokens = model.student_tokens(texts[language])
    with torch.no_grad():
        ids_BT, mask_BT = model.encoder.pad(tokens)
        states_BTH = model.encoder(ids_BT, mask_BT)
        assert close(model.projector(states_BTH, mask_BT), arrays[f"{language}_x_cls"])
        if language == "en":
            last_BH = states_BTH[torch.arange(16), mask_BT.sum(1) - 1]
            assert close(last_BH, arrays["en_xlmr_last_token"])


def test_image_and_teacher_text_project_as_officially(
    model: MultilingualClip, arrays: dict[str, Tensor], texts: dict[str, Any]
) -> None:
    with torch.no_grad():
        assert close(pixels(model, arrays)[:2], arrays["pixels_first2"])
        image_BE = model.image(pixels(model, arrays))
        assert close(image_BE, arrays["clip_image_cls"])
        assert close(model.clip_projector(image_BE), arrays["image_projected"])
        for language in ("en", "de"):
            seen = texts[f"{language}_text_seen_by_clip"]
            full_BT = model.clip[0].tokenizer(seen)
            assert torch.equal(full_BT, arrays[f"{language}_clip_text_tokens"])
            text_BE = model.teacher_text(model.teacher_tokens(seen))
            assert close(text_BE, arrays[f"{language}_clip_text_feature"])
            assert close(model.clip_projector(text_BE), arrays[f"{language}_clip_text_projected"])


@pytest.mark.parametrize(
    ("case", "positives", "ttc"),
    [
        ("ctl/en/sim", "pair", TTC),
        ("ctl/de/sim", "pair", TTC),
        ("ctl/en/sim/untrained_scale", "pair", TTC),
        ("ctl/en/repeat_images_but_ctl", "pair", TTC),
        ("ctl/de/repeat_images_but_ctl", "pair", TTC),
        ("coco/en/unique", "image_sum", TTC_COCO),
        ("coco/de/unique", "image_sum", TTC_COCO),
        ("coco/en/repeat", "image_sum", TTC_COCO),
        ("coco/de/repeat", "image_sum", TTC_COCO),
        ("coco/en/all_ids_zero(cc3m directory)", "image_sum", TTC_COCO),
    ],
)
def test_the_triangle_gives_the_official_loss_terms(
    imported: Imported,
    arrays: dict[str, Tensor],
    texts: dict[str, Any],
    official: dict[str, Any],
    case: str,
    positives: str,
    ttc: float,
) -> None:
    assert imported.temperature is not None
    temperature = 0.07 if "untrained" in case else imported.temperature
    images = official["coco_repeat_pattern"] if "repeat" in case else list(range(16))
    given = batch(imported.model, arrays, texts, case.split("/")[1], images)
    if "all_ids_zero" in case:
        given.groups_B = torch.zeros_like(given.groups_B)
    triangle = Triangle(imported.model, edges(temperature, positives, ttc), set()).eval()
    with torch.no_grad():
        terms = triangle(given)
    wanted = official["losses"][case]
    assert terms["image-student_text"].item() == pytest.approx(wanted["it_ctl_loss_per_ntokens"], rel=1e-5)
    weighted = 0.1 * terms["teacher_text-student_text"].item()
    assert weighted == pytest.approx(wanted["tt_ctl_loss_per_ntokens"], rel=1e-5)
    assert terms["loss"].item() * wanted["ntokens"] == pytest.approx(wanted["loss"], rel=1e-5)


@pytest.mark.parametrize(("kind", "positives", "ttc"), [("ctl", "pair", TTC), ("coco", "image_sum", TTC_COCO)])
def test_gradients_of_the_projectors_are_the_official_ones(
    imported: Imported,
    arrays: dict[str, Tensor],
    texts: dict[str, Any],
    official: dict[str, Any],
    kind: str,
    positives: str,
    ttc: float,
) -> None:
    model = imported.model
    train = {name for name, _ in model.named_parameters() if name.startswith(TRAINED)}
    assert imported.temperature is not None
    triangle = Triangle(model, edges(imported.temperature, positives, ttc), train).eval()
    images = official["coco_repeat_pattern"] if kind == "coco" else list(range(16))
    triangle(batch(model, arrays, texts, "en", images))["loss"].backward()
    ours = {f"encoder.{_official(name)}": p.grad for name, p in model.named_parameters() if name in train}
    ours["criterion.it_logit_scale"] = triangle.scales["image-student_text"].grad
    norms = official[f"{kind}_grad_norms"]
    assert ours.keys() == norms.keys()
    for name, norm in norms.items():
        gradient = ours[name]
        assert gradient is not None
        if name.endswith("k_proj.bias"):  # softmax does not see it: zero, but for rounding
            assert gradient.norm() < 1e-6
            continue
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-4), name
        exact = arrays.get(f"grad/{name}") if kind == "ctl" else None
        if exact is not None:
            assert (gradient - exact.reshape(gradient.shape)).norm() <= 1e-4 * norm, name
    triangle.zero_grad()


def _official(name: str) -> str:
    """This package's name of a projector weight -> the official one."""
    if name == "clip_projector.weight":
        return "dim_proj.weight"
    back = {ours: theirs for theirs, ours in fairseq.POST_NORM.items()}
    number, _, rest = name.removeprefix("projector.blocks.layers.").partition(".")
    part, _, kind = rest.rpartition(".")
    return f"encoder_adapter.{number}.{back[part]}.{kind}"


def test_the_model_folder_embeds_as_the_checkpoint(
    model: MultilingualClip, arrays: dict[str, Tensor], texts: dict[str, Any], tmp_path: Path
) -> None:
    model.save(tmp_path)
    again = load(tmp_path)
    for language in ("en", "de"):
        wanted = torch.nn.functional.normalize(arrays[f"{language}_x_cls"], dim=-1)
        assert close(again.encode_text(texts[language]), wanted)
    assert again.trained_languages == ["de", "en"]


def rewritten(path: Path, change: Any) -> Path:
    """A copy of the official checkpoint, changed and uncompressed."""
    with lzma.open(CHECKPOINT) as packed:
        content = torch.load(packed, weights_only=False)
    change(content)
    torch.save(content, path)
    return path


def test_towers_inside_the_checkpoint_win_and_a_mismatch_is_said(imported: Imported, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["model"]["encoder.xlmr.model.encoder.sentence_encoder.layers.0.fc1.bias"] += 1
        content["model"]["encoder.clip.visual.proj"] *= 2

    changed = import_mclip(rewritten(tmp_path / "changed.pt", change), XLMR, CLIP)
    ours, theirs = (m.state_dict() for m in (changed.model, imported.model))
    bias = "encoder.model.encoder.layer.0.intermediate.dense.bias"
    assert torch.equal(ours[bias], theirs[bias] + 1)
    assert torch.equal(ours["image.proj"], theirs["image.proj"] * 2)
    assert len(changed.remarks) == 2
    for remark, name in zip(changed.remarks, ("layers.0.fc1.bias", "visual.proj"), strict=True):
        assert "differs in 1 of" in remark
        assert name in remark


def test_towers_come_from_the_given_files_where_the_checkpoint_has_none(imported: Imported, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for name in list(content["model"]):
            if name.startswith(("encoder.xlmr.", "encoder.clip.")):
                del content["model"][name]

    bare = rewritten(tmp_path / "bare.pt", change)
    ours, theirs = (m.state_dict() for m in (import_mclip(bare, XLMR, CLIP).model, imported.model))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(CheckpointError, match="--clip"):
        import_mclip(bare, XLMR)


def test_a_checkpoint_with_more_than_mclips_parts_is_refused(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["model"]["encoder.lang_proj.weight"] = torch.zeros(2)

    with pytest.raises(CheckpointError, match=r"encoder\.lang_proj\.weight"):
        import_mclip(rewritten(tmp_path / "more.pt", change), XLMR, CLIP)


def test_a_checkpoint_with_a_lost_weight_is_refused(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        del content["model"]["encoder.encoder_adapter.1.fc2.weight"]

    with pytest.raises(CheckpointError, match="projectors do not fit"):
        import_mclip(rewritten(tmp_path / "less.pt", change), XLMR, CLIP)


def test_another_checkpoint_is_no_mclip() -> None:
    with pytest.raises(CheckpointError, match="not an mCLIP checkpoint"):
        import_mclip(XLMR / "model.pt.xz", XLMR, CLIP)


@pytest.mark.parametrize("name", ["encoder.dim_proj.weight", "encoder.encoder_adapter.x.fc1.bias", 3])
def test_an_entry_that_is_no_weight_of_mclip_is_refused(tmp_path: Path, name: Any) -> None:
    strange = torch.zeros(2) if "adapter" in str(name) else "a word"
    with pytest.raises(CheckpointError, match=r"projectors do not fit|is not a tensor") as caught:
        import_mclip(rewritten(tmp_path / "odd.pt", lambda content: content["model"].update({name: strange})), XLMR)
    assert len(str(caught.value)) < 400


def test_what_is_beside_the_weights_may_be_anything(imported: Imported, tmp_path: Path) -> None:
    odd = rewritten(tmp_path / "odd.pt", lambda content: content.update(args=[1], cfg=None, criterion=[2]))
    found = import_mclip(odd, XLMR, CLIP)
    assert found.temperature is None
    assert found.model.trained_languages == []


def test_files_that_hold_something_else_are_named(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"list\.pt: not a CLIP"):
        import_mclip(CHECKPOINT, XLMR, tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="nowhere: missing"):
        import_mclip(CHECKPOINT, tmp_path / "nowhere", CLIP)
