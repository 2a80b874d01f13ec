"""The commands that need PyTorch; `telecine.cli.commands` has their arguments."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from accelerate import PartialState
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from telecine.base.checks import argument_error, check_count
from telecine.base.devices import parse_memory
from telecine.base.terminal import PlainConsole, escape_logs
from telecine.cli.argument_errors import plain, setting_names
from telecine.cli.commands import COMMANDS, INTERRUPTED, fail, typed_values
from telecine.cli.start import answer
from telecine.cli.tables import (
    print_comparison,
    print_data,
    print_dry_run,
    print_evaluation,
    print_latents,
    print_plan,
    print_result,
    print_weights,
)
from telecine.data.find import check_output
from telecine.data_report.inspect import inspect_data
from telecine.data_report.page import write_data
from telecine.evaluation.compare import compare
from telecine.evaluation.config import EvaluateConfig, LatentsConfig, ReconstructConfig
from telecine.evaluation.evaluate import evaluate
from telecine.evaluation.latent_page import write_latents
from telecine.evaluation.latents import measure_latent_spaces
from telecine.evaluation.reconstruct import reconstruct
from telecine.perceptual import weights
from telecine.report.page import write_report
from telecine.report.watch import watch
from telecine.runs.layout import checkpoints, is_checkpoint
from telecine.runs.manifest import DamagedError, damage_of
from telecine.settings.recipes import RECIPES, config_path, with_config_first
from telecine.training import Interrupted, TrainConfig, TrainingError, train
from telecine.training.capacity import make_plan
from telecine.training.config_file import check_groups, clear_message, read_config, restrict_imports
from telecine.training.distillation import DistillConfig, distill
from telecine.training.dry_run import dry_run

# What `train` and `plan` do without `--data` and `--config`.
DEMO = RECIPES / "demo.yaml"

console = PlainConsole()


def run_train(settings: Namespace, config: TrainConfig) -> None:
    """Train a video autoencoder. Run the same command again to resume from the newest checkpoint."""
    if settings.dry_run:
        tried = dry_run(config, console=console)
        if PartialState().is_main_process:
            print_dry_run(console, config, tried)
        return
    result = train(config, console=console, steal_lock=settings.steal_lock, change_data=settings.change_data)
    if PartialState().is_main_process:
        print_result(console, result)


def run_distill(settings: Namespace, config: DistillConfig) -> None:
    """Train a small decoder, or autoencoder, for the latents of another one; otherwise as `train`."""
    result = distill(config, console=console, steal_lock=settings.steal_lock, change_data=settings.change_data)
    if PartialState().is_main_process:
        print_result(console, result)


def run_plan(settings: Namespace, config: TrainConfig) -> None:
    """Print the memory, operations and time of a training run, and what fits a device; nothing is trained."""
    memory = None if settings.memory is None else parse_memory(settings.memory)
    check_count("num_processes", settings.num_processes)
    print_plan(console, make_plan(config, memory, settings.num_processes))


def run_data(settings: Namespace, config: TrainConfig) -> None:
    """Show what training will see: its first clips, the files, copies, cuts, reading speed; nothing is trained."""
    check_output("--output", settings.path, settings.output)
    report = inspect_data(replace(config, data=settings.path), settings.num_clips)
    page = write_data(report, Path(settings.output))
    print_data(console, report)
    console.print(f"written to {page.parent}; open {page} in a browser", soft_wrap=True)


def run_evaluate(settings: Namespace, config: EvaluateConfig) -> None:
    """Measure the reconstructions of an autoencoder, or given videos; or compare two evaluations."""
    if settings.compare is not None:
        print_comparison(console, compare(*settings.compare, output=settings.output))
    elif settings.checkpoint is None:
        raise argument_error("checkpoint", "given", "nothing", "Pass a run, a model or a folder of reconstructions.")
    else:
        evaluation = evaluate(settings.checkpoint, config, output=settings.output)
        if not evaluation.is_main_process:
            return
        print_evaluation(console, evaluation)
    if settings.output is not None:
        console.print(f"written to {settings.output}", soft_wrap=True)


def run_latents(settings: Namespace, config: LatentsConfig) -> None:
    """Measure the latent spaces of autoencoders (channels, spectrum, equivariance, noise, drift), on a page."""
    report = measure_latent_spaces(settings.models, config)
    print_latents(console, report)
    page = write_latents(report, Path(settings.output))
    console.print(f"written to {page.parent}; open {page} in a browser", soft_wrap=True)


def run_reconstruct(settings: Namespace, config: ReconstructConfig) -> None:
    """Encode and decode a video with an autoencoder, and write the result."""
    psnr = reconstruct(settings.checkpoint, settings.video, settings.output, config)
    console.print(f"wrote {settings.output}, PSNR {psnr:.2f} dB", soft_wrap=True)


def run_report(settings: Namespace, config: None) -> None:
    """Write a page about runs: their clips, curves, settings and warnings. It needs no network."""

    def written(page: Path) -> None:
        console.print(f"written to {page}; open it in a browser", soft_wrap=True)

    if settings.watch:
        watch(settings.runs, settings.output, written)
    else:
        written(write_report(settings.runs, settings.output))


def run_config(settings: Namespace, config: None) -> None:
    """Check settings files, or print the JSON schema by which editors check and complete them."""
    if settings.action == "schema":
        print(command_parser("train", with_texts=True).get_completion_script("jsonschema"))
    elif not settings.files:
        raise argument_error("files", "settings files or recipes", "nothing", "Pass one or more.")
    else:
        read_config(*map(config_path, settings.files))
        console.print(f"valid: {' '.join(settings.files)}", soft_wrap=True)


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
        return print_weights(console)
    for net in nets:
        path = weights.fetch(net) if settings.action == "fetch" else weights.verify(net).path
        console.print(f"{net}: {path}", soft_wrap=True)
    return None


RUN: dict[str, Callable[[Namespace, Any], None]] = {
    "train": run_train,
    "distill": run_distill,
    "plan": run_plan,
    "data": run_data,
    "evaluate": run_evaluate,
    "reconstruct": run_reconstruct,
    "latents": run_latents,
    "report": run_report,
    "config": run_config,
    "checkpoint": run_checkpoint,
    "weights": run_weights,
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
        kind = settings_class(typed[0])
        known = [*setting_names(kind), *COMMANDS[typed[0]].options]
        return fail(plain(clear_message(error), kind, known=known))
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
    """Parse the arguments of a command, build its settings and run it."""
    arguments, files = with_config_first(name, typed)
    # The fields of a ramp are explained by the parser: `--objective.perceptual_weight.help`.
    parser = command_parser(name, with_texts=any(word.endswith(".help") for word in typed))
    settings = parser.parse_args(arguments)
    if (found := settings.get("allow_code")) and not typed_values("--allow_code", typed):
        remedy = "Code that settings name is run only if you type it: add `--allow_code PACKAGE`."
        raise argument_error("allow_code", "an argument of the command", f"{found} in a settings file", remedy)
    if files == [DEMO] and arguments[1:] == list(typed):
        console.print("without --data and --config: the demo, on four sample videos")
    RUN[name](settings, build_settings(settings_class(name), parser, settings))


def command_parser(name: str, *, with_texts: bool = False) -> ArgumentParser:
    """Return the parser of a command. Reading the texts of settings takes longer than all else."""
    set_parsing_settings(docstring_parse_attribute_docstrings=with_texts)
    parser = ArgumentParser(prog=f"telecine {name}", exit_on_error=False, allow_abbrev=False, add_help=False)
    for argument in COMMANDS[name].arguments:
        parser.add_argument(*argument.names, help=argument.help, **argument.extra)
    if (kind := settings_class(name)) is not None:
        parser.add_argument("--config", action="config")
        parser.add_class_arguments(kind)
    return parser


def settings_class(name: str) -> type | None:
    """Return the dataclass of a command's settings."""
    path = COMMANDS[name].settings
    if path is None:
        return None
    module, _, kind = path.rpartition(".")
    return cast(type, getattr(import_module(module), kind))


def build_settings(kind: type | None, parser: ArgumentParser, settings: Namespace) -> Any:
    """Return the settings that were parsed, as an instance of their dataclass; None for a command without settings."""
    if kind is None:
        return None
    check_groups(kind, settings)
    values = parser.instantiate(settings)
    return kind(**{item.name: values[item.name] for item in fields(kind)})


if __name__ == "__main__":
    sys.exit(main())
