"""The sections `promote` and `generate`: the gate in front of the champion, and its sample.

Read by the stages and commands that promote and generate.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from dca.errors import FieldError
from pipelines.compat.mlflow import MODEL_ID, RUN_ID
from pipelines.config.section import Positive, Section
from pipelines.config.validation import worded
from pipelines.console.text import quote_value

MAX_BYTES = 65_536
"""Of a prompt and of its continuation, as a packaged model takes them."""


class PromoteConfig(Section):
    """The registry and the gate in front of its champion."""

    model: Annotated[
        str,
        *worded(
            r"[^/:.%\"'@]*[^/:.%\"'@0-9][^/:.%\"'@]*",
            "a name without / : . % @ and quotes that is no number",
        ),
    ] = "dca-gpt"
    """Name of the registered model: not a number, and without / : . % @ and quotes. The log of its
    champions is registered beside it as NAME-champions."""
    min_improvement: Annotated[float, Field(ge=0)] = 0.0
    """Bits per byte by which a challenger must beat the champion on the test split."""
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    """Confidence of that improvement: of a one-sided t-test over blocks of the test text, in pairs,
    that allows for the correlation of blocks."""
    multiplicity: Literal["count", "spend"] = "count"
    """Of several challengers tried on one test text: `count` tells how many there were; `spend`
    also divides 1 - confidence among them, the k-th getting 6 / (pi k)^2 of it."""
    max_parameters: Positive | None = None
    """Maximum number of parameters of a champion; null: no limit."""
    min_bytes_per_second: Annotated[float, Field(gt=0)] | None = None
    """Minimum speed of writing one text, on the machine that decides; null: no limit."""
    max_latency_seconds: Annotated[float, Field(gt=0)] | None = None
    """Maximum time from a prompt of 64 bytes to the first byte written; null: no limit."""

    @model_validator(mode="after")
    def _is_a_name(self) -> "PromoteConfig":
        shown = self.model.strip() == self.model and self.model.isprintable()
        if not shown or self.model.startswith("-"):
            message = "expected a name without control characters, spaces around it or a dash first"
            raise FieldError("model", f"{message}, got {quote_value(self.model)}")
        if self.model.endswith("-champions"):
            raise FieldError("model", f"{self.model} would be the log of another model's champions")
        if self.model == "latest" or re.fullmatch(f"{MODEL_ID}|{RUN_ID}", self.model):
            message = f"{self.model} means a version, a logged model or a run to the commands"
            raise FieldError("model", f"{message}; expected another name")
        return self


def _of_prompt_size(text: str) -> str:
    if "\0" in text:
        raise ValueError("expected text without a zero byte, which no command line can hold")
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise ValueError(f"expected at most {MAX_BYTES} bytes, got {len(text.encode())}")
    return text


class GenerateConfig(Section):
    """The sample at the end of the pipeline."""

    prompts: Annotated[
        list[Annotated[str, Field(min_length=1), AfterValidator(_of_prompt_size)]],
        Field(min_length=1),
    ] = ["def "]
    """Texts to continue."""
    max_new_tokens: Annotated[int, Field(ge=1, le=MAX_BYTES)] = 200
    """Bytes to write for each."""
    temperature: Annotated[float, Field(ge=0)] = 0.8
    """Divides the logits; 0 takes the likeliest byte."""
    top_k: Positive | None = 40
    """Sample from this many likeliest bytes; null from all."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Sample from the likeliest bytes that together have this probability; null from all."""
