"""The command `telecine data`."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from telecine.base.terminal import console
from telecine.settings import TrainConfig
from telecine.settings.argument_kinds import Data, Output


def data(
    settings: TrainConfig,
    path: Annotated[str, Data("The training data, as --data of `telecine train`.")],
    *,
    output: Annotated[
        str,
        Output(
            "Folder for data.html, clips.mp4, data.json and a list for --data: scenes.csv if there are cuts, else "
            "grouped.csv if there are copies."
        ),
    ] = "data_report",
    num_clips: Annotated[int, "Number of clips to read and show."] = 24,
    max_frames: Annotated[
        int,
        "Search files with up to this many frames together for cuts: a core decodes some hundred a second.",
    ] = 100_000,
) -> None:
    """Show what training will see: clips of all files, the files, copies, cuts, reading speed; nothing is trained."""
    from telecine.tools.data_report.examine import examine_data
    from telecine.tools.data_report.page import print_data, write_data

    report = examine_data(replace(settings, data=path), num_clips, max_frames)
    page = write_data(report, Path(output))
    print_data(console, report)
    if report.scenes:
        console.say(
            f"train on the scenes between cuts with `--data {shlex.quote(str(page.with_name('scenes.csv')))}`"
        )
    console.say(f"written to {page.parent}; open {page} in a browser")
