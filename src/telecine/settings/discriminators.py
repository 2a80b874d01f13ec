"""The settings of the discriminators."""

import math
from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from telecine.base.checks import argument_error, describe
from telecine.settings.group import Count, CountOrZero, Function, UserPath, group

# The shortest side that the networks of LPIPS accept.
MIN_SIZES = {"vgg": 16, "alex": 31}


@group
class FeaturesConfig:
    """The frozen network of the discriminator "features"."""

    net: str = "vgg"
    """"vgg" or "alex", with the weights of LPIPS; "torchvision/NAME", or "timm/NAME" if timm is installed.
    Source: VGG16 and AlexNet in LPIPS; an EfficientNet in Projected GANs (arXiv:2111.01007); DINO in GigaTok.
    Drawback: a model that is trained against and measured with the same network looks better than it is."""
    weights: UserPath | None = None
    """Path of a state dict of `net`, `.safetensors` or `.pth`. "vgg" and "alex" have their own.
    Source: the authors of the network.
    Drawback: each process reads the file when a run starts or resumes: checkpoints do not contain it."""
    layers: tuple[str, ...] = ()
    """Names of the layers of `net` that have a head, such as [layer1, layer2, layer3]. "vgg" has its last four stages,
    "alex" all five.
    Source: four in Projected GANs.
    Drawback: the smallest of their maps is the grid of the logits. The first layers are large: they take most of the
    time."""
    size: Count | None = None
    """Height and width to which frames are resized for `net`, if it accepts one size only.
    Source: 224 for DINO in StyleGAN-T (arXiv:2301.09515).
    Drawback: larger frames lose their detail, which the discriminator then does not see."""


@group
class DiscriminatorConfig:
    """Which discriminators there are, and their size."""

    video: Literal["first_frame", "plain", "patch", "features", "none"] | Function = "first_frame"
    """The discriminator of clips: causal with the first frame apart ("first_frame", for causal autoencoders), plain 3D
    convolutions ("plain"), fully convolutional with a logit per patch ("patch", which is lighter and local), heads on
    the layers of a frozen network that sees each frame ("features", in float32), or none. Or the dotted path of a class
    of modules, see `params` and docs/extending.md.
    Source: "first_frame" and "plain" in CogVideo; "patch" in VidTok and Open-Sora-Plan; "features" in GigaTok and RAE.
    Drawback: a discriminator that is too large wins: real and fake logits separate, and the generator loss rises.
    "features" with an exact penalty differentiates the frozen network twice."""
    params: Mapping[str, object] = field(default_factory=dict)
    """Arguments of the class whose path `video` is. Before them it gets `channels`, `image_size` and `frame_num` of its
    clips, and the settings of this group such as `dim`, if it has arguments of these names.
    Source: telecine.
    Drawback: a class without a size for small clips, which `num_scales` adds."""
    image: Literal["attention", "patch", "none"] = "none"
    """The discriminator of single frames, which sees a random one of each clip: with attention ("attention"), fully
    convolutional with a logit per patch ("patch"), or none. Use it when motion is good and detail is not.
    Source: an image and a video discriminator together in TATS and OmniTokenizer.
    Drawback: alone, it tolerates flicker."""
    num_scales: CountOrZero = 0
    """Number of discriminators of the clip at 1/2, 1/4, ... of its height and width, of the kind of `video`. They need
    `objective.multiscale_adversarial_loss_weight`.
    Source: an argument of CogVideo without effect there.
    Drawback: has little effect on small crops."""
    dim: Count = 32
    """A quarter of the channels of the first block.
    Source: telecine.
    Drawback: with too many channels the discriminator wins."""
    max_dim: Count = 512
    """Largest number of channels of a block.
    Source: 512 in CogVideo.
    Drawback: with too many channels the discriminator wins."""
    antialiased_downsample: bool = True
    """Blur before each stride. "patch" does not use it.
    Source: an option of CogVideo that raises an error there.
    Drawback: costs a few per cent of the time."""
    time_weighting: Literal["positions", "frames"] = "positions"
    """How "first_frame" averages over time after its convolutions. "positions": every temporal position has the same
    weight, and the first frame has a position to itself. "frames": every frame has the same weight.
    Source: "positions" in CogVideo.
    Drawback: with "positions", the first frame weighs as much as all frames of another position together."""
    num_layers: Count = 3
    """Number of layers of "patch" that halve height and width: with 3, a logit for every 8 x 8 pixels.
    Source: 3 in PatchGAN (arXiv:1611.07004).
    Drawback: the smallest accepted clip doubles with each layer."""
    num_temporal_layers: CountOrZero = 2
    """Number of these layers that halve time as well.
    Source: telecine.
    Drawback: with many, a short clip has a single logit over time, and flicker is seen less than with 0."""
    init: UserPath | None = None
    """Start from the discriminators of another run: its folder, or that of a checkpoint. Their kinds and sizes must be
    the same. By default they start at random.
    Source: `--disc-pretrained-ckpt` of REPA-E.
    Drawback: a discriminator that knows other data better than the autoencoder is strict from the first step."""
    norm: Literal["group", "none", "spectral"] = "group"
    """Normalisation of "patch": groups of channels, none, or spectral normalisation of its weights.
    Source: batch norm in most others, which makes clips depend on each other; "spectral" in arXiv:1802.05957.
    Drawback: "none" needs a penalty."""
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    """The frozen network of "features"."""

    def __post_init__(self) -> None:
        is_named = isinstance(self.video, str) and "." not in self.video
        if self.params and is_named:
            contract = "left out unless `discriminator.video` is the dotted path of a class"
            raise argument_error("params", contract, describe(self.params), "Remove it.")

    def check_size(self, shortest: int) -> None:
        """Check that the clips are large enough for the discriminators.

        Args:
            shortest: The shortest side of the clips in pixels.

        Raises:
            ValueError: A discriminator needs larger clips.
        """
        is_rescaled = self.video in ("patch", "features")
        smallest = shortest
        if is_rescaled:
            smallest = math.ceil(shortest / 2**self.num_scales)
        if self.video == "patch":
            remedy = "Use fewer layers, larger clips, or fewer of `discriminator.num_scales`."
            self._check_num_layers(smallest, remedy)
        if self.image == "patch":  # which has no scales
            self._check_num_layers(shortest, "Use fewer layers or larger clips.")
        size = self.features.size or smallest
        min_size = MIN_SIZES.get(self.features.net, 0)
        if self.video == "features" and size < min_size:
            contract = f"a network that accepts {size} pixels"
            got = f"{self.features.net!r}, which needs {min_size}"
            remedy = "Use larger clips, or fewer of `discriminator.num_scales`."
            raise argument_error("discriminator.features.net", contract, got, remedy)

    def _check_num_layers(self, side: int, remedy: str) -> None:
        max_layers = side.bit_length() - 1
        if self.num_layers > max_layers:
            contract = f"at most {max_layers}, which halve {side} pixels to one"
            raise argument_error("discriminator.num_layers", contract, self.num_layers, remedy)
