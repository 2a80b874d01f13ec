"""Speeds of several models: as their evaluations measured them, or measured again in turns."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from telecine.base.checks import argument_error
from telecine.base.devices import pick_device
from telecine.base.precision import tf32
from telecine.evaluation.comparable import read_several
from telecine.evaluation.load_model import load_model
from telecine.evaluation.speed import Speed, describe_speed, measure_speed
from telecine.settings import EvaluateConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ComparedSpeeds:
    """The speeds of several models, measured in the same way."""

    speeds: list[Speed]
    conditions: Mapping[str, Any]
    """How they were measured, see `describe_speed`."""


def recorded_speeds(folders: Sequence[str | Path]) -> ComparedSpeeds | None:
    """Return the speeds that evaluations measured, or None if not all of them did, or not all in the same way.

    Args:
        folders: The output folders of the evaluations.

    Raises:
        FileNotFoundError: A folder lacks a file of an evaluation.
        ValueError: A file is damaged, or the evaluations did not measure the same clips.
    """
    conditions = [evaluation.protocol.get("speed", {}) for evaluation in read_several(folders)]
    if not all(conditions):
        return None
    first = conditions[0]
    for folder, other in zip(folders[1:], conditions[1:], strict=True):
        for name in first:
            if other.get(name) != first[name]:
                logger.warning(
                    "the speeds are left out: %s and %s measured them in other ways (%s: %s and %s). "
                    "Add `--speed true`, which measures all of them again, in turns",
                    folders[0],
                    folder,
                    name,
                    first[name],
                    other.get(name),
                )
                return None
    return ComparedSpeeds([Speed.read(Path(folder)) for folder in folders], first)


@tf32(False)
def speeds_in_turns(folders: Sequence[str | Path], config: EvaluateConfig) -> ComparedSpeeds:
    """Load the models of evaluations, and measure their speeds in turns for a clip of the evaluations' size.

    Args:
        folders: The output folders of the evaluations.
        config: The settings; the device is used.

    Raises:
        FileNotFoundError: A folder lacks a file of an evaluation, or a model is no more.
        ValueError: The evaluations did not measure the same clips, or clips of several sizes, or one is not of a model
            that has a name.
    """
    device = pick_device(config.device)
    records = [evaluation.protocol for evaluation in read_several(folders)]
    size = [records[0][name] for name in ("num_frames", "height", "width")]
    if None in size:
        contract = "false for evaluations of whole videos, which have no common size"
        remedy = "Evaluate clips of one size, or leave it out."
        raise argument_error("speed", contract, f"true with {folders[0]}", remedy)
    models = []
    for folder, record in zip(folders, records, strict=True):
        if not record.get("checkpoint"):
            contract = (
                "false if an evaluation is of a model that cannot be loaded by a name or a folder"
            )
            raise argument_error("speed", contract, f"true with {folder}", "Evaluate again.")
        decoder = record.get("decoder") or None
        use = replace(config, weights=record["weights"], decoder=decoder)
        model = load_model(record["checkpoint"], use, device)
        sampler = record.get("sampler", {})
        options = {name: sampler[name] for name in ("steps", "seed", "level") if name in sampler}
        model.set_decoding(**options)
        models.append(model)
    speeds = measure_speed(models, *size)
    return ComparedSpeeds(speeds, describe_speed(models[0], size))
