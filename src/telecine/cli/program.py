"""The program `telecine`: all its commands, see `FUNCTIONS`, and how one of them is run."""

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NoReturn

from telecine import __version__
from telecine.base.checks import argument_error, nearest
from telecine.base.terminal import console
from telecine.cli.commands import (
    checkpoint,
    config,
    evaluate,
    recipes,
    reconstruct,
    report,
    train,
    weights,
)
from telecine.cli.parser import Command
from telecine.cli.typed_settings import describe_environment
from telecine.settings import DistillConfig, TrainConfig
from telecine.tools.data_report.command import data
from telecine.tools.decode.command import decode
from telecine.tools.distill.command import distill
from telecine.tools.encode.command import encode
from telecine.tools.index.command import data_index
from telecine.tools.latents.command import latents
from telecine.tools.plan.command import plan
from telecine.tools.prune.command import prune


def run(argv: Sequence[str]) -> None:
    """Run what is typed: a command, or `--help` and `--version`, which end the process.

    Args:
        argv: What is typed after `telecine`.

    Raises:
        ValueError: It is not a command with its arguments.
    """
    num_words = 2 if " ".join(argv[:2]) in COMMANDS else 1
    name = " ".join(argv[:num_words])
    if name not in COMMANDS:
        _run_without_command(argv)
    command = COMMANDS[name]
    console.escape_logs()
    console.quiet = os.environ.get("RANK", "0") != "0"  # of several processes, one prints
    environment = describe_environment() if command.has_run_settings else []
    if environment:  # printed before the checks, which may refuse one of them
        console.say(f"settings of the environment: {', '.join(environment)}")
    arguments, files, options = command.parse(argv[num_words:])
    settings = arguments.get("settings")
    if isinstance(settings, TrainConfig):
        if files == ["demo"] and "config" not in options:
            console.say("without --data and --config: the demo, on four sample videos")
        _check_options(settings, options)
    if command.output is not None and arguments.get(command.output) is not None:
        from telecine.data.outputs import check_output

        data_path = getattr(settings, "data", None)
        if command.data is not None:
            data_path = arguments[command.data]
        output = os.path.expanduser(arguments[command.output])
        check_output(f"--{command.output}", data_path, output)
        arguments[command.output] = output
    command.run(**arguments)


def _run_without_command(argv: Sequence[str]) -> NoReturn:
    """Answer `--help` and `--version`, or raise a `ValueError` about a mistyped command."""
    if not {"-h", "--help", "--version"}.isdisjoint(argv):
        program().parse_args(argv)  # prints, and exits
    names = f"Use one of: {', '.join(COMMANDS)}."
    if not argv:
        raise ValueError(f"a command is missing. {names}")
    similar = nearest(argv[0], COMMANDS, prefix="telecine ")
    raise ValueError(f"`{argv[0]}` is not a command. {similar or names}")


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
        # A shell completes the second word of a command after the first.
        if with_arguments and " " in command.name:
            continue
        subparser = subparsers.add_parser(
            command.name, help=command.summary, conflict_handler="resolve"
        )
        if with_arguments:
            _add_second_words(subparser, command)
            command.add_arguments(subparser)
    return parser


def _add_second_words(parser: argparse.ArgumentParser, command: Command) -> None:
    """Add the commands of two words that begin with the name of a command to its parser."""
    prefix = f"{command.name} "
    longer = [other for other in COMMANDS.values() if other.name.startswith(prefix)]
    if not longer:
        return
    subparsers = parser.add_subparsers()
    # One word: by default these take all words that follow, and completion offers their names for each.
    subparsers.nargs = 1
    for other in longer:
        subparser = subparsers.add_parser(
            other.name.removeprefix(prefix), help=other.summary, conflict_handler="resolve"
        )
        other.add_arguments(subparser)


def _check_options(settings: TrainConfig, options: Sequence[str]) -> None:
    """Warn about typed settings without effect, and refuse those of a model for a student."""
    if settings.model is not None:
        for option in options:
            group = option.split(".")
            if group[0] == "causal_vae" and group[1:2] != ["flow"]:
                console.say(
                    f"warning: --{option} changes nothing: the model that `--model` names stays as it is"
                )
                break
    if isinstance(settings, DistillConfig):
        pruned_model = settings.pruned_model
        if "student" in options and pruned_model is not None and not settings.train_encoder:
            console.say(
                f"warning: --student changes nothing: the student starts as the pruned model {pruned_model}"
            )
        for option in options:
            # Files may have them, such as a recipe of a model, or the settings of a run.
            if option.partition(".")[0] in ("model", "random_weights", "resolved"):
                remedy = "A student is new, and learns from its `--teacher`."
                raise argument_error(option, "left out", "a value", remedy)


def completion(shell: Annotated[Literal["bash", "zsh", "fish"], "The shell."]) -> None:
    """Print the script by which a shell completes commands and settings."""
    import shtab

    print(shtab.complete(program(with_arguments=True), shell))
    if shell == "bash":
        print(_bash_of_second_words())


def _bash_of_second_words() -> str:
    """Return a function around that of shtab, which would offer the second word of a command after options, too."""
    exact = []
    others = {}
    for command in COMMANDS.values():
        first, _, second = command.name.partition(" ")
        if second:
            arrays = (
                f"_shtab_telecine_{first}_subparsers=() _shtab_telecine_{first}_pos_0_choices=()"
            )
            exact.append(f'    "{command.name}") ;;')
            others[first] = f'    "{first} "*) local {arrays} ;;'
    cases = "\n".join([*exact, *others.values()])
    return f"""
_telecine() {{
  if (( COMP_CWORD > 2 )); then
    case "${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}" in
{cases}
    esac
  fi
  _shtab_telecine "$@"
}}
complete -o bashdefault -F _telecine telecine"""


# All commands, in the order of the help. Those of tools are in `tools/TOOL/command.py`.
FUNCTIONS: list[Callable[..., None]] = [
    train,
    distill,
    prune,
    plan,
    data,
    data_index,
    evaluate,
    reconstruct,
    encode,
    decode,
    latents,
    report,
    recipes,
    config,
    completion,
    checkpoint,
    weights,
]
COMMANDS = {command.name: command for command in map(Command, FUNCTIONS)}
