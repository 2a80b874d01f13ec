"""The commands. The signature of each function is its command line, and its docstring is its help.

Parameters before `*` are positional, those after it are options. `config` has the settings. What needs PyTorch is
imported where it is used, so that help and mistakes need not wait for it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from telecine.base.checks import argument_error, check_count
from telecine.base.terminal import PlainConsole
from telecine.cli.parser import command, completion_script
from telecine.settings import DistillConfig, EvaluateConfig, LatentsConfig, ReconstructConfig, TrainConfig

# The settings of training that `--help` shows.
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
console = PlainConsole()


@command(TrainConfig, MOST_USED, runs_code=True)
def run_train(
    settings: TrainConfig, *, steal_lock: bool = False, change_data: bool = False, dry_run: bool = False
) -> None:
    """Train a video autoencoder. Run the same command again to resume from the newest checkpoint.

    Args:
        steal_lock: Train although another process seems to train in the same folder: it is gone, with its machine.
        change_data: Resume although --data is other data than before. Without it, such a run is refused.
        dry_run: Do all that the run would do up to its first update, and one update with every term on; print its
            time, memory and losses, and keep nothing.
    """
    from accelerate import PartialState

    from telecine.cli.tables import print_dry_run, print_result
    from telecine.training import train
    from telecine.training.run import dry_run as try_update

    if dry_run:
        tried = try_update(settings, console=console)
        if PartialState().is_main_process:
            print_dry_run(console, tried, settings.objective, num_steps=settings.steps)
        return
    result = train(settings, console=console, steal_lock=steal_lock, change_data=change_data)
    if PartialState().is_main_process:
        print_result(console, result)


@command(DistillConfig, ("teacher", "student", *(each for each in MOST_USED if each != "model")), runs_code=True)
def run_distill(settings: DistillConfig, *, steal_lock: bool = False, change_data: bool = False) -> None:
    """Train a small decoder, or autoencoder, for the latents of another one; otherwise as `train`.

    Args:
        steal_lock: Train although another process seems to train in the same folder: it is gone, with its machine.
        change_data: Resume although --data is other data than before. Without it, such a run is refused.
    """
    from accelerate import PartialState

    from telecine.cli.tables import print_result
    from telecine.training.distillation import distill

    result = distill(settings, console=console, steal_lock=steal_lock, change_data=change_data)
    if PartialState().is_main_process:
        print_result(console, result)


@command(TrainConfig, MOST_USED, runs_code=True)
def run_plan(settings: TrainConfig, *, memory: str | None = None, num_processes: int = 8) -> None:
    """Print the memory, operations and time of a training run, and what fits a device; nothing is trained.

    Args:
        memory: Memory of the device to plan for, e.g. 80GiB. By default what is free on the device at hand.
        num_processes: Number of processes that sharding is planned for.
    """
    from telecine.base.devices import parse_memory
    from telecine.cli.tables import print_plan
    from telecine.training.planning.capacity import make_plan

    available = None if memory is None else parse_memory(memory)
    check_count("num_processes", num_processes)
    print_plan(console, make_plan(settings, available, num_processes))


@command(
    TrainConfig,
    ("val_data", "seed", "batch_size", "clips.num_frames", "clips.height", "clips.width", "clips.stride"),
    runs_code=True,
)
def run_data(settings: TrainConfig, path: str, *, output: str = "data_report", num_clips: int = 24) -> None:
    """Show what training will see: its first clips, the files, copies, cuts, reading speed; nothing is trained.

    Args:
        path: The training data, as --data of `telecine train`.
        output: Folder for data.html, clips.mp4 and data.json.
        num_clips: Number of clips to read and show.
    """
    from telecine.cli.tables import print_data
    from telecine.data.find import check_output
    from telecine.data_report.inspect import inspect_data
    from telecine.data_report.page import write_data

    check_output("--output", path, output)
    report = inspect_data(replace(settings, data=path), num_clips)
    page = write_data(report, Path(output))
    print_data(console, report)
    console.print(f"written to {page.parent}; open {page} in a browser", soft_wrap=True)


@command(EvaluateConfig, runs_code=True)
def run_evaluate(
    settings: EvaluateConfig,
    checkpoint: str | None = None,
    *,
    output: str | None = None,
    compare: tuple[str, str] | None = None,
) -> None:
    """Measure the reconstructions of an autoencoder, or given videos; or compare two evaluations.

    Args:
        checkpoint: Folder of a run (its last checkpoint), of a checkpoint or of a saved autoencoder, or its name on
            the Hub; or a folder of videos, the reconstructions of those in --data with the same names.
        output: Folder for metrics.json (the whole set), clips.json, frames.json and frames.png (by position in a clip)
            and protocol.json (how it was measured); with --compare, for comparison.json and its plots.
        compare: Compare two evaluations, given by their output folders.
    """
    from telecine.cli.tables import print_comparison, print_evaluation
    from telecine.evaluation.compare import compare as compare_evaluations
    from telecine.evaluation.evaluate import evaluate

    if compare is not None:
        print_comparison(console, compare_evaluations(*compare, output=output))
    elif checkpoint is None:
        raise argument_error("checkpoint", "given", "nothing", "Pass a run, a model or a folder of reconstructions.")
    else:
        evaluation = evaluate(checkpoint, settings, output=output)
        if not evaluation.is_main_process:
            return
        print_evaluation(console, evaluation)
    if output is not None:
        console.print(f"written to {output}", soft_wrap=True)


@command(ReconstructConfig, runs_code=True)
def run_reconstruct(settings: ReconstructConfig, checkpoint: str, video: str, *, output: str) -> None:
    """Encode and decode a video with an autoencoder, and write the result.

    Args:
        checkpoint: Folder of a run (its last checkpoint), of a checkpoint, or of a saved autoencoder.
        video: The video to reconstruct.
        output: The MP4 to write.
    """
    from telecine.evaluation.reconstruct import reconstruct

    psnr = reconstruct(checkpoint, video, output, settings)
    console.print(f"wrote {output}, PSNR {psnr:.2f} dB", soft_wrap=True)


@command(LatentsConfig, runs_code=True)
def run_latents(settings: LatentsConfig, models: list[str], *, output: str = "latents") -> None:
    """Measure the latent spaces of autoencoders (channels, spectrum, equivariance, noise, drift), on a page.

    Args:
        models: Folders of runs (their last checkpoints), of checkpoints or of saved autoencoders, or names on the Hub;
            several are shown side by side.
        output: Folder for latents.html and latents.json.
    """
    from telecine.cli.tables import print_latents
    from telecine.evaluation.latent_page import write_latents
    from telecine.evaluation.latents import measure_latent_spaces

    report = measure_latent_spaces(models, settings)
    print_latents(console, report)
    page = write_latents(report, Path(output))
    console.print(f"written to {page.parent}; open {page} in a browser", soft_wrap=True)


@command()
def run_report(runs: list[str], *, output: str | None = None, watch: bool = False) -> None:
    """Write a page about runs: their clips, curves, settings and warnings. It needs no network.

    Args:
        runs: Folders of runs; their curves are drawn over each other.
        output: The page, an .html file; its videos are in a folder beside it. By default report.html, in the run's
            folder for one run, in the current folder for several.
        watch: Write the page again whenever the runs have new values, until they are finished or Ctrl-C; the open page
            shows them by itself.
    """
    from telecine.report.page import write_report
    from telecine.report.watch import watch as watch_runs

    def written(page: Path) -> None:
        console.print(f"written to {page}; open it in a browser", soft_wrap=True)

    if watch:
        watch_runs(runs, output, written)
    else:
        written(write_report(runs, output))


@command()
def run_recipes(action: Literal["list", "show", "copy"], name: str | None = None, file: str | None = None) -> None:
    """List, show or copy recipes: settings that train well together, for `--config`.

    Args:
        action: What to do.
        name: The recipe to show or to copy.
        file: The file to copy it to, which must not exist.
    """
    from telecine.settings.recipes import copy_recipe, describe_recipes, find_recipe

    if action == "list":
        print("\n".join(describe_recipes()))
    elif name is None:
        raise argument_error("name", "given", "nothing", "`telecine recipes list` prints all names.")
    elif action == "show":
        print(find_recipe(name).read_text(encoding="utf-8"), end="")
    elif file is None:
        raise argument_error("file", "given", "nothing", f"For example: telecine recipes copy {name} my.yaml")
    else:
        print(f"written to {copy_recipe(name, file)}")


@command(runs_code=True)
def run_config(action: Literal["validate", "schema"], files: list[str] = []) -> None:  # noqa: B006 - never changed
    """Check settings files, or print the JSON schema by which editors check and complete them.

    Args:
        action: What to do.
        files: The files, or recipes, to check: later ones override earlier ones.
    """
    from telecine.settings.parse import read_config
    from telecine.settings.validate import json_schema

    if action == "schema":
        print(json_schema(TrainConfig))
    elif not files:
        raise argument_error("files", "settings files or recipes", "nothing", "Pass one or more.")
    else:
        from telecine.objective.terms import check_functions

        settings = read_config(*files)
        check_functions(settings.objective, sharding=settings.sharding)
        console.print(f"valid: {' '.join(files)}", soft_wrap=True)


@command()
def run_completion(shell: Literal["bash", "zsh", "fish"]) -> None:
    """Print the script by which a shell completes commands, settings, values and recipes.

    Args:
        shell: The shell.
    """
    print(completion_script(shell))


@command()
def run_checkpoint(action: Literal["verify"], run: str) -> None:
    """Verify that the files of a run's checkpoints are those that were written.

    Args:
        action: What to do.
        run: Folder of a run, or of one of its checkpoints.
    """
    from telecine.runs import DamagedError, Run
    from telecine.runs.checkpoints import damage_of, is_checkpoint

    folder = Path(run)
    folders = [folder] if is_checkpoint(folder) else [each for _, each in Run(folder).checkpoints.all()]
    if not folders:
        raise argument_error("run", "the folder of a run or of a checkpoint", run, "Check the spelling.")
    damage = {each: damage_of(each) for each in folders}
    for each, found in damage.items():
        console.print(f"{each}: {'intact' if found is None else 'damaged'}", soft_wrap=True)
    if errors := [found for found in damage.values() if found is not None]:
        raise DamagedError(" ".join(map(str, errors)))


@command()
def run_weights(action: Literal["fetch", "verify", "list"], nets: list[str] = ["vgg", "alex"]) -> None:  # noqa: B006
    """Download, verify or list the frozen networks of LPIPS.

    Args:
        action: What to do.
        nets: vgg (training), alex (evaluation); both by default.
    """
    from telecine.cli.tables import print_weights
    from telecine.perceptual.weights import fetch, verify

    if action == "list":
        return print_weights(console)
    for net in nets:
        console.print(f"{net}: {fetch(net) if action == 'fetch' else verify(net).path}", soft_wrap=True)
    return None
