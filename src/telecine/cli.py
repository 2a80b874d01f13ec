"""The command line: `telecine train | evaluate | reconstruct | report | weights`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from accelerate import PartialState
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings
from rich.console import Console
from rich.table import Table

from telecine import __version__
from telecine.evaluation.compare import Comparison, compare
from telecine.evaluation.config import EvaluateConfig, ReconstructConfig
from telecine.evaluation.difference import CONFIDENCE
from telecine.evaluation.evaluate import Evaluation, evaluate
from telecine.evaluation.reconstruct import reconstruct
from telecine.perceptual import weights
from telecine.report.page import write_report
from telecine.shapes import argument_error, nearest
from telecine.training import Interrupted, TrainConfig, TrainingError, TrainResult, train
from telecine.training.config_file import check_groups

USER_ERROR = 2
INTERRUPTED = 130
RECIPES = Path(__file__).parent / "recipes"

console = Console(markup=False, highlight=False)  # paths may hold brackets


def run_train(settings: Namespace, config: TrainConfig) -> None:
    """Train a video autoencoder; run the same command again to go on from the last checkpoint."""
    result = train(config, console=console)
    if PartialState().is_main_process:
        print_result(result)


def run_evaluate(settings: Namespace, config: EvaluateConfig) -> None:
    """Measure reconstructions, of an autoencoder or given as videos; or compare two evaluations."""
    if settings.compare is not None:
        print_comparison(compare(*settings.compare, output=settings.output))
    elif settings.checkpoint is None:
        raise argument_error("checkpoint", "given", "nothing", "Name a run, a model or a folder of reconstructions.")
    else:
        evaluation = evaluate(settings.checkpoint, config, output=settings.output)
        if not evaluation.is_main_process:
            return
        print_evaluation(evaluation)
    if settings.output is not None:
        console.print(f"written to {settings.output}", soft_wrap=True)


def run_reconstruct(settings: Namespace, config: ReconstructConfig) -> None:
    """Send a video through an autoencoder and write the result."""
    psnr = reconstruct(settings.checkpoint, settings.video, settings.output, config)
    console.print(f"wrote {settings.output}, PSNR {psnr:.2f} dB", soft_wrap=True)


def run_report(settings: Namespace, config: None) -> None:
    """Show runs on one page: their clips, curves, settings and warnings; works without network."""
    page = write_report(settings.runs, settings.output)
    console.print(f"written to {page}; open it in a browser", soft_wrap=True)


def run_weights(settings: Namespace, config: None) -> None:
    """Fetch, verify or list the frozen networks of LPIPS."""
    nets = settings.nets or ["vgg", "alex"]
    if settings.action == "list":
        return print_weights()
    for net in nets:
        path = weights.fetch(net) if settings.action == "fetch" else weights.verify(net).path
        console.print(f"{net}: {path}", soft_wrap=True)
    return None


@dataclass(frozen=True)
class Argument:
    """One argument that is not a setting."""

    names: tuple[str, ...]
    help: str
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Command:
    """A subcommand: what runs it, the dataclass of its settings, and its other arguments."""

    run: Callable[[Namespace, Any], None]
    settings: type | None
    arguments: tuple[Argument, ...] = ()

    def parser(self) -> ArgumentParser:
        """Return the parser of its arguments; the texts of the settings' fields are their help."""
        parser = ArgumentParser(description=self.run.__doc__, exit_on_error=False, allow_abbrev=False)
        for argument in self.arguments:
            parser.add_argument(*argument.names, help=argument.help, **argument.extra)
        if self.settings is not None:
            parser.add_argument("--config", action="config", help="A YAML file of settings, or a recipe: demo.")
            parser.add_class_arguments(self.settings)
        return parser


CHECKPOINT = Argument(
    ("checkpoint",), "Folder of a run (its last checkpoint), of a checkpoint, or of a saved autoencoder."
)
SUBJECT = Argument(
    ("checkpoint",),
    "What is measured: folder of a run (its last checkpoint), of a checkpoint or of a saved autoencoder; or a folder "
    "of videos, the reconstructions of those in --data by the same names.",
    {"nargs": "?"},
)
FIGURES = Argument(
    ("-o", "--output"),
    "Folder for metrics.json (the whole set), clips.json, frames.json and frames.png (by position in a clip) and "
    "protocol.json (how it was measured); with --compare, for comparison.json and its pictures.",
)
COMPARE = Argument(
    ("--compare",),
    "Compare two evaluations, given by their output folders, instead of measuring.",
    {"nargs": 2, "metavar": ("A", "B")},
)
COMMANDS = {
    "train": Command(run_train, TrainConfig),
    "evaluate": Command(run_evaluate, EvaluateConfig, (SUBJECT, FIGURES, COMPARE)),
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
            Argument(("runs",), "Folders of runs, to be shown over each other.", {"nargs": "+"}),
            Argument(
                ("-o", "--output"),
                "The page, an .html file; its videos lie in a folder beside it. By default report.html, in the run's "
                "folder if it is one run, in the current one otherwise.",
            ),
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
    """Run a command and return its exit code: 0, 2 after a mistake that has a remedy, 130 after an interruption."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parsers = {name: command.parser() for name, command in COMMANDS.items()}
    try:
        settings = root_parser(parsers).parse_args(with_config_first(sys.argv[1:] if arguments is None else arguments))
        name = settings.subcommand
        run(COMMANDS[name], parsers[name], settings[name])
    except ArgumentError as error:
        return fail(with_suggestion(" ".join(str(error).split())))
    except (ValueError, OSError, TrainingError) as error:
        return fail(" ".join(str(error).split()))  # in one line, also where jsonargparse wraps an error of ours
    except Interrupted as interruption:
        if PartialState().is_main_process:
            console.print(f"stopped; saved {interruption}. Run the same command again to go on.", soft_wrap=True)
        return INTERRUPTED
    except KeyboardInterrupt:
        console.print("interrupted")
        return INTERRUPTED
    return 0


def run(command: Command, parser: ArgumentParser, settings: Namespace) -> None:
    """Build the command's settings and run it."""
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
    """Put `--config` before all other settings, so that those typed beside it win, wherever it stands.

    `--config NAME` may mean a recipe that ships with telecine; `train` without data or settings is the demo.
    """
    command, typed = list(arguments[:1]), list(arguments[1:])
    asks_for_help = {"-h", "--help"} & set(typed)
    given = {argument.partition("=")[0] for argument in typed}
    if command == ["train"] and not asks_for_help and not {"--data", "--config"} & given:
        return [*command, f"--config={recipe('demo')}", *typed]
    configs, others = [], []
    while typed:
        argument = typed.pop(0)
        name, _, value = argument.partition("=")
        if name != "--config":
            others.append(argument)
        elif value or not typed:
            configs.append(f"--config={recipe(value)}" if value else argument)
        else:
            configs.append(f"--config={recipe(typed.pop(0))}")
    return [*command, *configs, *others]


def recipe(name: str) -> str:
    """Return the path of the recipe of that name, or the name itself where there is none."""
    path = RECIPES / f"{name}.yaml"
    return str(path) if path.is_file() else name


def fail(message: str) -> int:
    """Print one error on standard error and return its exit code."""
    print(f"telecine: error: {message}", file=sys.stderr)
    return USER_ERROR


def with_suggestion(message: str) -> str:
    """Add the nearest setting to the message about one that does not exist."""
    if "not accept option" not in message and "unrecognized" not in message:
        return message
    known = sorted({name for command in COMMANDS.values() for name in setting_names(command.settings)})
    for words in re.findall(r"--([\w.]+)|'([\w.]+)'", message):
        word = "".join(words)
        if word not in COMMANDS and word not in known and nearest(word, known):
            return f"{message.rstrip('.')}. {nearest(word, known)}"
    return message


def setting_names(settings: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of a dataclass's fields and of those in it."""
    if is_dataclass(settings):
        hints = get_type_hints(settings)
        for item in fields(settings):
            yield prefix + item.name
            yield from setting_names(hints[item.name], f"{prefix}{item.name}.")


def print_result(result: TrainResult) -> None:
    """Show what a run reached and where its files are."""
    table = Table("held-out clips", "before", "after", title="training finished")
    for name, before in result.first.items():
        table.add_row(name, f"{before:.4f}", f"{result.last[name]:.4f}")
    console.print(table)
    for name, path in result.files().items():
        console.print(f"{name:<13} {path}", soft_wrap=True)


def print_evaluation(evaluation: Evaluation) -> None:
    """Show the figures, which way is better, and what could not be measured."""
    protocol = evaluation.protocol
    size = f"{protocol.num_frames} frames of {protocol.height} x {protocol.width}"
    table = Table("metric", "mean", "better", title=f"{protocol.num_clips} clips, {size}")
    for name, value in evaluation.metrics.items():
        table.add_row(name, f"{value:.4f}", protocol.better(name))
    console.print(table)
    for name, reason in protocol.absent:
        console.print(f"no {name}: {reason}", soft_wrap=True)


def print_comparison(comparison: Comparison) -> None:
    """Show every difference with its interval, and which of the two is better."""
    title = f"{comparison.num_clips} clips, {CONFIDENCE:.0%} intervals"
    table = Table("metric", "A", "B", "B - A", "better", title=title)
    for item in comparison.differences:
        table.add_row(item.name, f"{item.first:.4f}", f"{item.second:.4f}", item.text(), item.better)
    console.print(table)
    for warning in comparison.warnings:
        console.print(f"differs: {warning}", soft_wrap=True)


def print_weights() -> None:
    """Show which networks are in the cache."""
    table = Table("net", "status", "source", "file")
    for entry in weights.listing():
        table.add_row(entry.net, entry.status, entry.source or "", str(entry.path))
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
