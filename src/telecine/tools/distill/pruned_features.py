"""The term that compares features of a pruned decoder with those of its teacher's that stayed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from telecine.base.checks import argument_error
from telecine.base.files import read_json
from telecine.base.frozen import FrozenModule
from telecine.base.precision import at_least_float32
from telecine.base.randomness import Generators, numbers_for_batch, randn
from telecine.base.shapes import Scalar, Video
from telecine.losses.reconstruction import weighted_mean
from telecine.models import VideoAutoencoder
from telecine.models.causal_autoencoder import CausalAutoencoder
from telecine.models.pretrained import digest_of_decoder
from telecine.models.removed_blocks import RemovedBlocks
from telecine.tools.distill.features import (
    SMALLEST_STD,
    decoder_features,
    decoder_of,
    features_of_smallest_clip,
    layer_error,
)
from telecine.tools.distill.teacher import generates, load_teacher


class PrunedFeatures(nn.Module):
    """The squared error of a pruned decoder's features against the same layers and channels of its frozen teacher.

    Each channel that was kept is compared with itself, in units of its variance over the batch in the teacher: no
    projection is trained, unlike in `TeacherFeatures`, and the term is 0 if nothing was removed. It is the mean over
    layers. An update decodes once more.

    `layers` has the compared layers of the student, with those of the teacher: removed blocks change their numbers.

    Args:
        teacher: The model or run that was pruned.
        pruned: The file that `telecine prune` wrote beside the pruned model, with the channels that stayed.
        layers: Layers of the teacher's decoder by name; by default the last one of each height and width whose output
            has channels that were kept or removed.

    Raises:
        ValueError: Another model was pruned; or the teacher's decoder does not call such a layer, or its channels were
            not pruned.
    """

    def __init__(self, teacher: str, pruned: str, layers: Sequence[str] = ()) -> None:
        super().__init__()
        self.teacher = FrozenModule(load_teacher(teacher))
        report = read_json(Path(pruned))
        _check_teacher(self.teacher.in_eval_mode(), teacher, report, pruned)
        features, scales = features_of_smallest_clip(self.teacher.in_eval_mode())
        removed = RemovedBlocks(report["removed_blocks"]).of_decoder()
        kept = _kept_channels(decoder_of(self.teacher.in_eval_mode()), features, report, removed)
        names = list(layers)
        if not names:
            last = {scales[name]: name for name in features if name in kept}
            names = list(last.values())
        for name in names:
            if name not in kept:
                raise layer_error(name, {layer: features[layer] for layer in kept})
        self.kept = {name: kept[name] for name in names}
        self.layers = {}
        for name in names:
            student_name = removed.to_pruned(name)
            assert student_name is not None  # a layer with kept channels
            self.layers[student_name] = name

    def forward(
        self,
        *,
        latent: Tensor,
        model: nn.Module,
        generator: Generators = None,
        sample_weight: Tensor | None = None,
    ) -> Scalar:
        """Return the error, 0-d.

        Args:
            latent: `(B, C, t, h, w)`.
            model: The student.
            generator: Draws the noise that student and teacher share if they have a `sampler`: one, or one for each
                clip; PyTorch's default generator if None.
            sample_weight: Weight of each clip, `(B,)`; None for 1.

        Raises:
            ValueError: The student is no autoencoder of telecine or diffusers.
        """
        if not isinstance(model, VideoAutoencoder):
            remedy = "Use the term in `telecine distill --init`."
            raise argument_error("model", "a pruned autoencoder", type(model).__name__, remedy)
        teacher = self.teacher.in_eval_mode()
        noise: Video | None = None
        if isinstance(model, CausalAutoencoder) and generates(teacher):
            noise = randn(model.decoded_shape(latent), generator=generator, device=latent.device)
        (draw,) = numbers_for_batch("teacher_features", count=1, generator=generator)
        seed = int(2**31 * draw)
        features = decoder_features(model, latent, list(self.layers), noise, seed)
        with torch.no_grad():
            targets = decoder_features(teacher, latent, list(self.layers.values()), noise, seed)
        errors = []
        for student_layer, teacher_layer in self.layers.items():
            x = at_least_float32(features[student_layer])
            y = at_least_float32(targets[teacher_layer][:, self.kept[teacher_layer]])
            std = y.std((0, 2, 3, 4), correction=0, keepdim=True).clamp_min(SMALLEST_STD)
            errors.append(weighted_mean(((x - y) / std).square(), sample_weight))
        return torch.stack(errors).mean()


def _check_teacher(
    teacher: VideoAutoencoder, teacher_name: str, report: Mapping[str, Any], report_path: str
) -> None:
    """Check that a teacher is the model whose channels and blocks a report of `telecine prune` counts.

    Args:
        teacher: The teacher.
        teacher_name: Its name.
        report: The report.
        report_path: Its file.

    Raises:
        ValueError: It is another model, or the report does not say of which it is.
    """
    digest = report.get("decoder_sha256")
    if digest is None:
        contract = "a file of this version of `telecine prune`"
        raise argument_error("pruned", contract, report_path, "Prune the model again.")
    if digest != digest_of_decoder(teacher):
        contract = f"the model that `telecine prune` got for {report_path}"
        got = f"{teacher_name}, whose decoder differs"
        remedy = "Use that model: after two prunings, the result of the first one."
        raise argument_error("teacher", contract, got, remedy)


def _kept_channels(
    decoder: nn.Module,
    features: Mapping[str, Tensor],
    report: Mapping[str, Any],
    removed: RemovedBlocks,
) -> dict[str, list[int]]:
    """Return the kept channels of each layer of the teacher that ends with a pruned convolution.

    Layers inside a convolution that became a cheaper one are left out: the student does not have them.

    Args:
        decoder: The teacher's.
        features: Outputs of its layers by name.
        report: What `telecine prune` wrote.
        removed: The blocks of the decoder that the student lacks.
    """
    kept_of_convolutions: dict[str, list[int]] = {}
    for student_name, channels in report["kept_outputs"].items():
        kept_of_convolutions[removed.to_teacher(student_name)] = channels
    replaced = []
    for fit in report.get("convolutions", []):
        replaced.append(removed.to_teacher(fit["layer"]) + ".")
    kept = {}
    for layer_name, output in features.items():
        if layer_name.startswith(tuple(replaced)):
            continue
        last_convolution = None
        for name, layer in decoder.get_submodule(layer_name).named_modules(prefix=layer_name):
            if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
                last_convolution = name
        if last_convolution not in kept_of_convolutions:
            continue
        weight = decoder.get_parameter(f"{last_convolution}.weight")
        if len(weight) == output.shape[1]:  # else what follows it shuffles channels
            kept[layer_name] = kept_of_convolutions[last_convolution]
    return kept
