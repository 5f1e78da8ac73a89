"""The section `data`: which text is trained on, and how it is split."""

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from dca.errors import FieldError
from pipelines.compat.pydantic import literal_error
from pipelines.config.section import Section
from pipelines.data.corpora import CORPORA
from pipelines.storage.location import with_home


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


class DataConfig(Section):
    """The corpus: bytes, split 90/5/5 into train, validation and test unless held-out files are
    given."""

    corpus: CorpusName = "python-stdlib"
    """`python-stdlib`: the sources of the running Python's standard library; `enwik8`: downloaded
    if it is missing; `files`: your own."""
    path: TextPath | None = None
    """`files`: a file, folder or glob. `enwik8`: its folder (default: data). Relative to the file
    in which it stands, on the command line to the working folder."""
    validation_path: Annotated[TextPath, Field(min_length=1)] | None = None
    """`files`: the validation split, a file, folder or glob; `data.path` is then the train split.
    null: it is a part of `data.path`."""
    test_path: Annotated[TextPath, Field(min_length=1)] | None = None
    """`files`: the test split; given together with `validation_path` or not at all."""

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
        return self
