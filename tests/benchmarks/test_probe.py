"""The probe of latents: its run, its measures of unseen videos, and what it prints and writes."""

import json
import shutil

import pytest
import torch

from telecine.autoencoders import CausalVAE
from telecine.report.video import write_video
from telecine.runs import Run
from telecine.settings import CausalVAEConfig, MeasuredClips

CLIPS = ["--num_frames", "5", "--height", "32", "--width", "32", "--max_clips", "4", "--device", "cpu"]
PROBE = ["--steps", "4", "--batch_size", "2", "--num_clips", "4"]
FIGURES = ["latent", "velocity loss", "share of the linear denoiser's", "seconds"]
DISTANCES = ["reconstructions to unseen clips", "samples to unseen clips", "samples to reconstructions"]


def moving(seed):
    """Return 26 frames of 32 x 32 that move over noise."""
    picture = torch.randint(256, (32, 58, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return torch.stack([picture[:, start : start + 32] for start in range(26)])


@pytest.fixture
def arguments(tmp_path):
    """The command line of a probe of a model on two videos; a third is unseen."""
    for seed, name in enumerate(("data/one.mp4", "data/two.mp4", "unseen/three.mp4")):
        write_video(tmp_path / name, moving(seed), fps=25)
    torch.manual_seed(0)
    CausalVAE(CausalVAEConfig(4, 8, 4, 4, base_channels=8, blocks_per_level=1)).save_pretrained(tmp_path / "model")
    return [str(tmp_path / "model"), "--data", str(tmp_path / "data"), *CLIPS, *PROBE, "-o", str(tmp_path / "probe")]


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_it_measures_unseen_videos_and_resumes_to_the_bit(
    arguments, run_here, tables_in, benchmark_module, monkeypatch, tmp_path
):
    network, output = (lambda video: video.mean((2, 3, 4))), tmp_path / "probe"
    monkeypatch.setattr(benchmark_module("probe_measures"), "load_feature_network", lambda *_: network)
    options = [*arguments, "--val_data", str(tmp_path / "unseen"), "--features", "transnetv2"]
    tables = tables_in(run_here("probe.py", *options, "--latents"))
    (header, (row,)), (levels, (of_levels,)), (figures, (latent,)), (_, correlations) = tables
    assert header == [*FIGURES, *DISTANCES]
    assert (len(levels), levels[0]) == (12, "latent")
    assert figures[1:4] == ["channels", "effective rank", "high frequencies"]
    assert float(latent[1]) == 4
    assert [cells[1:] for cells in correlations] == [["n/a"] * (len(figures) - 1)] * 2, "one model has no order"

    text = (output / "probe.json").read_text()
    (found,) = json.loads(text)["models"]
    assert all(0 < each < 10 for each in found["losses"] + found["linear_losses"])
    assert list(found["frechet"]) == DISTANCES
    assert all(each > 0 for each in found["frechet"].values())
    assert (output / found["picture"]).is_file()
    assert float(row[1]) == pytest.approx(sum(found["losses"]) / 11, abs=1e-3)
    assert float(of_levels[1]) == pytest.approx(found["losses"][0] / found["linear_losses"][0], abs=1e-3)

    (run,) = (Run(each) for each in output.iterdir() if (each / "metrics.jsonl").is_file())
    assert [step for step, _ in run.checkpoints.all()] == [3, 4]
    shutil.rmtree(run.checkpoints.path(4))
    run_here("probe.py", *options, "--latents")
    again = json.loads((output / "probe.json").read_text())
    assert again["models"][0].pop("seconds") > 0
    assert found.pop("seconds") > 0
    assert again["models"] == [found]


def test_controls_have_the_size_of_the_model(arguments, benchmark_module, monkeypatch, tmp_path):
    module, size = benchmark_module("probe"), {"num_frames": 5, "height": 32, "width": 32}
    monkeypatch.setattr(module, "NUM_FITTED", 4)
    measured = MeasuredClips(data=str(tmp_path / "data"), device="cpu", **size)
    config = module.ProbeConfig(val_data=str(tmp_path / "unseen"))
    sources = module.open_sources(arguments[:1], measured, config, with_controls=True)
    assert [each.title for each in sources] == [arguments[0], "Linear", "Noise"]
    video = torch.rand(2, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        model, linear, noise = (each.model.encode(video).mode() for each in sources)
        again = sources[2].model.encode(video[1:]).mode()
    assert model.shape == linear.shape == noise.shape
    torch.testing.assert_close(again, noise[1:])
    assert not torch.allclose(noise[0], noise[1])
    assert noise.std() == pytest.approx(1, abs=0.1)


def test_seen_videos_are_refused(arguments, run_here):
    with pytest.raises(ValueError, match="`data` must be ten videos or more, of which some are held out whole"):
        run_here("probe.py", *arguments)
    with pytest.raises(ValueError, match=r"`val_data` must be given with `--latents`, .* Add `--val_data my_unseen"):
        run_here("probe.py", *arguments, "--latents")


def test_latents_of_one_frame_have_no_correlation_in_time(arguments, benchmark_module, tmp_path):
    module = benchmark_module("probe")
    size = {"num_frames": 1, "height": 32, "width": 32, "max_clips": 2}
    measured = MeasuredClips(data=str(tmp_path / "data"), device="cpu", **size)
    config = module.ProbeConfig(val_data=str(tmp_path / "unseen"))
    sources = module.open_sources(arguments[:1], measured, config, with_controls=False)
    (figures,) = module.latent_figures(sources, measured, config)
    assert [name for name in figures if "neighbours" in name] == ["correlation of neighbours in space"]


def test_a_rank_correlation_is_that_of_the_order(benchmark_module):
    rank_correlation = benchmark_module("probe").rank_correlation
    assert rank_correlation([1.0, 2.0, 9.0], [0.1, 0.2, 0.3]) == "+1.00"
    assert rank_correlation([1.0, 2.0, 9.0], [0.3, 0.2, 0.1]) == "-1.00"
    assert rank_correlation([1.0, 2.0], [3.0, 3.0]) == "n/a"
