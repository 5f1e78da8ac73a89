"""Deep Cross Attention GPT: the model. Needs torch and einops, and nothing else of this project."""

from dca import architectures, residuals  # noqa: F401  whose modules register themselves
from dca.config import ModelConfig
from dca.model import LanguageModel, build_model
from dca.sampling import generate, stream

__all__ = ["LanguageModel", "ModelConfig", "build_model", "generate", "stream"]
