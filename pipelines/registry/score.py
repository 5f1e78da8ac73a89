"""The score of a packaged model on a text, measured by this module in a process of its own.

Used by the stage evaluate and by the gate. The windows, the probabilities and their sum are this
project's code, the same for every model; of the package it takes the `dca` that computes the
logits. Python keeps the first `dca` it imports: models of different sources can be compared in no
other way. Before a model is scored, a probe makes sure that it does not see what it predicts.
"""

import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.console.errors import ConfigError, DamagedError, PipelineError
from pipelines.console.isolated import run_isolated
from pipelines.console.progress import Progress
from pipelines.console.text import first_line, one_line
from pipelines.console.updates import OutputMode
from pipelines.data.batches import Bytes, windows
from pipelines.engine.results import from_json
from pipelines.registry.package import fetch_model, load_model
from pipelines.registry.packaged_model import BATCH, text_bits
from pipelines.storage.scratch import scratch_folder
from pipelines.tracking.models import ModelStore, model_uri

MIN_BLOCKS, MAX_BLOCKS, BLOCK_BYTES = 30, 1000, 4096
ERROR, DAMAGED, NOT_CAUSAL = "error", "damaged", "not causal"
"""Keys of the reason in the result of a process that could not score."""
MAX_CHARACTERS = 300
"""Shown of the standard error of a process that ended without a result."""
PART_WINDOWS = 4 * BATCH
"""Windows of a text scored between two reports."""
PROBED_WINDOWS = 32
"""Windows whose bytes are replaced from some place on, to see which predictions change."""
MAX_PROBE_CHANGE = 1e-4
"""Nats by which rounding may change a prediction in the probe."""
SHARE_FILE = "share.txt"
TIMED_BYTES, TIMED_ROUNDS = 64, 3


class NotCausalError(PipelineError):
    """A prediction of the model changes with the bytes that come after it."""


@dataclass(frozen=True)
class Score:
    """A model on a text."""

    block_bits: list[float]
    """Total -log2 p of each block of the text, in order; blocks as `block_edges` cuts them."""
    text_bytes: int
    """Bytes of the text; all but the first are predicted."""
    seq_len: int
    """Length of the windows of the text, one after another, in which each byte is predicted."""
    trained_seq_len: int
    """Length of the windows that the model was trained with: the score's, unless that is less."""
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
        """A score of a text of that size from JSON; None if it is none, has other blocks, no
        windows (as those of earlier versions), or a number that no measurement gives."""
        found = from_json(Score, json.dumps(data))
        if found is None or data.keys() != asdict(found).keys():
            return None
        if found.text_bytes != text_bytes or found.parameters < 1:
            return None
        if not 1 <= found.seq_len <= found.trained_seq_len:
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


def windows_text(challenger: Score, champion: Score) -> str:
    """The windows of two scores, and what each model was trained with if that is another."""
    text = f"in the same windows of {challenger.seq_len}"
    lengths = challenger.trained_seq_len, champion.trained_seq_len
    if lengths == (challenger.seq_len, challenger.seq_len):
        return text
    return f"{text} (trained with {lengths[0]} and {lengths[1]})"


def score(
    models: ModelStore,
    model_id: str,
    text: Path,
    progress: Progress | None = None,
    name: str = "",
    *,
    max_seq_len: int | None = None,
) -> Score:
    """Fetch a logged model and score it in a process of its own.

    Args:
        models: Of the tracking store.
        model_id: Of the logged model.
        text: Path of the text.
        progress: For how far it is.
        name: What that calls the model.
        max_seq_len: Longest windows of the text; None for those that the model was trained with,
            which are never exceeded.

    Raises:
        DamagedError: If it is damaged, or its code cannot load it.
        NotCausalError: If it sees the bytes that it predicts.
        PipelineError: If it fails.

    """
    progress = progress or Progress(OutputMode.QUIET)
    with scratch_folder() as scratch:
        share = scratch / SHARE_FILE
        look = lambda: f"  {name}: {_share(share)} of the test split"  # noqa: E731
        with progress.watching(look, stage="score", model=model_id):
            folder = fetch_model(models, model_id, scratch / "model")
            found = _in_own_process(folder, text, scratch / "score.json", max_seq_len)
    if NOT_CAUSAL in found:
        raise NotCausalError(f"{model_uri(model_id)}: refused: {found[NOT_CAUSAL]}")
    for key, kind in ((DAMAGED, DamagedError), (ERROR, PipelineError)):
        if key in found:
            raise kind(f"{model_uri(model_id)}: cannot be scored: {found[key]}")
    return Score(**found)


def _in_own_process(
    folder: Path, text: Path, result: Path, max_seq_len: int | None = None
) -> dict[str, Any]:
    """What `_result_of` returns in a new process."""
    arguments = [str(folder), str(text.absolute()), str(result), json.dumps(max_seq_len)]
    child = run_isolated(__name__, arguments)
    if child.returncode == 0 and result.exists():
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return found
    shown = one_line(child.stderr.strip()[-MAX_CHARACTERS:])
    if child.returncode == 0:
        shown = "its code ended the process"
    return {ERROR: f"exit code {child.returncode}{f': {shown}' if shown else ''}"}


def _result_of(folder: Path, text: Path, share: Path, max_seq_len: int | None) -> dict[str, Any]:
    """The score as JSON, or under a key of its own why there is none."""
    try:
        return asdict(_measure(load_model(folder), text, share, max_seq_len))
    except NotCausalError as error:
        return {NOT_CAUSAL: str(error)}
    except Exception as failure:
        cause = failure.__cause__ or failure  # a package's own, without the copy's folder
        kind = DAMAGED if isinstance(failure, ConfigError | DamagedError) else ERROR
        return {kind: f"{type(cause).__name__}: {first_line(cause)}"}


def _share(file: Path) -> str:
    """How much of a text has been read, as the process that reads it has written."""
    try:
        return file.read_text(encoding="utf-8") or "0 %"
    except OSError:
        return "0 %"


def require_causal(model: Any, data: Bytes, seq_len: int) -> None:
    """Raise NotCausalError if predictions change when bytes after them are replaced.

    In windows spread over the text every byte from some place on is replaced by another one, in
    each window from another place. What is predicted before it must stay as it was, but for
    rounding. A model that sees the next byte, later ones, or other windows of the batch, does not
    pass.
    """
    import torch

    length = min(seq_len, len(data) - 1)
    if length < 2:
        return
    device = next(model.parameters()).device
    starts = np.linspace(0, (len(data) - 1) // length - 1, PROBED_WINDOWS).astype(int) * length
    cuts = np.linspace(1, length - 1, PROBED_WINDOWS).astype(int)
    as_it_is = windows(data, starts, length - 1)
    shifts = np.random.default_rng(0).integers(1, 256, as_it_is.shape, np.uint8)
    before_cut = np.arange(length) < cuts[:, None]
    replaced = np.where(before_cut, as_it_is, as_it_is + shifts)  # modulo 256
    with torch.inference_mode():
        one, other = (
            model(torch.from_numpy(text).to(device).long()).float().log_softmax(-1)
            for text in (as_it_is, replaced)
        )
    same = torch.isclose(one, other, rtol=0.0, atol=MAX_PROBE_CHANGE, equal_nan=True).all(-1)
    changed = np.argwhere(before_cut & ~same.cpu().numpy())
    if len(changed):
        row, place = changed[0].tolist()
        raise NotCausalError(
            f"it sees what it predicts: replacing the bytes from place {cuts[row]} of a window on "
            f"changes its prediction of the byte at place {place + 1}"
        )


def _bits(model: Any, data: Bytes, seq_len: int, share: Path) -> Any:
    """The bits of a text's bytes, in parts of whole batches, which gives the same numbers; after
    each part its share is written to a file."""
    step = seq_len * PART_WINDOWS
    found = []
    for first in range(0, len(data) - 1, step):
        found.append(text_bits(model, data[first : first + step + 1], seq_len))
        share.write_text(f"{100 * min(first + step, len(data)) / len(data):.0f} %")
    return np.concatenate(found)


def _measure(packaged: Any, text: Path, share: Path, max_seq_len: int | None = None) -> Score:
    import torch

    packaged.model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    data = np.memmap(text, dtype=np.uint8, mode="r")
    trained = packaged.config["train"]["seq_len"]
    seq_len = min(trained, max_seq_len or trained)
    require_causal(packaged.model, data, seq_len)
    bits = _bits(packaged.model, data, seq_len, share)
    blocks = np.add.reduceat(bits, block_edges(len(data))[:-1])
    rounds = [_timed(packaged, bytes(data[:TIMED_BYTES])) for _ in range(TIMED_ROUNDS)]
    return Score(
        block_bits=blocks.tolist(),
        text_bytes=len(data),
        seq_len=seq_len,
        trained_seq_len=trained,
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
    folder, text, result = map(Path, sys.argv[1:4])
    found = _result_of(folder, text, result.with_name(SHARE_FILE), json.loads(sys.argv[4]))
    result.write_text(json.dumps(found))
