"""mclip_kit: give an existing CLIP many languages, cheaply."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`mclip_kit.load` arrives on first use, so that importing the package stays light."""
    if name == "load":
        from mclip_kit.models.multilingual_clip import load

        return load
    raise AttributeError(f"module 'mclip_kit' has no attribute {name!r}")
