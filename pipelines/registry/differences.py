"""What differs between two versions: configuration, metrics, lineage, and their curves.

Used by promote.py compare, and for the lineage of each version by promote.py list.
"""

from dataclasses import dataclass
from typing import Any

from pipelines.config.yaml_text import flatten
from pipelines.console.errors import DamagedError
from pipelines.registry.package import CONFIG, LINEAGE
from pipelines.registry.versions import Registry
from pipelines.tracking.schema import (
    PARAMETERS_TAG,
    TEST_BITS_TAG,
    TOKENS_METRIC,
    VAL_BITS_METRIC,
    VersionTags,
)
from pipelines.training.config import with_present_names

Pairs = dict[str, list[Any]]
"""By key: the value of either version; None where it has none."""


@dataclass(frozen=True)
class Differences:
    """Of two versions, only what is not the same, but for the curves, which are whole."""

    versions: list[int]
    configuration: Pairs
    metrics: Pairs
    lineage: Pairs
    curves: dict[int, list[float | None]]
    """Validation bits per byte by tokens trained on."""


def compare_versions(registry: Registry, a: int, b: int) -> Differences:
    """What differs between two versions of a registered model."""
    pair = [a, b]
    curves = [_curve(registry, version) for version in pair]
    steps = sorted({tokens for curve in curves for tokens in curve})
    return Differences(
        versions=pair,
        configuration=_differing(*(_file(registry, version, CONFIG) for version in pair)),
        metrics=_differing(*(_metrics(registry, version) for version in pair)),
        lineage=_differing(*(_file(registry, version, LINEAGE) for version in pair)),
        curves={tokens: [curve.get(tokens) for curve in curves] for tokens in steps},
    )


def _differing(a: dict[str, Any], b: dict[str, Any]) -> Pairs:
    return {key: [a.get(key), b.get(key)] for key in {**a, **b} if a.get(key) != b.get(key)}


def _file(registry: Registry, version: int, file: str) -> dict[str, Any]:
    return dict(flatten(with_present_names(registry.read_packaged(version, file) or {})))


def _metrics(registry: Registry, version: int) -> dict[str, Any]:
    """Those of the version's tags and of the run that trained it."""
    found = registry.get(version)
    tags = VersionTags.of(found)
    tagged = {TEST_BITS_TAG: tags.test_bits, PARAMETERS_TAG: tags.parameters}
    run = registry.client.find_run(found.run_id)
    return {
        **{key: value for key, value in tagged.items() if value is not None},
        **(run.data.metrics if run else {}),
    }


def _curve(registry: Registry, version: int) -> dict[int, float]:
    run = registry.get(version).run_id
    if registry.client.find_run(run) is None:
        return {}
    tokens, bits = (
        {point.step: point.value for point in registry.client.get_metric_history(run, metric)}
        for metric in (TOKENS_METRIC, VAL_BITS_METRIC)
    )
    return {int(tokens[step]): value for step, value in bits.items() if step in tokens}


def lineage_of(registry: Registry, version: int) -> dict[str, Any]:
    """What a version was made of, or what is wrong with its files."""
    try:
        found, damaged = registry.read_packaged(version, LINEAGE), None
    except DamagedError as error:
        found, damaged = None, str(error)
    if found is None and damaged is None:
        damaged = f"{registry.get(version).source}: there is no {LINEAGE}"
    return {"lineage": found, "damaged": damaged}
