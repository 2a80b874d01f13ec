"""Latents: the files of the cache and runs with it; exact statistics, over processes too, and runs with them."""

import copy
import json
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from telecine.data import ClipBatchSampler, DataError
from telecine.models import (
    CausalVAE,
    DeterministicPosterior,
    DiagonalGaussian,
    Reconstruction,
)
from telecine.models.latent import ChannelMoments
from telecine.models.latent_shards import IDENTITY_FILE
from telecine.settings import CausalVAEConfig, ClipConfig, TrainableConfig
from telecine.training import Interrupted, train
from telecine.training.build import build_autoencoder
from telecine.training.clips import build_clips
from telecine.training.interrupt import StopRequest
from telecine.training.latent_cache import (
    LatentCache,
    check_disk,
    fill_latent_cache,
    identity_of,
    open_cache,
)
from telecine.training.latent_normalisation import measure_latents
from telecine.training.loop import train_to_the_end
from telecine.training.prepare import prepare
from telecine.training.trainable import select_trainable, trains_encoder

from .helpers import LIGHT, assert_equal, last_checkpoint, quiet, recorder

pytestmark = pytest.mark.usefixtures("probe_each_configuration_once")

CLIPS = ClipConfig(num_frames=5, height=32, width=32, num_workers=0, num_clips=3)
DECODER = TrainableConfig(weights="decoder")
CPU = torch.device("cpu")


def gaussian(num_clips):
    channels_last = torch.randn(num_clips, 1, 3, 3, 2).movedim(
        -1, 1
    )  # as the linear map of `CausalVAE` returns it
    return DiagonalGaussian(mean=channels_last, logvar=torch.randn(num_clips, 2, 1, 3, 3))


def write(folder, posterior):
    """Write the latents of clips "a", "b", ... into a shard of a cache, and return its path."""
    cache = LatentCache(folder)
    cache.add("abc"[: len(posterior.mode())], posterior)
    cache.write()
    (path,) = folder.glob("*.tar")
    return path


def test_posteriors_come_back_to_the_bit(tmp_path):
    cache = LatentCache(tmp_path, shard_bytes=10_000)
    posterior = gaussian(3)
    assert cache.add(["a", "b", "c"], posterior) == 2 * 18 * 4
    assert list(tmp_path.iterdir()) == []
    assert "a" in cache
    cache.write()
    cache.add(["b"], gaussian(1))  # it has this one
    cache.write()
    assert len(list(tmp_path.glob("*.tar"))) == 1
    cache.add("defghij", gaussian(7))  # of more than 10 000 bytes
    assert len(list(tmp_path.glob("*.tar"))) == 2
    for reader in (cache, LatentCache(tmp_path)):
        saved = reader.read(["c", "b"], CPU)
        assert torch.equal(saved.mean, posterior.mean[[2, 1]])
        assert torch.equal(saved.logvar, posterior.logvar[[2, 1]])
        assert saved.mean.stride() == posterior.mean.stride()
        assert ("d" in reader, "k" in reader) == (True, False)


def test_a_latent_without_noise(tmp_path):
    posterior = DeterministicPosterior(torch.randn(2, 4, 1, 3, 3))
    write(tmp_path, posterior)
    saved = LatentCache(tmp_path).read(["b"], CPU)
    assert isinstance(saved, DeterministicPosterior)
    assert torch.equal(saved.mode(), posterior.latent[1:])


def zero_half(content):
    content[512 + 200 : 512 + 270] = bytes(70)


def flip_bit(content):
    content[-1500] ^= 1


def rename_order(content):
    content[content.index(b'"memory_order"') + 1] ^= 2


def cut(content):
    del content[-3000:]


@pytest.mark.parametrize("damage", [zero_half, flip_bit, rename_order, cut])
def test_damage_is_found_when_a_file_is_first_read(tmp_path, damage):
    path = write(tmp_path, gaussian(2))
    content = bytearray(path.read_bytes())
    damage(content)
    path.write_bytes(content)
    message = rf"{path.name}` must be a file of latents, as it was written, but got other values .*Delete it"
    with pytest.raises(DataError, match=message):
        LatentCache(tmp_path).read(["a"], CPU)


def test_errors_of_files(tmp_path):
    cache = LatentCache(tmp_path)
    with pytest.raises(
        ValueError, match="must be a folder with all latents, but got one without a"
    ):
        cache.read(["a"], CPU)
    with pytest.raises(ValueError, match="`posterior` must be normal or without noise"):
        cache.add(["a"], SimpleNamespace())
    (tmp_path / "latents-0.tar").write_bytes(b"half")
    (tmp_path / "latents-0.json").write_text('{"clips": {}}')
    with pytest.raises(
        DataError, match=r"latents-0\.json` must be a file of latents, .* Delete it"
    ):
        LatentCache(tmp_path)
    check_disk(tmp_path, 1)
    with pytest.raises(ValueError, match=r"`latent_cache` must be on a disk with \d+.00 GiB free"):
        check_disk(tmp_path, 2**60)


@pytest.fixture
def cached(tiny, tmp_path):
    """Return a function that creates settings of a run without and with a cache."""

    def make(**changes):
        settings = {"clips": CLIPS, "trainable": DECODER, "trackers": (), "steps": 3} | changes
        plain = tiny(output_dir=str(tmp_path / "plain"), **settings)
        return plain, replace(
            plain, output_dir=str(tmp_path / "run"), latent_cache=str(tmp_path / "cache")
        )

    return make


class Counted:
    """Counts the clips that an autoencoder's encoder encodes."""

    def __init__(self, run):
        self.num_clips = 0
        self.encode = run.state.autoencoder.encode
        run.state.autoencoder.encode = self

    def __call__(self, video):
        self.num_clips += len(video)
        return self.encode(video)


def fill(run, before_each, console=None, cache=None):
    """Fill the cache of a run, or another one, as the run does."""
    num_ranks = run.state.accelerator.num_processes
    numbers = range(run.state.step * num_ranks, run.config.steps * num_ranks)
    sampler = ClipBatchSampler(numbers, run.config.clips_per_pass, num_ranks, rank=0, num_ranks=1)
    fill_latent_cache(
        cache or run.latent_cache,
        run.state,
        run.clips.train,
        sampler,
        console or quiet(),
        before_each=before_each,
    )


@pytest.mark.slow
def test_equal_weights_with_and_without(cached):
    states = []
    num_clips = []
    for config in cached():
        console = recorder()
        run = prepare(config, console)
        counted = Counted(run)
        train_to_the_end(run, StopRequest())
        num_clips.append(counted.num_clips)
        state = run.state
        states.append(
            {**state.autoencoder.state_dict(), **state.objective.state_dict(), **state.ema.averages}
        )
    text = console.export_text()
    assert "3 clips, the latents of 0 of them in " in text
    assert (
        "augmentation is on: each of these clips keeps the crop and the flip that were drawn for it"
        in text
    )
    assert num_clips[0] - num_clips[1] == 3 * 2 - 4, (
        "the first two of the batches (0, 1), (2, 0), (1, 2) are encoded"
    )
    assert len(states[0]) > 10
    assert_equal(states[1], states[0])


def test_what_was_encoded_before_an_interruption_is_kept(cached):
    _, config = cached(clips=replace(CLIPS, num_clips=6, random_flip=False), steps=4)
    run = prepare(config, quiet())
    console = recorder()
    counted = Counted(run)
    calls = []

    def stop_before_the_third():
        calls.append(None)
        if len(calls) == 3:
            raise Interrupted(None)

    with pytest.raises(Interrupted):
        fill(run, stop_before_the_third)
    assert counted.num_clips == 4
    cache = LatentCache(run.latent_cache.folder)
    fill(run, lambda: None, console, cache)
    assert counted.num_clips == 6
    text = console.export_text()
    assert "6 clips, the latents of 4 of them" in text
    assert "augmentation" not in text
    run.state.step = 4
    fill(run, lambda: None, cache=cache)
    assert counted.num_clips == 6
    run.close()


def test_processes_share_the_batches(cached):
    _, config = cached(clips=replace(CLIPS, num_clips=5), steps=2)
    run = prepare(config, quiet())
    autocast = Accelerator(cpu=True).autocast
    names = [f"video-5x32x32-{number}" for number in range(5)]
    names_before_the_wait = []

    def wait_for_the_first_process():
        names_before_the_wait.extend(name for name in names if name in run.latent_cache)
        first = LatentCache(run.latent_cache.folder)
        first.add([names[0], names[1], names[4]], gaussian(3))
        first.write()

    run.state.accelerator = SimpleNamespace(
        process_index=1,
        num_processes=2,
        is_main_process=True,
        device=CPU,
        autocast=autocast,
        wait_for_everyone=wait_for_the_first_process,
    )
    counted = Counted(run)
    calls = []
    fill(run, lambda: calls.append(0))
    assert counted.num_clips == 2, "the second of the batches (0, 1), (2, 3) and (4, 0)"
    assert len(calls) == 2, "as often as in the first process"
    assert names_before_the_wait == names[2:4]
    assert all(name in run.latent_cache for name in names), "those of the first process, too"
    run.close()


class LatentsOf(nn.Module):
    """A model whose latents are another one's, such as a student."""

    def __init__(self, encoder_model):
        super().__init__()
        self.encoder_model = encoder_model


def test_the_latents_of_a_probe_of_a_student_are_those_of_the_teacher():
    config = CausalVAEConfig(4, 8, 4, 4, base_channels=8, blocks_per_level=1)
    teacher = CausalVAE(config)
    clips = SimpleNamespace(spans=[], seed=0, config=CLIPS)
    same = identity_of(teacher, clips, "no")
    assert identity_of(LatentsOf(LatentsOf(teacher)), clips, "no") == same


def test_a_stale_cache_is_refused(cached, tmp_path, monkeypatch):
    _, config = cached()
    run = prepare(config, quiet())
    same = identity_of(run.state.autoencoder, run.clips.train, "no")
    assert json.loads((tmp_path / "cache" / IDENTITY_FILE).read_text()) == same
    with torch.no_grad():
        run.state.autoencoder.decoder.linear.first.bias.add_(1)
    assert identity_of(run.state.autoencoder, run.clips.train, "no") == same, (
        "decoders do not matter"
    )
    looked_up = []
    clips = run.clips.train
    clips.spans = [*clips.spans, *clips.spans]
    with monkeypatch.context() as patch:
        patch.setattr("telecine.training.latent_cache.fingerprint_of", looked_up.append)
        identity_of(run.state.autoencoder, clips, "no")
    assert len(looked_up) == len({span.info.source for span in clips.spans}), "each file once"
    run.close()
    prepare(config, quiet()).close()
    changes = {
        "encoder, seed": {"seed": 1},
        "data, clips.stride": {
            "clips": replace(CLIPS, stride=2, num_clips=None),
            "val_data": config.data,
        },
    }
    for names, change in changes.items():
        with pytest.raises(
            ValueError,
            match=rf"^`latent_cache` must be a folder of latents .* value of {names}\. Use",
        ):
            prepare(replace(config, **change), quiet())
    with pytest.raises(
        ValueError, match="`latent_cache` must be left out if the encoder is trained"
    ):
        prepare(replace(config, trainable=TrainableConfig()), quiet())
    (tmp_path / "cache" / IDENTITY_FILE).write_text(json.dumps({**same, "format": 1}))
    with pytest.raises(ValueError, match=r"`latent_cache` must be a folder of format 2, .*Delete"):
        prepare(config, quiet())


def test_of_two_runs_that_start_on_one_new_cache_the_second_is_refused(
    cached, tmp_path, monkeypatch
):
    """The second starts while the first one writes the identity of its latents, which may take a while."""
    _, config = cached()
    trainer = prepare(replace(config, latent_cache=None), quiet())
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
    with pytest.raises(
        ValueError, match=r"`latent_cache` must be a folder of latents .* value of encoder"
    ):
        open_cache(folder, model, trainer.clips.train, trainer.accelerator)
    monkeypatch.undo()
    assert open_cache(folder, other, trainer.clips.train, trainer.accelerator) is not None
    trainer.close()


def test_sums_are_exact_for_parts():
    latents = [
        3 + torch.randn(2, 3, t, 4, 5) * torch.tensor([1.0, 2.0, 0.0]).view(1, 3, 1, 1, 1)
        for t in (1, 3, 2)
    ]
    moments = ChannelMoments()
    for latent in latents:
        moments.add(latent)
    flat = torch.cat([latent.transpose(0, 1).flatten(1) for latent in latents], dim=1).double()
    statistics = moments.statistics()
    assert statistics.mean == pytest.approx(flat.mean(1).tolist(), rel=1e-9)
    assert statistics.std == pytest.approx(flat.std(1, correction=0).tolist(), rel=1e-9, abs=2e-6)
    assert statistics.overall_mean == pytest.approx(flat.mean().item(), rel=1e-9)
    assert statistics.overall_std == pytest.approx(flat.std(correction=0).item(), rel=1e-9)
    with pytest.raises(ValueError, match="`latents` must be at least one, but got none"):
        ChannelMoments().statistics()


class Colours(nn.Module):
    """A model whose latent is the video, if it has one."""

    has_latent = True

    def forward(self, video, sample_posterior=True):
        assert not sample_posterior
        assert not self.training
        return Reconstruction(video, {}, video if self.has_latent else None)


def no_error(error):
    assert error is None


class Processes:
    """The accelerator of one of several processes. The sums of the others are added by `reduce`."""

    device = CPU

    def __init__(self, rank, world, others=()):
        self.process_index = rank
        self.num_processes = world
        self.others = others
        self.sums = None

    def reduce(self, tensor, reduction):
        assert reduction == "sum"
        self.sums = tensor.clone()
        return tensor + sum(self.others)


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_processes_measures_the_same(world):
    clips = {index: {"video": torch.randn(3, 2, 4, 4) + index} for index in range(5)}
    alone = measure_latents(Colours().train(), clips, 5, Processes(0, 1), no_error)
    accelerators = [Processes(rank, world) for rank in range(world)]
    for accelerator in accelerators:
        measure_latents(Colours(), clips, 5, accelerator, no_error)
    together = Processes(0, world, [accelerator.sums for accelerator in accelerators[1:]])
    statistics = measure_latents(Colours(), clips, 5, together, no_error)
    assert statistics.mean == pytest.approx(alone.mean, rel=1e-12)
    assert statistics.std == pytest.approx(alone.std, rel=1e-12)


def test_a_model_without_a_latent_is_not_measured():
    model = Colours()
    model.has_latent = False
    clips = {0: {"video": torch.zeros(3, 1, 8, 8)}}
    assert measure_latents(model, clips, 1, Processes(0, 1), no_error) is None
    assert model.training


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TrainableConfig(), True),
        (DECODER, False),
        (TrainableConfig(weights="lora", lora_rank=2), False),
        (TrainableConfig(patterns=("encoder.network.0*",)), True),
    ],
)
def test_whether_the_encoder_is_trained(config, expected):
    tiny = CausalVAEConfig(
        spatial_compression=4, latent_channels=4, patch_size=2, base_channels=8, blocks_per_level=1
    )
    model = CausalVAE(tiny)
    select_trainable(model, config)
    assert trains_encoder(model) is expected


@pytest.mark.slow
def test_a_run_from_scratch_sets_them_and_training_the_decoder_keeps_them(tiny, tmp_path):
    console = recorder()
    config = tiny(steps=2, save_every=2, val_every=2, **{**LIGHT, "latent_clips": 2})
    train(config, console=console)
    assert (
        "\nnormalisation of the latent over 2 clips: latents_mean none -> " in console.export_text()
    )
    checkpoint = last_checkpoint(config)
    saved = json.loads((checkpoint / "ema" / "config.json").read_text())
    assert saved == json.loads((checkpoint / "model" / "config.json").read_text())
    state = json.loads((checkpoint / "state.json").read_text())["latents"]
    assert (state["step"], state["num_clips"]) == (2, 2)
    assert saved["latents_mean"] == state["mean"]
    clips = build_clips(config, build_autoencoder(config)).train
    model = CausalVAE.from_pretrained(checkpoint / "ema").eval()
    with torch.no_grad():
        latents = torch.cat(
            [model.encode(clips[index]["video"][None]).mode() for index in range(2)]
        )
    channels = latents.transpose(0, 1).flatten(1)
    assert saved["latents_mean"] == pytest.approx(channels.mean(1).tolist(), rel=1e-4, abs=1e-5)
    assert saved["latents_std"] == pytest.approx(channels.std(1, correction=0).tolist(), rel=1e-4)
    resumed = prepare(replace(config, steps=3), quiet())
    resumed.close()
    assert resumed.first_normalisation == {
        "latents_mean": saved["latents_mean"],
        "latents_std": saved["latents_std"],
    }

    tuned = replace(
        config,
        steps=1,
        model=config.output_dir,
        output_dir=str(tmp_path / "tuned"),
        trainable=DECODER,
    )
    train(tuned)
    kept = last_checkpoint(tuned)
    assert (kept / "ema" / "config.json").read_bytes() == (
        checkpoint / "ema" / "config.json"
    ).read_bytes()
    assert json.loads((kept / "state.json").read_text())["latents"] is None
    train(replace(config, steps=3, latent_clips=0))
    checkpoint = last_checkpoint(config)
    assert json.loads((checkpoint / "state.json").read_text())["latents"] is None, (
        "they would be those of step 2"
    )
    assert json.loads((checkpoint / "ema" / "config.json").read_text())["latents_mean"] is None
