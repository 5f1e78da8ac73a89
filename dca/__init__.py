"""Deep Cross Attention GPT: the language model, its residual kinds and text generation.

Used by the pipeline and by packaged models; needs torch and einops only, configurations neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dca.config import ModelConfig

if TYPE_CHECKING:
    from dca.model import LanguageModel, build_model
    from dca.sampling import generate, stream

__all__ = ["LanguageModel", "ModelConfig", "build_model", "generate", "stream"]
_MODULES = {
    "LanguageModel": "model",
    "build_model": "model",
    "generate": "sampling",
    "stream": "sampling",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: PyTorch, which models need, takes a second or two."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
