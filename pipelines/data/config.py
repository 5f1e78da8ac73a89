"""The section `data`: which text is trained on, and how it is split."""

from collections.abc import Mapping
from contextlib import suppress
from glob import escape, has_magic
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from dca.errors import FieldError
from pipelines.compat.pydantic import literal_error
from pipelines.config.overrides import Change
from pipelines.config.section import Positive, Section
from pipelines.data.corpora import CORPORA
from pipelines.storage.location import with_home

PATHS = ("path", "validation_path", "test_path")
"""Keys of the section that are relative to the file in which they stand."""


def _registered(name: str) -> str:
    if name not in CORPORA:
        names = " or ".join(repr(name) for name in CORPORA)
        raise literal_error(names)
    return name


CorpusName = Annotated[
    str,
    AfterValidator(_registered),
    Field(json_schema_extra=lambda schema: schema.update(enum=list(CORPORA))),
]
"""A Literal of the names that are registered when a value is checked."""


TextPath = Annotated[str, AfterValidator(with_home)]
HeldOutPath = Annotated[str, Field(min_length=1), AfterValidator(with_home)]


class DataConfig(Section):
    """The corpus: bytes, split 90/5/5 into train, validation and test unless held-out files are
    given."""

    corpus: CorpusName = "python-stdlib"
    """`python-stdlib`: the sources of the running Python's standard library; `enwik8`: downloaded
    if it is missing; `files`: your own."""
    path: TextPath | None = None
    """`files`: a file, folder or glob. `enwik8`: its folder (default: data). Relative to the file
    in which it stands, on the command line to the working folder."""
    validation_path: HeldOutPath | None = None
    """`files`: the validation split, a file, folder or glob; `data.path` is then the train split.
    null: it is a part of `data.path`."""
    test_path: HeldOutPath | None = None
    """`files`: the test split; given together with `validation_path` or not at all."""

    max_bytes: Positive | None = None
    """Bytes of the text that are read, from its beginning, and split; null: all of them."""

    @model_validator(mode="after")
    def _paths_suit_the_corpus(self) -> "DataConfig":
        source = CORPORA[self.corpus]
        if source.needs_path and not self.path:
            where = f"with data.corpus={self.corpus}"
            raise FieldError("path", f"expected a file, folder or glob {where}")
        if not source.takes_path and self.path is not None:
            raise FieldError("path", f"{self.corpus} takes none; did you mean data.corpus=files?")
        return self

    @model_validator(mode="after")
    def _held_out_files_come_together(self) -> "DataConfig":
        names = ("validation_path", "test_path")
        for name, other in (names, names[::-1]):
            if getattr(self, name) is None:
                continue
            if self.corpus != "files":
                raise FieldError(name, f"expected data.corpus=files, got {self.corpus}")
            if getattr(self, other) is None:
                raise FieldError(name, f"expected data.{other} as well")
        if self.max_bytes is not None and self.validation_path is not None:
            raise FieldError("max_bytes", "expected null with data.validation_path: three texts")
        return self


def with_whole_path(change: Change) -> Change:
    """A change of the command line, whose paths are relative to the working folder."""
    section, _, key = change.key.partition(".")
    if section != "data":
        return change
    given = {"data": {key: change.value} if key else change.value}
    whole = with_whole_paths(given, Path.cwd())["data"]
    return change._replace(value=whole[key] if key else whole)


def with_whole_paths(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Plain data whose paths of a text are absolute, where they were relative to a folder."""
    section = data.get("data")
    if not isinstance(section, Mapping):
        return dict(data)
    whole = {
        key: _whole_path(value, folder) if key in PATHS and isinstance(value, str) else value
        for key, value in section.items()
    }
    return {**data, "data": whole}


def _whole_path(path: str, folder: Path) -> str:
    if not path or path.startswith("~") or "://" in path or Path(path).is_absolute():
        return path
    whole = folder.absolute() / path
    is_pattern = has_magic(path)
    with suppress(OSError):  # a name that is too long
        is_pattern = is_pattern and not whole.exists()
    return str(Path(escape(str(folder.absolute()))) / path if is_pattern else whole)
