"""Settings of older versions as those of this one: what runs and models have saved, and what files of users have.

Paths of functions in modules that moved are in `base/moved_modules.py`.
"""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

# Settings that older versions had, with the only value that files may still give them: what this version does.
REMOVED: Mapping[str, object] = {
    "objective.reconstruction.logvar_init": 0.0,
    "objective.perceptual.stride": 1,
    "objective.gan.lecam_decay": 0.999,
    "objective.adaptive_weight.decay": 0.0,
    "discriminator.pad_mode": "first",
    "discriminator.init_optimizer": False,
    "discriminator.conditional": False,
}
# Settings of `clips` that older runs lack, and the values with which this version does what those did.
DEFAULTS_OF_OLD_RUNS: Mapping[str, str] = {
    "holdout": "earlier",
    "file_identity": "path",
    "colour_matrix": "bt601",
    "order": "independent",
}
# Defaults of `causal_vae.flow` in older versions. Their runs have saved `shift`, but had no `noise_fraction`.
OLD_FLOW_DEFAULTS: Mapping[str, float] = {"shift": 1.0, "noise_fraction": 0.0}
# What a run of any version saves, at their defaults, too, so that a file with all of them is that of a run.
_SAVED_BY_ALL_RUNS = frozenset(
    {
        "data",
        "model",
        "init",
        "output_dir",
        "keep",
        "push_to_hub",
        "hub_model_id",
        "clips",
        "objective",
        "discriminator",
        "optimizer",
    }
)
# Values of `student` that are no name of a model: sizes, and the ends of names of settings files.
_STUDENT_SIZES = ("tiny", "small", "teacher")
_SETTINGS_FILES = (".yaml", ".yml", ".json")


def is_of_run(values: Mapping[str, Any]) -> bool:
    """Return whether nested settings are all those of a run, of any version, and not some that a user has chosen."""
    return values.keys() >= _SAVED_BY_ALL_RUNS


def upgrade_run(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the saved settings of a run as this version would have saved them, with the same result.

    Removed settings stay if the run had another value than this version. A run that resumes compares them.

    Args:
        values: Nested settings, of any version.
    """
    upgraded = deepcopy(dict(values))
    # Where the discriminators' optimizer started matters for a new run alone.
    if isinstance(upgraded.get("discriminator"), dict):
        upgraded["discriminator"].pop("init_optimizer", None)
    drop_removed(upgraded)
    if isinstance(upgraded.get("clips"), dict):
        upgraded["clips"] = {**DEFAULTS_OF_OLD_RUNS, **upgraded["clips"]}
    if isinstance(upgraded.get("causal_vae"), dict):
        upgraded["causal_vae"] = upgrade_autoencoder(upgraded["causal_vae"])
    if "student" in upgraded and "resolved" not in upgraded:
        upgraded.update(_upgrade_student(upgraded))
    return upgraded


def _upgrade_student(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `teacher`, `student` and `resolved` of a distillation by a version that saved no `resolved`.

    It saved the model with the encoder as `teacher`, the teacher of a new decoder as `model`, and a pruned model as
    `student`.
    """
    if values.get("train_encoder"):
        return {"resolved": None}
    encoder = values.get("teacher")
    student = values["student"]
    if _is_pruned_model(student):
        resolved = {"encoder": encoder, "pruned_model": student}
        return {"student": "small", "resolved": resolved}
    resolved = {"encoder": encoder, "pruned_model": None}
    return {"teacher": values.get("model") or encoder, "resolved": resolved}


def _is_pruned_model(student: str) -> bool:
    """Return whether `student`, as an older version saved it, is a model: not a size, and not a settings file.

    A path that is gone is a settings file if its name ends as one.
    """
    if student in _STUDENT_SIZES:
        return False
    path = Path(student)
    if path.exists():
        return path.is_dir()
    return not student.endswith(_SETTINGS_FILES)


def not_saved_of_student(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the dotted names of settings that `upgrade_run` has to guess: the run has not saved what they were.

    They are those of a pruned model by a version that saved no `resolved`: its name took the place of `student`, and
    the encoder of a teacher that is a student was not saved.

    Args:
        values: The nested settings as they were saved, before `upgrade_run`.
    """
    if "student" not in values or "resolved" in values or values.get("train_encoder"):
        return ()
    return ("student", "resolved.encoder") if _is_pruned_model(values["student"]) else ()


def has_old_flow_defaults(values: Mapping[str, Any]) -> bool:
    """Return whether a run was started by a version with the defaults of `OLD_FLOW_DEFAULTS`.

    Such a version saved no `noise_fraction`. Checkpoints that this version has written of such a run have one, and
    keep all of `DEFAULTS_OF_OLD_RUNS`.

    Args:
        values: The nested settings as they were saved, before `upgrade_run`.
    """
    flow = values.get("causal_vae", {}).get("flow", {})
    clips = values.get("clips", {})
    is_resumed = all(
        clips.get(name, value) == value for name, value in DEFAULTS_OF_OLD_RUNS.items()
    )
    return is_resumed or "noise_fraction" not in flow


def upgrade_autoencoder(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return saved settings of `CausalVAEConfig`, of a model or a run, as this version would have saved them."""
    values = dict(values)
    if isinstance(values.get("flow"), dict):
        values["flow"] = {**OLD_FLOW_DEFAULTS, **values["flow"]}
    return values


def drop_removed(values: dict[str, Any]) -> dict[str, object]:
    """Remove the settings of older versions from nested settings, in place, if this version works with their values.

    Returns:
        The settings of older versions with other values, which stay, by their dotted names.
    """
    others: dict[str, object] = {}
    for setting, only_value in REMOVED.items():
        *groups, last = setting.split(".")
        group: object = values
        for name in groups:
            group = group.get(name) if isinstance(group, dict) else None
        if not isinstance(group, dict) or last not in group:
            continue
        if group[last] == only_value:
            del group[last]
        else:
            others[setting] = group[last]
    return others
