import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from telecine.base.yaml_files import read_yaml
from telecine.data import sample_videos
from telecine.settings.parse import find_recipe
from telecine.training import train

SMALL = {
    "steps": 4,
    "log_every": 1,
    "batch_size": 1,
    "val_clips": 1,
    "device": "cpu",
    "clips": {"num_frames": 5, "height": 32, "width": 32, "num_workers": 0},
    "causal_vae": {
        "base_channels": 8,
        "blocks_per_level": 1,
        "patch_size": 4,
        "channel_multipliers": [1],
    }
    | {"time_compression": 4, "spatial_compression": 4, "latent_channels": 4},
    "objective": {
        "adversarial_loss_weight": 0.0,
        "disc_start": 3,
        "gan": {"disc_train_start": 2},
        "perceptual": {"net": "alex"},
    },
    "discriminator": {"dim": 1},
}
WITH_GAN = SMALL | {"objective": SMALL["objective"] | {"adversarial_loss_weight": 1.0}}
EARLY = SMALL | {
    "objective": {"adversarial_loss_weight": 1.0, "disc_start": 1, "gan": {"disc_train_start": 0}}
}
MEAN = r"\d+\.\d+ ± \d+\.\d+"


class PixelDistance(nn.Module):
    """Stands for LPIPS, and for the slow DISTS and FSIM, which `test_distances_of_frames` measures."""

    def __init__(self, net=""):
        super().__init__()

    def forward(self, *, reconstruction, target):
        return (reconstruction - target).abs().mean((1, 2, 3))


@pytest.fixture
def fast_distances(benchmark_module, monkeypatch):
    for name in ("OfflineDISTS", "FSIM"):
        monkeypatch.setattr(benchmark_module("image_distances"), name, PixelDistance)
    benchmark_module("demo")  # imports LPIPS itself
    monkeypatch.setattr("telecine.losses.perceptual.LPIPS", PixelDistance)


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos" / "unseen"
    folder.mkdir(parents=True)
    (folder / "face.mp4").symlink_to(sample_videos()[0])
    return folder.parent


@pytest.mark.slow
@pytest.mark.benchmarks
@pytest.mark.usefixtures("without_pictures", "fast_distances")
def test_runs_are_compared_with_those_without_a_gan(run_here, tables_in, tmp_path, videos):
    grid = tmp_path / "grid.yaml"
    runs = tmp_path / "runs"
    grid.write_text(json.dumps({"no GAN": SMALL, "GAN": WITH_GAN}))
    command = f"gan.py {grid} --videos {videos} --runs {runs} --seeds 3 4".split()
    tables = tables_in(run_here(*command, "--picture", str(tmp_path / "gan.png")))
    assert len(tables) == 6
    for header, rows in tables[:4]:
        assert header[:4] == ["run", "seeds", "psnr", "ssim"]
        assert all(number == "2" for _, number, *_ in rows)
    names = [[row[0] for row in rows] for _, rows in tables]
    trivial = ["linear baseline", "no GAN, unsharp mask"]
    assert names == [["no GAN", *trivial, "GAN"], [*trivial, "GAN"]] * 2 + [["no GAN", "GAN"]] * 2
    sharpness_of_mask = float(tables[2][1][2][8].partition(" ")[0])
    assert 0.599 < sharpness_of_mask < 0.65, "the aim, or more without a mask"
    for (_, rows), pattern in zip(tables, (MEAN, f"[+-]{MEAN}( %)?\\*?"), strict=False):
        assert all(re.fullmatch(pattern, cell) for _, _, *cells in rows for cell in cells)
    header, (without, with_gan) = tables[4]
    assert header[3] == "clipped, discriminators"
    assert (without[3], with_gan[1]) == ("n/a", "0.000 ± 0.000")
    with Image.open(runs / "gan-3.png") as frames:
        assert frames.size == (6 * 34 + 2, 2 * 34 + 2), "a held-out clip and six of the other video"
    with Image.open(tmp_path / "gan.png") as drawn:
        assert drawn.size == (90 + 2 * 98, 3 * 98), "two clips of the inputs, and of both runs"

    times = {path: path.stat().st_mtime_ns for path in runs.iterdir()}
    assert len(times) == 2 * (2 * 2 + 1), "results and pictures of runs, and a start of each seed"
    assert tables_in(run_here(*command))[:5] == tables[:5]
    assert {path: path.stat().st_mtime_ns for path in runs.iterdir()} == times, "none is repeated"

    for settings, message in (
        ({"no GAN": SMALL | {"steps": 5}}, "`--runs` must be a folder of runs with these settings"),
        ({"GAN": WITH_GAN}, "must be runs of which the first ends with 'no GAN'"),
    ):
        grid.write_text(json.dumps(settings))
        with pytest.raises(ValueError, match=message):
            run_here(*command)


@pytest.mark.slow
@pytest.mark.benchmarks
@pytest.mark.usefixtures("without_pictures", "fast_distances")
def test_a_decoder_that_generates_has_a_row_for_each_number_of_steps(
    run_here, tables_in, tmp_path, videos
):
    grid = tmp_path / "grid.yaml"
    runs = tmp_path / "runs"
    flow = SMALL | {"causal_vae": SMALL["causal_vae"] | {"decoder": "flow"}}
    vae = flow["causal_vae"] | {"flow": {"one_step": True}}
    student = SMALL | {"teacher": "flow", "causal_vae": vae}
    grid.write_text(json.dumps({"no GAN": SMALL, "flow": flow, "one step": student}))
    command = f"gan.py {grid} --videos {videos} --runs {runs} --seeds 3".split()
    tables = tables_in(run_here(*command))
    rows = ["flow", "flow, 2 steps", "flow, 4 steps", "one step"]
    names = [[row[0] for row in rows] for _, rows in tables]
    trivial = ["linear baseline", "no GAN, unsharp mask"]
    assert names[:4] == [["no GAN", *trivial, *rows], [*trivial, *rows]] * 2
    assert names[4:] == [["no GAN", "flow", "one step"], ["no GAN", *rows]]
    metrics = json.loads((runs / "flow-3.json").read_text())["metrics"]
    name = next(name for name in metrics if name.endswith("psnr"))
    assert len({metrics[steps + name] for steps in ("", "2 steps/", "4 steps/")}) == 3
    teacher = load_file(runs / "flow-3" / "model.safetensors")
    assert any(name.startswith("decoder.noisy.") for name in teacher)


def test_a_run_that_diverged_is_in_the_last_table_only(benchmark_module):
    gan = benchmark_module("gan")
    runs = benchmark_module("gan_runs")
    outcomes = {
        ("GAN", 0): runs.Outcome({}, {}, ["not_finite"]),
        ("no GAN", 0): runs.Outcome({}, {"psnr": 20.0}, []),
    }
    assert gan.value_row("GAN", [0, 1], outcomes, {"psnr": 2}) == ["GAN", "0", "n/a"]
    assert gan.value_row("no GAN", [0, 1], outcomes, {"psnr": 2}) == ["no GAN", "1", "20.00"]
    assert gan.difference_row("GAN", "no GAN", [0, 1], outcomes, {"ssim": 2}) == ["GAN", "0", "n/a"]
    assert gan.health_row("GAN", [0, 1], outcomes)[-1] == "not_finite"


def test_only_runs_that_start_alike_share_their_start(benchmark_module):
    runs = benchmark_module("gan_runs")
    base, with_gan, early = (runs.read_config(settings) for settings in (SMALL, WITH_GAN, EARLY))
    lower = runs.read_config(SMALL, {"optimizer": {"lr": 1e-5}})
    assert [runs.shares_start(config, base) for config in (base, with_gan, early, lower)] == [
        True,
        True,
        False,
        False,
    ]


@pytest.fixture
def run_until(benchmark_module, cached_weights, tmp_path):
    """Return a function that trains to a step, from the saved state of another run if there is one."""
    module = benchmark_module("gan_runs")

    def run_until(step, config, saved=None):
        run = module.Run(
            config, module.build_clips(config, module.build_autoencoder(config)), tmp_path
        )
        if saved is not None:
            run.load(saved)
        run.train_until(step)
        return run

    return run_until


def demo_with(benchmark_module, *changes):
    config = benchmark_module("gan_runs").read_config(read_yaml(find_recipe("demo")), *changes)
    return replace(config, trackers=())


@pytest.mark.slow
@pytest.mark.benchmarks
def test_runs_equal_the_trainers_bit_for_bit(
    benchmark_module, run_until, without_pictures, tmp_path
):
    base, config = (demo_with(benchmark_module, changes) for changes in (SMALL, WITH_GAN))
    trained = train(replace(config, output_dir=str(tmp_path / "run")))
    (weights,) = (load_file(path) for path in (trained.checkpoint / "ema").glob("*.safetensors"))
    for run in (run_until(4, config), run_until(4, config, run_until(2, base).save())):
        averages = run.state.ema.averages
        assert len(averages) > 10
        assert all(torch.equal(weights[name], average) for name, average in averages.items())


@pytest.mark.slow
@pytest.mark.benchmarks
def test_distances_of_frames(benchmark_module, cached_weights):
    distances = benchmark_module("image_distances")
    target = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    brighter = (target + 0.2).clamp(-1, 1)
    grey = torch.zeros_like(target)
    dists = distances.OfflineDISTS()
    fsim = distances.FSIM()
    assert dists(reconstruction=target, target=target) == pytest.approx([0, 0], abs=1e-5)
    # Of the package `dists-pytorch` itself with the same weights of VGG16, called with frames in [0, 1].
    assert dists(reconstruction=grey, target=target) == pytest.approx([0.5237, 0.5321], abs=1e-4)
    assert (dists(reconstruction=brighter, target=target) < 0.1).all()
    assert fsim(reconstruction=target, target=target) == pytest.approx([1, 1], abs=1e-5)
    assert (fsim(reconstruction=grey, target=target) < 0.9).all()


def test_the_shipped_runs_are_valid(benchmark_module, tmp_path):
    module = benchmark_module("gan_runs")
    runs = module.Runs(Path(module.__file__).with_name("gan.yaml"), tmp_path)
    assert len(runs.settings) == 7
    assert runs.teachers == {"flow, one step": "flow", "flow, one step and GAN": "flow"}
    for name, teacher in runs.teachers.items():
        student = runs.config(name, 1).causal_vae
        other = runs.config(teacher, 1).causal_vae
        assert student == replace(other, flow=replace(other.flow, one_step=True)), (
            "the weights of the teacher fit"
        )
