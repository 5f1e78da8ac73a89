"""From YAML and `key=value` to one frozen, strict, typed configuration.

Everything wrong with a file is reported together, each problem with its key, what was expected and
the nearest valid name. Numbers are read as in YAML 1.2, so that 1e-3 is a number.
"""

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from itertools import islice, product
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticKnownError

from dca import ModelConfig
from pipelines.runtime.compose import EXTENDS, Layer, blame, merge, read
from pipelines.runtime.corpora import CORPORA
from pipelines.runtime.errors import ConfigError, Parser, nearest, one_line, run_command, show
from pipelines.runtime.overrides import apply_changes, put, read_changes
from pipelines.runtime.plain_yaml import dump, flatten
from pipelines.runtime.storage import check

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of the configuration: no unknown key, no conversion, no change afterwards."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


UNION = ("(one)", "(two)")
"""Of the ways to give workers; in an error's path, but not a key."""
Workers = Annotated[
    Annotated[Positive, Tag(UNION[0])] | Annotated[tuple[Positive, Positive], Tag(UNION[1])],
    Discriminator(lambda value: UNION[isinstance(value, list | tuple)]),
]


class Resources(Section):
    """What one trial, or the fit, takes from the cluster."""

    workers: Workers = 1
    """Training processes; more than one train data-parallel under Ray Train. [least, most], not of
    trials: as many as there is room for, while nodes come and go."""
    cpus_per_worker: Positive = 1
    """CPU cores, and PyTorch threads, of each worker."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """GPUs of each worker; a fraction shares one between trials."""

    @model_validator(mode="after")
    def _can_be_had(self) -> "Resources":
        if self.least > self.most:
            raise ValueError(f"workers: expected [least, most], got [{self.least}, {self.most}]")
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise ValueError(
                f"gpus_per_worker: expected a whole number above 1, got {self.gpus_per_worker}"
            )
        return self

    @property
    def least(self) -> int:
        """Workers without which there is no training."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        """Workers that are used if there is room."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def shown(self) -> str:
        """The workers for people to read."""
        return str(self.most) if self.least == self.most else f"{self.least} to {self.most}"


def _registered(name: str) -> str:
    if name not in CORPORA:
        names = " or ".join(repr(name) for name in CORPORA)
        raise PydanticKnownError("literal_error", {"expected": names})
    return name


CorpusName = Annotated[
    str,
    AfterValidator(_registered),
    Field(json_schema_extra=lambda schema: schema.update(enum=list(CORPORA))),
]
"""A Literal of the names that are registered when it is asked."""


class DataConfig(Section):
    """The text: bytes, split into train, validation and a sealed test split; 90/5/5 unless the last
    two are given."""

    corpus: CorpusName = "python-stdlib"
    """`python-stdlib` is on every machine; `enwik8` is downloaded where it is missing; `files` are
    your own."""
    path: str | None = None
    """`files`: a file, folder or glob. `enwik8`: the folder it lies in (default: data)."""
    validation_path: Annotated[str, Field(min_length=1)] | None = None
    """`files`: the validation split, a file, folder or glob; `data.path` is then all for training.
    null: the split is cut from `data.path`."""
    test_path: Annotated[str, Field(min_length=1)] | None = None
    """The same for the test split; both or neither."""

    @model_validator(mode="after")
    def _paths_suit_the_corpus(self) -> "DataConfig":
        source = CORPORA[self.corpus]
        if source.needs_path and not self.path:
            where = f"with data.corpus={self.corpus}"
            raise ValueError(f"path: expected a file, folder or glob {where}")
        if not source.takes_path and self.path is not None:
            raise ValueError(f"path: {self.corpus} takes none; did you mean data.corpus=files?")
        return self

    @model_validator(mode="after")
    def _held_out_files_come_together(self) -> "DataConfig":
        names = ("validation_path", "test_path")
        for name, other in (names, names[::-1]):
            if getattr(self, name) is None:
                continue
            if self.corpus != "files":
                raise ValueError(f"{name}: expected data.corpus=files, got {self.corpus}")
            if getattr(self, other) is None:
                raise ValueError(f"{name}: expected data.{other} as well")
        return self


def _place(text: str) -> str:
    check(text)
    return text


Place = Annotated[str, AfterValidator(_place)]
"""A path, or a URI without secrets."""


class TrainConfig(Section):
    """One training run."""

    start_from: Place | None = None
    """Trained model to start from: a models:/ URI (better a version than an alias, which moves) or
    a folder. A `standard` one starts any residual kind, with the same function at first."""
    tokens: Positive = 400_000
    """Training budget, in bytes read."""
    seq_len: Positive = 256
    """Context of training and evaluation, in bytes."""
    batch_tokens: Positive = 2048
    """Bytes of one optimizer step, over all workers; a multiple of seq_len."""
    micro_batch_tokens: Positive | None = None
    """Bytes of one forward pass of a worker; gradients accumulate up to batch_tokens."""
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
    grn_b_rate: Annotated[float, Field(gt=0)] = 10.0
    """Learning rate of the mixtures' b, in multiples of learning_rate: b has far to go from 1."""
    grn_w_rate: Annotated[float, Field(gt=0)] = 0.1
    """The same for w, of which one step moves the weights of whole entries."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """AdamW's, on the matrices of linear layers only."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's decay of the gradient's mean."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """AdamW's decay of the gradient's square."""
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
    """Evaluate and package an exponential moving average of the weights: the share of it kept at
    each step, and less in the first ones; null: the weights themselves."""
    log_every_steps: Positive = 10
    """Steps between two rows of the training curve."""
    activation_checkpointing: bool = False
    """Whether a block's activations are computed again in the backward pass instead of kept: less
    memory, and about a third more time."""
    compile: bool = False
    """Whether to use torch.compile; on a CPU it gains little, see the README's Speed."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "TrainConfig":
        if self.batch_tokens % self.seq_len:
            raise ValueError(
                f"batch_tokens: expected a multiple of seq_len = {self.seq_len}, "
                f"got {self.batch_tokens}"
            )
        micro = self.micro_batch_tokens
        if micro is not None and (micro % self.seq_len or self.batch_tokens % micro):
            raise ValueError(
                f"micro_batch_tokens: expected a multiple of seq_len = {self.seq_len} "
                f"that divides batch_tokens = {self.batch_tokens}, got {micro}"
            )
        if self.tokens < self.batch_tokens:
            raise ValueError(
                f"tokens: expected at least one step of batch_tokens = {self.batch_tokens}, "
                f"got {self.tokens}"
            )
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> "TrainConfig":
        if self.schedule == "inverse_sqrt" and not self.warmup_fraction:
            raise ValueError("warmup_fraction: expected more than 0 with schedule = inverse_sqrt")
        if self.schedule == "inverse_sqrt" and self.final_learning_rate_fraction is not None:
            raise ValueError(
                "final_learning_rate_fraction: expected null with schedule = inverse_sqrt, "
                "which ends where its steps do"
            )
        if self.schedule != "wsd" and self.decay_fraction is not None:
            raise ValueError(f"decay_fraction: expected null with schedule = {self.schedule}")
        if self.schedule == "wsd" and self.warmup_fraction + self.decay_share > 1:
            raise ValueError(
                f"decay_fraction: expected at most 1 together with warmup_fraction = "
                f"{self.warmup_fraction}, got {self.decay_share}"
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


RealRange = tuple[int | float, int | float]
IntRange = tuple[int, int]
Choice = bool | int | float | str | None


DEFAULT_TRIALS = 8
MOST_CHECKED = 1000
"""Points of a grid that are checked before it begins."""
MOST_EXAMPLES = 100
"""Width up to which every integer of a range is tried, and not only its ends."""


class Dimension(Section):
    """One searched key: exactly one kind of range, and when it applies."""

    log_uniform: RealRange | None = None
    """Low and high of a real number, uniform in its logarithm."""
    uniform: RealRange | None = None
    """Low and high of a real number."""
    int: IntRange | None = None
    """Low and high of an integer, both included."""
    choice: list[Choice] | None = None
    """The values themselves."""
    when: dict[str, Choice] = {}
    """Keys and the value each must have for this one to be searched."""

    @model_validator(mode="after")
    def _one_kind(self) -> "Dimension":
        kinds = [self.log_uniform, self.uniform, self.int, self.choice]
        if sum(kind is not None for kind in kinds) != 1:
            raise ValueError("expected exactly one of log_uniform, uniform, int, choice")
        for bounds in (self.log_uniform, self.uniform, self.int):
            if bounds is not None and not bounds[0] < bounds[1]:
                raise ValueError(f"expected low < high, got {list(bounds)}")
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            raise ValueError(f"log_uniform: expected low > 0, got {self.log_uniform[0]}")
        if self.choice is not None and not self.choice:
            raise ValueError("choice: expected at least one value")
        return self

    @property
    def examples(self) -> list[Choice]:
        """Values that between them show whether the key can take this range."""
        if self.int is not None and self.int[1] - self.int[0] < MOST_EXAMPLES:
            return list(range(self.int[0], self.int[1] + 1))
        return list(self.choice or self.log_uniform or self.uniform or self.int or ())

    @property
    def grid(self) -> list[Choice] | None:
        """Every value of a choice or an integer range; None for real numbers."""
        if self.int is not None:
            return list(range(self.int[0], self.int[1] + 1))
        return self.choice

    def contains(self, value: Choice) -> bool:
        """Whether the range has this value."""
        if self.choice is not None:
            return any(type(value) is type(one) and value == one for one in self.choice)
        low, high = self.int or self.log_uniform or self.uniform or (0, 0)
        kinds = (int,) if self.int else (int, float)
        return type(value) in kinds and low <= cast(float, value) <= high


class SamplerConfig(Section):
    """Who proposes the next trial."""

    name: Literal["tpe", "gp", "cmaes", "qmc", "random", "grid"] = "tpe"
    """Optuna's tree-structured Parzen estimator, Gaussian process, CMA-ES (numbers only) or Sobol
    sequence; uniform sampling; or every point of `choice` and `int` ranges. Conditions (`when`)
    need tpe or random."""
    startup_trials: Positive = 4
    """Random trials before tpe, gp or cmaes model anything."""


class SchedulerConfig(Section):
    """Who stops a trial early."""

    name: Literal["asha", "median", "none"] = "asha"
    """Asynchronous successive halving (arXiv 1810.05934); median stopping, at whatever is worse
    than half of the completed trials (four at least) were there; or every trial to its end."""
    grace_evals: Positive = 2
    """Evaluations before a trial may be stopped."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """asha: of this many trials at a rung, one goes on."""


class SearchConfig(Section):
    """The search: which keys, how many trials, who samples, who stops."""

    space: dict[str, Dimension] = {}
    """Dotted configuration keys and their ranges."""
    sampler: SamplerConfig = SamplerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    trials: Positive | None = None
    """Trials of the whole search, resumed or not; null: every point of a grid, else 8."""
    second_objective: Literal["parameters", "bytes_per_second"] | None = None
    """What to weigh against train.best_metric: fewer `parameters`, or more `bytes_per_second` of
    training. The front is reported, its best in bits per byte wins. Needs scheduler none."""
    try_first: list[dict[str, Choice]] = []
    """Points of the space to begin with; keys that a point leaves out are sampled."""
    warm_start: list[str] = []
    """Experiments whose finished searches, of the same space, corpus and training, the sampler
    learns from before it proposes anything."""
    max_tokens: Positive | None = None
    """Training bytes of all trials together after which no further trial starts."""
    max_seconds: Positive | None = None
    """Wall-clock time of the search, resumed or not, after which no further trial starts."""

    @property
    def trial_count(self) -> int:
        """`trials`, or what null stands for."""
        points = self.grid_size if self.sampler.name == "grid" else DEFAULT_TRIALS
        return self.trials or points

    @property
    def grid_points(self) -> Iterator[dict[str, Choice]]:
        """The points of a grid, the last key changing fastest."""
        ranges = [dimension.grid or [] for dimension in self.space.values()]
        return (dict(zip(self.space, values, strict=True)) for values in product(*ranges))

    @property
    def grid_size(self) -> int:
        """Points of the grid that the space spans; real numbers count once."""
        return math.prod(len(dimension.grid or [None]) for dimension in self.space.values())


class FitConfig(Section):
    """The final training of the search's winner."""

    tokens: Positive | None = None
    """Training budget in bytes; null: train.tokens."""
    resources: Resources = Resources()


class FailuresConfig(Section):
    """What a crash may cost, and how often work is tried again after one."""

    retries: Annotated[int, Field(ge=0)] = 2
    """Times a trial, or a fit's workers, start again from the last checkpoint after a crash, an
    exception, running out of memory or a timeout. A diverged trial does not."""
    timeout_seconds: Positive | None = None
    """Longest time from one evaluation to the next, loading included, before the training process
    counts as hung and is ended; null waits for ever."""
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 300
    """Time after which a checkpoint is due; every evaluation writes one too."""


class PromoteConfig(Section):
    """The registry and the gate in front of its champion."""

    model: Annotated[str, Field(pattern=r"^[^/:.%\"'@]*[^/:.%\"'@0-9][^/:.%\"'@]*$")] = "dca-gpt"
    """Name of the registered model: not a number, and without / : . % @ and quotes. The log of its
    champions is registered beside it as NAME-champions."""
    min_improvement: Annotated[float, Field(ge=0)] = 0.0
    """Bits per byte by which a challenger must beat the champion on the test split."""
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    """With which it must: of a bootstrap over blocks of the test text."""
    max_parameters: Positive | None = None
    """Most parameters of a champion; null: any number."""
    min_bytes_per_second: Annotated[float, Field(gt=0)] | None = None
    """Least speed of writing one text, on the machine that decides; null: any."""
    max_latency_seconds: Annotated[float, Field(gt=0)] | None = None
    """Longest time from a prompt of 64 bytes to the first byte written; null: any."""

    @model_validator(mode="after")
    def _not_a_log(self) -> "PromoteConfig":
        if self.model.endswith("-champions"):
            raise ValueError(f"model: {self.model} would be the log of another model's champions")
        return self


class GenerateConfig(Section):
    """The sample at the end of the pipeline."""

    prompts: list[Annotated[str, Field(min_length=1)]] = ["def "]
    """Texts to continue."""
    max_new_tokens: Positive = 200
    """Bytes to write for each."""
    temperature: Annotated[float, Field(ge=0)] = 0.8
    """Divides the logits; 0 takes the likeliest byte."""
    top_k: Positive | None = 40
    """Sample from this many likeliest bytes; null from all."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Sample from the likeliest bytes that together have this probability; null from all."""


class Config(Section):
    """One experiment."""

    experiment: Annotated[str, Field(min_length=1, pattern=r"^[\w.\- ]+$")]
    """Name; also the MLflow experiment's."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of the weights, the order of the data and the sampler."""
    storage: Annotated[Place, Field(min_length=1)] = "runs"
    """For the corpus, checkpoints and artifacts: a folder, or what every node sees, as
    s3://bucket/folder, gs://bucket/folder or file:///mnt/folder (see Storage)."""
    tensorboard: bool = False
    """Whether to write what goes to MLflow as TensorBoard events too, below storage, which is then
    a folder."""
    resources: Resources = Resources()
    """Of one trial."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    search: SearchConfig = SearchConfig()
    fit: FitConfig = FitConfig()
    failures: FailuresConfig = FailuresConfig()
    promote: PromoteConfig = PromoteConfig()
    generate: GenerateConfig = GenerateConfig()

    @model_validator(mode="after")
    def _workers_share_a_batch(self) -> "Config":
        sequences = self.train.batch_tokens // self.train.seq_len
        for resources in (self.resources, self.fit.resources):
            least, most = resources.least, resources.most
            if least == most and sequences % most:
                raise ValueError(
                    f"train.batch_tokens: expected a multiple of {most} workers x seq_len = "
                    f"{self.train.seq_len}, got {self.train.batch_tokens}"
                )
            if sequences < most:
                raise ValueError(
                    f"train.batch_tokens: expected a sequence of seq_len = {self.train.seq_len} "
                    f"for each of {most} workers or more, got {self.train.batch_tokens}"
                )
        return self

    @model_validator(mode="after")
    def _events_are_appended(self) -> "Config":
        if self.tensorboard and "://" in self.storage:
            raise ValueError("tensorboard: expected storage to be a folder: events are appended")
        return self

    @model_validator(mode="after")
    def _fit_has_a_step(self) -> "Config":
        if self.fit.tokens is not None and self.fit.tokens < self.train.batch_tokens:
            raise ValueError(
                f"fit.tokens: expected at least one step of train.batch_tokens = "
                f"{self.train.batch_tokens}, got {self.fit.tokens}"
            )
        return self

    @model_validator(mode="after")
    def _symbols_are_bytes(self) -> "Config":
        if self.model.vocab != 256:
            raise ValueError(
                f"model.vocab: expected 256, one for each byte, got {self.model.vocab}"
            )
        return self

    def get(self, key: str) -> Any:
        """The value of a dotted key."""
        value: Any = self
        for part in key.split("."):
            value = getattr(value, part)
        return value

    def replace(self, values: Mapping[str, Any]) -> "Config":
        """This configuration with some dotted keys changed. Raises ConfigError."""
        data = self.model_dump(mode="json")
        for key, value in values.items():
            put(data, key, value)
        return validate(data, source="trial")

    def fit_config(self) -> "Config":
        """The configuration of the final training: the fit's budget and resources."""
        tokens = self.fit.tokens or self.train.tokens
        resources = self.fit.resources.model_dump()
        return self.replace({"train.tokens": tokens, "resources": resources})


def run_params(config: Config) -> dict[str, Any]:
    """The dotted parameters of a training run, the same keys for every run."""
    data = config.model_dump(mode="json")
    return dict(flatten({part: data[part] for part in ("seed", "data", "model", "train")}))


FIELDS = dict(flatten(Config(experiment="x").model_dump(mode="json")))
"""Every dotted key that has one value, with its default."""

FIXED = {
    *("train.start_from", "train.tokens", "train.seq_len", "train.evals", "train.eval_tokens"),
    *("train.best_metric", "train.patience", "train.log_every_steps"),
}
"""Keys that make trials comparable, and so cannot be searched."""
TRAINING = [key for key in FIELDS if key.startswith(("model.", "train."))]
"""Keys of one training run: those but the fixed ones may differ between trials."""


def schema() -> dict[str, Any]:
    """The JSON schema of an experiment or of a part of one, from the fields: for editors."""
    schema = Config.model_json_schema()
    del schema["required"]  # a part is no whole experiment
    space = schema["$defs"]["SearchConfig"]["properties"]["space"]
    space["propertyNames"] = {"enum": [key for key in TRAINING if key not in FIXED]}
    space["additionalProperties"] = {"anyOf": [space["additionalProperties"], {"type": "null"}]}
    schema["$defs"]["Dimension"]["properties"]["when"]["propertyNames"] = {"enum": list(FIELDS)}
    file = {"type": "string", "minLength": 1}
    extends = {
        "anyOf": [file, {"type": "array", "items": file}],
        "description": "Files to build on, relative to this one: later wins, this one over all.",
    }
    schema["properties"] = {EXTENDS: extends, **schema["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def reference() -> str:
    """Every key with its default and meaning, as the table in the README."""
    schema = Config.model_json_schema()
    rows = [
        "| key | default | meaning |",
        "|---|---|---|",
        *_reference_rows(schema, schema["$defs"]),
    ]
    return "\n".join(rows)


def _reference_rows(
    schema: dict[str, Any], defs: dict[str, Any], prefix: str = ""
) -> Iterator[str]:
    for name, field in schema["properties"].items():
        key = f"{prefix}{name}"
        kind = defs.get(field.get("$ref", "").rpartition("/")[2])
        if kind is not None:
            yield from _reference_rows(kind, defs, f"{key}.")
        else:
            default = json.dumps(FIELDS[key]) if "default" in field else "required"
            choices = field.get("enum", [])
            values = f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
            meaning = " ".join(field["description"].split())
            yield f"| `{key}` | `{default}` | {meaning}{values} |"


def load(arguments: Sequence[str], *, smoke: bool = False, grids: bool = False) -> Config:
    """The configuration a command line asks for: [EXPERIMENT.yaml] [key=value ...].

    Without a file it is experiments/quickstart.yaml; values are YAML. With `grids` a key of model
    or train may have several, key=a,b: the search is then the grid of these. Raises ConfigError.
    """
    files = [argument for argument in arguments if "=" not in argument]
    if len(files) > 1 or "" in files:
        expected = "expected at most one experiment and key=value changes to it"
        raise ConfigError(f"command line: {expected}, got {one_line(json.dumps(files))}")
    path = Path(files[0]) if files else QUICKSTART
    overrides = [argument for argument in arguments if "=" in argument]
    config = _changed(read(path), overrides, TRAINING if grids else [])
    if not smoke:
        return config
    try:
        return _shrink(config)
    except ConfigError as error:  # a space that the tiny sizes do not suit
        raise ConfigError(str(error).replace("trial: ", "--smoke: ")) from None


def changed(data: Mapping[str, Any], overrides: Sequence[str], *, source: str) -> Config:
    """The configuration of plain data with `key=value` changes. Raises ConfigError."""
    return _changed([Layer(source, data)], overrides, [])


def to_yaml(config: Config) -> str:
    """The whole configuration, defaults included, as an experiment of its own."""
    data = config.model_dump(mode="json")
    space = config.search.space.items()
    data["search"]["space"] = {
        key: dimension.model_dump(mode="json", exclude_defaults=True) for key, dimension in space
    }
    return dump(data)


def _changed(layers: Sequence[Layer], overrides: Sequence[str], grid_keys: list[str]) -> Config:
    data, source = merge(layers), layers[-1].source
    given = apply_changes(data, read_changes(overrides, grid_keys=grid_keys))
    return validate(data, source=source, layers=[*layers, Layer("command line", given)])


def validate(data: Mapping[str, Any], *, source: str, layers: Sequence[Layer] = ()) -> Config:
    """Plain data to a Config. Raises ConfigError naming every problem, one a line.

    A problem is one of the last of the `layers` with its key, or else of the source as a whole.
    """
    try:
        text = json.dumps(data)
    except (TypeError, ValueError, RecursionError) as error:
        reason = one_line(error).partition("; use sys.")[0]  # without Python's hint on huge ints
        raise ConfigError(
            f"{one_line(source)}: expected text keys and plain values: {reason}"
        ) from None
    try:
        config = Config.model_validate_json(text, strict=True)
    except ValidationError as error:
        problems = list(_problems(error))
    else:
        problems = [*_space_problems(config), *_search_problems(config.search)]
        if not problems:
            problems = [*_listed_problems(config)]
        if not problems:
            return config
    origin = blame(layers, default=source)
    lines = (f"{one_line(origin(problem))}: {one_line(problem)}" for problem in problems)
    raise ConfigError("\n".join(lines))


def _problems(error: ValidationError) -> Iterator[str]:
    """`key: what was wrong and what was expected`, a line each."""
    for problem in error.errors(include_url=False):
        path = [str(part) for part in problem["loc"] if part not in UNION]
        message = problem["msg"].removeprefix("Value error, ")
        key = ".".join(part or '""' for part in path)
        if problem["type"] == "json_invalid":
            yield f"expected text keys and plain values: {problem['ctx']['error']}"
        elif problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            yield f"{key}: unknown key{_nearest_key(path)}"
        elif problem["type"] == "missing":
            yield f"{key}: missing"
        elif problem["type"] in ("value_error", "assertion_error"):
            field, separator, rest = message.partition(": ")
            inner = separator and field.replace("_", "").replace(".", "").isalnum()
            names = [*path, field] if inner else path
            yield f"{'.'.join(names)}: {rest if inner else message}"
        else:
            expected = message[0].lower() + message[1:]
            where = f"{key}: " if path else ""
            yield f"{where}{expected}, got {show(problem['input'])}{_nearest_choice(problem)}"


def _nearest_key(path: list[str]) -> str:
    """The valid sibling closest to an unknown key, else the same name in another section."""
    *parents, leaf = path
    prefix = "".join(f"{parent}." for parent in parents)
    siblings = {key[len(prefix) :].split(".")[0] for key in FIELDS if key.startswith(prefix)}
    siblings |= set() if parents else {EXTENDS}
    longer = [name for name in sorted(siblings) if len(leaf) > 2 and name.startswith(leaf)]
    close = difflib.get_close_matches(leaf, sorted(siblings), n=1) or longer
    names = [f"{prefix}{name}" for name in close]
    names += [key for key in FIELDS if key.split(".")[-1] == leaf]
    return f"; did you mean {names[0]}?" if names else ""


def _nearest_choice(problem: Any) -> str:
    if problem["type"] != "literal_error":
        return ""
    names = [
        name.strip("' ") for name in problem["ctx"]["expected"].replace(" or ", ",").split(",")
    ]
    return nearest(str(problem["input"]), names)


def condition_order(space: Mapping[str, Dimension]) -> list[str]:
    """The searched keys, each after those its conditions name. Raises CycleError."""
    graph = {key: [other for other in space[key].when if other in space] for key in space}
    return list(TopologicalSorter(graph).static_order())


def _space_problems(config: Config) -> Iterator[str]:
    """What is wrong with a search space that types alone do not show."""
    try:
        condition_order(config.search.space)
    except CycleError as error:
        yield f"search.space: conditions go in a circle: {' -> '.join(error.args[1])}"
    for key, dimension in config.search.space.items():
        where = f"search.space.{key}"
        if not key.startswith(("model.", "train.")):
            yield f"{where}: expected a key of model or train{nearest(key, FIELDS)}"
        elif key in FIXED:
            yield f"{where}: cannot be searched: trials would no longer be comparable"
        elif key not in FIELDS:
            yield f"{where}: no such configuration key{nearest(key, FIELDS)}"
        else:
            wrong = list(_condition_problems(config, key, dimension.when))
            met = {} if wrong else dimension.when
            points = ({**met, key: value} for value in dimension.examples)
            problems = _point_refused(config, points)
            yield from (f"{where}: {problem}" for problem in problems)
            yield from (f"{where}.when: {problem}" for problem in wrong)


def _condition_problems(config: Config, key: str, when: Mapping[str, Choice]) -> Iterator[str]:
    for other, wanted in when.items():
        if other not in FIELDS:
            yield f"{other} is no configuration key{nearest(other, FIELDS)}"
        elif other == key:
            yield "a key cannot depend on itself"
        else:
            yield from _point_refused(config, [{other: wanted}])


def _search_problems(search: SearchConfig) -> Iterator[str]:
    """What a sampler, a scheduler and the points to try first cannot do together."""
    sampler, name = search.sampler.name, "search.sampler.name"
    for key, dimension in search.space.items():
        if dimension.when and sampler not in ("tpe", "random"):
            yield f"{name}: {sampler} knows no conditions, but {key} has one; expected tpe, random"
        if sampler == "grid" and dimension.grid is None:
            yield f"search.space.{key}: expected choice or int: a grid has no real numbers"
        if sampler == "cmaes" and dimension.choice is not None:
            yield f"search.space.{key}: expected numbers: cmaes knows no choice"
    if sampler == "cmaes" and len(search.space) < 2:
        yield f"{name}: cmaes needs two searched keys or more, got {len(search.space)}"
    if sampler == "grid" and search.trial_count > search.grid_size:
        yield f"search.trials: expected null or at most {search.grid_size}, the points of the grid"
    if search.scheduler.name == "median" and "train.batch_tokens" in search.space:
        yield (
            "search.scheduler.name: median compares trials at equal tokens: expected asha or none "
            "where train.batch_tokens is searched"
        )
    if search.second_objective and sampler == "cmaes":
        yield f"{name}: cmaes knows one objective: expected tpe, gp, qmc, random or grid"
    if search.second_objective and search.scheduler.name != "none":
        yield (
            f"search.scheduler.name: expected none with search.second_objective, "
            f"got {search.scheduler.name}, which compares by one"
        )
    if search.warm_start and sampler not in ("tpe", "gp", "cmaes"):
        yield f"search.warm_start: {sampler} does not learn: expected tpe, gp or cmaes"
    if search.try_first and sampler == "grid":
        yield "search.try_first: expected none with a grid, which has its own order"
    if len(search.try_first) > search.trial_count:
        yield f"search.try_first: expected at most search.trials = {search.trial_count} points"
    for index, point in enumerate(search.try_first):
        yield from _point_problems(search.space, point, f"search.try_first.{index}")


def _listed_problems(config: Config) -> Iterator[str]:
    """The first point of a grid, or to be tried first, whose values do not go together."""
    grid = config.search.sampler.name == "grid"
    points = config.search.grid_points if grid else config.search.try_first
    where = "search.space" if grid else "search.try_first"
    for problem in _point_refused(config, islice(points, MOST_CHECKED)):
        yield f"{where}: a point of it cannot be: {problem}"


def _point_problems(
    space: Mapping[str, Dimension], point: Mapping[str, Choice], where: str
) -> Iterator[str]:
    for key, value in point.items():
        if key not in space:
            yield f"{where}: {key} is not searched{nearest(key, space)}"
            continue
        if not space[key].contains(value):
            yield f"{where}.{key}: expected a value of its range, got {show(value)}"
        for other, wanted in space[key].when.items():
            if point.get(other, wanted) != wanted:
                yield f"{where}.{key}: not searched with {other} = {show(point[other])}"


def _point_refused(config: Config, points: Iterable[Mapping[str, Choice]]) -> Iterator[str]:
    """What is wrong with the first of some points of the space that cannot be, the rest of the
    configuration being as it is."""
    # Without the lists, on which no searched key depends: they would be read again for every value.
    model = replace(config.model, attention_windows=(None,))
    parts = {"model": model, "search": SearchConfig(), "generate": GenerateConfig()}
    bare = config.model_copy(update=parts)
    for point in points:
        try:
            bare.replace(point)
        except ConfigError as error:
            yield str(error).splitlines()[0].removeprefix("trial: ")
            return


def _shrink(config: Config) -> Config:
    """A run of seconds through every stage, under names of its own: no real champion is touched."""
    workers = math.lcm(config.resources.most, config.fit.resources.most)
    batch = config.train.seq_len * workers * math.ceil(4 / workers)
    return config.replace(
        {
            "experiment": f"{config.experiment}-smoke",
            "promote.model": f"{config.promote.model}-smoke",
            "model.dim": min(config.model.dim, 8 * config.model.heads),
            "model.depth": min(config.model.depth, 2),
            "train.batch_tokens": batch,
            "train.micro_batch_tokens": None,
            "train.tokens": 12 * batch,
            "train.evals": 4,
            "train.eval_tokens": 4 * config.train.seq_len,
            "train.log_every_steps": 3,
            "search.trials": min(config.search.trial_count, 3),
            "search.try_first": config.search.try_first[:3],
            "search.warm_start": [],
            "fit.tokens": 16 * batch,
            "generate.max_new_tokens": min(config.generate.max_new_tokens, 40),
        }
    )


def main() -> None:
    """Print what the README and editors say of the fields."""
    parser = Parser(prog="python -m pipelines.runtime.config", description=main.__doc__)
    parser.add_argument("--schema", action="store_true", help="the text of experiments/schema.json")
    arguments = parser.parse_args()
    print(json.dumps(schema(), indent=2) if arguments.schema else reference())


if __name__ == "__main__":
    run_command(main, resumes=False)
