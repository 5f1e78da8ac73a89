"""What the parts of `make check-gpu` share: the run with its results, models and their steps."""

import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dca import ModelConfig, build_model, registry
from pipelines.compat.torch import AdamW, step_unless

LIMIT_SECONDS = 440
"""After which no further part begins, so that the check ends within eight minutes."""
PAPERS = ("standard", "dca")
"""Kinds with rows of their own below."""
KINDS: dict[str, dict[str, Any]] = {
    "standard": {"residual": "standard"},
    "1-DCA": {"dca": {"last_k": 1}},
    "2-DCA": {"dca": {"last_k": 2}},
    "full DCA": {"dca": {"last_k": None}},
    **{kind: {"residual": kind} for kind in registry.residual.names if kind not in PAPERS},
    "muddformer, norm": {"residual": "muddformer", "muddformer": {"norm": True}},
    "attention_residuals, 8 groups": {
        "residual": "attention_residuals",
        "attention_residuals": {"blocks": 8},
    },
    "attention_residuals, 4 heads": {
        "residual": "attention_residuals",
        "attention_residuals": {"heads": 4},
    },
    "hyper_connections, static": {
        "residual": "hyper_connections",
        "hyper_connections": {"dynamic": False},
    },
}
FEW = ("standard", "2-DCA", "full DCA")
"""Kinds that are timed compiled: the others take too long."""
VOCAB = 256


class Skipped(Exception):
    """Why a part does not apply to the device."""


class Failed(Exception):
    """What is wrong, with the figures."""


@dataclass(frozen=True)
class Shape:
    """Size of a model and of its batch."""

    depth: int
    dim: int
    heads: int
    batch: int
    seq_len: int

    def config(self, kind: str) -> ModelConfig:
        """The model of this size and a kind."""
        size = {"depth": self.depth, "dim": self.dim, "heads": self.heads, "vocab": VOCAB}
        return ModelConfig(**{**size, **KINDS[kind]})

    @property
    def tokens(self) -> int:
        """Of a batch."""
        return self.batch * self.seq_len


TINY = Shape(2, 32, heads=2, batch=2, seq_len=32)
"""In place of every larger shape on the CPU."""
DEEP = Shape(24, 512, heads=8, batch=64, seq_len=512)
WIDE = Shape(24, 1024, heads=16, batch=16, seq_len=1024)


@dataclass
class Check:
    """A run on one device, and the results of its parts so far."""

    device: torch.device
    folder: Path
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @property
    def on_gpu(self) -> bool:
        """Whether it is the real check, on CUDA."""
        return self.device.type == "cuda"

    def require_gpu(self) -> None:
        """Raise Skipped on a CPU."""
        if not self.on_gpu:
            raise Skipped("needs a GPU")

    def synchronize(self) -> None:
        """Wait until the GPU has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, action: Callable[[], object], repeats: int = 1) -> float:
        """Seconds of one of some repeats of an action, until the device has done it."""
        self.synchronize()
        started = time.perf_counter()
        for _ in range(repeats):
            action()
        self.synchronize()
        return (time.perf_counter() - started) / repeats

    def random_ids(self, batch: int, length: int) -> Tensor:
        """Random bytes [b, t] on the device."""
        return torch.randint(VOCAB, (batch, length), device=self.device)

    def autocast(self, *, enabled: bool = True) -> torch.autocast:
        """Matrix products in bfloat16."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    @contextmanager
    def without_waits(self) -> Iterator[None]:
        """A context in which it is an error that the host waits for the GPU.

        On a CPU: that it reads a number of a tensor, for which it would wait for a GPU.
        """
        if not self.on_gpu:
            with RefuseReads():
                yield
            return
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def machine(self, figure: str) -> float | None:
        """A figure of the part `machine`; None if that failed."""
        return self.parts.get("machine", {}).get("result", {}).get(figure)

    def run(self, name: str, part: Callable[["Check"], Any]) -> None:
        """Run one part, print its result or why there is none, and write all so far."""
        outcome: dict[str, Any] = {}
        started = time.perf_counter()
        try:
            if started - self.started > LIMIT_SECONDS:
                raise Skipped(f"{started - self.started:.0f} seconds are over")
            outcome["result"] = part(self)
        except Skipped as reason:
            outcome["skipped"] = str(reason)
        except Exception as error:  # the other parts may work
            traceback.print_exc()
            lines = str(error).splitlines() or [""]
            outcome["failed"] = f"{type(error).__name__}: {lines[0]}"
        outcome["seconds"] = round(time.perf_counter() - started, 1)
        self.parts[name] = outcome
        print(f"{name}: {json.dumps(outcome)}", flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "check_gpu.json").write_text(json.dumps(self.parts, indent=1))
        if self.on_gpu:
            torch.cuda.empty_cache()


class RefuseReads(TorchDispatchMode):
    """A context in which no Python number is made of a tensor."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Raise RuntimeError for `item`, and for what is in its place: `bool`, `if` and so on."""
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("the host reads a number of a tensor")
        return func(*args, **(kwargs or {}))


def loss_of(model: nn.Module, ids_bt: Tensor) -> Tensor:
    """Mean cross-entropy of the next byte, of float32 logits as in training (or float64)."""
    logits_btv = model(ids_bt[:, :-1])
    wide = torch.promote_types(logits_btv.dtype, torch.float32)
    return F.cross_entropy(logits_btv.flatten(0, 1).to(wide), ids_bt[:, 1:].flatten())


class Trainee:
    """A model and its optimizer, with the steps of pipelines/training in what a GPU does."""

    def __init__(
        self,
        check: Check,
        shape: Shape,
        kind: str,
        *,
        compiled: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        """With a generator, of a CPU, the weights are the same on every device."""
        self.check, self.shape, self.config = check, shape, shape.config(kind)
        if generator is None:  # drawing the weights of large models on a CPU takes seconds
            with check.device:
                self.model = build_model(self.config)
        else:
            self.model = build_model(self.config, generator=generator).to(check.device)
        self.optimizer = AdamW(self.model.parameters(), 1e-4, fused=True)
        self.non_finite = torch.zeros((), device=check.device)
        if compiled:
            self.model.compile()

    def step(self, ids_bt: Tensor | None = None, *, bfloat16: bool = True) -> Tensor:
        """A whole training step on some ids, or random ones; returns the loss, on the device."""
        if ids_bt is None:
            ids_bt = self.check.random_ids(self.shape.batch, self.shape.seq_len + 1)
        with self.check.autocast(enabled=bfloat16):
            loss = loss_of(self.model, ids_bt)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        wrong = (~torch.isfinite(norm)).to(self.non_finite.dtype)
        torch.maximum(self.non_finite, wrong, out=self.non_finite)
        step_unless(self.optimizer, self.non_finite)
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def flops(self) -> float:
        """FLOPs of the matrix products of one step."""
        return 3.0 * self.config.flops_per_token(self.shape.seq_len) * self.shape.tokens
