"""What a resumed run takes over, its time and memory, and what may change: settings and data are compared."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from telecine.base.checks import argument_error, describe
from telecine.runs.run import Run, RunSummary
from telecine.runs.settings import flat_settings, plain_settings, read_saved_settings, side_by_side_settings
from telecine.settings import ObjectiveConfig, TrainConfig
from telecine.settings.parse import flat_items, merged, nested
from telecine.settings.train import REMOVED


def check_records(run: Run) -> list[str]:
    """Refuse to remove the records of a run that surely had a checkpoint; return what to say if others are removed."""
    last, saved = run.history.last_step(), read_saved_settings(run.folder)
    if last > 2 * saved.get("save_every", last):  # the second checkpoint waits for the first one
        got = f"{run.folder}, with records up to step {last}, whose checkpoints are gone"
        remedy = "Restore them, use another --output_dir, or remove its `metrics.jsonl` to start again."
        raise argument_error("output_dir", "a new folder, or a run with its checkpoints", got, remedy)
    return [f"without a checkpoint, the records up to step {last} are removed: the run starts again"] if last else []


class SavedSettings:
    """The settings of a checkpoint, beside which a run that resumes from it puts its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.values = folder, read_saved_settings(folder)

    def changes(self, config: TrainConfig) -> list[str]:
        """Return "name old -> new" for each setting that differs, but for the model and the folder.

        A setting that an older version lacked had its default.
        """
        given = self.values, plain_settings(config), plain_settings(TrainConfig())
        saved, now, default = (flat_settings(_with_removed(each)) for each in given)
        return [
            f"{setting.name} {setting.values[0]} -> {setting.values[1]}"
            for setting in side_by_side_settings([saved, now])
            if setting.differs and setting.name not in ("model", "output_dir")
            if setting.name in saved or now[setting.name] != default.get(setting.name)
        ]

    def check_data(self, data: str | None, *, is_same: bool) -> None:
        """Raise a `ValueError` for other `data`; in another place, its files and held-out clips may be the same."""
        saved = self.values["data"]
        places = {path and os.path.realpath(path) for path in (saved, data)}
        if len(places) > 1 and (None in places or not is_same):
            remedy = "Use another --output_dir for another run, or add --change_data to train this one on other data."
            raise argument_error("data", f"{saved!r} as in {self.folder}", repr(data), remedy)

    def check_clips(self, config: TrainConfig, before: RunSummary | None, data: Mapping[str, Any]) -> list[str]:
        """Return what has changed of the data since the summary `before`; `data` is that of `Clips.recorded`.

        Raise a `ValueError` for other data, or other held-out clips with the same settings: metrics would not compare.
        """
        now = plain_settings(config)
        found = None if before is None or now["val_data"] else (before.data_sha256, before.validation)
        self.check_data(now["data"], is_same=found == (data["data_sha256"], data["validation"]))
        if before is None:
            return []
        numbers = ("num_videos", "videos"), ("num_images", "images"), ("num_skipped", "skipped files")
        pairs = {words: (getattr(before, name), data[name]) for name, words in (*numbers, ("num_frames", "frames"))}
        changes = [f"{words} {old} -> {new}" for words, (old, new) in pairs.items() if old != new]
        if before.data_sha256 not in ("", data["data_sha256"]):
            changes = changes or ["files of other sizes, names or frames"]
        is_same_choice = _choice_of_clips(self.values) == _choice_of_clips(now)
        if is_same_choice and before.validation != data["validation"]:
            got = f"other held-out clips ({', '.join(changes) or 'files of the same sizes'})"
            remedy = "Restore its files, use another --output_dir, or add --change_data to train on with these."
            raise argument_error("data", f"that of {self.folder}", got, remedy)
        return changes

    def check_networks(self, config: TrainConfig) -> None:
        """Raise a `ValueError` for the first setting that differs and changes the networks."""
        if "gan" not in self.values["objective"]:
            contract, got = "a new folder or a run of this version", f"{self.folder}, written by telecine 0.1"
            raise argument_error("output_dir", contract, got, "Use another --output_dir.")
        default, old, now = map(_network_settings, (plain_settings(TrainConfig()), self.values, plain_settings(config)))
        saved = default | old  # an older version lacks new settings
        for name, value in now.items():
            if saved.get(name) != value:
                remedy = "Use the previous value, or another --output_dir."
                raise argument_error(name, f"{saved.get(name)!r} as in {self.folder}", describe(value), remedy)


def _choice_of_clips(settings: dict[str, Any]) -> list[Any]:
    """Return the settings that choose the held-out clips; the defaults of those that an older version lacks."""
    which = ("num_frames", "height", "width", "stride", "image_ratio", "max_pixels", "val_fraction")
    clips = plain_settings(TrainConfig())["clips"] | settings["clips"]
    names = (*which, "bit_depth", "layout", "range")
    return [settings.get("val_data"), settings.get("val_clips"), *(clips[name] for name in names)]


def _with_removed(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with those of older versions that are no more, at the value that they always have now."""
    return merged([nested(REMOVED.items()), settings])


def _network_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that decide which weights exist, and their shapes, by their dotted names."""
    # Plain values: functions of the user's that a saved file names are not imported.
    flat = dict(flat_items(_with_removed(settings)))
    groups = ("causal_vae.", "discriminator.", "trainable.")
    # The discriminators' linear heads depend on the size of the clips, and only discriminators with a weight are built.
    others = ("clips.num_frames", "clips.height", "clips.width", "objective.reconstruction.learn_logvar")
    # The path of a base model may change. `check_same_architecture` compares the models once they are loaded.
    networks: dict[str, Any] = {"model": "left out" if settings["model"] is None else "given"}
    networks |= {name: value for name, value in flat.items() if name.startswith(groups) or name in others}
    for name in ("init", "init_optimizer"):  # where they started; they are now those of the checkpoint
        networks.pop(f"discriminator.{name}", None)
    networks["optimizer.name"] = flat.get("optimizer.name", "adamw")  # an older version has no other
    # The weights, numbers or ramps, that decide which discriminators exist, and whether logit averages are saved.
    saved = [term.setting for term in ObjectiveConfig().all_terms().values() if term.is_saved]
    for name in (f"objective.{weight}" for weight in (*saved, "adaptive_weight.decay")):
        is_on = any(flat.get(name + part, 0) > 0 for part in ("", ".weight", ".initial"))
        networks[name] = "above 0" if is_on else "0"
    return networks
