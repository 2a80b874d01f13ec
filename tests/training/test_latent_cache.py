"""Latents: the files of the cache and runs with it; exact statistics, over processes too, and runs with them."""

import copy
import io
import json
import os
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console
from safetensors.torch import save_file
from torch import nn

from telecine.data import ClipBatchSampler, DataError
from telecine.models import CausalVAE, CustomAutoencoder, DeterministicPosterior, DiagonalGaussian, Reconstruction
from telecine.models.latent import ChannelMoments
from telecine.runs import Run
from telecine.settings import CausalVAEConfig, ClipConfig, ObjectiveConfig, TrainableConfig, TrainConfig
from telecine.training import Interrupted, latent_cache, train
from telecine.training.build import build_autoencoder, build_state
from telecine.training.clips import build_clips
from telecine.training.interrupt import StopRequest
from telecine.training.latent_cache import (
    IDENTITY_FILE,
    LatentCache,
    check_disk,
    describe_change,
    fill_latent_cache,
    find_missing_batches,
    identity_of,
    measure_latents,
    open_cache,
)
from telecine.training.loop import train_to_the_end
from telecine.training.prepare import prepare
from telecine.training.step import MicroBatch, train_step
from telecine.training.trainable import select_trainable, trains_encoder

from ..models.tiny_models import tiny_model

pytestmark = pytest.mark.usefixtures("probe_each_configuration_once")


CLIPS = ClipConfig(num_frames=5, height=32, width=32, num_workers=0, num_clips=3)
DECODER = TrainableConfig(weights="decoder")
CPU = torch.device("cpu")


def gaussian(num_clips):
    channels_last = torch.randn(num_clips, 1, 3, 3, 2).movedim(-1, 1)  # as the linear map of `CausalVAE` returns it
    return DiagonalGaussian(mean=channels_last, logvar=torch.randn(num_clips, 2, 1, 3, 3))


def test_posteriors_come_back_to_the_bit(tmp_path, monkeypatch):
    cache, posterior = LatentCache(tmp_path), gaussian(3)
    assert cache.add(["a", "b", "c"], posterior) == 2 * 18 * 4
    assert list(tmp_path.iterdir()) == []
    cache.write()
    cache.add(["b"], gaussian(1))  # known
    cache.write()
    monkeypatch.setattr(latent_cache, "_FILE_BYTES", 1)
    cache.add(["d"], gaussian(1))
    assert len(list(tmp_path.iterdir())) == 2
    for each in (cache, LatentCache(tmp_path)):
        found = each.read(["c", "b"], CPU)
        assert torch.equal(found.mean, posterior.mean[[2, 1]])
        assert torch.equal(found.logvar, posterior.logvar[[2, 1]])
        assert found.mean.stride() == posterior.mean.stride()
        assert ("d" in each, "e" in each) == (True, False)


@pytest.mark.parametrize(
    "damage", ["half of it is zero", "one bit is another", "a value is not a number", "the name of an order is another"]
)
def test_damage_is_found_when_a_file_is_first_read(tmp_path, damage):
    cache = LatentCache(tmp_path)
    cache.add(["a", "b"], gaussian(2))
    cache.write()
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "half of it is zero":
        content[-144:] = bytes(144)  # of 288 bytes of values
    elif damage == "one bit is another":
        content[-7] ^= 1
    elif damage == "the name of an order is another":
        content[content.index(b'"a/mean":"') + 1] ^= 2
    else:
        content[-4:] = b"\xff" * 4
    path.write_bytes(content)
    with pytest.raises(
        DataError,
        match=rf"{path.name}` must be a safetensors file, as it was written, but got other values .*Delete it",
    ):
        LatentCache(tmp_path).read(["a"], CPU)


def test_a_file_without_a_digest_is_read(tmp_path, monkeypatch):
    cache, posterior = LatentCache(tmp_path), gaussian(2)
    cache.add(["a", "b"], posterior)
    monkeypatch.setattr(
        latent_cache, "save_file", lambda tensors, path, metadata: save_file(tensors, path, cache._new_orders)
    )
    cache.write()
    assert torch.equal(LatentCache(tmp_path).read(["b"], CPU).mean, posterior.mean[1:])


def test_a_latent_without_noise(tmp_path):
    cache, posterior = LatentCache(tmp_path), DeterministicPosterior(torch.randn(2, 4, 1, 3, 3))
    cache.add(["a", "b"], posterior)
    cache.write()
    found = cache.read(["b"], CPU)
    assert isinstance(found, DeterministicPosterior)
    assert torch.equal(found.mode(), posterior.latent[1:])


def test_errors_of_files(tmp_path):
    cache = LatentCache(tmp_path)
    with pytest.raises(
        ValueError, match="`latent_cache` must be a folder with all latents, but got one without a/mean"
    ):
        cache.read(["a"], CPU)
    with pytest.raises(ValueError, match="neither normal nor without noise"):
        cache.add(["a"], SimpleNamespace())
    (tmp_path / "latents-0.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"latents-0\.safetensors` must be a safetensors file, .* Delete it"):
        LatentCache(tmp_path)
    check_disk(tmp_path, 1)
    with pytest.raises(ValueError, match=r"`latent_cache` must be on a disk with \d+.00 GiB free"):
        check_disk(tmp_path, 2**60)


def test_settings_that_do_not_go_together():
    with pytest.raises(ValueError, match="`latent_cache` must be left out with sharded weights"):
        TrainConfig(latent_cache="cache", sharding="fsdp2")
    with pytest.raises(ValueError, match="`posterior` must be None for a custom module"):
        CustomAutoencoder(nn.Identity())(torch.zeros(1, 3, 1, 8, 8), posterior=gaussian(1))
    with pytest.raises(ValueError, match="`encode` must be a method of the model"):
        CustomAutoencoder(nn.Identity()).encode(torch.zeros(1, 3, 1, 8, 8))


@pytest.fixture
def cached(tiny, tmp_path):
    """Return a function that creates settings of a run without and with a cache."""

    def make(**changes):
        settings = {"clips": CLIPS, "trainable": DECODER, "trackers": (), "steps": 3} | changes
        plain = tiny(output_dir=str(tmp_path / "plain"), **settings)
        return plain, replace(plain, output_dir=str(tmp_path / "run"), latent_cache=str(tmp_path / "cache"))

    return make


class Counted:
    """Counts the clips that an autoencoder's encoder encodes."""

    def __init__(self, trainer):
        self.num_clips, self.encode = 0, trainer.state.autoencoder.encode
        trainer.state.autoencoder.encode = self

    def __call__(self, video):
        self.num_clips += len(video)
        return self.encode(video)


def fill(trainer, console, *, before_each, cache=None):
    """Fill the cache of a trainer, or another one, as its run does."""
    cache, clips = cache or trainer.latent_cache, trainer.clips.train
    rank, num_ranks = 0, trainer.state.accelerator.num_processes
    numbers = range(trainer.state.step * num_ranks, trainer.config.steps * num_ranks)
    sampler = ClipBatchSampler(numbers, trainer.config.clips_per_pass, num_ranks, rank, num_ranks=1)
    fill_latent_cache(cache, trainer.state, clips, sampler, console, before_each)


def run(config):
    """Return a finished trainer, what it printed, and how many clips it has encoded but for validation."""
    console = Console(file=io.StringIO(), width=200, record=True)
    trainer = prepare(config, console)
    counted = Counted(trainer)
    train_to_the_end(trainer, StopRequest())
    return trainer, console.export_text(), counted.num_clips


@pytest.mark.slow
def test_equal_weights_with_and_without(cached):
    plain, with_cache = cached()
    expected, _, num_plain = run(plain)
    found, text, num_found = run(with_cache)
    assert "3 clips, the latents of 0 of them in " in text
    assert "augmentation is on: each of these clips keeps the crop and the flip that were drawn for it" in text
    assert num_plain - num_found == 3 * 2 - 4, "the first two of the batches (0, 1), (2, 0) and (1, 2) are encoded"
    states = [
        {**each.state.autoencoder.state_dict(), **each.state.objective.state_dict(), **each.state.ema.averages}
        for each in (expected, found)
    ]
    assert len(states[0]) > 10
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())


@pytest.mark.parametrize("name", ["wan"])
def test_equal_updates_of_a_published_class(cached, tmp_path, name):
    tiny_model(name).save_pretrained(tmp_path / name)
    config, _ = cached(model=str(tmp_path / name), objective=ObjectiveConfig(perceptual_weight=0.0))
    video = torch.rand(2, 3, 5, 32, 32) * 2 - 1
    weights = []
    for has_cache in (False, True):
        state = build_state(config, Accelerator(cpu=True), build_autoencoder(config))
        posterior = None
        if has_cache:
            cache = LatentCache(tmp_path)
            with torch.no_grad():
                cache.add(["a", "b"], state.autoencoder.encode(video))
            cache.write()
            posterior = cache.read(["a", "b"], CPU)
        train_step(state, [MicroBatch(video, range(2), posterior)])
        weights.append(state.autoencoder.state_dict())
    assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())


def test_what_was_encoded_before_an_interruption_is_kept(cached):
    _, config = cached(clips=replace(CLIPS, num_clips=6, random_flip=False), steps=4)
    trainer = prepare(config, Console(quiet=True))
    console = Console(file=io.StringIO(), width=200, record=True)
    counted, calls = Counted(trainer), []

    def stop_before_the_third():
        calls.append(None)
        if len(calls) == 3:
            raise Interrupted(None)

    with pytest.raises(Interrupted):
        fill(trainer, console, before_each=stop_before_the_third)
    assert counted.num_clips == 4
    cache = LatentCache(trainer.latent_cache.folder)
    fill(trainer, console, before_each=lambda: None, cache=cache)
    assert counted.num_clips == 6
    assert "6 clips, the latents of 4 of them" in console.export_text()
    assert "augmentation" not in console.export_text()
    trainer.state.step = 4
    fill(trainer, console, before_each=lambda: None, cache=cache)
    assert counted.num_clips == 6
    trainer.close()


def test_processes_share_the_batches(cached):
    _, config = cached(clips=replace(CLIPS, num_clips=5), steps=2)
    trainer = prepare(config, Console(quiet=True))
    trainer.state.accelerator = SimpleNamespace(
        process_index=1, num_processes=2, is_main_process=True, device=CPU, autocast=Accelerator(cpu=True).autocast
    )
    counted, calls = Counted(trainer), []
    fill(trainer, Console(quiet=True), before_each=lambda: calls.append(0))
    assert counted.num_clips == 2, "the second of the batches (0, 1), (2, 3) and (4, 0)"
    assert len(calls) == 3, "as often as the first process, and once at the end"
    assert [f"video-5x32x32-{number}" in trainer.latent_cache for number in range(5)] == [
        False,
        False,
        True,
        True,
        False,
    ]
    trainer.close()


def test_missing_batches_are_those_with_a_new_clip(cached):
    _, config = cached()
    trainer = prepare(config, Console(quiet=True))
    clips = trainer.clips.train
    sampler = ClipBatchSampler(range(8), batch_size=2, num_micro_batches=1, rank=0, num_ranks=1)
    assert find_missing_batches(trainer.latent_cache, clips, sampler) == ([0, 1], 3, 3)
    trainer.latent_cache.add(clips.names_of([(0, 0), (0, 1)]), gaussian(2))
    trainer.latent_cache.write()
    assert find_missing_batches(trainer.latent_cache, clips, sampler) == ([1], 1, 3)
    trainer.close()


def test_a_stale_cache_is_refused(cached, tmp_path):
    _, config = cached()
    trainer = prepare(config, Console(quiet=True))
    same = identity_of(trainer.state.autoencoder, trainer.clips.train, "no")
    assert json.loads((tmp_path / "cache" / IDENTITY_FILE).read_text()) == same
    with torch.no_grad():
        trainer.state.autoencoder.decoder.linear.first.bias.add_(1)
    assert identity_of(trainer.state.autoencoder, trainer.clips.train, "no") == same, "decoders do not matter"
    trainer.close()
    changes = {
        "encoder, seed": {"seed": 1},
        "data, clips.stride": {"clips": replace(CLIPS, stride=2, num_clips=None), "val_data": config.data},
    }
    for names, change in changes.items():
        with pytest.raises(ValueError, match=rf"^`latent_cache` must be a folder of latents .* value of {names}\. Use"):
            prepare(replace(config, **change), Console(quiet=True))
    with pytest.raises(ValueError, match="`latent_cache` must be left out if the encoder is trained"):
        prepare(replace(config, trainable=TrainableConfig()), Console(quiet=True))


def test_of_two_runs_that_start_on_one_new_cache_the_second_is_refused(cached, tmp_path, monkeypatch):
    """The second starts while the first one writes the identity of its latents, which may take a while."""
    _, config = cached()
    trainer = prepare(replace(config, latent_cache=None), Console(quiet=True))
    model = trainer.state.autoencoder
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.encoder.linear.first.weight.add_(1)
    folder = str(tmp_path / "new")
    opened = []
    fsync = os.fsync

    def slow(descriptor):
        fsync(descriptor)
        if not opened:
            opened.append("first")
            open_cache(folder, other, trainer.clips.train, trainer.accelerator)

    monkeypatch.setattr(os, "fsync", slow)
    with pytest.raises(ValueError, match=r"`latent_cache` must be a folder of latents .* value of encoder"):
        open_cache(folder, model, trainer.clips.train, trainer.accelerator)
    monkeypatch.undo()
    assert open_cache(folder, other, trainer.clips.train, trainer.accelerator) is not None
    trainer.close()


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
    with pytest.raises(ValueError, match="`latents` must be at least one, but got none"):
        ChannelMoments().statistics()


class Colours(torch.nn.Module):
    """A model whose latent is the video."""

    def forward(self, video, sample_posterior=True):
        assert not sample_posterior
        assert not self.training
        return Reconstruction(video, {}, video)


def no_error(error):
    assert error is None


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
    alone = measure_latents(Colours().train(), clips, 5, Processes(0, 1), no_error)
    accelerators = [Processes(rank, world) for rank in range(world)]
    for accelerator in accelerators:
        measure_latents(Colours(), clips, 5, accelerator, no_error)
    together = Processes(0, world, [accelerator.own for accelerator in accelerators[1:]])
    found = measure_latents(Colours(), clips, 5, together, no_error)
    assert found.mean == pytest.approx(alone.mean, rel=1e-12)
    assert found.std == pytest.approx(alone.std, rel=1e-12)


def test_a_model_without_a_latent_is_not_measured():
    model = CausalVAE(TINY)
    forward = model.forward
    model.forward = lambda *args, **kwargs: forward(*args, **kwargs)._replace(latent=None)
    clips = [{"video": torch.zeros(3, 1, 8, 8)}]
    assert measure_latents(model, clips, 1, Processes(0, 1), no_error) is None
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
    train(tiny(steps=3, latent_clips=0), console=Console(quiet=True))
    checkpoint = Run(Path(config.output_dir)).checkpoints.all()[-1][1]
    assert json.loads((checkpoint / "state.json").read_text())["latents"] is None, "they would be those of step 2"
    assert json.loads((checkpoint / "ema" / "config.json").read_text())["latents_mean"] is None
