"""MLflow's store in SQLite with less work in each call, for tests: it answers and stores the same.

A call of MLflow takes ten times as long to build its queries as SQLite takes to answer them.
"""

import functools
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import sqlparse
from mlflow.store.db import utils
from mlflow.store.db.db_types import SQLITE
from mlflow.store.model_registry import sqlalchemy_store as registry
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion, SqlRegisteredModel
from mlflow.store.tracking import sqlalchemy_store as tracking
from mlflow.store.tracking.dbmodels.models import SqlRun
from sqlalchemy import Dialect, event
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.util import LRUCache

COMPILED: LRUCache[Any, Any] = LRUCache(4000)
"""Queries as SQL, for all databases: else each of them compiles its own."""
DIALECT: list[Dialect] = []
"""The one by which they are found there, that of the first database."""


@contextmanager
def quick() -> Iterator[None]:
    """In the time of a block."""
    runs, models = tracking.SqlAlchemyStore, registry.SqlAlchemyStore
    found = utils._get_latest_schema_revision()
    patches: list[tuple[Any, str, Any]] = [
        # It reads its seventy migrations each time a database is opened.
        (utils, "_get_latest_schema_revision", lambda: found),
        # It parses the same few conditions and orders of its searches anew each time.
        (sqlparse, "parse", functools.lru_cache(1024)(sqlparse.parse)),
        (utils, "_get_managed_session_maker", _sessions(utils._get_managed_session_maker)),
        (registry, "_get_managed_session_maker", _sessions(utils._get_managed_session_maker)),
        (runs, "_log_metrics", _unless_empty(runs._log_metrics)),
        (runs, "_get_run_inputs", _run_inputs(runs._get_run_inputs)),
        (runs, "_get_model_inputs", _unless_no_inputs(runs._get_model_inputs)),
        (runs, "_get_model_outputs", _unless_no_inputs(runs._get_model_outputs)),
        (runs, "_get_run", _run(runs._get_run)),
        (models, "_get_registered_model", _model(models._get_registered_model)),
        (models, "_get_sql_model_version", _version(models._get_sql_model_version)),
    ]
    for cls, name in [
        (runs, "_get_eager_run_query_options"),
        (models, "_get_eager_registered_model_query_options"),
        (models, "_get_eager_model_version_query_options"),
    ]:
        patches.append((cls, name, staticmethod(functools.cache(getattr(cls, name)))))
    with ExitStack() as stack:
        for target, name, new in patches:
            stack.enter_context(mock.patch.object(target, name, new))
        yield


def _sessions(made: Callable[..., Any]) -> Callable[..., Any]:
    """Sets options of SQLite in each connection, not in each session; keeps what has been read
    when a session ends; is not for MLflow's own tests, which watch sessions for writes."""

    def of_connections(sessions: sessionmaker[Session], kind: str) -> Any:
        if kind != SQLITE:
            return made(sessions, kind)
        engine = sessions.kw["bind"]
        if not event.contains(engine, "connect", _set_options):
            engine.dispose()  # what has been connected has no options
            event.listen(engine, "connect", _set_options)
        if not DIALECT:
            DIALECT.append(engine.dialect)
        engine.dialect, engine._compiled_cache = DIALECT[0], COMPILED
        sessions.configure(expire_on_commit=False)
        session = made(sessions, "with its options")
        return lambda read_only=True: session(read_only=False)

    return of_connections


def _set_options(connection: sqlite3.Connection, _: object) -> None:
    for option in ("foreign_keys = ON", "busy_timeout = 20000", "case_sensitive_like = true"):
        connection.execute(f"PRAGMA {option}")


def _unless_empty(log: Callable[..., None]) -> Callable[..., None]:
    """It opens a session and reads the run for no metrics, too."""

    def log_metrics(self: Any, run_id: str, metrics: Sequence[Any]) -> None:
        if metrics:
            log(self, run_id, metrics)

    return log_metrics


def _has_inputs(session: Session) -> bool:
    """Whether any run of the database has inputs or outputs: few tests store some."""
    session.flush()
    found = session.connection().exec_driver_sql("select 1 from inputs limit 1").first()
    return found is not None


def _run_inputs(read: Callable[..., Any]) -> Callable[..., Any]:
    def run_inputs(self: Any, session: Session, run_uuids: Sequence[str]) -> Any:
        return read(self, session, run_uuids) if _has_inputs(session) else [[] for _ in run_uuids]

    return run_inputs


def _unless_no_inputs(read: Callable[..., Any]) -> Callable[..., Any]:
    def inputs(self: Any, run_id: str, session: Session) -> Any:
        return read(self, run_id, session) if _has_inputs(session) else []

    return inputs


def _run(read: Callable[..., Any]) -> Callable[..., Any]:
    """Reads a row by its key, without a query that has to be built; raises MLflow's error for one
    that is missing. So do the next two."""

    def run(self: Any, session: Session, run_uuid: str, eager: bool = False) -> Any:
        options = self._get_eager_run_query_options() if eager else []
        found = session.get(SqlRun, run_uuid, options=options)
        return found or read(self, session, run_uuid, eager)

    return run


def _model(read: Callable[..., Any]) -> Callable[..., Any]:
    def model(self: Any, session: Session, name: str, eager: bool = False) -> Any:
        registry._validate_model_name(name)
        options = self._get_eager_registered_model_query_options() if eager else []
        key = (self._get_active_workspace(), name)
        found = session.get(SqlRegisteredModel, key, options=options)
        return found or read(self, session, name, eager)

    return model


def _version(read: Callable[..., Any]) -> Callable[..., Any]:
    def version(self: Any, session: Session, name: str, version: Any, eager: bool = False) -> Any:
        registry._validate_model_name(name)
        options = self._get_eager_model_version_query_options() if eager else []
        key = (self._get_active_workspace(), name, registry._validate_model_version(version))
        found = session.get(SqlModelVersion, key, options=options)
        if found is None or found.current_stage == registry.STAGE_DELETED_INTERNAL:
            return read(self, session, name, version, eager)
        return found

    return version
