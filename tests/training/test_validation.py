import pytest
import torch
from torch import nn

from telecine.evaluation.latent_statistics import latent_summary
from telecine.models import Reconstruction
from telecine.training import Interrupted
from telecine.training.validation import NUM_KEPT, NUM_SHOWN, validate_model


class Halves(nn.Module):
    """Reconstructs half of the input, or something else if it samples or trains."""

    codebook = None

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def validation_decodings(self):
        return {}

    def forward(self, video, sample_posterior=True):
        assert not sample_posterior
        assert not self.training
        assert not torch.is_grad_enabled()
        return Reconstruction(video=video * self.scale, aux={})


def clip(value, index):
    return {
        "video": torch.full((3, 2, 16, 16), value),
        "source": f"video {index}",
        "start": index,
        "fps": 25.0,
    }


@pytest.mark.usefixtures("with_pictures")
def test_every_clip_is_measured_and_up_to_some_are_kept():
    model = Halves()
    clips = [clip(0.1 * index / NUM_KEPT, index) for index in range(1, NUM_KEPT + 3)]
    result = validate_model(model, clips, {})
    assert model.training
    assert len(result.per_clip) == len(clips)
    for index, metrics in enumerate(result.per_clip, 1):
        half = 0.1 * index / NUM_KEPT / 2
        assert metrics["psnr"] == pytest.approx(
            10 * torch.log10(torch.tensor(4 / half**2)).item(), rel=1e-4
        )
    assert result.metrics["psnr"] == pytest.approx(
        sum(m["psnr"] for m in result.per_clip) / len(clips)
    )
    spread = [index * len(clips) // NUM_KEPT for index in range(NUM_KEPT)]
    assert [kept.source for kept in result.clips] == [f"video {1 + index}" for index in spread]
    assert result.clips[-1].metrics == result.per_clip[spread[-1]]
    few = validate_model(model.eval(), clips[:1], {})
    assert not model.training
    assert result.picture.shape[1] - few.picture.shape[1] > 16 * (NUM_SHOWN - 2), (
        "one row for each clip shown"
    )


def test_an_interrupted_validation_leaves_the_model_as_it_was():
    def stop():
        raise Interrupted(None)

    model = Halves()
    with pytest.raises(Interrupted):
        validate_model(model, [clip(0.5, 0)], {}, before_each=stop)
    assert model.training


class WithLatent(Halves):
    def forward(self, video, sample_posterior=True):
        return super().forward(video, sample_posterior)._replace(latent=video[:, :2] * 3)


def test_the_latents_of_all_clips_are_summed_up():
    generator = torch.Generator().manual_seed(0)
    clips = [
        {**clip(0.0, 0), "video": torch.rand(3, 2, 16, 16, generator=generator)} for _ in range(3)
    ]
    assert validate_model(Halves(), clips, {}).latent == {}
    expected = latent_summary(torch.stack([3 * clip["video"][:2] for clip in clips]))
    assert set(expected) == {"std", "dead_channels", "effective_rank", "high_frequencies"}
    assert validate_model(WithLatent(), clips, {}).latent == pytest.approx(expected)


def test_the_codes_of_all_clips_are_counted():
    """The first clip has one code, the second the other one."""

    class Codebook:
        codebook_size = 4

        def indices(self, latents):
            return (latents > 0).long()

    model = WithLatent()
    model.codebook = Codebook()
    latent = validate_model(model, [clip(0.5, 0), clip(-0.5, 1)], {}).latent
    assert {name: latent[name] for name in ("codes_used", "code_entropy", "code_perplexity")} == {
        "codes_used": 0.5,
        "code_entropy": 1.0,
        "code_perplexity": 2.0,
    }


@pytest.mark.usefixtures("with_pictures")
def test_the_picture_shows_each_clip_at_its_own_speed():
    result = validate_model(
        Halves(), [clip(0.5, 0) | {"fps": 60.0}, clip(0.2, 1) | {"fps": 20.0}], {}
    )
    assert result.fps == 60
    assert [shown.fps for shown in result.clips] == [60.0, 20.0]
    assert len(result.picture) == 3 * 2
