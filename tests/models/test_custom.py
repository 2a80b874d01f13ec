"""Any module with a `forward` becomes a `VideoAutoencoder`."""

import copy
import json
import sys
from importlib import import_module
from unittest.mock import Mock

import pytest
import torch
from diffusers import ModelMixin
from safetensors.torch import load_file
from torch import nn

from telecine.base import imports
from telecine.base.imports import allow_code
from telecine.losses import posterior_kl
from telecine.models import (
    CustomAutoencoder,
    DeterministicPosterior,
    DiagonalGaussian,
    Reconstruction,
    VideoAutoencoder,
    as_video_autoencoder,
    load_autoencoder,
)
from telecine.models.custom_reload import check_reload
from telecine.models.diffusers import DiffusersAutoencoder
from telecine.models.pretrained import save_model
from telecine.settings import TrainableConfig
from telecine.training.trainable import select_trainable

from .tiny_models import tiny_clip, tiny_model


class Compressor(nn.Module):
    """The smallest autoencoder whose layers can have LoRA adapters."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv3d(3, 4, 1)
        self.decoder = nn.Sequential(nn.Conv3d(4, 4, 1), nn.Conv3d(4, 3, 1))

    def forward(self, video):
        return self.decoder(self.encoder(video))


class SavesItself(Compressor):
    """A module with its own file format."""

    def save_pretrained(self, folder):
        folder.mkdir()
        torch.save(self.state_dict(), folder / "custom.pt")


class Complete(nn.Module):
    """A module with all optional members, which does not inherit from `VideoAutoencoder`."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv3d(3, 2, 1)
        self.up = nn.Conv3d(1, 3, 1)
        for name in RECORDED:
            setattr(self, name, Mock())

    def forward(self, video, sample_posterior=True):
        posterior = self.encode(video)
        latent = posterior.sample() if sample_posterior else posterior.mode()
        return Reconstruction(video=self.decode(latent), aux={"kl_loss": posterior_kl(posterior)})

    def encode(self, video):
        mean, logvar = self.down(video).chunk(2, dim=1)
        return DiagonalGaussian(mean=mean, logvar=logvar)

    def decode(self, latent):
        return self.up(latent)

    @property
    def last_layer(self):
        return self.up.weight

    def covering_clip(self, num_frames, height, width):
        return num_frames + 1, height, width


RECORDED = {
    "check_clip": (2, 4, 4),
    "enable_gradient_checkpointing": (),
    "enable_temporal_chunks": (8,),
    "linear_autoencoder": (2, 4, 4),
    "latent_normalisation": (),
    "set_latent_statistics": ("statistics",),
    "save_pretrained": ("folder",),
    "load_weights": ("folder",),
}


def clip():
    return torch.rand(1, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Weighted(nn.Module):
    """Trains on the mirrored clip, with half the weight."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 3, 1)

    def forward(self, video):
        weight = video.new_full((len(video),), 0.5)
        return Reconstruction(self.conv(video), {}, weight=weight, target=video.flip(-1))


def test_a_module_may_return_a_reconstruction_with_a_weight_and_a_target():
    output = as_video_autoencoder(Weighted())(clip())
    assert output.weight.tolist() == [0.5]
    assert torch.equal(output.target, clip().flip(-1))


def test_a_forward_is_enough():
    model = as_video_autoencoder(Compressor())
    assert isinstance(model, VideoAutoencoder)
    output = model(clip())
    assert torch.equal(output.video, model.module(clip()))
    assert (output.aux, output.latent) == ({}, None)
    assert model.last_layer is model.module.decoder[1].weight
    assert model.covering_clip(2, 5, 7) == (2, 5, 7)
    assert model.leaves_weights_unused, (
        "DDP does not wait for gradients: which weights it uses is not known"
    )


@pytest.mark.parametrize("module", ["tiny", nn.Conv3d])
def test_a_name_and_a_class_are_refused(module):
    with pytest.raises(
        ValueError,
        match=r"`autoencoder` must be of the class `Module`, but got .*Call a class; load",
    ):
        as_video_autoencoder(module)


def test_all_optional_members_are_used():
    module = Complete()
    model = as_video_autoencoder(module)
    # The trainer passes a generator, which this module's `forward` does not accept.
    output = model(clip(), sample_posterior=False, generator=torch.Generator())
    assert torch.equal(output.video, module(clip(), sample_posterior=False).video)
    assert output.aux["kl_loss"] == posterior_kl(module.encode(clip()))
    assert model.last_layer is module.up.weight
    assert model.covering_clip(2, 4, 4) == (3, 4, 4)
    for name, arguments in RECORDED.items():
        getattr(model, name)(*arguments)
        getattr(module, name).assert_called_once_with(*arguments)


def test_a_generator_is_passed_to_a_forward_that_accepts_it():
    class Noisy(Compressor):
        def forward(self, video, generator=None):
            return super().forward(video) + torch.rand(1, generator=generator), {
                "noise_loss": torch.ones(()).double()
            }

    model = CustomAutoencoder(Noisy())
    output = model(clip(), generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        model(clip(), generator=torch.Generator().manual_seed(1)).video, output.video
    )
    assert output.aux["noise_loss"].dtype == torch.float32


class WithLatent(Compressor):
    def forward(self, video):
        latent = self.encoder(video)
        return self.decoder(latent), {}, latent.half()

    def decode(self, latent):
        return self.decoder(latent)


def test_a_latent_and_a_decoder_are_handed_on():
    model = CustomAutoencoder(WithLatent())
    output = model(clip())
    latent = model.module.encoder(clip())
    torch.testing.assert_close(output.latent, latent.half().float())
    assert torch.equal(model.decode(latent), output.video)


def test_a_copy_decodes_with_weights_of_its_own():
    model = CustomAutoencoder(WithLatent())
    copied = copy.deepcopy(model)
    for weight in copied.parameters():
        nn.init.zeros_(weight)
    latent = torch.ones(1, 4, 1, 2, 2)
    assert copied.decode(latent).count_nonzero() == 0
    assert model.decode(latent).count_nonzero() > 0


class Scripted(Compressor):
    @torch.jit.export
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return self.decoder(latent)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_a_scripted_module_with_a_decoder_can_be_copied():
    """A checkpoint is saved from a copy."""
    model = CustomAutoencoder(torch.jit.script(Scripted()))
    copied = copy.deepcopy(model)
    latent = torch.ones(1, 4, 1, 2, 2)
    assert torch.equal(copied.decode(latent), model.decode(latent))


def test_sizes_are_probed_without_sampling_and_arguments_need_no_defaults():
    class Sampled(Compressor):
        def forward(self, video, sample_posterior, generator):
            assert not sample_posterior
            assert generator is None
            return super().forward(video)

    CustomAutoencoder(Sampled()).check_clip(2, 4, 4)


@pytest.mark.parametrize(
    ("side", "smallest", "size"), [(5, 10, (15, 20)), (9, 18, (27, 36)), (20, 20, (40, 40))]
)
def test_patches_of_other_sides(side, smallest, size):
    patch = (1, side, side)
    module = nn.Sequential(nn.Conv3d(3, 3, patch, patch), nn.Upsample(scale_factor=patch))
    model = CustomAutoencoder(module)
    assert model.covering_clip(1, 1, smallest) == (1, smallest, smallest)
    assert model.covering_clip(1, smallest + 1, size[1] - 1) == (1, *size)


@pytest.mark.parametrize(("sides", "covering"), [({32, 40, 48}, 40), ({32}, 64)])
def test_models_of_few_sides(sides, covering):
    class Refuses(Compressor):
        def forward(self, video):
            if video.shape[-1] not in sides:
                raise ValueError("another side")
            return super().forward(video)

    assert CustomAutoencoder(Refuses()).covering_clip(2, 32, 33) == (2, 32, covering)


def test_a_loss_that_is_no_tensor_is_refused():
    class Returns(Compressor):
        def forward(self, video):
            return super().forward(video), {"kl": 0.0}

    with pytest.raises(
        TypeError, match="must be a video, or a tuple of a video, a dict of losses and a latent"
    ):
        CustomAutoencoder(Returns())(clip())


def test_another_output_size_is_refused():
    model = CustomAutoencoder(nn.AvgPool3d(2))
    with pytest.raises(
        ValueError, match=r"the reconstruction must be of the video's shape \(1, 3, 2, 4, 4\)"
    ):
        model(clip())


class HalvesWidth(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(5_000_000))
        self.devices = set()

    def forward(self, video):
        self.devices.add(video.device.type)
        return video[..., ::2]


def test_another_output_size_of_a_large_module_is_found_without_its_weights():
    """A pass through them with each of the sizes that are tried could take hours."""
    module = HalvesWidth()
    with pytest.raises(ValueError, match="HalvesWidth, which reproduces no size"):
        as_video_autoencoder(module).check_clip(1, 8, 8)
    assert module.devices == {"meta"}


def test_another_number_of_channels_is_refused_at_the_first_clip():
    model = as_video_autoencoder(nn.Sequential(nn.Conv3d(3, 4, 1), nn.Conv3d(4, 1, 1)))
    with pytest.raises(
        ValueError, match=r"the 3 channels of the clip, but got the shape .1, 1, .*`in_channels`"
    ):
        model.check_clip(4, 8, 8)


PACKAGE = """
from diffusers import ModelMixin, ConfigMixin
from diffusers.configuration_utils import register_to_config
from torch import nn


class Tiny(nn.Module):
    def __init__(self, width=4, kernel=1):
        super().__init__()
        self.config = {"width": width, "kernel": kernel}
        self.layers = nn.Sequential(nn.Conv3d(3, width, kernel), nn.Conv3d(width, 3, 1))

    def forward(self, video):
        return self.layers(video)


class Undeclared(Tiny):
    def __init__(self, width=4):
        super().__init__(width)
        del self.config


class Bare(Tiny):
    def __init__(self):
        super().__init__(5)
        del self.config


class Required(Undeclared):
    def __init__(self, width):
        super().__init__(width)


class Scaled(Undeclared):
    def __init__(self, scale=1):
        super().__init__()
        self.scale = scale

    def forward(self, video):
        return super().forward(video) * self.scale


class Unplain(Tiny):
    def __init__(self, width=4):
        super().__init__(width)
        self.config["width"] = object()


class Wrong(Tiny):
    def __init__(self, width=4):
        super().__init__(width)
        self.config = {"height": 3}


class OfDiffusers(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, width=4):
        super().__init__()
        self.layer = nn.Conv3d(3, 3, 1)

    def forward(self, video):
        return self.layer(video)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a module that is not allowed, with autoencoders; what the test allows is forgotten."""
    monkeypatch.setattr(imports, "allowed_packages", {*imports.allowed_packages})
    (tmp_path / "mine_of_tests.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    yield import_module("mine_of_tests")
    sys.modules.pop("mine_of_tests")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("Tiny", {"width": 6}), ("Bare", {}), ("Undeclared", {}), ("OfDiffusers", {"width": 6})],
)
def test_a_saved_module_is_loaded_by_the_path_of_its_class(package, tmp_path, name, arguments):
    module = getattr(package, name)(**arguments)
    as_video_autoencoder(module).save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["_class_name"], config["_class_path"]) == (name, f"mine_of_tests.{name}")
    with pytest.raises(
        ValueError, match=r"`_class_path in .*add `--allow_code mine_of_tests`, or call"
    ):
        load_autoencoder(tmp_path / "model")
    allow_code("mine_of_tests")
    loaded = load_autoencoder(tmp_path / "model")
    assert type(loaded.module) is type(module)
    assert torch.equal(loaded(clip()).video, module(clip()))


@pytest.mark.parametrize(
    ("name", "arguments", "when_trained", "when_loaded"),
    [
        (
            "Required",
            {"width": 4},
            "whose arguments are not known",
            r"Required\(\.\.\.\)\)\.load_w",
        ),
        ("Undeclared", {"width": 6}, r"which with \{\} has layers", "must be the model's weights"),
        ("Scaled", {"scale": 2}, r"which with \{\} has other outputs with the same weights", None),
        ("Unplain", {}, "not plain values", None),
        (
            "Wrong",
            {},
            r"raises TypeError with \{'height': 3\}",
            "got {'height': 3}, with which it r",
        ),
    ],
)
def test_a_module_that_cannot_be_built_again(
    package, tmp_path, name, arguments, when_trained, when_loaded
):
    model = as_video_autoencoder(getattr(package, name)(**arguments))
    with pytest.raises(ValueError, match=rf"{when_trained}.*Give it an attribute `config`, a dict"):
        check_reload(model)
    model.save_pretrained(tmp_path)
    allow_code("mine_of_tests")
    if when_loaded is not None:
        with pytest.raises(ValueError, match=when_loaded):
            load_autoencoder(tmp_path)


def test_a_run_that_saved_its_arguments_as_settings_only(package, tmp_path):
    model = as_video_autoencoder(package.Undeclared(6))
    model.save_pretrained(tmp_path / "ema")
    file = tmp_path / "ema" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_arguments": None}))
    path = "mine_of_tests.Undeclared"
    (tmp_path / "config.yaml").write_text(f"model: {path}\nmodel_arguments: {{width: 6}}\n")
    allow_code("mine_of_tests")
    assert torch.equal(load_autoencoder(tmp_path / "ema")(clip()).video, model(clip()).video)


def test_arguments_that_the_caller_knows_are_saved(package, tmp_path):
    module = package.Scaled(scale=2)
    model = as_video_autoencoder(module, {"scale": 2})
    assert check_reload(model) is None
    model.save_pretrained(tmp_path)
    allow_code("mine_of_tests")
    assert torch.equal(load_autoencoder(tmp_path)(clip()).video, module(clip()))


def test_a_class_that_cannot_be_imported(tmp_path):
    class Local(Compressor):
        pass

    model = as_video_autoencoder(Local())
    assert "commands cannot load this run, since" in check_reload(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"a class that can be imported, .*Move the class to a file"
    ):
        load_autoencoder(tmp_path)


def test_a_configuration_calls_no_function(tmp_path):
    """Functions of telecine are allowed without a word of the user's."""
    arguments = {"path": str(tmp_path / "written"), "value": 1}
    config = {"_class_path": "telecine.base.files.write_json", "_arguments": arguments}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"must be a subclass of `torch\.nn\.Module`, .*write_json, which is not"
    ):
        load_autoencoder(tmp_path)
    assert not (tmp_path / "written").exists()


def test_a_module_that_an_older_version_saved(tmp_path):
    save_model(Compressor(), {}, tmp_path)
    with pytest.raises(
        ValueError,
        match=r"got 'Compressor'\. .*In Python, a module of yours takes the place of its folder",
    ):
        load_autoencoder(tmp_path)
    model = as_video_autoencoder(Compressor()).load_weights(tmp_path)
    assert torch.equal(
        model.module.decoder[1].bias, load_file(tmp_path / "model.safetensors")["decoder.1.bias"]
    )


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda model: model.enable_temporal_chunks(8),
            "`temporal_chunk` must be left out .* a number for Comp",
        ),
        (
            lambda model: model.enable_gradient_checkpointing(),
            "`model_gradient_checkpointing` must be false .* got true for Compressor",
        ),
        (
            lambda model: model(clip(), posterior=DeterministicPosterior(clip())),
            "`posterior` must be None for a custom module",
        ),
        (
            lambda model: model.encode(clip()),
            "`encode` must be a method of the model, .*CustomAutoencoder without",
        ),
        (
            lambda model: model.decode(clip()),
            "`decode` must be a method of the model, .*CustomAutoencoder without",
        ),
    ],
)
def test_what_a_module_does_not_support_is_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use(CustomAutoencoder(Compressor()))


@pytest.mark.parametrize(("cls", "load"), [(Compressor, load_file), (SavesItself, torch.load)])
def test_saved_weights_contain_the_low_rank_updates(cls, load, tmp_path):
    model = CustomAutoencoder(cls())
    select_trainable(model, TrainableConfig(weights="lora", lora_rank=2))
    torch.nn.init.normal_(model.module.decoder[0].parametrizations.weight[0].up)
    model.save_pretrained(tmp_path / "model")
    (file,) = (path for path in (tmp_path / "model").iterdir() if path.suffix != ".json")
    alone = cls()
    alone.load_state_dict(load(file))
    torch.testing.assert_close(alone(clip()), model(clip()).video)


class Tied(Compressor):
    """A module with two names for its last layer, and a weight shared by two layers."""

    def __init__(self):
        super().__init__()
        self.last = self.decoder[1]
        self.shared = nn.Conv3d(3, 4, 1, bias=False)
        self.shared.weight = self.encoder.weight


def test_tied_weights_are_saved_and_stay_tied(tmp_path):
    model = CustomAutoencoder(Tied())
    model.save_pretrained(tmp_path)
    other = CustomAutoencoder(Tied())
    other.load_weights(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.module.state_dict())
    torch.testing.assert_close(other.module.state_dict(), model.module.state_dict(), rtol=0, atol=0)
    assert other.module.last is other.module.decoder[1]
    assert other.module.shared.weight is other.module.encoder.weight


class ReturnsADict(Compressor):
    def __init__(self):
        super().__init__()
        self.num_calls = 0

    def forward(self, video):
        self.num_calls += 1
        return {"sample": super().forward(video)}


def test_another_output_type_is_refused_at_the_first_probe():
    module = ReturnsADict()
    with pytest.raises(
        TypeError, match=r"the module's output must be a video, .*but got .*Return the"
    ):
        CustomAutoencoder(module).check_clip(2, 32, 32)
    assert module.num_calls == 1


def test_a_diffusers_model_becomes_a_diffusers_autoencoder():
    model = as_video_autoencoder(tiny_model("wan"))
    assert isinstance(model, DiffusersAutoencoder)
    assert as_video_autoencoder(model) is model
    assert model(tiny_clip("wan")).video.shape == tiny_clip("wan").shape


def test_a_subclass_of_a_diffusers_class_is_called_by_its_forward():
    class Subclass(ModelMixin, Compressor):
        pass

    assert isinstance(as_video_autoencoder(Subclass()), CustomAutoencoder)


@pytest.mark.slow
@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_module(tmp_path, in_place):
    """Sizes and the last layer are found without compiled code; a copy and what is saved are those of the module."""
    calls = []

    def backend(graph, inputs):
        calls.append(tuple(inputs[-1].shape))
        return graph.forward

    torch._dynamo.reset()
    module = Compressor()
    expected = module(clip())
    compiled = module if in_place else torch.compile(module, backend=backend)
    if in_place:
        module.compile(backend=backend)
    model = as_video_autoencoder(compiled)
    model.check_clip(2, 4, 4)
    assert model.last_layer is module.decoder[1].weight
    assert not calls
    torch.testing.assert_close(model(clip()).video, expected)
    assert calls
    torch.testing.assert_close(copy.deepcopy(model)(clip()).video, expected)
    model.save_pretrained(tmp_path)
    loaded = as_video_autoencoder(Compressor())
    loaded.load_weights(tmp_path)
    torch.testing.assert_close(loaded(clip()).video, expected)


@pytest.mark.slow
def test_a_compiled_model_of_telecine_is_refused():
    with pytest.raises(
        ValueError,
        match=r"`autoencoder` must be compiled only if it is a module of your own, .*AutoencoderKLWan",
    ):
        as_video_autoencoder(torch.compile(tiny_model("wan"), backend="eager"))


def test_a_module_without_a_layer(tmp_path):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, 1, 1, 1))

        def forward(self, video):
            return self.scale * video

    with pytest.raises(
        ValueError, match=r"`last_layer` must be a member of Functional, .*no layer with a weight"
    ):
        as_video_autoencoder(Functional()).last_layer  # noqa: B018
