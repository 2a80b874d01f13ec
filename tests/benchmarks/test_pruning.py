import pytest
from torch import nn

from telecine.data import sample_videos

SETTINGS = """
clips: {num_frames: 5, height: 32, width: 32, num_workers: 0, num_clips: 2}
batch_size: 1
val_clips: 1
latent_clips: 1
trackers: []
objective: {adversarial_loss_weight: 0.0, perceptual: {net: alex}}
discriminator: {video: none}
"""


class PixelDistance(nn.Module):
    """Stands for LPIPS and DISTS."""

    def __init__(self, net=""):
        super().__init__()

    def forward(self, *, reconstruction, target):
        return (reconstruction - target).abs().mean((1, 2, 3))


@pytest.mark.slow
@pytest.mark.benchmarks
@pytest.mark.usefixtures("without_pictures")
def test_inherited_decoders_beside_one_from_nothing(
    run_here, tables_in, benchmark_module, tmp_path, monkeypatch
):
    monkeypatch.setattr(benchmark_module("image_distances"), "OfflineDISTS", PixelDistance)
    benchmark_module("demo")  # imports LPIPS itself
    monkeypatch.setattr("telecine.losses.perceptual.LPIPS", PixelDistance)
    unseen = tmp_path / "unseen"
    unseen.mkdir()
    (unseen / "face.mp4").symlink_to(sample_videos()[0])
    (tmp_path / "few.yaml").write_text(SETTINGS)
    runs = tmp_path / "runs"
    command = f"pruning.py tiny --data {sample_videos()[1]} --unseen {unseen} --runs {runs}"
    command += f" --config {tmp_path}/few.yaml --unseen_clips 1 --prune_clips 1 --keep 0.25"
    command += " --steps 1 --device cpu --importance gradient none"
    printed = run_here(*command.split())
    assert " of the operations, channels [40, 80] of [96, 192], 1 updates" in printed
    ((header, rows),) = tables_in(printed)
    assert header[3:8] == ["psnr", "lpips_alex", "lpips_vgg", "dists", "flicker"]
    assert [row[0] for row in rows] == ["teacher", "linear", "0.25, gradient", "0.25, none"]
    times = {path: path.stat().st_mtime_ns for path in runs.glob("*.json")}
    ((_, again),) = tables_in(run_here(*command.split()))
    assert [row[:8] for row in again] == [row[:8] for row in rows]
    for path, time in times.items():
        assert path.stat().st_mtime_ns == time, "nothing is trained twice"
