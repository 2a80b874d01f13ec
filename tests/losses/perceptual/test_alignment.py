"""Alignment of the latent with a frozen network's features: values, gradients, and where networks come from."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from telecine.losses.perceptual import Alignment, CorruptWeightsError


def colours(frames):
    """Return mean colours of 4 x 4 pixels as features `(N, 3, h, w)`."""
    return F.avg_pool2d(frames, 4)


def tubes(video):
    """Return mean colours of 2 frames of 4 x 4 pixels as features `(N, 3, t, h, w)`."""
    return F.avg_pool3d(video, (2, 4, 4))


CLIPS = {"net": tubes, "time_stride": 1, "num_features": 3}


class Net(nn.Module):
    """Features that depend on weights."""

    def __init__(self, features=5):
        super().__init__()
        self.conv = nn.Conv2d(3, features, 4, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, frames):
        return self.drop(self.conv(frames))


def no_map(frames):
    return frames.mean((2, 3))


def clips(frames=5):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, frames, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1


def identity(net=colours, **options):
    """An alignment whose projection is the identity."""
    term = Alignment(3, net=net, **options).double()
    with torch.no_grad():
        term.projection.weight.copy_(torch.eye(3)[:, :, None, None])
        term.projection.bias.zero_()
    return term


def latent_of(video):
    """Return the features of the frames 0, 4, ... of clips, which an alignment compares with the latent."""
    return F.avg_pool3d(video[:, :, ::4], (1, 4, 4))


def test_known_values():
    video = clips()
    assert (
        identity(cos_margin=0.0, distance_margin=0.0)(latent=latent_of(video), target=video).abs()
        < 1e-9
    )
    # Opposite features: the cosine is -1 everywhere, and distances within a frame are the same.
    assert identity()(latent=-latent_of(video), target=video).item() == pytest.approx(1.5)
    weight = torch.tensor([1.0, 3.0]).double()
    assert identity()(
        latent=-latent_of(video), target=video, sample_weight=weight
    ).item() == pytest.approx(3.0)
    # One direction at every position: point terms are relu(0.5 - cos), pair terms relu(|1 - cos(f_i, f_j)| - 0.25).
    z, f = torch.zeros(2, 3, 1, 2, 2).double(), F.normalize(latent_of(video[:, :, :1]), dim=1)
    z[:, 0] = 2
    cosines = torch.einsum("bcthw,bctij->bthwij", f, f).flatten(1)
    expected = F.relu(0.5 - f[:, 0]).mean() + F.relu((1 - cosines).abs() - 0.25).mean()
    assert identity()(latent=z, target=video[:, :, :1]).item() == pytest.approx(expected.item())


def test_the_compared_frame_is_drawn():
    video, term = clips(9), identity(cos_margin=0.0, distance_margin=0.0)
    latent = latent_of(video)
    latent[:, :, 1] *= -1  # the frame whose features are wrong
    generators = [torch.Generator().manual_seed(seed) for seed in range(30)]
    values = [
        term(latent=latent, target=video, generator=generator).item() for generator in generators
    ]
    assert {round(value, 6) for value in values} == {
        0.0,
        1.0,
        2.0,
    }  # of two clips, none, one or both


def test_only_the_projection_is_trained_and_saved():
    net = Net()
    term = Alignment(4, net=net, size=16).train()
    names = {"projection.weight", "projection.bias"}
    assert {name for name, _ in term.named_parameters()} == set(term.state_dict()) == names
    assert term.projection.weight.shape == (5, 4, 1, 1)
    assert torch.equal(*[term.network(torch.ones(1, 3, 16, 16))[-1] for _ in range(2)]), (
        "no dropout"
    )
    term.double()
    assert net.conv.weight.dtype == torch.float64
    assert term(latent=torch.rand(2, 4, 2, 2, 2), target=clips().float()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("options", [{"net": Net()}, {"net": Net(), "size": 16}, CLIPS])
def test_every_precision(dtype, options):
    term = Alignment(4, **options)
    latent = torch.rand(2, 4, 2, 2, 2, generator=torch.Generator().manual_seed(1)).to(dtype)
    video = clips(4).to(dtype)
    value, expected = (
        term(latent=latent.to(to), target=video.to(to), generator=torch.Generator().manual_seed(2))
        for to in (dtype, torch.float32)
    )
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("options", [{}, CLIPS])
def test_gradcheck(options):
    term = identity(**options)
    latent = torch.rand(
        2, 3, 2, 1, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )

    def value(z, weight):
        arguments = {"latent": z, "target": clips(4), "generator": torch.Generator().manual_seed(2)}
        return torch.func.functional_call(term, {"projection.weight": weight}, (), arguments)

    weight = term.projection.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(value, (latent.requires_grad_(), weight))


class TestNetworksByName:
    HERE = f"{__name__}.Net"

    @pytest.fixture
    def allowed(self, monkeypatch):
        monkeypatch.setattr("telecine.base.imports.allowed_packages", {"telecine", __name__})

    def test_other_code_must_be_allowed(self):
        with pytest.raises(
            ValueError, match="`net` must be in telecine or in a package that you allow"
        ):
            Alignment(3, net=self.HERE)

    @pytest.mark.parametrize(
        ("name", "save"), [("net.safetensors", save_file), ("net.pt", torch.save)]
    )
    def test_weights_by_path(self, name, save, tmp_path, allowed):
        path, net = tmp_path / name, Net()
        with pytest.raises(
            FileNotFoundError, match=rf"`weights` must be an existing file, but got .*{name}"
        ):
            Alignment(3, net=self.HERE, weights=str(path))
        save(net.state_dict(), path)
        assert torch.equal(
            Alignment(3, net=self.HERE, weights=str(path)).network.in_eval_mode().conv.weight,
            net.conv.weight,
        )
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(
            CorruptWeightsError,
            match=f"`weights` must be a checkpoint, but .*{name} cannot be read",
        ):
            Alignment(3, net=self.HERE, weights=str(path))
        save(Net(features=2).state_dict(), path)
        with pytest.raises(
            ValueError, match=r"`weights` must be those of Net, .*size mismatch for conv"
        ):
            Alignment(3, net=self.HERE, weights=str(path))

    def test_the_network_of_lpips(self, cached_weights):
        term = Alignment(3)
        assert term.projection.out_channels == 256
        assert term.network(torch.zeros(2, 3, 64, 64))[-1].shape == (2, 256, 3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"net": "alx"},
            "`net` must be one of 'vgg', 'alex', or the dotted path .* but got 'alx' .* Did you mean `alex`",
        ),
        (
            {"net": "telecine.base.files.user_cache_folder"},
            "`net` must be the path of a module, or of a function that builds one",
        ),
        (
            {"net": no_map},
            r"the result of `net` must be a list of maps \(N, F, h, w\) .*of shape \(1, 3\)",
        ),
        ({"net": colours, "weights": "x.pt"}, "`weights` must be left out for a function"),
        ({"net": colours, "cos_margin": 1}, "`cos_margin` must be a number from 0 to below 1"),
        ({"net": colours, "size": 0}, "`size` must be a positive int"),
        (
            {**CLIPS, "num_features": None},
            "`num_features` must be a positive int, but got None .* With `time_stride`, set",
        ),
        ({**CLIPS, "time_stride": 0}, "`time_stride` must be a positive int"),
        (
            {**CLIPS, "net": "vgg"},
            "`net` must be a network of clips with `time_stride`, but got 'vgg'",
        ),
        (
            {**CLIPS, "token_grid": [2, 2]},
            "`token_grid` must be three numbers: .* but got \\[2, 2\\]",
        ),
        ({**CLIPS, "token_grid": [2, 0, 2]}, r"`token_grid\[1\]` must be a positive int"),
        (
            {"net": colours, "token_grid": [2, 2, 2]},
            "`token_grid` must be left out for single frames",
        ),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Alignment(3, **options)


def test_the_last_of_several_maps_and_tokens():
    """A network may return several maps, or tokens of which the first are those of classes."""

    def maps(frames):
        return [frames, colours(frames)]

    def tokens(frames):
        last = colours(frames).flatten(2).transpose(1, 2)
        return torch.cat([last[:, :1], last], dim=1)

    video = clips()
    values = []
    for net in (colours, maps, tokens):
        generator = torch.Generator().manual_seed(1)
        values.append(
            identity(net)(latent=latent_of(video).flip(1), target=video, generator=generator).item()
        )
    assert values[0] > 0.1
    assert values == pytest.approx([values[0]] * 3)


def test_another_number_of_channels():
    with pytest.raises(
        ValueError, match=r"`latent` must be of 3 channels, .* Set `latent_channels` to 2\."
    ):
        identity()(latent=torch.zeros(2, 2, 1, 2, 2), target=clips())


class TestWholeClips:
    def test_known_value(self):
        """Each position with its features, and those of one random latent frame with all of the clip."""
        video = clips(4)
        z = (
            torch.rand(
                2, 3, 2, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64
            )
            - 0.5
        )
        drawn = (
            (2 * torch.rand(2, 1, generator=torch.Generator().manual_seed(0)))
            .long()
            .flatten()
            .tolist()
        )
        assert sorted(drawn) == [0, 1]
        features, expected = tubes(video), []
        for clip, frame in enumerate(drawn):
            a, b = (
                F.normalize(x[clip].flatten(1), dim=0).T for x in (z, features)
            )  # a row for each position
            point = [max(0.0, 0.5 - float(a[i] @ b[i])) for i in range(8)]
            pairs = [
                max(0.0, abs(float(a[i] @ a[j]) - float(b[i] @ b[j])) - 0.1)
                for i in range(4 * frame, 4 * frame + 4)
                for j in range(8)
            ]
            expected.append(sum(point) / 8 + sum(pairs) / 32)
        term = identity(**CLIPS, distance_margin=0.1)
        value = term(latent=z, target=video, generator=torch.Generator().manual_seed(0))
        assert value.item() == pytest.approx(sum(expected) / 2, rel=1e-9)
        weight = torch.tensor([1.0, 3.0]).double()
        value = term(
            latent=z, target=video, sample_weight=weight, generator=torch.Generator().manual_seed(0)
        )
        assert value.item() == pytest.approx((expected[0] + 3 * expected[1]) / 2, rel=1e-9)

    @pytest.mark.parametrize(
        ("options", "latent"),
        [
            (
                {"time_stride": 2, "net": lambda x: F.avg_pool3d(x, (1, 4, 4))},
                lambda v: F.avg_pool3d(v, (1, 4, 4))[:, :, ::2],
            ),
            # Four features over time and one in space become those of two latent frames of 2 x 2.
            (
                {"net": lambda x: F.avg_pool3d(x, (1, 8, 8))},
                lambda v: F.avg_pool3d(v, (2, 8, 8)).expand(-1, -1, -1, 2, 2),
            ),
            # Tokens, of which the first is that of a class.
            (
                {
                    "net": lambda x: F.pad(tubes(x).flatten(2), (1, 0)).transpose(1, 2),
                    "token_grid": [2, 2, 2],
                },
                tubes,
            ),
            # Frames of 8 x 8 are resized to 16 x 16, whose quarters are those of the frame.
            (
                {"net": lambda x: F.avg_pool3d(x, (2, 16, 16)), "size": 16},
                lambda v: F.avg_pool3d(v, (2, 8, 8)),
            ),
        ],
    )
    def test_features_are_matched_in_time_and_space(self, options, latent):
        video = clips(4)
        term = identity(**CLIPS | options, cos_margin=0.0, distance_margin=0.0)
        assert term(latent=latent(video), target=video).abs() < 1e-6
        assert term(latent=-latent(video), target=video) > 1.9

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"num_features": 1},
                "`num_features` must be the number of features of `net`, but got 1 for 3",
            ),
            (
                {"net": lambda x: x.mean(2)},
                r"the result of `net` must be a list of maps \(N, F, t, h, w\), or with .* for N = 2 clips, but got",
            ),
            (
                {"token_grid": [1, 2, 2]},
                r"the result of `net` must be a list of tokens .* at least 4, .* but got .*\(2, 3, 2, 2, 2\)",
            ),
            (
                {"token_grid": [3, 2, 2], "net": lambda x: tubes(x).flatten(2).transpose(1, 2)},
                r"the result of `net` must be a list of tokens .* at least 12, .* but got .*\(2, 8, 3\)",
            ),
        ],
    )
    def test_other_results(self, options, message):
        term = Alignment(3, **CLIPS | options)
        with pytest.raises(ValueError, match=message):
            term(latent=torch.rand(2, 3, 2, 2, 2), target=clips(4).float())
