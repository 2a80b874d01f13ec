"""The command line: `telecine train | plan | evaluate | latents | reconstruct | report | checkpoint | weights`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

from accelerate import PartialState
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings
from rich.table import Column, Table

from telecine import __version__
from telecine.checks import argument_error, check_count, nearest
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
from telecine.terminal import PlainConsole, escape_logs, printable
from telecine.training import Interrupted, TrainConfig, TrainingError, TrainResult, train
from telecine.training.capacity import USED_FRACTION, Plan, advice, make_plan
from telecine.training.config_file import check_groups, clear_message, find_recipe, restrict_imports
from telecine.training.plan import HOST_COPY

USER_ERROR = 2
INTERRUPTED = 130

CONFIG_HELP = (
    "A YAML file of settings, or a recipe: demo (CPU, a few minutes) or gpu (training from scratch). It can be given "
    "several times: later ones override earlier ones, and settings typed beside it override both."
)

console = PlainConsole()


def run_train(settings: Namespace, config: TrainConfig) -> None:
    """Train a video autoencoder. Run the same command again to resume from the newest checkpoint."""
    result = train(config, console=console, steal_lock=settings.steal_lock)
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
    """Measure the latent space of autoencoders: channels, spectrum, equivariance, noise, drift; write a page."""
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

    def parser(self, *, with_settings: bool = True) -> ArgumentParser:
        """Return its parser; the docstrings of the settings' fields are their help, and take a while to read."""
        parser = ArgumentParser(description=self.run.__doc__, exit_on_error=False, allow_abbrev=False)
        for argument in self.arguments:
            parser.add_argument(*argument.names, help=argument.help, **argument.extra)
        if self.settings is not None and with_settings:
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
COMMANDS = {
    "train": Command(run_train, TrainConfig, (STEAL_LOCK, ALLOW_CODE)),
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
    escape_logs()
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    typed = sys.argv[1:] if arguments is None else arguments
    parsers = {name: command.parser(with_settings=name in typed) for name, command in COMMANDS.items()}
    try:
        restrict_imports(typed_values("--allow_code", typed))
        settings = root_parser(parsers).parse_args(with_config_first(typed))
        name = settings.subcommand
        run(COMMANDS[name], parsers[name], settings[name])
    except ArgumentError as error:
        return fail(with_suggestion(clear_message(error)))
    except (ValueError, OSError, TrainingError) as error:
        return fail(clear_message(error))
    except Interrupted as interruption:
        if PartialState().is_main_process:
            console.print(f"stopped; saved {interruption}. Run the same command again to resume.", soft_wrap=True)
        return INTERRUPTED
    except KeyboardInterrupt:
        console.print("interrupted")
        return INTERRUPTED
    return 0


def run(command: Command, parser: ArgumentParser, settings: Namespace) -> None:
    """Build the settings of a command and run it."""
    config = None
    if command.settings is not None:
        check_groups(command.settings, settings)
        values = parser.instantiate(settings)
        config = command.settings(**{item.name: values[item.name] for item in fields(command.settings)})
    command.run(settings, config)


def root_parser(parsers: dict[str, ArgumentParser]) -> ArgumentParser:
    """Return the parser of `telecine` itself."""
    parser = ArgumentParser(
        prog="telecine",
        description="Train, evaluate and use video autoencoders.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subcommands(title="commands", metavar="COMMAND")
    for name, subparser in parsers.items():
        commands.add_subcommand(name, subparser, help=COMMANDS[name].run.__doc__)
    return parser


def with_config_first(arguments: Sequence[str]) -> list[str]:
    """Move `--config` before all other settings, so that those override it, and replace recipes by their paths.

    `train` and `plan` without `--config` use the recipe "gpu", and "demo" if there is no `--data` either.
    """
    command, typed = list(arguments[:1]), list(arguments[1:])
    asks_for_help = {"-h", "--help"} & set(typed)
    given = {argument.partition("=")[0] for argument in typed}
    if command in (["train"], ["plan"]) and not asks_for_help and "--config" not in given:
        recipe = "gpu" if "--data" in given else "demo"
        return [*command, f"--config={find_recipe(recipe)}", *typed]
    configs, others = [], []
    while typed:
        argument = typed.pop(0)
        name, _, value = argument.partition("=")
        if name != "--config":
            others.append(argument)
        elif value or not typed:
            configs.append(f"--config={config_path(value)}" if value else argument)
        else:
            configs.append(f"--config={config_path(typed.pop(0))}")
    return [*command, *configs, *others]


def config_path(name: str) -> Path:
    """Return the path of a recipe or a settings file; raise a `ValueError` if the file is harmful to parse."""
    if (path := find_recipe(name)).is_file():
        check_yaml(path)
    return path


def typed_values(option: str, arguments: Sequence[str]) -> list[str]:
    """Return the values of an option on the command line. Those in a settings file are not among them."""
    apart = [value for name, value in pairwise(arguments) if name == option]
    return apart + [argument.removeprefix(f"{option}=") for argument in arguments if argument.startswith(f"{option}=")]


def fail(message: str) -> int:
    """Print one error on standard error and return its exit code."""
    print(f"telecine: error: {printable(message)}", file=sys.stderr)
    return USER_ERROR


def with_suggestion(message: str) -> str:
    """Add the nearest setting to the message about an unknown one."""
    if "not accept option" not in message and "unrecognized" not in message:
        return message
    known = sorted({name for command in COMMANDS.values() for name in setting_names(command.settings)})
    for words in re.findall(r"--([\w.]+)|'([\w.]+)'", message):
        word = "".join(words)
        if word not in COMMANDS and word not in known and nearest(word, known):
            return f"{message.rstrip('.')}. {nearest(word, known)}"
    return message


def setting_names(settings: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of a dataclass's fields, nested ones included."""
    if is_dataclass(settings):
        hints = get_type_hints(settings)
        for item in fields(settings):
            yield prefix + item.name
            yield from setting_names(hints[item.name], f"{prefix}{item.name}.")


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
