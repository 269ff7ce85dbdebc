"""The parameter table, which is printed before a run starts."""

from collections.abc import Collection, Sequence

from torch import nn

from mclip_kit.config.stages import Stage
from mclip_kit.train.layer_decay import layer_scales


def table(model: nn.Module, stages: Sequence[Stage], trained: Sequence[Collection[str]]) -> list[str]:
    """A line per tower: its parameters and the share that each stage trains; a line per stage: learning rates.

    Args:
        trained: names of the parameters that each stage trains.
    """
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    lines = []
    for tower in [name for name, _ in model.named_children()]:
        own = {name for name in sizes if name.startswith(f"{tower}.")}
        count = sum(sizes[name] for name in own)
        shares = [
            f"{stage.name} {_share(own.intersection(names), sizes, count)}"
            for stage, names in zip(stages, trained, strict=True)
        ]
        lines.append(f"  {tower:15}{count / 1e6:9.2f}M  " + "  ".join(shares if count else ["(identity)"]))
    return [
        *lines,
        *(
            f"  {stage.name}: {_rates(stage, own, sizes, layer_scales(model, stage.layer_decay))}"
            for stage, own in zip(stages, trained, strict=True)
        ),
    ]


def _share(trained: Collection[str], sizes: dict[str, int], count: int) -> str:
    share = sum(sizes[name] for name in trained) / max(1, count)
    return "frozen" if not share else "trained" if share == 1 else f"{share:.0%} trained"


def _rates(stage: Stage, trained: Collection[str], sizes: dict[str, int], scales: dict[str, float]) -> str:
    """`adamw at lr 0.001 for 2.36M; 0.0009 for 7.09M; ...`, the highest first."""
    groups: dict[float, int] = {}
    for name in trained:
        groups[scales[name]] = groups.get(scales[name], 0) + sizes[name]
    rates = [f"{stage.lr * scale:.3g} for {groups[scale] / 1e6:.2f}M" for scale in sorted(groups, reverse=True)]
    return f"{stage.optimizer} at lr {'; '.join(rates)}"
