"""What may change when a run resumes: settings and data are compared with the checkpoint's."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from telecine.base.checks import argument_error, describe
from telecine.base.frozen import Frozen
from telecine.data.paths import paths_of
from telecine.models.pretrained import digest_of_tensors
from telecine.objective.terms import module_name
from telecine.runs.run import Run
from telecine.runs.saved_settings import (
    flat_settings,
    plain_settings,
    read_saved_settings,
    read_settings_as_saved,
)
from telecine.runs.summary import RunSummary
from telecine.settings import ClipConfig, ObjectiveConfig, Ramp, TrainConfig
from telecine.settings.autoencoder import FlowConfig
from telecine.settings.data import HELD_OUT, settings_marked
from telecine.settings.parse import flat_items, nested
from telecine.settings.train import NETWORK_SETTINGS, START_SETTINGS
from telecine.settings.upgrade import (
    DEFAULTS_OF_OLD_RUNS,
    OLD_FLOW_DEFAULTS,
    REMOVED,
    has_old_flow_defaults,
    not_saved_of_student,
    upgrade_run,
)


def check_records(files: Run) -> list[str]:
    """Return warnings for a run without a checkpoint: its records are removed.

    Raises:
        ValueError: The run had a checkpoint: its records go beyond two times `save_every`.
    """
    last = files.history.last_step()
    save_every = read_saved_settings(files.folder).get("save_every", last)
    if last > 2 * save_every:  # the second checkpoint waits for the first one
        got = f"{files.folder}, with records up to step {last}, whose checkpoints are gone"
        remedy = (
            "Restore them, use another --output_dir, or remove its `metrics.jsonl` to start again."
        )
        raise argument_error(
            "output_dir", "a new folder, or a run with its checkpoints", got, remedy
        )
    if last == 0:
        return []
    return [
        f"without a checkpoint, the records up to step {last} are removed: the run starts again"
    ]


def frozen_digests(networks: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return a digest of the weights of each frozen network inside of networks, by its dotted name."""
    digests: dict[str, str] = {}
    for prefix, network in networks.items():
        for name, module in network.named_modules(prefix=prefix):
            if isinstance(module, Frozen):
                tensors = [(str(index), tensor) for index, tensor in enumerate(module.tensors())]
                digests[name] = digest_of_tensors(tensors)
    return digests


class SavedSettings:
    """The settings of a checkpoint, with which the settings of a run that resumes from it are compared."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        as_saved = read_settings_as_saved(folder)
        self.has_old_flow_defaults = has_old_flow_defaults(as_saved)
        self.not_saved = not_saved_of_student(as_saved)
        self.values = upgrade_run(as_saved)

    def as_started(self, config: TrainConfig) -> tuple[TrainConfig, list[str], list[str]]:
        """Return `config` with the settings that a run keeps from its start, and warnings and notes about them.

        These say where weights start, or had other defaults in older versions. If the run has such an old default, it
        takes the place of this version's default, so that the same command resumes the run, and a note says so.
        Weights to start from that differ were typed: a warning.

        Args:
            config: The settings of the run that resumes.

        Raises:
            ValueError: A setting of the run does not go with a value that it keeps.
        """
        disc_init = self.values.get("discriminator", {}).get("init")
        flow = self._flow_as_started(config.causal_vae.flow)
        as_started = replace(
            config,
            init=self.values.get("init"),
            discriminator=replace(config.discriminator, init=disc_init),
            clips=self._clips_as_started(config.clips),
            causal_vae=replace(config.causal_vae, flow=flow),
        )
        warnings: list[str] = []
        if as_started.init != config.init:
            warnings.append(f"`init` stays {as_started.init!r}, as the run started")
        if disc_init != config.discriminator.init:
            warnings.append(f"`discriminator.init` stays {disc_init!r}, as the run started")
        notes: list[str] = []
        for name in DEFAULTS_OF_OLD_RUNS:
            value = getattr(as_started.clips, name)
            if value != getattr(config.clips, name):
                notes.append(f"`clips.{name}` stays {value!r}, as the run started")
        if config.causal_vae.decoder == "flow":
            for name in OLD_FLOW_DEFAULTS:
                value = getattr(flow, name)
                if value != getattr(config.causal_vae.flow, name):
                    notes.append(f"`causal_vae.flow.{name}` stays {value!r}, as the run started")
        return as_started, warnings, notes

    def _clips_as_started(self, clips: ClipConfig) -> ClipConfig:
        """Return settings of clips with the values that stand for what older versions did, if the run has them.

        Raises:
            ValueError: The run keeps a hold-out that needs all indices ahead, and they would not be made ahead.
        """
        saved = self.values.get("clips", {})
        kept: dict[str, Any] = {
            name: earlier
            for name, earlier in DEFAULTS_OF_OLD_RUNS.items()
            if saved.get(name) == earlier
        }
        if clips.index == "lazy" and kept.get("holdout") == "earlier":
            contract = f"ahead as the run in {self.folder} keeps its `clips.holdout` of earlier"
            remedy = "Set `clips.index` to `ahead`."
            raise argument_error("clips.index", contract, repr(clips.index), remedy)
        return replace(clips, **kept)

    def _flow_as_started(self, flow: FlowConfig) -> FlowConfig:
        """Return the levels of noise; for a run of an older version, with its defaults in place of this version's.

        A value that this version saved is left to `check_networks`, even if it equals an older default.
        """
        if not self.has_old_flow_defaults:
            return flow
        saved = self.values.get("causal_vae", {}).get("flow", {})
        kept: dict[str, Any] = {}
        for name, old_default in OLD_FLOW_DEFAULTS.items():
            is_default = getattr(flow, name) == getattr(FlowConfig, name)
            if is_default and saved.get(name) == old_default:
                kept[name] = old_default
        return replace(flow, **kept)

    def changes(self, config: TrainConfig) -> list[str]:
        """Return "name old -> new" for each setting that differs, except the model and the folder.

        Settings that an older version did not have count as their defaults. Those of a student that it did not save do
        not differ.
        """
        saved = flat_settings(self.values)
        now = flat_settings(plain_settings(config))
        default = flat_settings(plain_settings(TrainConfig()))
        removed = flat_settings(nested(REMOVED.items()))
        changes = []
        for name in dict.fromkeys([*saved, *now]):
            if name in ("model", "output_dir", *self.not_saved):
                continue
            before = saved.get(name, default.get(name, "not set"))
            after = now.get(name, removed.get(name, "not set"))
            if before != after:
                changes.append(f"{name} {before} -> {after}")
        return changes

    def check_data(self, config: TrainConfig, *, may_be_same: bool) -> None:
        """Check that the run trains on the data of its checkpoint. The data may have been moved.

        Args:
            config: The settings of the run that resumes.
            may_be_same: Whether files and held-out clips may be the same: they are, or were not compared yet.

        Raises:
            ValueError: The data differs.
        """
        saved = paths_of(self.values["data"])
        now = paths_of(config.data)
        if [os.path.realpath(path) for path in saved] == [os.path.realpath(path) for path in now]:
            return
        if saved and now and may_be_same:
            return
        self._check_model(config)
        remedy = "Use another --output_dir for another run, or add --change_data to train this one on other data."
        contract = f"{self.values['data']!r} as in {self.folder}"
        raise argument_error("data", contract, repr(config.data), remedy)

    def _check_model(self, config: TrainConfig) -> None:
        """Raise a `ValueError` if the model is another one, too: the folder has another run than is meant."""
        before = self.values["model"]
        if config.model != before:
            contract = f"a new folder, or one of a run of {config.model}"
            got = f"{self.folder}, of a run of {before} on other data"
            raise argument_error("output_dir", contract, got, "Use another --output_dir.")

    def check_clips(
        self, config: TrainConfig, before: RunSummary | None, data: Mapping[str, Any]
    ) -> list[str]:
        """Return what has changed of the data.

        Args:
            config: The settings of the run.
            before: The summary of the run before it was resumed; None if it was not recorded.
            data: What `Clips.recorded` returns: counts, digests of the files and their content, the held-out clips.

        Raises:
            ValueError: The data is other data, or the held-out clips differ with the same settings: metrics would not
                compare.
        """
        if before is None:
            self.check_data(config, may_be_same=False)
            return []
        has_same_files = before.data_sha256 == data["data_sha256"]
        has_same_content = before.content_sha256 in ("", data["content_sha256"])
        has_same_held_out = before.validation == data["validation"]
        is_same = has_same_files and has_same_content and has_same_held_out
        self.check_data(config, may_be_same=is_same and not config.val_data)
        # Hashes of headers do not compare with hashes of indexed files.
        has_same_index = self.values["clips"].get("index", "ahead") == config.clips.index
        changes = _changes_of_data(before, data, with_hashes=has_same_index)
        if not has_same_held_out:
            now = plain_settings(config)
            if _clip_choice(self.values) == _clip_choice(now):
                self._check_model(config)
                got = f"other held-out clips ({', '.join(changes) or 'files of the same sizes'})"
                remedy = "Restore its files, use another --output_dir, or add --change_data to train on with these."
                raise argument_error("data", f"that of {self.folder}", got, remedy)
        return changes

    def check_frozen_networks(
        self, config: TrainConfig, before: RunSummary | None, networks: Mapping[str, str]
    ) -> None:
        """Check that the networks that the run reads and does not train are the same as before.

        A network whose settings changed is another one on purpose: `changes` names the settings.

        Args:
            config: The settings of the run that resumes.
            before: The summary of the run before it was resumed; None if it was not recorded.
            networks: What `frozen_digests` returns.

        Raises:
            ValueError: One has other weights: the run would go on with another teacher or other features.
        """
        if before is None:
            return
        now = plain_settings(config)["objective"]
        saved = self.values["objective"]
        replaced = []
        if saved["perceptual"] != now["perceptual"]:
            replaced.append("objective.perceptual.")
        for term, settings in now["terms"].items():
            if saved["terms"].get(term) != settings:
                replaced.append(f"objective.term_modules.{module_name(term)}.")
        changed = []
        for name, digest in networks.items():
            is_other = before.networks.get(name, digest) != digest
            if is_other and not f"{name}.".startswith(tuple(replaced)):
                changed.append(name)
        if changed:
            contract = f"those that the run in {self.folder} was trained with"
            remedy = "Restore the files that they are loaded from, or use another --output_dir."
            raise argument_error(
                "the frozen networks", contract, f"other weights of {', '.join(changed)}", remedy
            )

    def check_networks(self, config: TrainConfig) -> None:
        """Check that no setting that changes the networks differs.

        Raises:
            ValueError: Such a setting differs. The error names the first one.
        """
        if "gan" not in self.values["objective"]:
            contract = "a new folder or a run of this version"
            got = f"{self.folder}, written by an older version"
            raise argument_error("output_dir", contract, got, "Use another --output_dir.")
        # An older version lacks new settings.
        saved = _network_settings(plain_settings(TrainConfig()))
        saved.update(_network_settings(self.values))
        now = _network_settings(plain_settings(config))
        for name, value in REMOVED.items():
            if name in saved:  # with another value, see `upgrade_run`
                now[name] = value
        for name, value in now.items():
            if saved.get(name) != value:
                remedy = "Use the previous value, or another --output_dir."
                raise argument_error(
                    name, f"{saved.get(name)!r} as in {self.folder}", describe(value), remedy
                )


def describe_changes(
    config: TrainConfig, folder: Path, saved: Mapping[str, Any], num_processes: int
) -> list[str]:
    """Return notes for the user of a run that resumes: what differs, and what is not exact.

    Args:
        config: The settings of the run.
        folder: The folder of the checkpoint.
        saved: The plain values of the checkpoint, with "clips_per_step" and "num_processes".
        num_processes: The number of processes that train now.
    """
    notes = [f"resuming from {folder}"]
    settings = SavedSettings(folder)
    model = settings.values["model"]
    if model != config.model:
        notes.append(
            f"the model is now {config.model} instead of {model}; its weights are those of the checkpoint"
        )
    num_clips = config.clips_per_step(num_processes)
    if saved["clips_per_step"] != num_clips:
        now = f"an update now has {num_clips} clips instead of {saved['clips_per_step']}"
        notes.append(
            f"{now}: their order changes from here on, and the learning rates may need to change"
        )
    elif saved["num_processes"] != num_processes:
        now = f"now {num_processes} processes instead of {saved['num_processes']}"
        differs = "sums are rounded differently, and random numbers inside a model, such as for dropout, differ"
        notes.append(f"{now}: the clips and the noise drawn for them stay the same, but {differs}")
    changes = settings.changes(config)
    if changes:
        notes.append(f"settings changed since the checkpoint: {', '.join(changes)}")
    return notes


def _changes_of_data(
    before: RunSummary, data: Mapping[str, Any], *, with_hashes: bool
) -> list[str]:
    """Return what differs between the data of a run before it was resumed and now.

    Args:
        before: The summary of the run before it was resumed. Older versions have recorded no hashes.
        data: What `Clips.recorded` returns.
        with_hashes: Whether hashes of files are compared if no number differs.
    """
    pairs = {
        "videos": (before.num_videos, data["num_videos"]),
        "images": (before.num_images, data["num_images"]),
        "skipped files": (before.num_skipped, data["num_skipped"]),
        "frames": (before.num_frames, data["num_frames"]),
    }
    changes = [f"{words} {old} -> {new}" for words, (old, new) in pairs.items() if old != new]
    if changes or not with_hashes:
        return changes
    if before.data_sha256 not in ("", data["data_sha256"]):
        return ["files of other sizes, names or frames"]
    if before.content_sha256 not in ("", data["content_sha256"]):
        return ["files of the same sizes with other content"]
    return []


def _clip_choice(settings: dict[str, Any]) -> list[Any]:
    """Return the settings that choose the held-out clips; defaults for those that an older version does not have."""
    clips = plain_settings(TrainConfig())["clips"] | settings["clips"]
    choice = [settings.get("val_data"), settings.get("val_clips")]
    for name in settings_marked(HELD_OUT):
        choice.append(clips[name])
    return choice


def _network_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that decide which weights exist, and their shapes, by their dotted names."""
    # Plain values: functions of the user's that a saved file names are not imported.
    flat = dict(flat_items(settings))
    # The path of a base model may change. `check_same_architecture` compares the models once they are loaded.
    networks: dict[str, Any] = {"model": "left out" if settings["model"] is None else "given"}
    names = [
        name for name in flat if name.startswith(NETWORK_SETTINGS) and name not in START_SETTINGS
    ]
    networks |= {name: flat[name] for name in names}
    # An older version has no other.
    networks["optimizer.name"] = flat.get("optimizer.name", "adamw")
    # The weights, numbers or ramps, that decide which discriminators exist, and whether logit averages are saved.
    for term in ObjectiveConfig().term_schedules().values():
        if term.is_saved:
            name = f"objective.{term.setting}"
            networks[name] = "above 0" if _is_ever_on(flat, name) else "0"
    return networks


def _is_ever_on(flat: Mapping[str, Any], name: str) -> bool:
    """Return whether a weight is above 0 at any step; False if an older version did not have it.

    Args:
        flat: Plain settings by their dotted names.
        name: The weight: a number, or a ramp, which is flattened to `{name}.weight`, `{name}.initial` and others.
    """
    if name in flat:
        return bool(flat[name] > 0)
    ramp = Ramp(weight=flat.get(f"{name}.weight", 0), initial=flat.get(f"{name}.initial", 0))
    return ramp.is_ever_on
