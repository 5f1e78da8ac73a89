"""The score of a packaged model on a text, measured by its own code in a process of its own.

Used by the stage evaluate and by the gate.

Python keeps the first `dca` it imports: models of different sources can be compared no other way.
"""

import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.console.errors import PipelineError
from pipelines.console.isolated import run_isolated
from pipelines.console.progress import Progress
from pipelines.console.text import first_line, one_line
from pipelines.console.updates import OutputMode
from pipelines.engine.results import from_json
from pipelines.registry.package import fetch_model, load_model
from pipelines.storage.scratch import scratch_folder
from pipelines.tracking.models import ModelStore, model_uri

MIN_BLOCKS, MAX_BLOCKS, BLOCK_BYTES = 30, 1000, 4096
ERROR = "error"
"""Key of the reason in the result of a process that could not score."""
MAX_CHARACTERS = 300
"""Shown of the standard error of a process that ended without a result."""
PART_WINDOWS = 4 * 32
"""Windows of a text scored between two reports: several of the batches that packages make."""
SHARE_FILE = "share.txt"
TIMED_BYTES, TIMED_ROUNDS = 64, 3


@dataclass(frozen=True)
class Score:
    """A model on a text."""

    block_bits: list[float]
    """Total -log2 p of each block of the text, in order; blocks as `block_edges` cuts them."""
    text_bytes: int
    """Bytes of the text; all but the first are predicted."""
    parameters: int
    """Of the model, every tied tensor once."""
    bytes_per_second: float
    """Written greedily, one text at a time, after the first byte; the best of some rounds."""
    latency_seconds: float
    """From a prompt of 64 bytes to the first byte; the best of some rounds."""

    @property
    def bits_per_byte(self) -> float:
        """Mean over the predicted bytes; not finite if the model's answers are not."""
        return float(sum(self.block_bits)) / (self.text_bytes - 1)

    @staticmethod
    def read(data: Any, text_bytes: int) -> "Score | None":
        """A score of a text of that size from JSON; None if it is none, has other blocks, or a
        number that no measurement gives."""
        found = from_json(Score, json.dumps(data))
        if found is None or data.keys() != asdict(found).keys():
            return None
        if found.text_bytes != text_bytes or found.parameters < 1:
            return None
        if len(found.block_bits) != len(block_edges(text_bytes)) - 1:
            return None
        numbers = [*found.block_bits, found.bytes_per_second, found.latency_seconds]
        return found if all(map(math.isfinite, numbers)) and min(numbers) >= 0 else None


def block_edges(text_bytes: int) -> list[int]:
    """Cuts the predicted bytes of a text into equal blocks: first edge 0, last text_bytes - 1."""
    predicted = text_bytes - 1
    blocks = min(predicted, MAX_BLOCKS, max(MIN_BLOCKS, predicted // BLOCK_BYTES))
    return [predicted * i // blocks for i in range(blocks + 1)]


def score(
    models: ModelStore, model_id: str, text: Path, progress: Progress | None = None, name: str = ""
) -> Score:
    """Fetch a logged model and score it in a process of its own.

    How far it is goes to `progress`, if given, which calls the model by a name. Raises DamagedError
    if it is damaged, PipelineError if it fails.
    """
    progress = progress or Progress(OutputMode.QUIET)
    with scratch_folder() as scratch:
        share = scratch / SHARE_FILE
        look = lambda: f"  {name}: {_share(share)} of the test split"  # noqa: E731
        with progress.watching(look, stage="score", model=model_id):
            folder = fetch_model(models, model_id, scratch / "model")
            found = _in_own_process(folder, text, scratch / "score.json")
    if ERROR in found:
        raise PipelineError(f"{model_uri(model_id)}: cannot be scored: {found[ERROR]}")
    return Score(**found)


def _in_own_process(folder: Path, text: Path, result: Path) -> dict[str, Any]:
    """What `_result_of` returns in a new process."""
    child = run_isolated(__name__, [str(folder), str(text.absolute()), str(result)])
    if child.returncode == 0:
        found: dict[str, Any] = json.loads(result.read_text())
        return found
    shown = one_line(child.stderr.strip()[-MAX_CHARACTERS:])
    return {ERROR: f"exit code {child.returncode}{f': {shown}' if shown else ''}"}


def _result_of(folder: Path, text: Path, share: Path) -> dict[str, Any]:
    """The score as JSON, or under ERROR why there is none."""
    try:
        return asdict(_measure(load_model(folder), text, share))
    except Exception as error:
        return {ERROR: f"{type(error).__name__}: {first_line(error)}"}


def _share(file: Path) -> str:
    """How much of a text has been read, as the process that reads it has written."""
    try:
        return file.read_text() or "0 %"
    except OSError:
        return "0 %"


def _bits(packaged: Any, data: Any, share: Path) -> Any:
    """The bits of a text's bytes, in parts of whole batches, which gives the same numbers; after
    each part its share is written to a file."""
    import numpy as np

    step = getattr(packaged, "config", {}).get("train", {}).get("seq_len", 0) * PART_WINDOWS
    found = []
    for first in range(0, len(data) - 1, step or len(data)):
        found.append(packaged.bits(data[first : first + step + 1] if step else data))
        share.write_text(f"{100 * min(first + step, len(data)) / len(data):.0f} %")
    return np.concatenate(found)


def _measure(packaged: Any, text: Path, share: Path) -> Score:
    import numpy as np
    import torch

    packaged.model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    data = np.memmap(text, dtype=np.uint8, mode="r")
    bits = _bits(packaged, data, share)
    blocks = np.add.reduceat(bits, block_edges(len(data))[:-1])
    rounds = [_timed(packaged, bytes(data[:TIMED_BYTES])) for _ in range(TIMED_ROUNDS)]
    return Score(
        block_bits=blocks.tolist(),
        text_bytes=len(data),
        parameters=sum(tensor.numel() for tensor in packaged.model.parameters()),
        bytes_per_second=max(TIMED_BYTES / rest for _, rest in rounds),
        latency_seconds=min(first for first, _ in rounds),
    )


def _timed(packaged: Any, prompt: bytes) -> tuple[float, float]:
    """Seconds to the first byte, and from it to the last."""
    import torch

    ids_bt = torch.tensor([list(prompt)], device=next(packaged.model.parameters()).device)
    start = time.perf_counter()
    new = packaged.dca.stream(
        packaged.model, ids_bt, max_new_tokens=TIMED_BYTES + 1, temperature=0.0
    )
    next(new).item()
    first = time.perf_counter()
    for ids_b in new:
        ids_b.item()
    return first - start, time.perf_counter() - first


if __name__ == "__main__":
    folder, text, result = map(Path, sys.argv[1:])
    result.write_text(json.dumps(_result_of(folder, text, result.with_name(SHARE_FILE))))
