"""The command line: `telecine train`, `distill`, `plan`, `evaluate`, `latents`, `reconstruct`, `report` and others."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from accelerate import PartialState
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings
from rich.table import Column, Table

from telecine.argument_errors import plain, setting_names
from telecine.checks import argument_error, check_count
from telecine.commands import INTERRUPTED, SUMMARIES, answer, fail, typed_values
from telecine.devices import gigabytes, parse_memory
from telecine.evaluation.compare import Comparison, compare
from telecine.evaluation.config import EvaluateConfig, LatentsConfig, ReconstructConfig
from telecine.evaluation.difference import CONFIDENCE
from telecine.evaluation.evaluate import Evaluation, evaluate
from telecine.evaluation.latent_page import write_latents
from telecine.evaluation.latents import LatentReport, describe, measure_latent_spaces
from telecine.evaluation.reconstruct import reconstruct
from telecine.manifest import DamagedError, damage_of
from telecine.perceptual import weights
from telecine.report.page import write_report
from telecine.runs import checkpoints, is_checkpoint
from telecine.settings_file import check_yaml
from telecine.terminal import PlainConsole, escape_logs
from telecine.training import Interrupted, TrainConfig, TrainingError, TrainResult, train
from telecine.training.capacity import USED_FRACTION, Plan, advice, make_plan
from telecine.training.config_file import RECIPES, check_groups, clear_message, find_recipe, restrict_imports
from telecine.training.distillation import DistillConfig, distill
from telecine.training.plan import HOST_COPY

CONFIG_HELP = (
    "A YAML file of settings, or a recipe: demo (CPU, a few minutes) or gpu (training from scratch). It can be given "
    "several times: later ones override earlier ones, and settings typed beside it override both. Without it, gpu is "
    "used with --data, and demo otherwise; the help shows the values of the one that is used."
)

# What `train` and `plan` do without `--data` and `--config`.
DEMO = RECIPES / "demo.yaml"

console = PlainConsole()


def run_train(settings: Namespace, config: TrainConfig) -> None:
    """Train a video autoencoder. Run the same command again to resume from the newest checkpoint."""
    result = train(config, console=console, steal_lock=settings.steal_lock, change_data=settings.change_data)
    if PartialState().is_main_process:
        print_result(result)


def run_distill(settings: Namespace, config: DistillConfig) -> None:
    """Train a small decoder, or autoencoder, for the latents of another one; otherwise as `train`."""
    result = distill(config, console=console, steal_lock=settings.steal_lock, change_data=settings.change_data)
    if PartialState().is_main_process:
        print_result(result)


def run_plan(settings: Namespace, config: TrainConfig) -> None:
    """Print the memory, operations and time of a training run, and what fits a device; nothing is trained."""
    memory = None if settings.memory is None else parse_memory(settings.memory)
    check_count("num_processes", settings.num_processes)
    print_plan(make_plan(config, memory, settings.num_processes))


def run_evaluate(settings: Namespace, config: EvaluateConfig) -> None:
    """Measure the reconstructions of an autoencoder, or given videos; or compare two evaluations."""
    if settings.compare is not None:
        print_comparison(compare(*settings.compare, output=settings.output))
    elif settings.checkpoint is None:
        raise argument_error("checkpoint", "given", "nothing", "Pass a run, a model or a folder of reconstructions.")
    else:
        evaluation = evaluate(settings.checkpoint, config, output=settings.output)
        if not evaluation.is_main_process:
            return
        print_evaluation(evaluation)
    if settings.output is not None:
        console.print(f"written to {settings.output}", soft_wrap=True)


def run_latents(settings: Namespace, config: LatentsConfig) -> None:
    """Measure the latent spaces of autoencoders (channels, spectrum, equivariance, noise, drift), on a page."""
    report = measure_latent_spaces(settings.models, config)
    print_latents(report)
    page = write_latents(report, Path(settings.output))
    console.print(f"written to {page.parent}; open {page} in a browser", soft_wrap=True)


def run_reconstruct(settings: Namespace, config: ReconstructConfig) -> None:
    """Encode and decode a video with an autoencoder, and write the result."""
    psnr = reconstruct(settings.checkpoint, settings.video, settings.output, config)
    console.print(f"wrote {settings.output}, PSNR {psnr:.2f} dB", soft_wrap=True)


def run_report(settings: Namespace, config: None) -> None:
    """Write a page about runs: their clips, curves, settings and warnings. It needs no network."""
    page = write_report(settings.runs, settings.output)
    console.print(f"written to {page}; open it in a browser", soft_wrap=True)


def run_checkpoint(settings: Namespace, config: None) -> None:
    """Verify that the files of a run's checkpoints are those that were written."""
    run = Path(settings.run)
    folders = [run] if is_checkpoint(run) else [folder for _, folder in checkpoints(run)]
    if not folders:
        raise argument_error("run", "the folder of a run or of a checkpoint", str(run), "Check the spelling.")
    damage = {folder: damage_of(folder) for folder in folders}
    for folder, found in damage.items():
        console.print(f"{folder}: {'intact' if found is None else 'damaged'}", soft_wrap=True)
    if errors := [found for found in damage.values() if found is not None]:
        raise DamagedError(" ".join(map(str, errors)))


def run_weights(settings: Namespace, config: None) -> None:
    """Download, verify or list the frozen networks of LPIPS."""
    nets = settings.nets or ["vgg", "alex"]
    if settings.action == "list":
        return print_weights()
    for net in nets:
        path = weights.fetch(net) if settings.action == "fetch" else weights.verify(net).path
        console.print(f"{net}: {path}", soft_wrap=True)
    return None


@dataclass(frozen=True)
class Argument:
    """A command-line argument that is not a setting."""

    names: tuple[str, ...]
    help: str
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Command:
    """A subcommand: its function, the dataclass of its settings, and its other arguments."""

    run: Callable[[Namespace, Any], None]
    settings: type | None
    arguments: tuple[Argument, ...] = ()

    @property
    def options(self) -> list[str]:
        """The names of its arguments that are not settings, without dashes."""
        return [name.removeprefix("--") for argument in self.arguments for name in argument.names]

    def parser(self, name: str, *, values: Sequence[Path] = ()) -> ArgumentParser:
        """Return its parser.

        Args:
            name: The command.
            values: Settings files whose values the help shows as defaults.
        """
        parser = ArgumentParser(
            prog=f"telecine {name}",
            description=SUMMARIES[name],
            exit_on_error=False,
            allow_abbrev=False,
            default_config_files=[str(path) for path in values],
        )
        for argument in self.arguments:
            parser.add_argument(*argument.names, help=argument.help, **argument.extra)
        if self.settings is not None:
            parser.add_argument("--config", action="config", help=CONFIG_HELP)
            parser.add_class_arguments(self.settings)
        return parser


CHECKPOINT = Argument(
    ("checkpoint",), "Folder of a run (its last checkpoint), of a checkpoint, or of a saved autoencoder."
)
SUBJECT = Argument(
    ("checkpoint",),
    "Folder of a run (its last checkpoint), of a checkpoint or of a saved autoencoder; or a folder of videos, the "
    "reconstructions of those in --data with the same names.",
    {"nargs": "?"},
)
FIGURES = Argument(
    ("-o", "--output"),
    "Folder for metrics.json (the whole set), clips.json, frames.json and frames.png (by position in a clip) and "
    "protocol.json (how it was measured); with --compare, for comparison.json and its plots.",
)
COMPARE = Argument(
    ("--compare",),
    "Compare two evaluations, given by their output folders.",
    {"nargs": 2, "metavar": ("A", "B")},
)
MEMORY = Argument(
    ("--memory",), "Memory of the device to plan for, e.g. 80GiB. By default what is free on the device at hand."
)
PROCESSES = Argument(
    ("--num_processes",), "Number of processes that sharding is planned for.", {"type": int, "default": 8}
)
STEAL_LOCK = Argument(
    ("--steal_lock",),
    "Train although another process seems to train in the same folder: it is gone, with its machine.",
    {"action": "store_true"},
)
ALLOW_CODE = Argument(
    ("--allow_code",),
    "A package whose functions the settings may name, besides telecine; can be given several times. Its code is run.",
    {"action": "append", "metavar": "PACKAGE"},
)
CHANGE_DATA = Argument(
    ("--change_data",),
    "Resume although --data is other data than before. Without it, such a run is refused.",
    {"action": "store_true"},
)
COMMANDS = {
    "train": Command(run_train, TrainConfig, (STEAL_LOCK, CHANGE_DATA, ALLOW_CODE)),
    "distill": Command(run_distill, DistillConfig, (STEAL_LOCK, CHANGE_DATA, ALLOW_CODE)),
    "plan": Command(run_plan, TrainConfig, (MEMORY, PROCESSES, ALLOW_CODE)),
    "evaluate": Command(run_evaluate, EvaluateConfig, (SUBJECT, FIGURES, COMPARE)),
    "latents": Command(
        run_latents,
        LatentsConfig,
        (
            Argument(
                ("models",),
                "Folders of runs (their last checkpoints), of checkpoints or of saved autoencoders, or names on the "
                "Hub; several are shown side by side.",
                {"nargs": "+"},
            ),
            Argument(("-o", "--output"), "Folder for latents.html and latents.json.", {"default": "latents"}),
        ),
    ),
    "reconstruct": Command(
        run_reconstruct,
        ReconstructConfig,
        (
            CHECKPOINT,
            Argument(("video",), "The video to reconstruct."),
            Argument(("-o", "--output"), "The MP4 to write.", {"required": True}),
        ),
    ),
    "report": Command(
        run_report,
        None,
        (
            Argument(("runs",), "Folders of runs; their curves are drawn over each other.", {"nargs": "+"}),
            Argument(
                ("-o", "--output"),
                "The page, an .html file; its videos are in a folder beside it. By default report.html, in the run's "
                "folder for one run, in the current folder for several.",
            ),
        ),
    ),
    "checkpoint": Command(
        run_checkpoint,
        None,
        (
            Argument(("action",), "What to do.", {"choices": ["verify"]}),
            Argument(("run",), "Folder of a run, or of one of its checkpoints."),
        ),
    ),
    "weights": Command(
        run_weights,
        None,
        (
            Argument(("action",), "What to do.", {"choices": ["fetch", "verify", "list"]}),
            Argument(("nets",), "vgg (training), alex (evaluation); both by default.", {"nargs": "*"}),
        ),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 after a user error, 130 after an interruption."""
    typed = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code = answer(typed)
        if code is not None:
            return code
        escape_logs()
        restrict_imports(typed_values("--allow_code", typed))
        run_command(typed[0], typed[1:])
    except ArgumentError as error:
        command = COMMANDS[typed[0]]
        known = [*setting_names(command.settings), *command.options]
        return fail(plain(clear_message(error), command.settings, known=known))
    except (ValueError, OSError, TrainingError) as error:
        return fail(clear_message(error))
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "telecine":
            raise
        return fail(clear_message(error))
    except Interrupted as interruption:
        if PartialState().is_main_process:
            console.print(str(interruption), soft_wrap=True)
        return INTERRUPTED
    except KeyboardInterrupt:
        console.print("interrupted")
        return INTERRUPTED
    return 0


def run_command(name: str, typed: Sequence[str]) -> None:
    """Parse the arguments of a command and run it."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    command = COMMANDS[name]
    arguments, files = with_config_first(name, typed)
    asks_for_help = bool({"-h", "--help"} & set(typed))
    parser = command.parser(name, values=files if asks_for_help else ())
    settings = parser.parse_args(arguments)
    if files == [DEMO] and arguments[1:] == list(typed):
        console.print("without --data and --config: the demo, on four sample videos")
    run(command, parser, settings)


def run(command: Command, parser: ArgumentParser, settings: Namespace) -> None:
    """Build the settings of a command and run it."""
    config = None
    if command.settings is not None:
        check_groups(command.settings, settings)
        values = parser.instantiate(settings)
        config = command.settings(**{item.name: values[item.name] for item in fields(command.settings)})
    command.run(settings, config)


def with_config_first(name: str, typed: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Move `--config` before all other settings, so that those override it, and replace recipes by their paths.

    `train`, `distill` and `plan` without `--config` use the recipe "gpu", and "demo" if there is no `--data` either.

    Args:
        name: The command.
        typed: Its arguments.

    Returns:
        The arguments, and the settings files among them.

    Raises:
        FileNotFoundError: There is no such file or recipe.
    """
    rest, configs, others = list(typed), [], []
    while rest:
        argument = rest.pop(0)
        option, _, value = argument.partition("=")
        if option == "--config" and (value or rest):
            configs.append(config_path(value or rest.pop(0)))
        else:
            others.append(argument)
    given = {argument.partition("=")[0] for argument in others}
    if COMMANDS[name].settings in (TrainConfig, DistillConfig) and not configs and "--config" not in given:
        configs.append(find_recipe("gpu" if "--data" in given else "demo"))
    return [*(f"--config={path}" for path in configs), *others], configs


def config_path(name: str) -> Path:
    """Return the path of a recipe or a settings file; raise a `ValueError` if the file is harmful to parse."""
    path = find_recipe(name)
    check_yaml(path)
    return path


def print_result(result: TrainResult) -> None:
    """Print the metrics before and after, and the files of a run."""
    table = Table("held-out clips", "before", "after", title="training finished")
    for name, before in result.first.items():
        table.add_row(name, f"{before:.4f}", f"{result.last[name]:.4f}")
    console.print(table)
    for name, path in result.files().items():
        console.print(f"{name:<13} {path}", soft_wrap=True)


def print_plan(plan: Plan) -> None:
    """Print the bytes of each part, the time, and what fits."""
    update = plan.update
    table = Table("part", "between updates", "at the peak", "at most", title=f"memory of a process, {plan.title}")
    for part, most in sorted(update.largest.items(), key=lambda item: -item[1]):
        cells = (update.held.get(part, 0), update.at_peak.get(part, 0), most)
        table.add_row(part, *(gigabytes(size) if size else "" for size in cells))
    table.add_row("all", gigabytes(update.between), gigabytes(update.peak), "", style="bold")
    console.print(table)
    if HOST_COPY not in update.held:
        host = f"memory of the first process' host: {gigabytes(update.checkpoint)} for the {HOST_COPY}"
        console.print(host, soft_wrap=True)
    console.print(plan.speed.describe(), soft_wrap=True)
    usable = f"{gigabytes(plan.memory)}, of which {USED_FRACTION:.0%} are used"
    fits = Table(
        Column("settings", overflow="fold"),
        "largest batch",
        "longest clip",
        "one clip needs",
        title=f"what fits {usable}",
    )
    for fit in plan.fits:
        length = f"about {fit.num_frames} frames" if fit.num_frames else "none"
        fits.add_row(fit.title, str(fit.batch_size or "none"), length, gigabytes(fit.one_clip))
    console.print(fits)
    console.print(advice(update), soft_wrap=True)


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the metrics, which direction is better, and what could not be measured."""
    protocol = evaluation.protocol
    size = f"{protocol.num_frames} frames of {protocol.height} x {protocol.width}"
    table = Table("metric", "mean", "better", title=f"{protocol.num_clips} clips, {size}")
    for name, value in evaluation.metrics.items():
        table.add_row(name, f"{value:.4f}", protocol.better(name))
    console.print(table)
    for name, reason in protocol.absent:
        console.print(f"no {name}: {reason}", soft_wrap=True)


def print_latents(report: LatentReport) -> None:
    """Print a few numbers about each model."""
    lines = [describe(space) for space in report.models]
    table = Table("latent", *(Column(space.title, overflow="fold") for space in report.models))
    for name in dict.fromkeys(name for line in lines for name in line):
        table.add_row(name, *(f"{line[name]:.4g}" if name in line else "-" for line in lines))
    console.print(table)


def print_comparison(comparison: Comparison) -> None:
    """Print every difference with its confidence interval, and which of the two is better."""
    title = f"{comparison.num_clips} clips, {CONFIDENCE:.0%} intervals"
    table = Table("metric", "A", "B", "B - A", "better", title=title)
    for item in comparison.differences:
        table.add_row(item.name, f"{item.first:.4f}", f"{item.second:.4f}", item.text(), item.better)
    console.print(table)
    for warning in comparison.warnings:
        console.print(f"differs: {warning}", soft_wrap=True)


def print_weights() -> None:
    """Print which networks are in the cache."""
    table = Table("net", "status", "source", "file")
    for entry in weights.listing():
        table.add_row(entry.net, entry.status, entry.source or "", str(entry.path))
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
