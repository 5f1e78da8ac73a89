"""The configuration of one training run: its sections, and the run as a whole.

Read by training, and assembled into an experiment in pipelines/experiment.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from dca import ModelConfig, registry
from dca.config import RENAMED
from dca.errors import FieldError
from pipelines.compat.pydantic import UNION_TAGS
from pipelines.config.section import Fraction, Positive, Section, set_key
from pipelines.config.yaml_text import flatten
from pipelines.data.config import DataConfig
from pipelines.storage.location import Place

Workers = Annotated[
    Annotated[Positive, Tag(UNION_TAGS[0])]
    | Annotated[tuple[Positive, Positive], Tag(UNION_TAGS[1])],
    Discriminator(lambda value: UNION_TAGS[isinstance(value, list | tuple)]),
]
MIN_GPU = 1e-4
"""The smallest share of a GPU that Ray keeps apart from none."""


class Resources(Section):
    """What one trial, or the fit, uses of the cluster."""

    workers: Workers = 1
    """Training processes; more than one train data-parallel under Ray Train. [min, max], for the
    fit only: as many as fit on the cluster, whose nodes may come and go."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How several workers share a model: each holds all of it (ddp); or its part of the matrices in
    blocks, with their gradients and optimizer state, and gathers those of a block to compute it
    (fsdp): less memory, more traffic, the same losses."""
    cpus_per_worker: Positive = 1
    """CPU cores, and PyTorch threads, of each worker."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """GPUs of each worker; a fraction shares one between trials."""

    @model_validator(mode="after")
    def _numbers_are_valid(self) -> "Resources":
        if self.min_workers > self.max_workers:
            raise FieldError(
                "workers", f"expected [min, max], got [{self.min_workers}, {self.max_workers}]"
            )
        if 0 < self.gpus_per_worker < MIN_GPU:
            message = f"expected 0 or at least {MIN_GPU:.4f}, got {self.gpus_per_worker}"
            raise FieldError("gpus_per_worker", message)
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise FieldError(
                "gpus_per_worker", f"expected a whole number above 1, got {self.gpus_per_worker}"
            )
        return self

    @property
    def min_workers(self) -> int:
        """Fewest workers that train."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        """Most workers that train."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def workers_text(self) -> str:
        """The number of workers, or its range, in words."""
        return (
            str(self.max_workers)
            if self.min_workers == self.max_workers
            else f"{self.min_workers} to {self.max_workers}"
        )


SCHEDULE_OPTIONS = {
    "train.decay_fraction": {"wsd"},
    "train.final_learning_rate_fraction": {"cosine", "wsd"},
}
"""Options that only some schedules read: an experiment none of whose trials can is refused."""


MIN_BFLOAT16_WIDTH = 128
"""Width from which a CPU with instructions for bfloat16 makes a step at least 1.3 times as fast in
it, of `standard` and of `dca`: 1.4 to 1.8 times with 128, but 1.2 to 1.3 with 96 and 1.2 with 64
(an EPYC with AVX512-BF16, one thread, 256 to 2,048 bytes, six rounds each, 2026-11-30)."""
STEP_PARAMS = (
    *("model.", "train.seq_len", "train.batch_tokens", "train.micro_batch_tokens"),
    *("train.optimizer", "train.ema_decay", "train.activation_checkpointing", "train.compile"),
    "train.precision",
)
"""Prefixes of the keys that change the time of a step."""


def _version(value: Any) -> Any:
    """The number of a version as text, as which a model is named."""
    return str(value) if type(value) is int else value


class TrainConfig(Section):
    """The training of one model."""

    start_from: Annotated[Place, BeforeValidator(_version)] | None = None
    """Trained model to start from: a folder, a models:/ URI or the number of a version; an alias,
    which may change, is in quotes in a file, as in "@champion". A `standard` model can start any
    residual kind, which first computes the same."""
    tokens: Positive = 400_000
    """Training budget, in bytes read."""
    seq_len: Positive = 256
    """Context of training and evaluation, in bytes."""
    batch_tokens: Positive = 2048
    """Bytes of one optimizer step, over all workers; a multiple of seq_len."""
    micro_batch_tokens: Positive | None = None
    """Bytes of one forward pass of a worker; gradients accumulate up to batch_tokens."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW for every parameter; or Muon for the matrices of the blocks, with orthogonal updates as
    large as AdamW's (arXiv 2502.16982), so that learning_rate means the same, and AdamW for the
    rest."""
    learning_rate: Annotated[float, Field(gt=0)] = 4e-3
    """Peak of the schedule, reached at the end of the warmup."""
    schedule: Literal["cosine", "inverse_sqrt", "wsd"] = "cosine"
    """After a linear warmup: half a cosine; peak * sqrt(warmup steps / step), as the DCA paper
    trains; or stable and then a linear decay, as in MiniCPM (arXiv 2404.06395)."""
    warmup_fraction: Fraction = 0.1
    """Share of the steps spent warming up."""
    final_learning_rate_fraction: Fraction | None = None
    """Learning rate of the last step, as a share of the peak, with cosine and wsd; null: 0.1."""
    decay_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the steps that wsd decays over; null: 0.2 (arXiv 2405.18392)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay of either optimizer, on the matrices of linear layers only."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's decay of the gradient's mean; Muon's is 0.95."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """AdamW's decay of the gradient's square, which Muon does not use."""
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest global norm of the gradient."""
    evals: Positive = 8
    """Evaluations, evenly spaced, the last one at the end; each writes a checkpoint."""
    eval_tokens: Positive | None = 65_536
    """Bytes of the validation split read by each evaluation, spread over it; null reads all."""
    best_metric: Literal["val_bits_per_byte", "train_bits_per_byte"] = "val_bits_per_byte"
    """What the best checkpoint, and the search, minimise."""
    patience: Positive | None = None
    """Evaluations in a row without a new best of best_metric after which training ends, and counts
    as complete; null: never."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, which is then evaluated and packaged;
    less in the first steps. null: the weights themselves are."""
    log_every_steps: Positive = 10
    """Steps between two rows of the training curve."""
    activation_checkpointing: bool = False
    """Whether a block's activations are recomputed in the backward pass instead of kept: less
    memory, and about a third more time."""
    compile: bool = False
    """Whether to use torch.compile; on a CPU it gains little, see docs/benchmarks.md."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of matrix products and activations; weights, the optimizer's state, sums, norms and
    losses are float32. auto, resolved by the command for all trainings: bfloat16 on CUDA, and for
    widths from 128 on a CPU with instructions for it; else float32."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "TrainConfig":
        if self.batch_tokens % self.seq_len:
            raise FieldError(
                "batch_tokens",
                f"expected a multiple of seq_len = {self.seq_len}, got {self.batch_tokens}",
            )
        micro = self.micro_batch_tokens
        if micro is not None and (micro % self.seq_len or self.batch_tokens % micro):
            raise FieldError(
                "micro_batch_tokens",
                f"expected a multiple of seq_len = {self.seq_len} "
                f"that divides batch_tokens = {self.batch_tokens}, got {micro}",
            )
        if self.tokens < self.batch_tokens:
            raise FieldError(
                "tokens",
                f"expected at least one step of batch_tokens = {self.batch_tokens}, "
                f"got {self.tokens}",
            )
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> "TrainConfig":
        if self.schedule == "inverse_sqrt" and not self.warmup_fraction:
            raise FieldError("warmup_fraction", "expected more than 0 with schedule = inverse_sqrt")
        if self.schedule == "wsd" and self.warmup_fraction + self.decay_share > 1:
            raise FieldError(
                "decay_fraction",
                f"expected at most 1 together with warmup_fraction = "
                f"{self.warmup_fraction}, got {self.decay_share}",
            )
        return self

    @property
    def final_share(self) -> float:
        """`final_learning_rate_fraction`, resolved."""
        given = self.final_learning_rate_fraction
        return 0.1 if given is None else given

    @property
    def decay_share(self) -> float:
        """`decay_fraction`, resolved."""
        return self.decay_fraction or 0.2

    @property
    def steps(self) -> int:
        """Optimizer steps of the budget; a started step is not cut."""
        return -(-self.tokens // self.batch_tokens)

    @property
    def eval_steps(self) -> list[int]:
        """Steps after which to evaluate, ascending; the last is the last step."""
        count = min(self.evals, self.steps)
        return [self.steps * (i + 1) // count for i in range(count)]


EvalTokens = Annotated[
    Annotated[Positive, Tag(UNION_TAGS[0])] | Annotated[Literal["all"], Tag(UNION_TAGS[1])],
    Discriminator(lambda value: UNION_TAGS[isinstance(value, str)]),
]
COMPILE = "train.compile"
COMPILED_STEPS = 10_000
"""Steps from which compiling pays on a GPU: at 30 ms a step five minutes, of which it takes half a
one. Not measured on a GPU yet."""
STUDY_EVALS = 32
"""Evaluations of a replicate: from its curve the time to a quality is read."""


class FitConfig(Section):
    """The final training of the search's winner."""

    tokens: Positive | None = None
    """Training budget in bytes; null: train.tokens."""
    evals: Positive | None = None
    """Evaluations; null: in a study train.evals or 32, whichever is more, else train.evals."""
    eval_tokens: EvalTokens | None = None
    """Bytes of the validation split read by each evaluation, or `all`; null: in a study all, else
    train.eval_tokens."""
    compile: bool | None = None
    """Whether to use torch.compile; null: as train.compile, and, resolved by the command, where
    each worker has a GPU from 10,000 steps on, which take longer than to compile; not by itself in
    a study, whose arms are compiled alike, or if the search varies it."""
    resources: Resources = Resources()

    def check(self, train: TrainConfig) -> None:
        """Raise FieldError if its budget or its workers do not fit a batch of `train`."""
        check_batch(train, self.resources, "fit.resources")
        if self.tokens is not None and self.tokens < train.batch_tokens:
            raise FieldError(
                "fit.tokens",
                f"expected at least one step of train.batch_tokens = {train.batch_tokens}, "
                f"got {self.tokens}",
            )

    def values(self, train: TrainConfig) -> dict[str, Any]:
        """What it changes in a trial's configuration, by dotted key."""
        eval_tokens = train.eval_tokens if self.eval_tokens is None else self.eval_tokens
        compiled = {} if self.compile is None else {COMPILE: self.compile}
        return compiled | {
            "train.tokens": self.tokens or train.tokens,
            "train.evals": self.evals or train.evals,
            "train.eval_tokens": None if eval_tokens == "all" else eval_tokens,
            "resources": self.resources.model_dump(),
        }

    def compiled_by_itself(self, train: TrainConfig) -> bool:
        """Whether null for `compile` means that its training is compiled."""
        steps = (self.tokens or train.tokens) // train.batch_tokens
        return self.resources.gpus_per_worker > 0 and steps >= COMPILED_STEPS

    def of_study(self, train: TrainConfig) -> "FitConfig":
        """The same with the evaluations that curves of a study are compared by."""
        evals = self.evals or max(train.evals, STUDY_EVALS)
        return self.model_copy(update={"evals": evals, "eval_tokens": self.eval_tokens or "all"})


MAX_TIMEOUT_SECONDS = 10 * 366 * 24 * 3600
"""Ten years; the watchdog's clock ends after a few hundred."""


class FailuresConfig(Section):
    """Checkpoints, retries and the timeout."""

    retries: Annotated[int, Field(ge=0)] = 2
    """Times that a trial, a training of a study, or a fit's workers, restart from the last
    checkpoint after a crash, an exception, running out of memory or a timeout. One that diverged,
    or failed in a way in which it would again (see docs/failures.md), is not restarted."""
    timeout_seconds: Annotated[int, Field(ge=1, le=MAX_TIMEOUT_SECONDS)] | None = None
    """Longest time between two evaluations, loading included, after which a training process
    counts as hung and is ended; null: no limit."""
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 300
    """Time after which a checkpoint is written; every evaluation also writes one."""


class TrainingRun(Section):
    """The configuration of one training run: a trial of a search, a final fit, or a script."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the weights, the order of the data and the sampler."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    resources: Resources = Resources()
    failures: FailuresConfig = FailuresConfig()

    @model_validator(mode="after")
    def _workers_share_a_batch(self) -> "TrainingRun":
        check_batch(self.train, self.resources)
        return self

    @model_validator(mode="after")
    def _symbols_are_bytes(self) -> "TrainingRun":
        check_vocabulary(self.model)
        return self

    @property
    def params(self) -> dict[str, Any]:
        """Its dotted parameters in the tracking store: the same keys for every run."""
        data = self.model_dump(mode="json", include={"seed", "data", "model", "train"})
        return dict(flatten(data))

    @property
    def identity(self) -> dict[str, Any]:
        """Its parameters without options of residual kinds that it does not train."""
        return dict(without_options_of_others(self.params.items(), {self.model.residual}))


def without_options_of_others(
    values: Iterable[tuple[str, Any]], kinds: Collection[str]
) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values without options that none of the residual kinds reads.

    So a kind that is added, or its options, do not change what is stored about the others.
    """
    unread = [registry.residual.unread(kind) for kind in kinds]
    for key, value in values:
        section, _, name = key.partition(".")
        is_option = section == "model" and "." in name
        if not is_option or any(name not in one for one in unread):
            yield key, value


def check_batch(train: TrainConfig, resources: Resources, key: str = "resources") -> None:
    """Raise FieldError if the workers of a section cannot share the sequences of a batch."""
    sequences = train.batch_tokens // train.seq_len
    minimum, maximum = resources.min_workers, resources.max_workers
    if minimum == maximum and sequences % maximum:
        raise FieldError(
            "train.batch_tokens",
            f"expected a multiple of workers x seq_len = {maximum} x {train.seq_len}, "
            f"got {train.batch_tokens} with {key}.workers = {maximum}",
        )
    if sequences < maximum:
        raise FieldError(
            "train.batch_tokens",
            f"expected at least {maximum * train.seq_len}, a sequence of seq_len = {train.seq_len} "
            f"for each of {key}.workers = {maximum}, got {train.batch_tokens}",
        )


def check_vocabulary(model: ModelConfig) -> None:
    """Raise FieldError unless the model reads bytes."""
    if model.vocab != 256:
        raise FieldError("model.vocab", f"expected 256, one for each byte, got {model.vocab}")


def old_names(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The old keys in plain data, dotted or nested, each with its present name."""
    for key, value in data.items():
        if key in RENAMED:
            yield f"{prefix}{key}", RENAMED[key]
        if isinstance(value, Mapping):
            nested = [name for name in value if f"{key}.{name}" in RENAMED]
            yield from ((f"{prefix}{key}.{name}", RENAMED[f"{key}.{name}"]) for name in nested)
            yield from old_names(value, f"{prefix}{key}.")


def with_present_names(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same data with present names, wherever in it the old ones are."""
    found: dict[str, Any] = {}
    moved: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            old = {name: RENAMED[f"{key}.{name}"] for name in value if f"{key}.{name}" in RENAMED}
            moved |= {new: value[name] for name, new in old.items()}
            value = with_present_names({k: v for k, v in value.items() if k not in old})
        elif isinstance(value, list):
            value = [with_present_names(v) if isinstance(v, Mapping) else v for v in value]
        found[RENAMED.get(key, key)] = value
    for key, value in moved.items():
        set_key(found, key, value)
    return found
