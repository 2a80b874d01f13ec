import pytest
from PIL import Image

from telecine.data import sample_videos

SMALL = """
steps: 2
val_every: 2
save_every: 2
log_every: 1
batch_size: 1
val_clips: 1
device: cpu
trackers: []
linear_baseline: false
latent_clips: 2
clips: {num_frames: 5, height: 32, width: 32, num_workers: 0, cache: true}
causal_vae: {base_channels: 8, blocks_per_level: 1}
objective: {perceptual_weight: 0}
"""


@pytest.mark.slow
@pytest.mark.benchmarks
@pytest.mark.usefixtures("without_pictures")
def test_each_seed_is_compared_with_the_baseline_on_each_set_of_clips(
    run_here, tables_in, tmp_path
):
    (tmp_path / "small.yaml").write_text(SMALL)
    face = sample_videos()[0]
    options = f"--config {tmp_path}/small.yaml --unseen {face} -o {tmp_path}/runs"
    header, rows = tables_in(run_here("demo.py", "--seeds", "3", "4", *options.split()))[-1]
    assert header == ["model", "clips", "PSNR", "SSIM", "LPIPS-Alex", "LPIPS-VGG"]
    assert [row[:2] for row in rows] == [
        [model, clips]
        for model in ("linear baseline", "seed 3", "seed 4")
        for clips in ("held out", face.name)
    ]
    assert rows[2][2:] != rows[4][2:]
    assert float(rows[0][2]) == pytest.approx(float(rows[2][2]), abs=1.0)
    with Image.open(tmp_path / "runs" / "held_out.png") as picture:
        assert picture.size == (100 + 4, 3 * 100 + 4), (
            "three rows of 32 pixels, three times as large"
        )


@pytest.mark.slow
@pytest.mark.benchmarks
def test_linear_autoencoders_with_more_channels_are_better_on_held_out_clips(
    run_here, tables_in, tmp_path
):
    (tmp_path / "small.yaml").write_text(SMALL)
    options = f"--seeds --config {tmp_path}/small.yaml --latents 4x8x8x2 4x8x8x8"
    ((_, [baseline, few, many]),) = tables_in(run_here("demo.py", *options.split()))
    names = ["linear baseline", "linear, 4x8x8x2", "linear, 4x8x8x8"]
    assert [baseline[0], few[0], many[0]] == names
    better = [float(y) - float(x) for x, y in zip(few[2:], many[2:], strict=True)]
    assert better[0] > 1
    assert better[1] > 0 > max(better[2:])


@pytest.mark.parametrize("latent", ["4x8x8", "4x8x16x2"])
def test_a_latent_that_is_none(run_here, latent):
    assert f"as in 4x8x8x16, but got {latent}" in run_here(
        "demo.py", "--latents", latent, returns=2
    )
