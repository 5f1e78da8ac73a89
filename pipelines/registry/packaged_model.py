"""The model as MLflow serves it: text in, text out. Runs wherever MLflow and torch do.

MLflow copies this file into the model, next to the `dca` sources, and executes the copy on loading.
It therefore imports nothing of this project but `dca`, and that after its digests were checked;
PyTorch where a model is loaded, because checking one does not need it. The file's name, the names
of digests and the methods that generate.py and the score call are a format: models that were
packaged earlier have an earlier copy.
"""

import codecs
import hashlib
import importlib
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from numpy.typing import NDArray

DEFAULTS: dict[str, Any] = {
    "max_new_tokens": 200,
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 1.0,
    "seed": 0,
    "stop": "",
}
"""Parameters of `predict`."""
NO_LIMIT = ("top_k", "top_p")
"""Those of which null means none; of the others it means the default."""
MAX_BYTES = 65_536
"""Of a prompt and of its continuation: a request must not take the machine's memory."""
MAX_STOP = 1024
"""Characters of `stop`, which is looked for after each one that is written."""
MAX_PROMPTS, MAX_REQUEST = 256, 16 * MAX_BYTES
"""Of a request to a server, and the bytes of all its prompts, and those that it may have written:
it must not take a day."""
SUMS = "SHA256SUMS"
"""Beside the weights, in sha256sum's format: the digest of every file that loading reads."""
NOTE = "registered_model_meta"
"""A file that MLflow writes into the folder of a version that it loads by name."""
BATCH = 32
"""Windows scored at a time."""


def digest(path: Path) -> str:
    """The sha256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(root: Path) -> None:
    """Refuse a model that is not as it was packaged.

    Raises ValueError naming the first file that is missing, altered or was added, or is a link.
    Python's caches do not count: they are not read. Nor does MLflow's note of a version's name.
    """
    sums = root / "artifacts" / "model" / SUMS
    if not sums.is_file():
        raise ValueError(f"no {SUMS}: not a model of this project, or one from before it")
    rows = (line.split(maxsplit=1) for line in sums.read_text(encoding="utf-8").splitlines())
    expected = {name: value for value, name in rows}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            raise ValueError(f"{name} is a link; expected plain files")
        if path.is_dir() or "__pycache__" in name or path in (sums, root / NOTE):
            continue
        if name not in expected:
            raise ValueError(f"{name} was added after it was packaged")
    for name, value in expected.items():
        if not (root / name).is_file():
            raise ValueError(f"{name} is missing")
        if digest(root / name) != value:
            raise ValueError(f"{name} was altered after it was packaged")


@contextmanager
def without_bytecode_cache() -> Iterator[None]:
    """Import from sources only: a cache beside them may have other code, and none is written."""
    before = sys.pycache_prefix
    with tempfile.TemporaryDirectory() as empty:
        sys.pycache_prefix = empty
        try:
            yield
        finally:
            sys.pycache_prefix = before


class PackagedModel(PythonModel):
    """A language model over UTF-8 bytes."""

    # Else MLflow warns that `predict` has no type hints; they would replace the signature, and
    # cannot express its parameters.
    _skip_type_hint_validation = True

    def load_context(self, context: PythonModelContext) -> None:
        """Check the model's own folder, then read weights and configuration from it."""
        from safetensors.torch import load_file

        folder = Path(context.artifacts["model"])
        root = folder.parents[1]
        verify(root)
        if folder != root / "artifacts" / "model":
            raise ValueError(f"MLmodel was altered: it takes the weights from {folder}")
        with without_bytecode_cache():
            dca = importlib.import_module("dca")
            _check_sources(Path(dca.__file__ or "").parent, root / "code" / "dca")
            importlib.import_module("dca.sampling")
            self.dca: Any = dca
            self.config: dict[str, Any] = json.loads(
                (folder / "config.json").read_text(encoding="utf-8")
            )
            self.model = dca.build_model(dca.ModelConfig(**self.config["model"]))
        self.model.load_state_dict(load_file(folder / "model.safetensors"))
        self.model.eval()

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Continue each prompt of a table; columns `text` and `log_likelihood`, as `signature`."""
        given = (params or {}).items()
        options = DEFAULTS | {k: v for k, v in given if v is not None or k in NO_LIMIT}
        prompts = np.ravel(model_input["prompt"]).tolist()
        try:
            self.check(prompts, **options)
            self._check_request(prompts, options["max_new_tokens"])
        except ValueError as error:  # a server answers with 400 and this
            raise MlflowException.invalid_parameter_value(str(error)) from None
        texts = [prompt + "".join(self.continuation(prompt, **options)) for prompt in prompts]
        nats = [math.log(2) * float(self.bits(_bytes(prompt)).sum()) for prompt in prompts]
        columns = {"text": texts, "log_likelihood": np.subtract(0.0, nats)}
        return pd.DataFrame(columns, index=getattr(model_input, "index", None))

    def _check_request(self, prompts: list[str], new: int) -> None:
        """Raise FieldError for more than one request may ask for."""
        wrong, count = self.dca.errors.FieldError, len(prompts)
        if count > MAX_PROMPTS:
            raise wrong("prompt", f"expected at most {MAX_PROMPTS} in a request, got {count}")
        if count * new > MAX_REQUEST:
            most = MAX_REQUEST // count
            raise wrong("max_new_tokens", f"expected at most {most} for {count} prompts, got {new}")
        if (size := sum(len(_bytes(prompt)) for prompt in prompts)) > MAX_REQUEST:
            message = f"expected at most {MAX_REQUEST} bytes in a request, got {size}"
            raise wrong("prompt", message)

    def check(self, prompts: list[Any], *, seed: int, stop: str, **sampling: Any) -> None:
        """Raise FieldError, a ValueError, for what cannot be continued."""
        wrong = self.dca.errors.FieldError
        self.dca.sampling.check_sampling(**sampling)
        if sampling["max_new_tokens"] > MAX_BYTES:
            got = sampling["max_new_tokens"]
            raise wrong("max_new_tokens", f"expected at most {MAX_BYTES}, got {got}")
        if not 0 <= seed < 2**63:
            raise wrong("seed", f"expected 0 to 2**63 - 1, got {seed}")
        if len(stop or "") > MAX_STOP:
            raise wrong("stop", f"expected at most {MAX_STOP} characters, got {len(stop)}")
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise wrong("prompt", f"expected text, got {prompt}")
            size = len(_bytes(prompt))
            if not 0 < size <= MAX_BYTES:
                raise wrong("prompt", f"expected 1 to {MAX_BYTES} bytes, got {size}")

    def continuation(
        self,
        prompt: str,
        *,
        max_new_tokens: int,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        seed: int,
        stop: str = "",
    ) -> Iterator[str]:
        """Yield the continuation of a prompt as it is written, whole characters at a time.

        It ends before the first `stop`, or after `max_new_tokens` bytes.
        """
        import torch

        device = next(self.model.parameters()).device
        new = self.dca.stream(
            self.model,
            torch.from_numpy(_bytes(prompt)).long()[None].to(device),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=torch.Generator(device).manual_seed(seed),
        )
        return until(stop or "", _characters(int(ids_b[0]) for ids_b in new))

    def bits(self, data: NDArray[np.uint8]) -> NDArray[np.float64]:
        """-log2 p of every byte but the first: [bytes - 1], in windows of the training's length."""
        return text_bits(self.model, data, self.config["train"]["seq_len"])


def text_bits(model: Any, data: NDArray[np.uint8], seq_len: int) -> NDArray[np.float64]:
    """-log2 p of every byte of a text but the first: [bytes - 1].

    Each is predicted from those before it in its window; windows are of seq_len bytes, one after
    another, the last one shorter. The score calls it with a packaged model, so that all models are
    measured by the same code.
    """
    import torch

    device = next(model.parameters()).device
    whole = (len(data) - 1) // seq_len * seq_len
    starts = np.arange(0, whole, seq_len)[:, None] + np.arange(seq_len + 1)
    batches = [data[starts[first : first + BATCH]] for first in range(0, len(starts), BATCH)]
    if whole < len(data) - 1:
        batches.append(data[None, whole:])
    found = [np.empty(0)]
    with torch.inference_mode():
        for batch in batches:
            ids_bt = torch.from_numpy(np.array(batch)).to(device).long()
            log_p_btv = model(ids_bt[:, :-1]).float().log_softmax(-1)
            nats_bt = -log_p_btv.gather(-1, ids_bt[:, 1:, None])[..., 0]
            found.append(nats_bt.double().flatten().cpu().numpy() / math.log(2))
    return np.concatenate(found)


def _bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(bytearray(text.encode(errors="replace")), dtype=np.uint8)


def _characters(codes: Iterator[int]) -> Iterator[str]:
    """Whole characters of a stream of UTF-8 bytes; one that the end cuts is left out."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return (text for text in (decoder.decode(bytes([code])) for code in codes) if text)


def until(stop: str, texts: Iterator[str]) -> Iterator[str]:
    """The text before the first `stop`; what may be its beginning is yielded later or never."""
    held = ""
    for text in texts:
        held += text
        if stop and stop in held:
            yield held.partition(stop)[0]
            return
        begun = next((n for n in range(len(stop) - 1, 0, -1) if held.endswith(stop[:n])), 0)
        if len(held) > begun:
            yield held[: len(held) - begun]
            held = held[len(held) - begun :]
    if held:
        yield held


def _check_sources(imported: Path, packaged: Path) -> None:
    """Python keeps the first `dca` it imported: refuse to run a model with another one's code."""
    for path in packaged.rglob("*"):
        if path.is_file() and path.suffix in (".py", ".cpp"):
            other = imported / path.relative_to(packaged)
            if not other.is_file() or digest(other) != digest(path):
                raise ValueError(
                    f"{packaged}: this process has imported another dca, {imported}: load the "
                    "model in a process of its own"
                )


def signature() -> ModelSignature:
    """A table of prompts in; out each text, and the natural log of its prompt's probability."""
    return ModelSignature(
        inputs=Schema([ColSpec("string", "prompt")]),
        outputs=Schema([ColSpec("string", "text"), ColSpec("double", "log_likelihood")]),
        params=ParamSchema(
            [ParamSpec(name, _DTYPES[type(value)], value) for name, value in DEFAULTS.items()]
        ),
    )


def example() -> tuple[pd.DataFrame, dict[str, Any]]:
    """A request, as MLflow shows it beside the model."""
    return pd.DataFrame({"prompt": ["def ", "class "]}), {**DEFAULTS, "max_new_tokens": 20}


_DTYPES = {int: "long", float: "double", str: "string"}

mlflow.models.set_model(PackagedModel())
