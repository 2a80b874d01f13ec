"""The commands. The signature of each function is its command line, and its docstring is its help.

Parameters before `*` are positional, those after it are options; `settings` has the settings, and `arguments.yaml` the
help of the others. What needs PyTorch is imported where it is used, so that help and mistakes need not wait for it.
"""

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

from telecine.base.checks import argument_error, check_count, nearest
from telecine.base.terminal import PlainConsole
from telecine.cli.parser import COMMANDS, command, completion_script, program
from telecine.settings import DistillConfig, EvaluateConfig, LatentsConfig, ProbeConfig, ReconstructConfig, TrainConfig
from telecine.settings.parse import describe_recipes, find_recipe, from_environment, read_config
from telecine.settings.validate import json_schema

_console = PlainConsole()


def run(typed: Sequence[str]) -> None:
    """Run what is typed: a command, its help, or `--help` and `--version`, which end the process."""
    if not typed or typed[0] not in COMMANDS:
        _run_without_command(typed)
    chosen, words = COMMANDS[typed[0]], typed[1:]
    topics = [word.partition("=")[2] for word in words if word == "-h" or word.partition("=")[0] == "--help"]
    if topics:
        print(chosen.help(topics[0], words), end="")
        return
    _console.escape_logs()
    _console.quiet = os.environ.get("RANK", "0") != "0"  # of several processes, one prints
    if chosen.trains and (given := from_environment()):  # first: they may be what the check of the settings refuses
        _say(f"settings of the environment: {', '.join(given)}")
    arguments, files = chosen.parse(words)
    if files == ["demo"] and not any(word.startswith("--config") for word in words):
        _say("without --data and --config: the demo, on four sample videos")
    own = [word for word in words if word.startswith("--causal_vae") and not word.startswith("--causal_vae.flow")]
    if own and chosen.trains and arguments["settings"].model is not None:
        _say(f"warning: {own[0].partition('=')[0]} changes nothing: the model that `--model` names stays as it is")
    unused = {"--model", "--random_weights"}.intersection(word.partition("=")[0] for word in words)
    if unused and chosen.settings is DistillConfig:  # files may have them, such as a recipe of that model
        raise argument_error(min(unused), "left out", "a value", "A student is new, and learns from its `--teacher`.")
    if output := arguments.get("output"):
        from telecine.data.find import check_output

        data = arguments.get("path") or arguments.get("video") or getattr(arguments.get("settings"), "data", None)
        arguments["output"] = os.path.expanduser(output)
        check_output("output", data, arguments["output"])
    chosen.run(**arguments)


def _run_without_command(typed: Sequence[str]) -> None:
    """Answer `--help` and `--version`, or raise a `ValueError` about a mistyped command."""
    if {"-h", "--help", "--version"} & {*typed}:
        program().parse_args(typed)  # prints, and exits
    every = f"Use one of: {', '.join(COMMANDS)}."
    if not typed:
        raise ValueError(f"a command is missing. {every}")
    similar = nearest(typed[0], COMMANDS).replace("`", "`telecine ", 1)
    raise ValueError(f"`{typed[0]}` is not a command. {similar or every}")


def _say(text: str) -> None:
    _console.print(text, soft_wrap=True)


@command(runs_code=True)
def _train(
    settings: TrainConfig, *, steal_lock: bool = False, change_data: bool = False, dry_run: bool = False
) -> None:
    """Train an autoencoder of video or images. Run the same command again to resume from the newest checkpoint."""
    from telecine.training import train
    from telecine.training.run import dry_run as try_update

    if dry_run:
        try_update(settings, console=_console).print_to(_console)
    else:
        train(settings, console=_console, steal_lock=steal_lock, change_data=change_data).print_to(_console)


@command(runs_code=True)
def _distill(settings: DistillConfig, *, steal_lock: bool = False, change_data: bool = False) -> None:
    """Train a small decoder, or autoencoder, for the latents of another one; otherwise as `train`."""
    from telecine.tools.distill import distill

    distill(settings, console=_console, steal_lock=steal_lock, change_data=change_data).print_to(_console)


@command(runs_code=True)
def _plan(settings: TrainConfig, *, memory: str | None = None, num_processes: int = 8) -> None:
    """Print the memory, operations and time of a training run, and what fits a device; nothing is trained."""
    from telecine.base.devices import parse_memory
    from telecine.tools.plan.plan import make_plan

    available = None if memory is None else parse_memory(memory)
    make_plan(settings, available, check_count("num_processes", num_processes)).print_to(_console)


@command(runs_code=True)
def _data(
    settings: TrainConfig, path: str, *, output: str = "data_report", num_clips: int = 24, max_frames: int = 100_000
) -> None:
    """Show what training will see: clips of all files, the files, copies, cuts, reading speed; nothing is trained."""
    from telecine.tools.data_report.inspect import inspect_data
    from telecine.tools.data_report.page import print_data, write_data

    report = inspect_data(replace(settings, data=path), num_clips, max_frames)
    page = write_data(report, Path(output))
    print_data(_console, report)
    if report.scenes:
        _say(f"train on the scenes between cuts with `--data {shlex.quote(str(page.with_name('scenes.csv')))}`")
    _say(f"written to {page.parent}; open {page} in a browser")


@command(runs_code=True)
def _evaluate(
    settings: EvaluateConfig,
    checkpoint: str | None = None,
    *,
    output: str | None = None,
    compare: list[str] | None = None,
) -> None:
    """Measure the reconstructions of an autoencoder, or given videos or images; or compare evaluations."""
    from telecine.evaluation.compare import compare as compare_evaluations
    from telecine.evaluation.evaluate import evaluate
    from telecine.evaluation.paper_table import make_table

    if compare is not None:
        table = make_table(compare, output=output)
        if len(compare) == 2:
            compare_evaluations(*compare, output=output).print_to(_console)
        else:
            for line in table.splitlines():
                _say(line)
    elif checkpoint is None:
        raise argument_error("checkpoint", "given", "nothing", "Pass a run, a model or a folder of reconstructions.")
    else:
        evaluate(checkpoint, settings, output=output).print_to(_console)
    if output is not None:
        _say(f"written to {output}")


@command(runs_code=True)
def _reconstruct(settings: ReconstructConfig, checkpoint: str, video: str, *, output: str) -> None:
    """Encode and decode videos, images or arrays with an autoencoder, and write the results."""
    from telecine.evaluation.reconstruct import reconstruct

    _say(f"wrote {output}, PSNR {reconstruct(checkpoint, video, output, settings):.2f} dB")


@command(runs_code=True)
def _latents(settings: LatentsConfig, models: list[str], *, output: str = "latents", probe: bool = False) -> None:
    """Measure the latent spaces of autoencoders (channels, spectrum, equivariance, noise, drift), on a page."""
    from telecine.tools.latents.measures import measure_latent_spaces
    from telecine.tools.latents.page import write_latents

    folder, train_one = Path(output), None
    if settings.probe != ProbeConfig() and not probe:
        raise argument_error("probe", "left as it is without `--probe`", settings.probe, "Add `--probe`.")
    if probe:
        from telecine.tools.latents.probe import train_probe

        train_one = partial(train_probe, config=settings, folder=folder / "probe", console=_console)
    folder.mkdir(parents=True, exist_ok=True)  # before what takes long
    report = measure_latent_spaces(models, settings, train_one)
    report.print_to(_console)
    page = write_latents(report, folder)
    _say(f"written to {page.parent}; open {page} in a browser")


@command()
def _report(runs: list[str], *, output: str | None = None, watch: bool = False) -> None:
    """Write a page about runs: their clips, curves, settings and warnings. It needs no network."""
    from telecine.report.page import watch_runs, write_report

    written = cache(lambda page: _say(f"written to {page}; open it in a browser"))  # once for each page
    if watch:
        watch_runs(runs, output, written)
    else:
        written(write_report(runs, output))


@command()
def _recipes(action: Literal["list", "show"], name: str | None = None) -> None:
    """List or show recipes: settings that train well together, for `--config`."""
    if action == "list":
        print("\n".join(describe_recipes()))
    elif name is None:
        raise argument_error("name", "given", "nothing", "`telecine recipes list` prints all names.")
    else:
        print(find_recipe(name).read_text(encoding="utf-8"), end="")


@command(runs_code=True)
def _config(
    action: Literal["validate", "schema"],
    files: list[str] = [],  # noqa: B006 - never changed
) -> None:
    """Check settings files, or print the JSON schema by which editors check and complete them."""
    if action == "schema":
        print(json_schema(TrainConfig))
    elif not files:
        raise argument_error("files", "settings files or recipes", "nothing", "Pass one or more.")
    else:
        from telecine.objective.functions import check_functions

        settings = read_config(*files)
        check_functions(settings.objective, sharding=settings.sharding)
        _say(f"valid: {' '.join(files)}")


@command()
def _completion(shell: Literal["bash", "zsh", "fish"]) -> None:
    """Print the script by which a shell completes commands, settings, values and recipes."""
    print(completion_script(shell))


@command()
def _checkpoint(action: Literal["verify"], run: str) -> None:
    """Verify that the files of a run's checkpoints are those that were written."""
    from telecine.runs import DamagedError, Run
    from telecine.runs.checkpoints import Checkpoints

    folder = Path(run)
    folders = [folder] if Checkpoints.is_checkpoint(folder) else [each for _, each in Run(folder).checkpoints.all()]
    if not folders:
        raise argument_error("run", "the folder of a run or of a checkpoint", run, "Check the spelling.")
    damage = {each: Checkpoints.damage_of(each) for each in folders}
    for each, found in damage.items():
        _say(f"{each}: {'intact' if found is None else 'damaged'}")
    if errors := [found for found in damage.values() if found is not None]:
        raise DamagedError(" ".join(map(str, errors)))


@command()
def _weights(
    action: Literal["fetch", "verify"],
    nets: list[str] = ["vgg", "alex"],  # noqa: B006
) -> None:
    """Download or verify the frozen networks of LPIPS."""
    from telecine.losses.perceptual.weights import fetch, verify

    for net in nets:
        _say(f"{net}: {fetch(net) if action == 'fetch' else verify(net)}")
