"""What is left of a video after several round trips: its error, colours, sharpness and latent after each pass."""

from dataclasses import dataclass

from telecine.base.shapes import Video
from telecine.evaluation.metrics.measure import ClipValues
from telecine.evaluation.metrics.metric import Metric, register
from telecine.evaluation.metrics.pixels import psnr, sharpness
from telecine.evaluation.round_trips import CODECS, round_trips
from telecine.losses.reconstruction import MAX_PSNR
from telecine.models import VideoAutoencoder
from telecine.settings import CHANNELS, Codec

_LEVELS = 127.5  # a difference of 1 in [-1, 1], in levels of 8 bits
_EPSILON = 1e-12  # of the variance of a latent, which may be constant
_CHANNEL_NAMES = {
    CHANNELS["grey"]: ("grey",),
    CHANNELS["rgb"]: ("red", "green", "blue"),
    CHANNELS["rgba"]: ("red", "green", "blue", "alpha"),
}

ROUND_TRIP_PSNR = register(
    Metric(
        name="round_trip_psnr",
        unit="dB",
        definition=f"PSNR between a clip after the last pass and the input, at most {MAX_PSNR:g}",
    )
)
ROUND_TRIP_COLOUR = register(
    Metric(
        name="round_trip_colour",
        unit="levels of 8 bits",
        definition="root mean square over channels of the change of a clip's mean, from the input to the last pass",
        better="smaller",
    )
)
ROUND_TRIP_SHARPNESS = register(
    Metric(
        name="round_trip_sharpness",
        definition="mean squared difference of neighbouring pixels after the last pass over that in the input",
        better="nearest to 1",
        min_side=2,
    )
)
ROUND_TRIP_LATENT = register(
    Metric(
        name="round_trip_latent",
        definition="root mean square of the change of the latent's mode, from the input to the last pass, over the "
        "standard deviation of the input's latent around the mean of each channel of the clip",
        better="smaller",
    )
)


@dataclass(frozen=True)
class RoundTrips:
    """Reconstructs clips again and again, and compares each pass with the input."""

    model: VideoAutoencoder
    num_passes: int
    through: Codec | None = None
    """The codec between passes."""
    metrics = (ROUND_TRIP_PSNR, ROUND_TRIP_COLOUR, ROUND_TRIP_SHARPNESS, ROUND_TRIP_LATENT)

    @property
    def method(self) -> str:
        """The number of passes and the codec, for `protocol.json`."""
        codec = "clamped" if self.through is None else CODECS[self.through]
        return f"{self.num_passes} passes, each {codec}"

    def __call__(self, *, reconstruction: Video, target: Video) -> ClipValues:
        """Return the values of a clip after the last pass, and those after each pass, see `curves`.

        Args:
            reconstruction: Not used: each pass reconstructs the one before.
            target: The clip, `(1, C, T, H, W)` in [-1, 1].
        """
        curves = self.curves(target)
        last = {}
        for metric in self.metrics:
            if metric.name in curves:
                last[metric.name] = curves[metric.name][-1]
        return ClipValues(last, curves)

    def curves(self, target: Video) -> dict[str, list[float]]:
        """Return the values of a clip `(1, C, T, H, W)` in [-1, 1] after each pass, from the first pass on.

        They are those of the metrics, by name, and the change of the mean of each channel in levels of 8 bits, by names
        such as `red`. `round_trip_latent` is left out for a model that does not return its latent.
        """
        num_channels = target.shape[1]
        channels = _CHANNEL_NAMES.get(num_channels)
        if channels is None:
            channels = tuple(f"channel_{index}" for index in range(num_channels))
        names = [metric.name for metric in self.metrics]
        curves: dict[str, list[float]] = {name: [] for name in (*names, *channels)}
        passes = round_trips(self.model, target, self.num_passes, self.through)
        _, latent = next(passes)
        for video, new_latent in passes:
            error = psnr(reconstruction=video, target=target)
            curves[ROUND_TRIP_PSNR.name].append(float(error))
            colours = _LEVELS * (video.double() - target.double()).mean((0, 2, 3, 4))
            for channel, colour in zip(channels, colours.tolist(), strict=True):
                curves[channel].append(colour)
            curves[ROUND_TRIP_COLOUR.name].append(float(colours.square().mean().sqrt()))
            ratio = sharpness(reconstruction=video, target=target)
            curves[ROUND_TRIP_SHARPNESS.name].append(float(ratio))
            if latent is not None and new_latent is not None:
                deviation = latent - latent.mean((2, 3, 4), keepdim=True)
                drift = (new_latent - latent).square().mean()
                scale = deviation.square().mean() + _EPSILON
                curves[ROUND_TRIP_LATENT.name].append(float((drift / scale).sqrt()))
        if latent is None:
            del curves[ROUND_TRIP_LATENT.name]
        return curves
