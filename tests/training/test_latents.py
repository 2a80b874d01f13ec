"""Statistics of the latent: exact sums, over processes too, and what a run does with them."""

import json
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from telecine.autoencoders import CausalVAE, Reconstruction
from telecine.autoencoders.latent_statistics import ChannelMoments
from telecine.runs import Run
from telecine.settings import CausalVAEConfig, TrainableConfig
from telecine.training import train
from telecine.training.build import build_autoencoder, build_clips
from telecine.training.latents import describe_change, measure_latents
from telecine.training.trainable import select_trainable, trains_encoder

TINY = CausalVAEConfig(spatial_compression=4, latent_channels=4, patch_size=2, base_channels=8, blocks_per_level=1)


def test_sums_are_exact_for_parts():
    latents = [3 + torch.randn(2, 3, t, 4, 5) * torch.tensor([1.0, 2.0, 0.0]).view(1, 3, 1, 1, 1) for t in (1, 3, 2)]
    moments = ChannelMoments()
    for latent in latents:
        moments.add(latent)
    flat = torch.cat([latent.transpose(0, 1).flatten(1) for latent in latents], dim=1).double()
    found = moments.statistics()
    assert found.mean == pytest.approx(flat.mean(1).tolist(), rel=1e-9)
    assert found.std == pytest.approx(flat.std(1, correction=0).tolist(), rel=1e-9, abs=2e-6)
    assert found.overall_mean == pytest.approx(flat.mean().item(), rel=1e-9)
    assert found.overall_std == pytest.approx(flat.std(correction=0).item(), rel=1e-9)
    with pytest.raises(ValueError, match="`latent` must be of 3 channels, as the latents before"):
        moments.add(torch.zeros(1, 2, 1, 1, 1))
    with pytest.raises(ValueError, match="`latents` must be at least one, but got none"):
        ChannelMoments().statistics()


class Colours(torch.nn.Module):
    """A model whose latent is the video."""

    def forward(self, video, sample_posterior=True):
        assert not sample_posterior
        assert not self.training
        return Reconstruction(video, {}, video)


class Processes:
    """The accelerator of one of several processes. The sums of the others are added by `reduce`."""

    device = torch.device("cpu")

    def __init__(self, rank, world, others=()):
        self.process_index, self.num_processes = rank, world
        self.others, self.own = others, None

    def reduce(self, tensor, reduction):
        assert reduction == "sum"
        self.own = tensor.clone()
        return tensor + sum(self.others)


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_processes_measures_the_same(world):
    clips = [{"video": torch.randn(3, 2, 4, 4) + index} for index in range(5)]
    alone = measure_latents(Colours().train(), clips, 5, Processes(0, 1))
    accelerators = [Processes(rank, world) for rank in range(world)]
    for accelerator in accelerators:
        measure_latents(Colours(), clips, 5, accelerator)
    together = Processes(0, world, [accelerator.own for accelerator in accelerators[1:]])
    found = measure_latents(Colours(), clips, 5, together)
    assert found.mean == pytest.approx(alone.mean, rel=1e-12)
    assert found.std == pytest.approx(alone.std, rel=1e-12)


def test_a_model_without_a_latent_is_not_measured():
    model = CausalVAE(TINY)
    forward = model.forward
    model.forward = lambda *args, **kwargs: forward(*args, **kwargs)._replace(latent=None)
    clips = [{"video": torch.zeros(3, 1, 8, 8)}]
    assert measure_latents(model, clips, 1, Processes(0, 1)) is None
    assert model.training


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TrainableConfig(), True),
        (TrainableConfig(weights="decoder"), False),
        (TrainableConfig(weights="lora", lora_rank=2), False),
        (TrainableConfig(patterns=("encoder.network.0*",)), True),
    ],
)
def test_whether_the_encoder_is_trained(config, expected):
    model = CausalVAE(TINY)
    select_trainable(model, config)
    assert trains_encoder(model) is expected


def test_the_line_about_a_change():
    before = {"latents_mean": [0.0, 1.0], "scaling_factor": 1.0, "shift_factor": None}
    after = {"latents_mean": [0.5, 1.25, 2.0, 3.0, 4.0], "scaling_factor": 0.25, "shift_factor": None}
    expected = "latents_mean 0 1 -> 0.5 1.25 2 3 ...; scaling_factor 1 -> 0.25"
    assert describe_change(before, after) == expected
    assert describe_change(before, before) == "nothing"
    assert describe_change({"latents_mean": None}, {"latents_mean": [1.0]}) == "latents_mean None -> 1"


def statistics_of(folder, clips):
    """Return mean and standard deviation of each channel of a saved model's latents."""
    model = CausalVAE.from_pretrained(folder).eval()
    with torch.no_grad():
        latents = torch.cat([model.encode(clip).mode().transpose(0, 1).flatten(1) for clip in clips], dim=1)
    return latents.mean(1).tolist(), latents.std(1, correction=0).tolist()


@pytest.mark.slow
def test_a_run_from_scratch_sets_them_and_training_the_decoder_keeps_them(tiny, tmp_path):
    text = StringIO()
    config = tiny(steps=2, save_every=2, val_every=2)
    train(config, console=Console(file=text, width=200))
    line = next(line for line in text.getvalue().splitlines() if line.startswith("normalisation of the latent"))
    assert "over 2 clips: latents_mean None -> " in line
    checkpoint = Run(Path(config.output_dir)).checkpoints.all()[-1][1]
    saved = [json.loads((checkpoint / name / "config.json").read_text()) for name in ("ema", "model")]
    state = json.loads((checkpoint / "state.json").read_text())["latents"]
    assert (state["step"], state["num_clips"]) == (2, 2)
    assert saved[0] == saved[1]
    assert saved[0]["latents_mean"] == state["mean"]
    clips = build_clips(config, build_autoencoder(config)).train
    mean, std = statistics_of(checkpoint / "ema", [clips[index]["video"][None] for index in range(2)])
    assert saved[0]["latents_mean"] == pytest.approx(mean, rel=1e-4, abs=1e-5)
    assert saved[0]["latents_std"] == pytest.approx(std, rel=1e-4)
    tuned = tiny(
        steps=1,
        model=config.output_dir,
        output_dir=str(tmp_path / "tuned"),
        trainable=TrainableConfig(weights="decoder"),
    )
    train(tuned, console=Console(quiet=True))
    kept = Run(tmp_path / "tuned").checkpoints.all()[-1][1] / "ema" / "config.json"
    assert kept.read_bytes() == (checkpoint / "ema" / "config.json").read_bytes()
    assert json.loads((kept.parent.parent / "state.json").read_text())["latents"] is None
