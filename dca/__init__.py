"""Deep Cross Attention GPT: the language model, its residual kinds and text generation.

Used by the pipeline and by packaged models; needs torch and einops only.
"""

from dca import architectures, residuals  # noqa: F401  their modules register names
from dca.config import ModelConfig
from dca.model import LanguageModel, build_model
from dca.sampling import generate, stream

__all__ = ["LanguageModel", "ModelConfig", "build_model", "generate", "stream"]
