from dataclasses import replace

import pytest
from PIL import Image
from rich.console import Console

from telecine.data import sample_videos
from telecine.training import train
from telecine.training.config_file import config_from


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_runs_beside_their_linear_start(run_here, tables_in, benchmark_module, tmp_path):
    unseen = tmp_path / "videos" / "unseen"
    unseen.mkdir(parents=True)
    (unseen / "face.mp4").symlink_to(sample_videos()[0])
    fast = {"optimizer": {"lr": 0.01, "warmup_steps": 0, "ema_decay": 0.0}, "batch_size": 1}
    config = config_from(benchmark_module("training").SMOKE, {"objective": {"adversarial_loss_weight": 0.0}}, fast)
    config = replace(config, output_dir=str(tmp_path / "first"), steps=2, device="cpu", trackers=())
    train(config, console=Console(quiet=True))
    picture = tmp_path / "frames.png"
    command = ("finished_runs.py", config.output_dir, "--videos", str(unseen.parent))
    first, second = tables_in(run_here(*command, "--picture", str(picture)))
    for _, rows in (first, second):
        (start, _, *of_start), (run, _, *of_run) = rows
        assert (start, run) == ("linear start", "first")
        assert of_start != of_run
    with Image.open(picture) as drawn:
        assert drawn.height == 3 * 98, "the inputs, the start, and the run"
    with pytest.raises(ValueError, match="`runs` must be folders of runs with a checkpoint"):
        run_here("finished_runs.py", config.output_dir, str(tmp_path), "--videos", str(unseen.parent))
