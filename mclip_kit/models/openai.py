"""The sizes of a CLIP in OpenAI's naming."""

from typing import Any

from torch import Tensor


def openai_config(state: dict[str, Tensor]) -> dict[str, Any]:
    """open_clip's config of a CLIP, from the shapes of its weights; an attention head is always 64 wide."""
    blocks = {tuple(name.split(".")[:4]) for name in state if "resblocks" in name}
    if "visual.proj" in state:
        grid = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
        width, _, patch, _ = state["visual.conv1.weight"].shape
        layers: Any = sum(name[0] == "visual" for name in blocks)
        vision = {"width": width, "layers": layers, "patch_size": patch, "image_size": grid * patch}
    else:
        grid = round((len(state["visual.attnpool.positional_embedding"]) - 1) ** 0.5)
        stages = ({n.split(".")[2] for n in state if n.startswith(f"visual.layer{i}.")} for i in range(1, 5))
        width, layers = len(state["visual.layer1.0.conv1.weight"]), [len(stage) for stage in stages]
        vision = {"width": width, "layers": layers, "patch_size": None, "image_size": grid * 32}
    context, width = state["positional_embedding"].shape
    text = {
        "context_length": context,
        "vocab_size": len(state["token_embedding.weight"]),
        "width": width,
        "heads": width // 64,
        "layers": len({name[2] for name in blocks if name[0] == "transformer"}),
    }
    return {"embed_dim": state["text_projection"].shape[1], "vision_cfg": vision, "text_cfg": text}
