"""mclip_kit: give an existing CLIP many languages, cheaply.

The public API is what this module exports; the command line is `mclip-kit`.

    >>> import mclip_kit
    >>> model = mclip_kit.load("models/mine")
    >>> scores_NM = model.similarity(["a red apple", "une pomme rouge"], [picture])
    >>> scores_NM.shape
    torch.Size([2, 1])

The packages, from the bottom to the top; each imports only from those above it in this list:

    errors, files, layout     error classes, atomic writes, file names of every folder that we write
    config                    recipes: typed YAML, checked before any weight is loaded
    data                      corpora, tokenizers and batches
    losses, models            pure loss functions; towers, projectors, the model folder
    features, interop         outputs of frozen towers on disk; other programs' formats
    tasks                     one kind of training stage per file
    train, evaluate, demo     the training loop; metrics and reports; what the embedded demo needs
    search                    vectors of pictures, an index of them, search, the page
    doctor, cli               checks of a machine; one file per command
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mclip_kit.models.multilingual_clip import MultilingualClip as MultilingualClip
    from mclip_kit.models.multilingual_clip import load as load
    from mclip_kit.search.search import Search as Search

__version__ = "0.1.0"
__all__ = ["MultilingualClip", "Search", "__version__", "load"]

if not TYPE_CHECKING:  # a visible __getattr__ would make every unknown attribute valid to type checkers

    def __getattr__(name):
        """Import torch on the first use of a name, not when the package is imported."""
        if name in ("MultilingualClip", "load"):
            from mclip_kit.models import multilingual_clip as home
        elif name == "Search":
            from mclip_kit.search import search as home
        else:
            raise AttributeError(f"module 'mclip_kit' has no attribute {name!r}")
        return getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"TYPE_CHECKING"})
