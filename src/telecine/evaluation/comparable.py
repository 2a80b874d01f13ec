"""Whether the values of evaluations compare: their protocols, field by field."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from telecine.base.checks import argument_error, shorten
from telecine.evaluation.result import SavedEvaluation

_Fields: TypeAlias = Mapping[str, object]
# Fields of the protocol that must be equal, or the values do not compare.
MUST_MATCH = (
    "num_clips",
    "num_frames",
    "height",
    "width",
    "frame_stride",
    "resize",
    "crop",
    "value_range",
    "reconstruction",
    "clips_sha256",
)
# Fields whose difference is a warning, as are other versions: the clips may still have been measured in the same way.
_SHOULD_MATCH = ("data", "fps")


def read_several(folders: Sequence[str | Path]) -> list[SavedEvaluation]:
    """Return two or more evaluations of the same clips.

    Args:
        folders: Their output folders.

    Raises:
        FileNotFoundError: A folder lacks a file of an evaluation.
        ValueError: There are fewer, a file is damaged, or they did not measure the same clips in the same way.
    """
    if len(folders) < 2:
        got = " ".join(str(folder) for folder in folders) or "nothing"
        raise argument_error(
            "compare", "two or more evaluations", got, "Pass their output folders."
        )
    evaluations = [SavedEvaluation.read(Path(folder)) for folder in folders]
    for evaluation in evaluations[1:]:
        check_protocols(evaluations[0].protocol, evaluation.protocol)
    return evaluations


def shared_metrics(evaluations: Sequence[SavedEvaluation]) -> list[str]:
    """Return the names of the metrics that all evaluations have, in the order of the first one."""
    shared = []
    for name in evaluations[0].protocol["metrics"]:
        if all(name in evaluation.protocol["metrics"] for evaluation in evaluations):
            shared.append(name)
    return shared


def indices_of_videos(clips: Sequence[Mapping[str, Any]]) -> Tensor:
    """Return the number of the video of each clip, `(N,)`: 0, 1, ... in the order in which they first occur."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(clip["source"], len(numbers)) for clip in clips])


def check_protocols(first: _Fields, second: _Fields) -> list[str]:
    """Return the harmless differences of two protocols.

    Raises:
        ValueError: Their values do not compare.
    """
    first_metrics = _fields_of(first, "metrics")
    second_metrics = _fields_of(second, "metrics")
    shared = [name for name in first_metrics if name in second_metrics]
    first_published = _fields_of(first, "published", default={})
    second_published = _fields_of(second, "published", default={})
    published_fields = ["name"]
    if first_published.get("name") == second_published.get("name"):
        published_fields = list({**first_published, **second_published})
    differing = _differing(first_published, second_published, published_fields, "published.")
    differing += _differing(first, second, MUST_MATCH)
    differing += _differing(first_metrics, second_metrics, shared, "metrics.")
    differing += _differing(
        _fields_of(first, "backbones"), _fields_of(second, "backbones"), shared, "backbones."
    )
    if differing:
        remedy = "Evaluate both on the same clips with the same settings."
        raise argument_error(
            "compare", "two evaluations with the same protocol", "; ".join(differing), remedy
        )
    if not shared:
        raise argument_error(
            "compare", "two evaluations that share a metric", "none", "Evaluate both again."
        )
    warnings = _differing(first, second, _SHOULD_MATCH)
    if first.get("tf32") != second.get("tf32"):
        warnings.append("tf32: off in one, not recorded in the other")
    first_versions = _fields_of(first, "versions", default={})
    second_versions = _fields_of(second, "versions", default={})
    packages = sorted(first_versions.keys() | second_versions.keys())
    warnings += _differing(first_versions, second_versions, packages, "versions.")
    unshared = sorted(first_metrics.keys() ^ second_metrics.keys())
    if unshared:
        warnings.append(f"only one has {', '.join(unshared)}")
    return warnings


def _fields_of(protocol: _Fields, field: str, default: _Fields | None = None) -> _Fields:
    """Return the fields below a field of a protocol; raise a `ValueError` if it is no mapping.

    Args:
        protocol: The protocol.
        field: The field.
        default: What an older protocol has that lacks the field; None if all protocols have it.
    """
    fields = protocol.get(field, default)
    if not isinstance(fields, dict):
        raise argument_error(
            "compare",
            f"evaluations with `{field}` in their protocol",
            repr(fields),
            "Evaluate again.",
        )
    return fields


def _differing(
    first: _Fields, second: _Fields, names: Iterable[str], prefix: str = ""
) -> list[str]:
    texts = []
    for name in names:
        a = first.get(name)
        b = second.get(name)
        if a != b:
            texts.append(f"{prefix}{name}: {shorten(str(a))} and {shorten(str(b))}")
    return texts
