"""The commands that no tool brings. The signature of each is its command line, and its docstring is its help.

What needs PyTorch is imported where it is used, so that help and errors need not wait for it.
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

from telecine.base.checks import argument_error
from telecine.base.terminal import console
from telecine.settings import EvaluateConfig, ReconstructConfig, TrainConfig
from telecine.settings.argument_kinds import (
    MODEL_HELP,
    ChangeData,
    Data,
    ModelPath,
    Output,
    StealLock,
)
from telecine.settings.listing import json_schema
from telecine.settings.parse import describe_recipes, find_recipe, read_config


def train(
    settings: TrainConfig,
    *,
    steal_lock: StealLock = False,
    change_data: ChangeData = False,
    dry_run: Annotated[
        bool,
        "Do all that the run would do up to its first update, and one update with as many terms on as possible; print "
        "its time, memory and losses, and keep nothing but the index of the data.",
    ] = False,
) -> None:
    """Train an autoencoder of video or images. Run the same command again to resume from the newest checkpoint."""
    from telecine import training
    from telecine.training.run import dry_run as try_update

    if dry_run:
        try_update(settings, console=console).print_to(console)
        return
    result = training.train(
        settings, console=console, steal_lock=steal_lock, change_data=change_data
    )
    result.print_to(console)


def evaluate(
    settings: EvaluateConfig,
    checkpoint: Annotated[
        str | None,
        f"{MODEL_HELP}; or a folder of videos or images, the reconstructions of those in --data with the same names.",
    ] = None,
    *,
    output: Annotated[
        str | None,
        Output(
            "Folder for metrics.json (the whole set), clips.json, frames.json and frames.png (by position in a clip) "
            "and protocol.json (how it was measured); with --round_trips, also for round_trips.json and its "
            "plot; with --speed for speed.json; with --compare, for table.tex, table.md, of two comparison.json and "
            "plots, and speed.html if all have a speed."
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        "Compare evaluations, given by their output folders: two clip by clip, several in a table.",
    ] = None,
) -> None:
    """Measure the reconstructions of an autoencoder, or given videos or images; or compare evaluations.

    Raises:
        ValueError: Neither a checkpoint nor evaluations are named, or what is typed has no effect on a comparison.
    """
    if compare is not None:
        if checkpoint is not None:
            remedy = "Add its evaluation to --compare, or leave --compare out."
            raise argument_error("checkpoint", "left out with --compare", checkpoint, remedy)
        _compare_evaluations(compare, settings, output)
    elif checkpoint is None:
        raise argument_error(
            "checkpoint", "given", "nothing", "Pass a run, a model or a folder of reconstructions."
        )
    else:
        from telecine.evaluation import evaluate as evaluation

        result = evaluation.evaluate(checkpoint, settings, output=output)
        result.print_to(console)
    if output is not None:
        console.say(f"written to {output}")


def _compare_evaluations(
    folders: Sequence[str], settings: EvaluateConfig, output: str | None
) -> None:
    """Compare two evaluations clip by clip, or print a table of several."""
    from telecine.evaluation.compare import compare
    from telecine.evaluation.compare_speed import recorded_speeds, speeds_in_turns
    from telecine.evaluation.paper_table import make_table
    from telecine.report.speed_page import write_speeds

    used = ("speed", "device") if settings.speed else ()
    for setting in fields(EvaluateConfig):
        value = getattr(settings, setting.name)
        if setting.name not in used and value != setting.default:
            remedy = "It reads evaluations as they were measured."
            raise argument_error(setting.name, "left out with --compare", value, remedy)
    speeds = speeds_in_turns(folders, settings) if settings.speed else recorded_speeds(folders)
    table = make_table(folders, output=output, speeds=None if speeds is None else speeds.speeds)
    if speeds is not None and output is not None:
        write_speeds(folders, speeds, output)
    if len(folders) == 2:
        compare(*folders, output=output).print_to(console)
    else:
        for line in table.splitlines():
            console.say(line)


def reconstruct(
    settings: ReconstructConfig,
    checkpoint: ModelPath,
    video: Annotated[
        str, Data("The video or image to reconstruct, or a folder of videos, or of images.")
    ],
    *,
    output: Annotated[
        str,
        Output(
            "The MP4 to write, or an MKV, which keeps alpha and 16 bits; a PNG; of a folder another one."
        ),
    ],
) -> None:
    """Encode and decode videos, images or arrays with an autoencoder, and write the results."""
    from telecine.evaluation import reconstruct as reconstruction
    from telecine.training.interrupt import stop_on_signal

    # A signal such as SIGTERM would end the process at once, and leave the part that is written.
    interruption = KeyboardInterrupt(f"interrupted before {output} was complete")
    with stop_on_signal(at_once=interruption):
        psnr = reconstruction.reconstruct(checkpoint, video, output, settings)
    console.say(f"wrote {output}, PSNR {psnr:.2f} dB")


def report(
    runs: Annotated[list[str], "Folders of runs; their curves are drawn over each other."],
    *,
    output: Annotated[
        str | None,
        Output(
            "The page, an .html file, or a folder for report.html; its videos are in a folder beside it. By default "
            "report.html, in the run's folder for one run, in the current folder for several."
        ),
    ] = None,
    watch: Annotated[
        bool,
        "Write the page again whenever the runs have new values, until they are finished or Ctrl-C; the open page "
        "shows them by itself.",
    ] = False,
) -> None:
    """Write a page about runs: their clips, curves, settings and warnings. It needs no network."""
    from telecine.report.page import watch_runs, write_report

    printed: set[Path] = set()

    def print_once(page: Path) -> None:
        if page not in printed:
            printed.add(page)
            console.say(f"written to {page}; open it in a browser")

    if watch:
        watch_runs(runs, output, print_once)
    else:
        print_once(write_report(runs, output))


def recipes(
    action: Annotated[Literal["list", "show"], "What to do."],
    name: Annotated[str | None, "The recipe to show."] = None,
) -> None:
    """List or show recipes: settings that train well together, for `--config`.

    Raises:
        ValueError: The recipe to show is not named, or one is named that is not shown.
    """
    if action == "list":
        if name is not None:
            remedy = f"Use `recipes show {name}`."
            raise argument_error("name", 'left out with "list"', name, remedy)
        print("\n".join(describe_recipes()))
    elif name is None:
        raise argument_error(
            "name", "given", "nothing", "`telecine recipes list` prints all names."
        )
    else:
        print(find_recipe(name).read_text(encoding="utf-8"), end="")


def config(
    action: Annotated[Literal["validate", "schema"], "What to do."],
    files: Annotated[
        list[str], "The files, or recipes, to check: later ones override earlier ones."
    ] = [],  # noqa: B006
) -> None:
    """Check settings files, or print the JSON schema by which editors check and complete them.

    Raises:
        ValueError: There are no files to check, they have errors, or there are some with "schema".
    """
    if action == "schema":
        if files:
            names = " ".join(files)
            remedy = f"Use `config validate {names}` to check them."
            raise argument_error("files", 'left out with "schema"', names, remedy)
        print(json_schema(TrainConfig))
    elif not files:
        raise argument_error("files", "settings files or recipes", "nothing", "Pass one or more.")
    else:
        from telecine.objective.terms import check_functions

        settings = read_config(*files)
        check_functions(
            settings.objective,
            clips=settings.clips,
            sharding=settings.sharding,
            max_dropped=settings.predictive.max_dropped,
        )
        console.say(f"valid: {' '.join(files)}")


def checkpoint(
    action: Annotated[Literal["verify"], "What to do."],
    run: Annotated[str, "Folder of a run, or of one of its checkpoints."],
) -> None:
    """Verify that the files of a run's checkpoints are those that were written.

    Raises:
        ValueError: There is no checkpoint.
        DamagedError: A file is not as it was written.
    """
    from telecine.runs import DamagedError, Run
    from telecine.runs.checkpoints import Checkpoints

    folder = Path(run)
    folders = [folder]
    if not Checkpoints.is_checkpoint(folder):
        folders = [path for _, path in Run(folder).checkpoints.all()]
    if not folders:
        raise argument_error(
            "run", "the folder of a run or of a checkpoint", run, "Check the spelling."
        )
    errors = []
    for path in folders:
        damage = Checkpoints.damage_of(path)
        if damage is not None:
            errors.append(str(damage))
        console.say(f"{path}: {'intact' if damage is None else 'damaged'}")
    if errors:
        raise DamagedError(" ".join(errors))


_Nets = Annotated[list[str], "vgg (training), alex (evaluation); both by default."]


def weights(
    action: Annotated[Literal["fetch", "verify"], "What to do."],
    nets: _Nets = ["vgg", "alex"],  # noqa: B006
) -> None:
    """Download or verify the frozen networks of LPIPS."""
    from telecine.losses.perceptual.weights import fetch, verify

    for net in nets:
        console.say(f"{net}: {fetch(net) if action == 'fetch' else verify(net)}")
