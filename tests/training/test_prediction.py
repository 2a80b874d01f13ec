"""Predictive reconstruction: the encoder sees the first frames, and the decoder makes all."""

from dataclasses import replace

import pytest
import torch
from torch import distributed as dist
from torch import nn

from telecine.settings import PredictiveConfig, ReconstructionConfig
from telecine.settings.data import Bucket
from telecine.training.build import build_autoencoder
from telecine.training.prediction import Prediction, build_prediction
from telecine.training.step import MicroBatch, train_step

from .helpers import (
    LIGHT,
    assert_equal,
    assert_equal_runs,
    last_checkpoint,
    new_state,
    resumed_copy,
    tensors,
    train_all,
)

SHAPE = (9, 32, 32)
PREDICTIVE = PredictiveConfig(max_dropped=1.0)


@pytest.fixture
def predictive(tiny):
    """Settings of a tiny run of clips of three latent frames, of which up to two are dropped."""
    config = tiny(predictive=PREDICTIVE)
    return replace(config, clips=replace(config.clips, num_frames=SHAPE[0]))


def state_and_batch(config):
    torch.manual_seed(0)
    state = new_state(config)
    return state, MicroBatch(torch.rand(2, 3, *SHAPE) * 2 - 1, [0, 1])


def test_dropping_nothing_has_the_same_bits_as_without(predictive):
    logs = []
    weights = []
    for prediction in (None, Prediction({SHAPE: [9]}, None)):
        state, batch = state_and_batch(replace(predictive, predictive=PredictiveConfig()))
        state.prediction = prediction
        logs.append([train_step(state, [batch]) for _ in range(2)])
        weights.append(state.autoencoder.state_dict())
    assert logs[0] == logs[1]
    assert_equal(weights[0], weights[1])


def test_the_encoder_sees_the_first_frames_and_the_decoder_makes_all(predictive):
    state, batch = state_and_batch(predictive)
    video = batch.inputs
    changed = video.clone()
    changed[:, :, 5:] = 0.5
    generator = torch.Generator()
    numbers = set()
    for seed in range(12):
        latents = []
        for clips in (video, changed):
            posterior = state.prediction.encode(
                state.autoencoder, clips, generator.manual_seed(seed)
            )
            latents.append(posterior.mode())
        assert latents[0].shape == (2, 4, 3, 8, 8)
        num_kept = 3 - getattr(posterior, "num_dropped", 0)
        numbers.add(num_kept)
        assert torch.equal(*latents) == (num_kept < 3), "the second latent frame ends at frame 4"
        assert not latents[0][:, :, num_kept:].any(), "the vector is 0 at the start"
        whole = state.autoencoder.encode(video[:, :, : 1 + 4 * (num_kept - 1)]).mode()
        torch.testing.assert_close(latents[0][:, :, :num_kept], whole)
    assert numbers == {1, 2, 3}
    zero = replace(PREDICTIVE, fill="zero")
    assert build_prediction(zero, state.autoencoder, [Bucket(*SHAPE)]).fill is None


def test_the_gradient_of_the_vector_is_averaged_over_processes(predictive, monkeypatch):
    """The other process has dropped no frame, and has no gradient of the vector."""
    reconstruction = ReconstructionConfig(learn_logvar=True)
    objective = replace(predictive.objective, reconstruction=reconstruction)
    state, _ = state_and_batch(replace(predictive, objective=objective))
    vector = state.prediction.fill.vector
    logvar = state.objective.logvar
    vector.grad = torch.ones_like(vector)
    logvar.grad = torch.ones_like(logvar)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)
    with state.gradient_sync(is_last=False, num_frames=SHAPE[0]):
        pass
    assert (vector.grad == 1).all()
    with state.gradient_sync(is_last=True, num_frames=SHAPE[0]):
        pass
    assert (vector.grad == 0.5).all()
    assert logvar.grad == 1, "the objective averages it in each backward"


def test_a_run_resumes_to_the_bit_and_saves_its_vector(predictive, tmp_path):
    config = replace(predictive, steps=3, save_every=2, **LIGHT)
    train_all(config)
    objective = tensors(last_checkpoint(config))["objective.safetensors"]
    assert objective["term_modules.predictive_fill.vector"].abs().min() > 0
    resumed = resumed_copy(config, tmp_path / "resumed")
    assert_equal_runs(config, resumed, num_files=5)


class Custom(nn.Module):
    """A module whose latent nobody sees."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 3, 1)

    def forward(self, video):
        return self.conv(video)


@pytest.mark.parametrize(
    ("module", "num_frames", "max_dropped", "message"),
    [
        (Custom, 9, 1.0, "0 for a module that does not encode .* but got 1.0 for Custom"),
        (None, 9, 0.4, "large enough to drop a latent frame, but got 0.4"),
        (None, 1, 1.0, "large enough to drop a latent frame, but got 1.0"),
    ],
)
def test_what_cannot_be_predicted_is_refused(tiny, module, num_frames, max_dropped, message):
    model = build_autoencoder(tiny(), None if module is None else module())
    config = PredictiveConfig(max_dropped=max_dropped)
    with pytest.raises(ValueError, match=f"`predictive.max_dropped` must be {message}"):
        build_prediction(config, model, [Bucket(num_frames, 32, 32)])
