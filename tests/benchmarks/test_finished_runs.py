from dataclasses import replace

import pytest
from PIL import Image
from rich.console import Console
from telecine.training.config_file import config_from

from telecine.data import sample_videos
from telecine.training import train


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_runs_beside_their_linear_start(run_here, tables_in, benchmark_module, tmp_path):
    unseen = tmp_path / "videos" / "unseen"
    unseen.mkdir(parents=True)
    (unseen / "face.mp4").symlink_to(sample_videos()[0])
    fast = {"optimizer": {"lr": 0.01, "warmup_steps": 0, "ema_decay": 0.5}, "batch_size": 1}
    config = config_from(benchmark_module("training").SMOKE, {"objective": {"adversarial_loss_weight": 0.0}}, fast)
    config = replace(config, output_dir=str(tmp_path / "first"), steps=2, device="cpu", trackers=())
    train(config, console=Console(quiet=True))
    picture = tmp_path / "frames.png"
    command = ("finished_runs.py", config.output_dir, "--videos", str(unseen.parent))
    held_out, on_unseen = tables_in(run_here(*command, "--picture", str(picture)))
    for _, rows in (held_out, on_unseen):
        (start, _, *of_start), (run, _, *of_run) = rows
        assert (start, run) == ("linear start", config.output_dir)
        assert of_start != of_run
    assert held_out != on_unseen
    with Image.open(picture) as drawn:
        assert drawn.height == 3 * 98, "the inputs, the start, and the run"
    other = replace(config, output_dir=str(tmp_path / "other"), clips=replace(config.clips, scale_jitter=2.0))
    train(other, console=Console(quiet=True))
    with pytest.raises(ValueError, match="but got another `clips` in"):
        run_here("finished_runs.py", config.output_dir, other.output_dir, "--videos", str(unseen.parent))
