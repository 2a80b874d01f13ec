"""The commands. The signature of each function is its command line, and its docstring is its help.

What needs PyTorch is imported where it is used, so that help and mistakes need not wait for it.
"""

import argparse
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Literal

from telecine import __version__
from telecine.base.checks import argument_error, check_count, nearest
from telecine.base.terminal import PlainConsole
from telecine.cli.parser import Command, from_environment
from telecine.settings import DistillConfig, EvaluateConfig, LatentsConfig, ProbeConfig, ReconstructConfig, TrainConfig
from telecine.settings.parse import describe_recipes, find_recipe, read_config
from telecine.settings.validate import json_schema

_console = PlainConsole()
_MODEL = (
    "Folder of a run (its last checkpoint), of a checkpoint or of a saved autoencoder, a name on the Hub, or tiny, the "
    "model in the package"
)
_STEAL_LOCK = "Train although another process seems to train there: it is gone, with its machine."
_CHANGE_DATA = "Resume although --data is other data than before. Without it, such a run is refused."


def run(words: Sequence[str]) -> None:
    """Run what is typed: a command, or `--help` and `--version`, which end the process.

    Args:
        words: The words after `telecine`.

    Raises:
        ValueError: The words are not a command with its arguments.
    """
    if not words or words[0] not in COMMANDS:
        _run_without_command(words)
    command = COMMANDS[words[0]]
    _console.escape_logs()
    _console.quiet = os.environ.get("RANK", "0") != "0"  # of several processes, one prints
    environment = from_environment() if command.trains else []
    if environment:  # before they are checked: they may be what is refused
        _say(f"settings of the environment: {', '.join(environment)}")
    arguments, files = command.parse(words[1:])
    settings = arguments.get("settings")
    if isinstance(settings, TrainConfig):
        _warn_about_settings(settings, files, words[1:])
    output = arguments.get("output")
    if output is not None:
        from telecine.data.find import check_output

        data = arguments.get("path") or arguments.get("video") or getattr(settings, "data", None)
        arguments["output"] = os.path.expanduser(output)
        check_output("output", data, arguments["output"])
    command.run(**arguments)


def _run_without_command(words: Sequence[str]) -> None:
    """Answer `--help` and `--version`, or raise a `ValueError` about a mistyped command."""
    if not {"-h", "--help", "--version"}.isdisjoint(words):
        program().parse_args(words)  # prints, and exits
    names = f"Use one of: {', '.join(COMMANDS)}."
    if not words:
        raise ValueError(f"a command is missing. {names}")
    similar = nearest(words[0], COMMANDS).replace("`", "`telecine ", 1)
    raise ValueError(f"`{words[0]}` is not a command. {similar or names}")


def program(*, with_arguments: bool = False) -> argparse.ArgumentParser:
    """Return the parser of all commands, which explains them.

    Args:
        with_arguments: Whether it has the arguments and settings of each command, as completion needs.
    """
    parser = argparse.ArgumentParser(
        prog="telecine",
        description="Train, evaluate and use autoencoders of video and images.",
        epilog="`telecine COMMAND --help` explains a command and its settings.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS.values():
        subparser = subparsers.add_parser(command.name, help=command.summary, conflict_handler="resolve")
        if with_arguments:
            command.add_arguments(subparser)
    return parser


def _warn_about_settings(settings: TrainConfig, files: Sequence[str], words: Sequence[str]) -> None:
    """Say that the demo is run without data, and which typed settings have no effect."""
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    if files == ["demo"] and "--config" not in options:
        _say("without --data and --config: the demo, on four sample videos")
    for option in options:
        is_of_model = option.startswith("--causal_vae") and not option.startswith("--causal_vae.flow")
        if is_of_model and settings.model is not None:
            _say(f"warning: {option} changes nothing: the model that `--model` names stays as it is")
            break
    if isinstance(settings, DistillConfig):
        for option in ("--model", "--random_weights"):
            if option in options:  # files may have them, such as a recipe of that model
                remedy = "A student is new, and learns from its `--teacher`."
                raise argument_error(option, "left out", "a value", remedy)


def _say(text: str) -> None:
    _console.print(text, soft_wrap=True)


def train(
    settings: TrainConfig,
    *,
    steal_lock: Annotated[bool, _STEAL_LOCK] = False,
    change_data: Annotated[bool, _CHANGE_DATA] = False,
    dry_run: Annotated[
        bool,
        "Do all that the run would do up to its first update, and one update with as many terms on as possible; print "
        "its time, memory and losses, and keep nothing but the index of the data.",
    ] = False,
) -> None:
    """Train an autoencoder of video or images. Run the same command again to resume from the newest checkpoint."""
    from telecine.training import train
    from telecine.training.run import dry_run as try_update

    if dry_run:
        try_update(settings, console=_console).print_to(_console)
    else:
        train(settings, console=_console, steal_lock=steal_lock, change_data=change_data).print_to(_console)


def distill(
    settings: DistillConfig,
    *,
    steal_lock: Annotated[bool, _STEAL_LOCK] = False,
    change_data: Annotated[bool, _CHANGE_DATA] = False,
) -> None:
    """Train a small decoder, or autoencoder, for the latents of another one; otherwise as `train`."""
    from telecine.tools.distill import distill

    distill(settings, console=_console, steal_lock=steal_lock, change_data=change_data).print_to(_console)


def plan(
    settings: TrainConfig,
    *,
    memory: Annotated[
        str | None,
        "Memory of the device to plan for, e.g. 80GiB. By default what is free on the device at hand.",
    ] = None,
    num_processes: Annotated[int, "Number of processes that sharding is planned for."] = 8,
) -> None:
    """Print the memory, operations and time of a training run, and what fits a device; nothing is trained."""
    from telecine.base.devices import parse_memory
    from telecine.tools.plan.plan import make_plan

    available = None if memory is None else parse_memory(memory)
    make_plan(settings, available, check_count("num_processes", num_processes)).print_to(_console)


def data(
    settings: TrainConfig,
    path: Annotated[str, "The training data, as --data of `telecine train`."],
    *,
    output: Annotated[
        str, "Folder for data.html, clips.mp4, data.json and, if there are cuts, scenes.csv."
    ] = "data_report",
    num_clips: Annotated[int, "Number of clips to read and show."] = 24,
    max_frames: Annotated[
        int,
        "Search files with up to this many frames together for cuts: a core decodes some hundred a second.",
    ] = 100_000,
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


def evaluate(
    settings: EvaluateConfig,
    checkpoint: Annotated[
        str | None,
        f"{_MODEL}; or a folder of videos or images, the reconstructions of those in --data with the same names.",
    ] = None,
    *,
    output: Annotated[
        str | None,
        "Folder for metrics.json (the whole set), clips.json, frames.json and frames.png (by position in a clip) and "
        "protocol.json (how it was measured); with --compare, for table.tex, table.md and, of two, comparison.json and "
        "its plots.",
    ] = None,
    compare: Annotated[
        list[str] | None,
        "Compare evaluations, given by their output folders: two clip by clip, several in a table.",
    ] = None,
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


def reconstruct(
    settings: ReconstructConfig,
    checkpoint: Annotated[str, f"{_MODEL}."],
    video: Annotated[str, "The video or image to reconstruct, or a folder of videos, or of images."],
    *,
    output: Annotated[
        str, "The MP4 to write, or an MKV, which keeps alpha and 16 bits; a PNG; of a folder another one."
    ],
) -> None:
    """Encode and decode videos, images or arrays with an autoencoder, and write the results."""
    from telecine.evaluation.reconstruct import reconstruct

    _say(f"wrote {output}, PSNR {reconstruct(checkpoint, video, output, settings):.2f} dB")


def latents(
    settings: LatentsConfig,
    models: Annotated[
        list[str],
        "Folders of runs (their last checkpoints), of checkpoints or of saved autoencoders, names on the Hub, or tiny, "
        "the model in the package; several are shown side by side.",
    ],
    *,
    output: Annotated[str, "Folder for latents.html and latents.json, by default `latents`."] = "latents",
    probe: Annotated[bool, "Also train a small generator on the latents, and measure it on unseen videos."] = False,
) -> None:
    """Measure the latent spaces of autoencoders (channels, spectrum, equivariance, noise, drift), on a page."""
    from telecine.tools.latents.measures import measure_latent_spaces
    from telecine.tools.latents.page import write_latents

    folder = Path(output)
    train_one = None
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


def report(
    runs: Annotated[list[str], "Folders of runs; their curves are drawn over each other."],
    *,
    output: Annotated[
        str | None,
        "The page, an .html file; its videos are in a folder beside it. By default report.html, in the run's folder "
        "for one run, in the current folder for several.",
    ] = None,
    watch: Annotated[
        bool,
        "Write the page again whenever the runs have new values, until they are finished or Ctrl-C; the open page "
        "shows them by itself.",
    ] = False,
) -> None:
    """Write a page about runs: their clips, curves, settings and warnings. It needs no network."""
    from telecine.report.page import watch_runs, write_report

    say_once = cache(lambda page: _say(f"written to {page}; open it in a browser"))
    if watch:
        watch_runs(runs, output, say_once)
    else:
        say_once(write_report(runs, output))


def recipes(
    action: Annotated[Literal["list", "show"], "What to do."],
    name: Annotated[str | None, "The recipe to show."] = None,
) -> None:
    """List or show recipes: settings that train well together, for `--config`."""
    if action == "list":
        print("\n".join(describe_recipes()))
    elif name is None:
        raise argument_error("name", "given", "nothing", "`telecine recipes list` prints all names.")
    else:
        print(find_recipe(name).read_text(encoding="utf-8"), end="")


def config(
    action: Annotated[Literal["validate", "schema"], "What to do."],
    files: Annotated[list[str], "The files, or recipes, to check: later ones override earlier ones."] = [],  # noqa: B006
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


def completion(shell: Annotated[Literal["bash", "zsh", "fish"], "The shell."]) -> None:
    """Print the script by which a shell completes commands and settings."""
    import shtab

    print(shtab.complete(program(with_arguments=True), shell))


def checkpoint(
    action: Annotated[Literal["verify"], "What to do."],
    run: Annotated[str, "Folder of a run, or of one of its checkpoints."],
) -> None:
    """Verify that the files of a run's checkpoints are those that were written."""
    from telecine.runs import DamagedError, Run
    from telecine.runs.checkpoints import Checkpoints

    folder = Path(run)
    folders = [folder]
    if not Checkpoints.is_checkpoint(folder):
        folders = [path for _, path in Run(folder).checkpoints.all()]
    if not folders:
        raise argument_error("run", "the folder of a run or of a checkpoint", run, "Check the spelling.")
    errors = []
    for path in folders:
        damage = Checkpoints.damage_of(path)
        if damage is not None:
            errors.append(str(damage))
        _say(f"{path}: {'intact' if damage is None else 'damaged'}")
    if errors:
        raise DamagedError(" ".join(errors))


def weights(
    action: Annotated[Literal["fetch", "verify"], "What to do."],
    nets: Annotated[list[str], "vgg (training), alex (evaluation); both by default."] = ["vgg", "alex"],  # noqa: B006
) -> None:
    """Download or verify the frozen networks of LPIPS."""
    from telecine.losses.perceptual.weights import fetch, verify

    for net in nets:
        _say(f"{net}: {fetch(net) if action == 'fetch' else verify(net)}")


_FUNCTIONS: list[Callable[..., None]] = [
    train,
    distill,
    plan,
    data,
    evaluate,
    reconstruct,
    latents,
    report,
    recipes,
    config,
    completion,
    checkpoint,
    weights,
]
COMMANDS = {function.__name__: Command(function) for function in _FUNCTIONS}
