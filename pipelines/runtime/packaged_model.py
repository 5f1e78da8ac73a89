"""The model as MLflow serves it: text in, text out. Runs wherever MLflow and torch do.

MLflow copies this file into the model, next to the `dca` sources, and executes the copy on loading.
It therefore imports nothing of this project but `dca`, and reads no pickle.
"""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import torch
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from safetensors.torch import load_file

from dca import ModelConfig, build_model, stream

DEFAULTS: dict[str, Any] = {
    "max_new_tokens": 200,
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 1.0,
    "seed": 0,
}
"""Parameters of `predict`."""


class PackagedModel(PythonModel):
    """A language model over UTF-8 bytes."""

    # MLflow would nag for type hints on `predict`, and let them replace the signature; but they
    # cannot express its parameters.
    _skip_type_hint_validation = True

    def load_context(self, context: PythonModelContext) -> None:
        """Read weights and configuration from the model's own folder."""
        folder = Path(context.artifacts["model"])
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.model = build_model(ModelConfig(**self.config["model"]))
        self.model.load_state_dict(load_file(folder / "model.safetensors"))
        self.model.eval()

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Continue each prompt: a list of texts, or a table with one column of them."""
        prompts = model_input.iloc[:, 0] if hasattr(model_input, "columns") else model_input
        options = {**DEFAULTS, **(params or {})}
        return [prompt + "".join(self.continuation(prompt, **options)) for prompt in prompts]

    def continuation(
        self,
        prompt: str,
        *,
        max_new_tokens: int,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        seed: int,
    ) -> Iterator[str]:
        """Yield the continuation of a prompt as it is written, whole characters at a time."""
        device = next(self.model.parameters()).device
        ids = torch.frombuffer(bytearray(prompt.encode()), dtype=torch.uint8).long()[None]
        new = stream(
            self.model,
            ids.to(device),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=torch.Generator(device).manual_seed(seed),
        )
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for ids_b in new:
            yield decoder.decode(bytes(ids_b.tolist()))
        yield decoder.decode(b"", final=True)


def signature() -> ModelSignature:
    """Texts in, texts out, with the parameters of `predict`."""
    return ModelSignature(
        inputs=Schema([ColSpec("string")]),
        outputs=Schema([ColSpec("string")]),
        params=ParamSchema(
            [ParamSpec(name, _DTYPES[type(value)], value) for name, value in DEFAULTS.items()]
        ),
    )


_DTYPES = {int: "long", float: "double"}

mlflow.models.set_model(PackagedModel())
