"""Runs on grey and RGBA, of 8 and 16 bits."""

import io
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from rich.console import Console

from telecine.data import index_video, read_clip, sample_videos
from telecine.evaluation.evaluate import evaluate
from telecine.evaluation.reconstruct import reconstruct
from telecine.models.load import load_autoencoder
from telecine.report.video import write_video
from telecine.settings import (
    DiscriminatorConfig,
    EvaluateConfig,
    LatentsConfig,
    ObjectiveConfig,
    PerceptualConfig,
    PixelFormat,
    ReconstructConfig,
)
from telecine.tools.data_report.inspect import inspect_data
from telecine.tools.latents.measures import measure_latent_spaces
from telecine.training import train
from telecine.training.build import build_autoencoder
from telecine.training.clips import build_clips
from telecine.training.memory import plan_update
from telecine.training.run import dry_run

CASES = [("grey", 16, 1), ("rgba", 8, 4)]


def quiet():
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def alpha_video(tmp_path_factory):
    """Return a real video of 40 frames at 64 x 48 pixels with a moving, soft alpha."""
    frames = read_clip(index_video(sample_videos()[0]), 0, 40, size=(48, 64))
    rows, columns = torch.arange(48)[:, None], torch.arange(64)
    time = torch.arange(40)[:, None, None]
    alpha = (128 + 200 * torch.cos((rows + time) / 9) * torch.sin(columns / 7)).clamp(0, 255).to(torch.uint8)
    path = tmp_path_factory.mktemp("alpha") / "face.mkv"
    write_video(path, torch.cat([frames, alpha[..., None]], dim=-1), 25)
    return path


def of_channels(config, video, channels, bit_depth, number):
    clips = replace(config.clips, channels=channels, bit_depth=bit_depth)
    return replace(config, data=str(video), clips=clips, causal_vae=replace(config.causal_vae, in_channels=number))


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "bit_depth", "number"), [("rgba", 16, 4)])
def test_a_run_and_all_that_reads_it(
    tiny, everything, alpha_video, tmp_path, monkeypatch, with_pictures, channels, bit_depth, number
):
    monkeypatch.setattr("telecine.training.baseline.NUM_CLIPS", 4)
    config = of_channels(tiny(steps=2, val_every=2, **everything), alpha_video, channels, bit_depth, number)
    config = replace(config, linear_start=True, linear_baseline=True, latent_cache=None)
    result = train(config, console=quiet())
    names = {"psnr", "ssim", "lpips_alex", *(("psnr_alpha", "psnr_composite") if number == 4 else ())}
    assert set(result.last) == names
    model = load_autoencoder(str(result.run))
    assert model.in_channels == number
    folder = result.checkpoint / "ema"
    assert json.loads((folder / "config.json").read_text())["in_channels"] == number
    for checkpoint, size in ((result.run, {}), (folder, {"num_frames": 5, "height": 32, "width": 32})):
        found = evaluate(checkpoint, EvaluateConfig(data=str(alpha_video), max_clips=1, device="cpu", **size))
        assert names <= found.metrics.keys()
    space = measure_latent_spaces([result.run], LatentsConfig(data=str(alpha_video), max_clips=1, device="cpu"))
    assert len(space.models[0].channels.std) == 4
    output = tmp_path / "out.mkv"
    reconstruct(result.run, alpha_video, output, ReconstructConfig(num_frames=5, bit_depth=bit_depth, device="cpu"))
    assert read_clip(index_video(output), 0, 40, pixels=PixelFormat(channels, bit_depth)).shape == (40, 48, 64, number)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "bit_depth"), [(2, 8), (1, 16)])
def test_a_run_on_arrays_and_all_that_reads_it(tiny, tmp_path, with_pictures, number, bit_depth):
    data, low, high = tmp_path / "data", -1.0, 3.0
    data.mkdir()
    rows, columns, time = torch.meshgrid(torch.arange(48), torch.arange(64), torch.arange(12), indexing="ij")
    waves = torch.stack([torch.cos((rows + time * (1 + k)) / 9) * torch.sin(columns / 7) for k in range(number)])
    for index in range(2):
        np.save(data / f"{index}.npy", (low + (waves.roll(index, 1).numpy() + 1) * (high - low) / 2).astype("f4"))
    objective = ObjectiveConfig(perceptual=PerceptualConfig(net="alex"))
    changes = {"objective": objective, "discriminator": DiscriminatorConfig("none"), "val_clips": 1}
    config, console = tiny(steps=1, val_every=1, **changes), quiet()
    clips = replace(config.clips, channels=number, layout="C H W T", range=(low, high), bit_depth=bit_depth)
    config = replace(config, data=str(data), clips=clips, causal_vae=replace(config.causal_vae, in_channels=number))
    result = train(config, console=console)
    is_off = number == 2
    assert set(result.last) == {"psnr", "ssim", *([] if is_off else ["lpips_alex"])}
    assert ("LPIPS is off: it needs RGB frames" in console.file.getvalue().replace("\n", " ")) == is_off
    saved = json.loads(next((result.run / "validation").rglob("*.json")).read_text())["clips"][0]
    assert bool(saved["colours"]) == (number == 1)
    size = {"num_frames": 5, "height": 32, "width": 32, "layout": "C H W T", "range": (low, high)}
    for checkpoint, options in ((result.run, {}), (result.checkpoint / "ema", size)):
        measured = evaluate(checkpoint, EvaluateConfig(data=str(data), max_clips=1, device="cpu", **options))
        assert ("lpips_alex" in measured.metrics) != is_off
    for options in ({"flow": "dis"}, {"flat": True}) if is_off else ():
        with pytest.raises(ValueError, match=f"`{next(iter(options))}` must be left out unless clips have 1, 3 or 4"):
            evaluate(result.run, EvaluateConfig(data=str(data), max_clips=1, device="cpu", **options))
    space = measure_latent_spaces([result.run], LatentsConfig(data=str(data), max_clips=1, device="cpu"))
    assert len(space.models[0].channels.std) == 4
    reconstruct(result.run, data, tmp_path / "out", ReconstructConfig(num_frames=5, device="cpu"))
    stored = np.load(tmp_path / "out" / "0.npy")
    assert (stored.shape, stored.dtype) == ((number, 48, 64, 12), np.float32)
    assert low <= stored.min() < stored.max() <= high
    assert [row.codec for row in inspect_data(config, num_clips=2).files] == ["array"] * 2
    with pytest.raises(ValueError, match=r"`clips.channels` must be one of"):
        dry_run(replace(config, clips=replace(clips, channels="rgb")), console=quiet())


def test_terms_that_know_rgb_are_refused_for_other_channels(tiny):
    config = tiny()
    clips = replace(config.clips, channels=2)
    assert replace(config, clips=clips).objective.perceptual_weight == 0
    objective = replace(config.objective, terms={"gram": 0.1})
    with pytest.raises(ValueError, match=r"`clips.channels` must be grey, rgb or rgba for gram"):
        replace(config, clips=clips, objective=objective)


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "bit_depth", "number"), CASES)
def test_a_plan_and_a_dry_run(tiny, alpha_video, channels, bit_depth, number):
    objective = replace(tiny().objective, grad_penalty_loss_weight=0.0)
    config = of_channels(tiny(objective=objective), alpha_video, channels, bit_depth, number)
    assert dry_run(config, console=quiet()).values["train/total_loss"] > 0
    assert plan_update(config, device_type="cpu").peak > 0
    wrong = replace(config, causal_vae=replace(config.causal_vae, in_channels=3))
    for run in (dry_run, partial(plan_update, device_type="cpu")):
        with pytest.raises(ValueError, match=r"`clips.channels` must be one of 3 channels"):
            run(wrong)


def test_a_model_gets_the_channels_of_the_data(tiny, alpha_video, tmp_path, caplog):
    rgb = build_autoencoder(tiny())
    rgb.save_pretrained(tmp_path / "rgb")
    config = of_channels(tiny(model=str(tmp_path / "rgb")), alpha_video, "rgba", 8, 3)
    model = build_autoencoder(config)
    assert model.in_channels == 4
    assert "change from 3 to 4 channels" in caplog.text
    assert build_clips(config, model).val[0]["video"].shape == (4, 5, 32, 32)
