"""The commands: what they do, their arguments, and where their settings are; without the libraries that they need."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from telecine.base.checks import printable

USER_ERROR = 2
INTERRUPTED = 130


@dataclass(frozen=True)
class Argument:
    """A command-line argument that is not a setting."""

    names: tuple[str, ...]
    help: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    """More arguments of `ArgumentParser.add_argument`."""


@dataclass(frozen=True)
class Command:
    """A command of `telecine`."""

    summary: str
    arguments: tuple[Argument, ...] = ()
    settings: str | None = None
    """The dotted path of the dataclass of its settings."""
    most_used: tuple[str, ...] = ()
    """The settings that `--help` shows; by default all."""

    @property
    def options(self) -> list[str]:
        """The names of its arguments that are not settings, without dashes."""
        return [name.removeprefix("--") for argument in self.arguments for name in argument.names]

    @property
    def trains(self) -> bool:
        """Whether its settings are those of a training run, for which there are recipes."""
        return self.settings in (TRAIN_CONFIG, DISTILL_CONFIG)

    @property
    def config(self) -> Argument:
        """The argument `--config` of a command with settings."""
        return Argument(("--config",), RECIPES_HELP if self.trains else FILES_HELP, {"metavar": "FILE"})


TRAIN_CONFIG = "telecine.training.config.TrainConfig"
DISTILL_CONFIG = "telecine.training.distillation.DistillConfig"
SEVERAL = "It can be given several times: later ones override earlier ones, and settings typed beside it override both."
FILES_HELP = f"A YAML file of settings. {SEVERAL}"
RECIPES_HELP = (
    "A YAML file of settings, or a recipe: demo (CPU, a few minutes), gpu (training from scratch), or one that "
    f"`telecine recipes list` prints. {SEVERAL} Without it: whole with a --model that has weights, else gpu with "
    "--data, else demo; the help shows the values of the one that is used."
)
ALLOW_CODE = Argument(
    ("--allow_code",),
    "A package whose functions the settings may name, besides telecine; can be given several times. Its code is run.",
    {"action": "append", "metavar": "PACKAGE"},
)
MOST_USED = (
    "data",
    "model",
    "output_dir",
    "steps",
    "batch_size",
    "clips.num_frames",
    "clips.height",
    "clips.width",
    "optimizer.lr",
    "mixed_precision",
)
STEAL_LOCK = Argument(
    ("--steal_lock",),
    "Train although another process seems to train in the same folder: it is gone, with its machine.",
    {"action": "store_true"},
)
CHANGE_DATA = Argument(
    ("--change_data",),
    "Resume although --data is other data than before. Without it, such a run is refused.",
    {"action": "store_true"},
)
COMMANDS = {
    "train": Command(
        "Train a video autoencoder. Run the same command again to resume from the newest checkpoint.",
        (
            STEAL_LOCK,
            CHANGE_DATA,
            Argument(
                ("--dry_run",),
                "Do all that the run would do up to its first update, and one update with every term on; print its "
                "time, memory and losses, and keep nothing.",
                {"action": "store_true"},
            ),
            ALLOW_CODE,
        ),
        TRAIN_CONFIG,
        MOST_USED,
    ),
    "distill": Command(
        "Train a small decoder, or autoencoder, for the latents of another one; otherwise as `train`.",
        (STEAL_LOCK, CHANGE_DATA, ALLOW_CODE),
        DISTILL_CONFIG,
        ("teacher", "student", *(name for name in MOST_USED if name != "model")),
    ),
    "plan": Command(
        "Print the memory, operations and time of a training run, and what fits a device; nothing is trained.",
        (
            Argument(
                ("--memory",),
                "Memory of the device to plan for, e.g. 80GiB. By default what is free on the device at hand.",
            ),
            Argument(
                ("--num_processes",),
                "Number of processes that sharding is planned for.",
                {"type": int, "default": 8},
            ),
            ALLOW_CODE,
        ),
        TRAIN_CONFIG,
        MOST_USED,
    ),
    "data": Command(
        "Show what training will see: its first clips, the files, copies, cuts, reading speed; nothing is trained.",
        (
            Argument(("path",), "The training data, as --data of `telecine train`."),
            Argument(
                ("-o", "--output"),
                "Folder for data.html, clips.mp4 and data.json.",
                {"default": "data_report"},
            ),
            Argument(("--num_clips",), "Number of clips to read and show.", {"type": int, "default": 24}),
            ALLOW_CODE,
        ),
        TRAIN_CONFIG,
        ("val_data", "seed", "batch_size", "clips.num_frames", "clips.height", "clips.width", "clips.stride"),
    ),
    "evaluate": Command(
        "Measure the reconstructions of an autoencoder, or given videos; or compare two evaluations.",
        (
            Argument(
                ("checkpoint",),
                "Folder of a run (its last checkpoint), of a checkpoint or of a saved autoencoder, or its name on the "
                "Hub; or a folder of videos, the reconstructions of those in --data with the same names.",
                {"nargs": "?"},
            ),
            Argument(
                ("-o", "--output"),
                "Folder for metrics.json (the whole set), clips.json, frames.json and frames.png (by position in a "
                "clip) and protocol.json (how it was measured); with --compare, for comparison.json and its plots.",
            ),
            Argument(
                ("--compare",),
                "Compare two evaluations, given by their output folders.",
                {"nargs": 2, "metavar": ("A", "B")},
            ),
        ),
        "telecine.evaluation.config.EvaluateConfig",
    ),
    "reconstruct": Command(
        "Encode and decode a video with an autoencoder, and write the result.",
        (
            Argument(
                ("checkpoint",), "Folder of a run (its last checkpoint), of a checkpoint, or of a saved autoencoder."
            ),
            Argument(("video",), "The video to reconstruct."),
            Argument(("-o", "--output"), "The MP4 to write.", {"required": True}),
        ),
        "telecine.evaluation.config.ReconstructConfig",
    ),
    "latents": Command(
        "Measure the latent spaces of autoencoders (channels, spectrum, equivariance, noise, drift), on a page.",
        (
            Argument(
                ("models",),
                "Folders of runs (their last checkpoints), of checkpoints or of saved autoencoders, or names on the "
                "Hub; several are shown side by side.",
                {"nargs": "+"},
            ),
            Argument(("-o", "--output"), "Folder for latents.html and latents.json.", {"default": "latents"}),
        ),
        "telecine.evaluation.config.LatentsConfig",
    ),
    "report": Command(
        "Write a page about runs: their clips, curves, settings and warnings. It needs no network.",
        (
            Argument(("runs",), "Folders of runs; their curves are drawn over each other.", {"nargs": "+"}),
            Argument(
                ("-o", "--output"),
                "The page, an .html file; its videos are in a folder beside it. By default report.html, in the run's "
                "folder for one run, in the current folder for several.",
            ),
            Argument(
                ("--watch",),
                "Write the page again whenever the runs have new values, until they are finished or Ctrl-C; the open "
                "page shows them by itself.",
                {"action": "store_true"},
            ),
        ),
    ),
    "recipes": Command(
        "List, show or copy recipes: settings that train well together, for `--config`.",
        (
            Argument(("action",), "What to do.", {"choices": ["list", "show", "copy"]}),
            Argument(("name",), "The recipe to show or to copy.", {"nargs": "?"}),
            Argument(("file",), "The file to copy it to, which must not exist.", {"nargs": "?"}),
        ),
    ),
    "config": Command(
        "Check settings files, or print the JSON schema by which editors check and complete them.",
        (
            Argument(("action",), "What to do.", {"choices": ["validate", "schema"]}),
            Argument(("files",), "The files, or recipes, to check: later ones override earlier ones.", {"nargs": "*"}),
            ALLOW_CODE,
        ),
    ),
    "completion": Command(
        "Print the script by which a shell completes commands, settings, values and recipes.",
        (Argument(("shell",), "The shell.", {"choices": ["bash", "zsh", "fish"]}),),
    ),
    "checkpoint": Command(
        "Verify that the files of a run's checkpoints are those that were written.",
        (
            Argument(("action",), "What to do.", {"choices": ["verify"]}),
            Argument(("run",), "Folder of a run, or of one of its checkpoints."),
        ),
    ),
    "weights": Command(
        "Download, verify or list the frozen networks of LPIPS.",
        (
            Argument(("action",), "What to do.", {"choices": ["fetch", "verify", "list"]}),
            Argument(("nets",), "vgg (training), alex (evaluation); both by default.", {"nargs": "*"}),
        ),
    ),
}


def typed_values(option: str, arguments: Sequence[str]) -> list[str]:
    """Return the values of an option on the command line. Those in a settings file are not among them."""
    apart = [value for name, value in pairwise(arguments) if name == option]
    return apart + [argument.removeprefix(f"{option}=") for argument in arguments if argument.startswith(f"{option}=")]


def fail(message: str) -> int:
    """Print one error on standard error and return its exit code."""
    print(f"telecine: error: {printable(message)}", file=sys.stderr)
    return USER_ERROR
