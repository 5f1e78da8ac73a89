"""A stage of the DAG: a named function, its dependencies and its context."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from pipelines.console.progress import Progress
from pipelines.console.secrets import redact
from pipelines.console.text import shown_path
from pipelines.engine.code import read_sources
from pipelines.engine.results import R, StageResults, Values
from pipelines.storage.remote import Folder
from pipelines.tracking.encoding import encode_param

if TYPE_CHECKING:  # with MLflow, which takes two seconds to import
    from pipelines.tracking.store import Store


class PipelineConfig(Protocol):
    """The part of a configuration that the DAG reads; a stage lists the keys that it reads."""

    @property
    def experiment(self) -> str:
        """The experiment's name in the tracking store."""

    @property
    def storage(self) -> str:
        """Where files are kept."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """All of it as plain data."""

    def key_values(self) -> Iterable[tuple[str, Any]]:
        """The dotted keys, and their values, that can change a result."""

    def to_yaml(self) -> str:
        """All of it as an experiment of its own."""


C = TypeVar("C", bound=PipelineConfig)
LOOKING = "looking for results of earlier runs"
"""What is shown while cached results are looked for, whose files are read."""


@dataclass(frozen=True)
class Invocation:
    """One call of a command: as it was typed, and where its output goes."""

    argv: Sequence[str]
    """The path of the script and its arguments."""
    progress: Progress

    @classmethod
    def of(cls, script: str, arguments: Sequence[str], progress: Progress) -> "Invocation":
        """An invocation of a script by its `__file__`, relative to the current folder if below."""
        return cls((shown_path(Path(script)), *arguments), progress)

    def script(self, name: str) -> Path:
        """Another command, by the path by which this one was called."""
        return Path(self.argv[0]).parent / name


@dataclass(frozen=True)
class Context(Generic[C]):
    """What a stage may use besides the results of its dependencies."""

    config: C
    storage: Folder
    store: "Store"
    invocation: Invocation
    pipeline_run: str
    """The MLflow run that is the parent of the stages' runs."""
    run_id: str = ""
    """The MLflow run of a cached stage; empty for other stages."""
    variant: str = ""
    """In the names of runs: how the configuration differs from the experiment's first one."""
    values: Values = ()
    """Of the instance's dimensions; empty for a stage without instances."""
    fresh: bool = False
    """Whether cached results are computed again: a stage reuses none of its own either."""
    sources: Mapping[str, bytes] = field(default_factory=read_sources, repr=False)
    """The project's sources as the command began, by path: models are packaged with those of
    `dca`, since an edit in the hours of a training is not in what it trained."""

    @property
    def progress(self) -> Progress:
        """Where output goes."""
        return self.invocation.progress

    @property
    def instance(self) -> str:
        """The instance's values as text, as in `dca-2, 3`; empty for a stage without instances."""
        return ", ".join(map(str, self.values))

    def own_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Of some parameters, by dotted key, those in which an instance differs from its pipeline.

        For commands that begin with the pipeline's experiment; none without instances.
        """
        if not self.values:
            return {}
        stored = self.store.client.get_run(self.pipeline_run).data.params
        return {key: v for key, v in params.items() if stored.get(key) != redact(encode_param(v))}


Instance = tuple[Context[C], StageResults]
"""What an instance of a stage is run with: its context, and the results of its dependencies."""
Ended = Callable[[int, R | Exception], None]
"""Called once for each of several instances as it ends, with its place among them and its result,
or the error with which it failed."""


@dataclass(frozen=True)
class Growth(Generic[C]):
    """How a stage continues an earlier run that was made with another configuration."""

    identity_keys: tuple[str, ...]
    """Of the configuration keys that the stage depends on, those in which the two must agree."""
    usable: Callable[["Store", str, C], int]
    """How much of the work of a run, given by its id, a configuration can use."""
    unfinished: Callable[["Store", str, C], str]
    """Why a run that has a result is continued all the same; empty if it is not."""


@dataclass(frozen=True)
class Stage(Generic[C, R]):
    """One node of the DAG."""

    name: str
    result: type[R] | UnionType
    """The type of its result: a frozen dataclass of JSON data and references to artifacts, or one
    of several of them."""
    run: Callable[[Context[C], StageResults], R]
    depends_on: tuple[str, ...] = ()
    """Stages whose results it receives; each has another type of result."""
    config_keys: tuple[str, ...] = ()
    """Configuration keys or sections that its result depends on."""
    modules: Callable[[C], Collection[str]] = lambda _: ()
    """The project's modules whose code, with all that they import, can change its result, for a
    configuration; see engine/code.py."""
    cached: bool = True
    verify: Callable[["Store", R], object] = lambda _, __: None
    """Raises DamagedError if files that a stored result refers to are damaged or gone, besides the
    artifacts of its own run; another error ends the command."""
    growth: Growth[C] | None = None
    """How it continues an earlier run of another configuration; None if it cannot. Such a stage
    continues in the same run too if an artifact of that run is damaged: what takes its time is kept
    elsewhere, as the trials of a search are. Others start again in a new run."""
    preview: Callable[[C], R] | None = None
    """The result of a stage that is not cached, computed without side effects."""
    over: tuple[str, ...] = ()
    """Dimensions over which it has instances; those that a command's FanOut lacks do not count."""
    run_together: Callable[[Sequence[Instance[C]], Ended[R]], None] | None = None
    """Runs all instances that have to be computed in one call, so that their trainings share the
    cluster; None: each with `run`. An error that it raises, rather than passes to `ended`, ends the
    command. Only of a cached stage; not used for a stage without instances."""
    partial: bool = False
    """Whether it runs with the results that there are where some instances of the stages it depends
    on failed; of each stage at least one must have a result."""
    absorbed: tuple[str, ...] = ()
    """Of the stages it depends on, those of whose results only `configured` is in its key."""
    configured: Callable[[C, StageResults], C] | None = None
    """The configuration that its key is made of, with what it takes from the results of `absorbed`;
    None: the pipeline's."""
