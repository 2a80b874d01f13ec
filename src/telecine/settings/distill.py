"""The settings of a run of `telecine distill`: those of training, and how the student learns from its teacher."""

from telecine.base.checks import argument_error
from telecine.settings.group import Integer, NonNegative, Unlisted, group
from telecine.settings.train import TrainConfig

PRUNE_FILE = "prune.json"
"""What `telecine prune` writes beside a model about its channels and convolutions. `telecine distill` reads it."""


@group
class ResolvedStudent:
    """Where a student without an encoder of its own has its weights from, as its run saves it."""

    encoder: str
    """The model that has its encoder: `teacher`, or if that is a student itself, the teacher of that one."""
    pruned_model: str | None = None
    """The model of `telecine prune` that it started as."""


@group
class DistillConfig(TrainConfig):
    """The settings of a run that trains a student. `model` and `causal_vae` follow from teacher and student.

    A run saves those of the user, with the absolute path of a local teacher, and what follows from them: `model` names
    the model that the student is built from, `resolved` has what `teacher` and `init` lead to, and `init` is left out.
    """

    teacher: str | None = None
    """The autoencoder to learn from, which is frozen: a folder or a Hub id of diffusers, of a whole pipeline or of its
    VAE; a run of telecine; or tiny, the model in the package."""
    student: str = "small"
    """The student's decoder: "small", "tiny", "teacher" for one like that of a telecine model, or a YAML or JSON file
    with settings of `causal_vae`. A model of `telecine prune` is named by `init`, and starts with its weights."""
    train_encoder: bool = False
    """Train an encoder of the same size, too, instead of keeping the teacher's."""
    latent_weight: NonNegative = 1.0
    """With `train_encoder`: weight of the error of its latent against the teacher's, in units of its variance."""
    decoding_weight: NonNegative = 0.0
    """With `train_encoder`: weight of the mean absolute error against the video of what the teacher's decoder makes of
    its latent. An update then decodes twice."""
    decoding_perceptual_weight: NonNegative = 0.0
    """With `decoding_weight`: weight of LPIPS (VGG) of the same, beside the mean absolute error."""
    teacher_weight: NonNegative = 0.0
    """Weight of the mean absolute error against the teacher's reconstruction, beside the terms against the video."""
    feature_weight: NonNegative = 0.0
    """Weight of the squared error of features inside the student's decoder against those of the teacher's, mapped by
    trained projections, or, of a pruned decoder, of the channels that stayed; each channel in units of its variance.
    An update then decodes twice."""
    feature_layers: tuple[str, ...] = ()
    """With `feature_weight`: the layers of the teacher's decoder, by name, e.g. [up_blocks.0, up_blocks.1]. By
    default, the last layer of each resolution that the student's decoder has, too; for a pruned decoder, the last
    pruned layer of each resolution."""
    teacher_decode_steps: Integer = 8
    """Steps in which a teacher that generates decodes. A student that generates, too, learns to make the same of the
    same noise in one step, as SSDD (arXiv:2510.04961): the teacher's sample replaces the video in the objective."""
    resolved: Unlisted[ResolvedStudent | None] = None
    """What a run has saved about its student, so that its `config.yaml` starts it again. Leave it out."""

    @property
    def pruned_model(self) -> str | None:
        """The pruned model that the student starts as: `init`; in settings that a run has saved, that of `resolved`."""
        if self.init is None and self.resolved is not None:
            return self.resolved.pruned_model
        return self.init

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trainable.weights == "lora":
            remedy = "LoRA adapters change a trained model, and a student is new."
            raise argument_error(
                "trainable.weights", "all or decoder for a student", "lora", remedy
            )
        if self.decoding_weight > 0 and not self.train_encoder:
            contract = "0 without `train_encoder`"
            remedy = (
                "Add `--train_encoder true`: with the teacher's encoder, the term is a constant."
            )
            raise argument_error("decoding_weight", contract, self.decoding_weight, remedy)
        if self.decoding_perceptual_weight > 0 and self.decoding_weight == 0:
            contract = "0 without `decoding_weight`"
            got = self.decoding_perceptual_weight
            raise argument_error(
                "decoding_perceptual_weight", contract, got, "Set `decoding_weight`, too."
            )
        if self.train_encoder and self.latent_weight == 0 and self.decoding_weight == 0:
            contract = "larger than 0 without `decoding_weight`"
            remedy = "Set one of them: else nothing ties the latent to the teacher's."
            raise argument_error("latent_weight", contract, self.latent_weight, remedy)
        if self.train_encoder and self.predictive.max_dropped > 0:
            contract = "0 with `train_encoder`"
            remedy = "The teacher's latent is that of whole clips. Set one of them to its default."
            got = self.predictive.max_dropped
            raise argument_error("predictive.max_dropped", contract, got, remedy)
        if self.context_parallel > 1 and self.feature_weight > 0:
            contract = "0 with `context_parallel`, as a process has only rows of the features"
            remedy = "Set one of them to its default."
            raise argument_error("feature_weight", contract, self.feature_weight, remedy)
