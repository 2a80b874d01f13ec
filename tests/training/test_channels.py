"""Runs on grey and RGBA, of 8 and 16 bits."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from telecine.data import index_video, read_clip, sample_videos
from telecine.evaluation.evaluate import evaluate
from telecine.evaluation.reconstruct import reconstruct
from telecine.models.load import load_autoencoder
from telecine.settings import (
    DiscriminatorConfig,
    EvaluateConfig,
    LatentsConfig,
    ObjectiveConfig,
    PerceptualConfig,
    PixelFormat,
    ReconstructConfig,
)
from telecine.tools.data_report.examine import examine_data
from telecine.tools.latents.measures import measure_latent_spaces
from telecine.training import train
from telecine.training.build import build_autoencoder
from telecine.training.clips import build_clips
from telecine.training.memory import plan_update
from telecine.training.run import dry_run
from telecine.video.write import write_video

from .helpers import recorder


@pytest.fixture(scope="module")
def alpha_video(tmp_path_factory):
    """Return a real video of 40 frames at 64 x 48 pixels with a moving, soft alpha."""
    frames = read_clip(index_video(sample_videos()[0]), 0, 40, size=(48, 64))
    rows = torch.arange(48)[:, None]
    columns = torch.arange(64)
    time = torch.arange(40)[:, None, None]
    alpha = (
        (128 + 200 * torch.cos((rows + time) / 9) * torch.sin(columns / 7))
        .clamp(0, 255)
        .to(torch.uint8)
    )
    path = tmp_path_factory.mktemp("alpha") / "face.mkv"
    write_video(path, torch.cat([frames, alpha[..., None]], dim=-1), 25)
    return path


def with_channels(config, video, channels, bit_depth, number):
    clips = replace(config.clips, channels=channels, bit_depth=bit_depth)
    return replace(
        config,
        data=str(video),
        clips=clips,
        causal_vae=replace(config.causal_vae, in_channels=number),
    )


@pytest.mark.slow
def test_a_run_and_all_that_reads_it(
    tiny, everything, alpha_video, tmp_path, few_clips, with_pictures
):
    config = with_channels(tiny(steps=2, val_every=2, **everything), alpha_video, "rgba", 16, 4)
    config = replace(config, linear_start=True, linear_baseline=True)
    result = train(config)
    names = {"psnr", "ssim", "lpips_alex", "psnr_alpha", "psnr_composite"}
    assert set(result.last) == names
    assert load_autoencoder(str(result.run)).in_channels == 4
    folder = result.checkpoint / "ema"
    assert json.loads((folder / "config.json").read_text())["in_channels"] == 4
    source = {"data": str(alpha_video), "max_clips": 1, "device": "cpu"}
    for checkpoint, size in (
        (result.run, {}),
        (folder, {"num_frames": 5, "height": 32, "width": 32}),
    ):
        assert names <= evaluate(checkpoint, EvaluateConfig(**source, **size)).metrics.keys()
    space = measure_latent_spaces([result.run], LatentsConfig(**source))
    assert len(space.models[0].channels.std) == 4
    output = tmp_path / "out.mkv"
    reconstruct(
        result.run, alpha_video, output, ReconstructConfig(num_frames=5, bit_depth=16, device="cpu")
    )
    assert read_clip(index_video(output), 0, 40, pixels=PixelFormat("rgba", 16)).shape == (
        40,
        48,
        64,
        4,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "bit_depth", "metrics"), [(2, 8, set()), (1, 16, {"lpips_alex"})]
)
def test_a_run_on_arrays_and_all_that_reads_it(
    tiny, tmp_path, with_pictures, number, bit_depth, metrics
):
    data = tmp_path / "data"
    data.mkdir()
    rows, columns, time = torch.meshgrid(
        torch.arange(48), torch.arange(64), torch.arange(12), indexing="ij"
    )
    waves = [torch.cos((rows + time * (1 + k)) / 9) * torch.sin(columns / 7) for k in range(number)]
    for index in range(2):
        np.save(data / f"{index}.npy", 1 + 2 * torch.stack(waves).roll(index, 1).numpy())
    arrays = {"layout": "C H W T", "range": (-1.0, 3.0)}
    clips = replace(tiny().clips, channels=number, bit_depth=bit_depth, **arrays)
    config = tiny(
        data=str(data),
        steps=1,
        val_every=1,
        val_clips=1,
        clips=clips,
        causal_vae=replace(tiny().causal_vae, in_channels=number),
        objective=ObjectiveConfig(
            perceptual_weight=1.0 if metrics else 0.0, perceptual=PerceptualConfig(net="alex")
        ),
        discriminator=DiscriminatorConfig("none"),
    )
    console = recorder()
    result = train(config, console=console)
    assert set(result.last) == {"psnr", "ssim"} | metrics
    assert ("validation without LPIPS: it needs grey" in console.export_text()) == (not metrics)
    saved = json.loads(next((result.run / "validation").rglob("*.json")).read_text())["clips"][0]
    assert bool(saved["colours"]) == (number == 1)
    source = {"data": str(data), "max_clips": 1, "device": "cpu"}
    size = {"num_frames": 5, "height": 32, "width": 32, **arrays}
    for checkpoint, options in ((result.run, {}), (result.checkpoint / "ema", size)):
        measured = evaluate(checkpoint, EvaluateConfig(**source, **options)).metrics
        assert ("lpips_alex" in measured) == bool(metrics)
    space = measure_latent_spaces([result.run], LatentsConfig(**source))
    assert len(space.models[0].channels.std) == 4
    reconstruct(result.run, data, tmp_path / "out", ReconstructConfig(num_frames=5, device="cpu"))
    stored = np.load(tmp_path / "out" / "0.npy")
    assert (stored.shape, stored.dtype) == ((number, 48, 64, 12), np.float32)
    assert -1 <= stored.min() < stored.max() <= 3
    assert [row.codec for row in examine_data(config, num_clips=2).files] == ["array"] * 2
    with pytest.raises(ValueError, match=r"`clips.channels` must be one of"):
        dry_run(replace(config, clips=replace(clips, channels="rgb")))


@pytest.mark.slow
def test_a_plan_and_a_dry_run(tiny, alpha_video):
    objective = replace(tiny().objective, grad_penalty_loss_weight=0.0)
    config = with_channels(tiny(objective=objective), alpha_video, "grey", 16, 1)
    assert dry_run(config).values["train/total_loss"] > 0
    assert plan_update(config, device_type="cpu").peak > 0
    wrong = replace(config, causal_vae=replace(config.causal_vae, in_channels=3))
    for run in (dry_run, partial(plan_update, device_type="cpu")):
        with pytest.raises(ValueError, match=r"`clips.channels` must be one of 3 channels"):
            run(wrong)


def test_a_model_gets_the_channels_of_the_data(tiny, alpha_video, tmp_path, caplog):
    rgb = build_autoencoder(tiny())
    rgb.save_pretrained(tmp_path / "rgb")
    config = with_channels(tiny(model=str(tmp_path / "rgb")), alpha_video, "rgba", 8, 3)
    model = build_autoencoder(config)
    assert model.in_channels == 4
    assert "change from 3 to 4 channels" in caplog.text
    assert build_clips(config, model).val[0]["video"].shape == (4, 5, 32, 32)


def test_a_model_of_rgba_and_clips_of_rgb(tiny, tmp_path, caplog):
    config = tiny()
    rgba = build_autoencoder(replace(config, causal_vae=replace(config.causal_vae, in_channels=4)))
    rgba.save_pretrained(tmp_path / "rgba")
    with pytest.raises(ValueError, match=r"^`clips.channels` .*`--clips.channels rgba` to train"):
        build_autoencoder(tiny(model=str(tmp_path / "rgba")))
    assert "change from" not in caplog.text
