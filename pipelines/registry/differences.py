"""What differs between two versions: configuration, metrics, lineage, and their curves.

Used by promote.py compare, and for the lineage of each version by promote.py list.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipelines.config.yaml_text import flatten
from pipelines.console.errors import DamagedError, GoneError, RefusedError
from pipelines.registry.package import CONFIG, LINEAGE
from pipelines.registry.versions import Registry
from pipelines.tracking.schema import (
    PARAMETERS_TAG,
    TEST_BITS_TAG,
    TOKENS_METRIC,
    VAL_BITS_METRIC,
    VersionTags,
)
from pipelines.tracking.store import Run
from pipelines.training.config import with_present_names

Pairs = dict[str, list[Any]]
"""By key: the value of either version; None where it has none."""


@dataclass(frozen=True)
class Differences:
    """Of two versions, only what is not the same, but for the curves, which are whole."""

    versions: list[int]
    configuration: Pairs
    """Empty, as the lineage, if the files of a version cannot be read."""
    metrics: Pairs
    lineage: Pairs
    curves: dict[int, list[float | None]]
    """Validation bits per byte by tokens trained on."""
    unread: dict[int, str]
    """By version: why its files, or its run, cannot be read."""


def compare_versions(registry: Registry, a: int, b: int) -> Differences:
    """What differs between two versions of a registered model.

    What was deleted of one, or may not be read, does not keep the rest from being compared. Raises
    DamagedError if files of one are not what was logged.
    """
    pair, unread = [a, b], dict[int, str]()
    runs = [_run(registry, version, unread) for version in pair]
    curves = [_curve(registry, run) for run in runs]
    steps = sorted({tokens for curve in curves for tokens in curve})
    of_files = [_differing_files(registry, pair, file, unread) for file in (CONFIG, LINEAGE)]
    return Differences(
        versions=pair,
        configuration=of_files[0],
        metrics=_differing(*map(partial(_metrics, registry), pair, runs)),
        lineage=of_files[1],
        curves={tokens: [curve.get(tokens) for curve in curves] for tokens in steps},
        unread=unread,
    )


def _run(registry: Registry, version: int, unread: dict[int, str]) -> Run | None:
    """The run that trained a version, if it is there and may be read."""
    try:
        return registry.client.find_run(registry.get(version).run_id)
    except RefusedError as error:
        unread[version] = str(error)
        return None


def _differing_files(
    registry: Registry, pair: Sequence[int], file: str, unread: dict[int, str]
) -> Pairs:
    found = []
    for version in pair:
        try:
            found.append(_file(registry, version, file))
        except (GoneError, RefusedError) as error:
            unread[version] = str(error)
    return _differing(*found) if len(found) == len(pair) else {}


def _differing(a: dict[str, Any], b: dict[str, Any]) -> Pairs:
    return {key: [a.get(key), b.get(key)] for key in {**a, **b} if a.get(key) != b.get(key)}


def _file(registry: Registry, version: int, file: str) -> dict[str, Any]:
    return dict(flatten(with_present_names(registry.read_packaged(version, file) or {})))


def _metrics(registry: Registry, version: int, run: Run | None) -> dict[str, Any]:
    """Those of the version's tags and of the run that trained it."""
    tags = VersionTags.of(registry.get(version))
    tagged = {TEST_BITS_TAG: tags.test_bits, PARAMETERS_TAG: tags.parameters}
    return {
        **{key: value for key, value in tagged.items() if value is not None},
        **(run.data.metrics if run else {}),
    }


def _curve(registry: Registry, run: Run | None) -> dict[int, float]:
    if run is None:
        return {}
    run_id = run.info.run_id
    tokens, bits = (
        {point.step: point.value for point in registry.client.get_metric_history(run_id, metric)}
        for metric in (TOKENS_METRIC, VAL_BITS_METRIC)
    )
    return {int(tokens[step]): value for step, value in bits.items() if step in tokens}


def lineage_of(registry: Registry, version: int) -> dict[str, Any]:
    """What a version was made of, or what is wrong with its files, or that they may not be read."""
    try:
        found, damaged = registry.read_packaged(version, LINEAGE), None
    except (DamagedError, RefusedError) as error:
        found, damaged = None, str(error)
    if found is None and damaged is None:
        damaged = f"{registry.get(version).source}: there is no {LINEAGE}"
    return {"lineage": found, "damaged": damaged}
