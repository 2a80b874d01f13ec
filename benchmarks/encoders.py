"""Small encoders for the latents of `tiny`, trained by other terms each; results in results/2026-12-01-encoders.md.

    python benchmarks/encoders.py --seen runs/videos/seen --unseen runs/videos/unseen

Each is measured on unseen videos by what the decoder of `tiny` makes of its latents, beside the linear encoder that all
of them start from, and the encoder of `tiny`. The student's own decoder is left out: only the terms train the encoder.
"""

import argparse
import math
from statistics import mean

import torch
from torch import Tensor, nn

from telecine import load_autoencoder
from telecine.evaluation import ReconstructionMetrics
from telecine.evaluation.load_model import load_infos
from telecine.evaluation.protocols.configured import ConfiguredClips
from telecine.losses.perceptual import LPIPS
from telecine.models import CausalVAE, VideoAutoencoder
from telecine.models.paired import PairedAutoencoder
from telecine.models.student_config import student_config
from telecine.settings import ClipConfig
from telecine.tools.distill import TeacherDecoding, TeacherLatent

TEACHER = "tiny"
TERMS = {
    "latent": (1.0, 0.0, 0.0),
    "decoding": (0.0, 1.0, 0.0),
    "both": (0.1, 1.0, 0.0),
    "decoding_lpips": (0.0, 1.0, 0.1),
}
"""The weights of `teacher_latent`, of `teacher_decoding`, and of LPIPS in that."""
METRICS = ("psnr", "ssim", "flicker", "sharpness", "lpips_alex")
TRAINED_SIZE = {"num_frames": 5, "height": 48, "width": 48}
SIZE = {"num_frames": 5, "height": 64, "width": 64}
BATCH_SIZE = 4
LEARNING_RATE = 1e-3


def main() -> None:
    """Train and measure an encoder for each choice of terms and each seed, and print the table after each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seen", required=True)
    parser.add_argument("--unseen", required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--student", default="student.yaml")
    parser.add_argument("--terms", nargs="+", choices=TERMS, default=["latent", "decoding", "both"])
    arguments = parser.parse_args()
    teacher = load_autoencoder(TEACHER).eval()
    clips = read_clips(arguments.seen, 200)
    unseen = read_clips(arguments.unseen, 24, **SIZE)
    architecture = student_config(arguments.student, teacher, tuple(SIZE.values()))
    start = CausalVAE(architecture)
    start.fit_linear_to_teacher(teacher, clips.split(1))
    parts = {"teacher": teacher.encoder, "student": start.encoder}
    for name, part in parts.items():
        print(
            f"{name}: {sum(weight.numel() for weight in part.parameters()):,} weights of the encoder"
        )
    figures = {
        "encoder of the teacher": [measure(teacher, teacher, unseen)],
        "linear encoder": [measure(start, teacher, unseen)],
    }
    latent_term = TeacherLatent(TEACHER)
    decoding_terms = {
        name: TeacherDecoding(TEACHER, perceptual_weight=TERMS[name][2]) for name in arguments.terms
    }
    for seed in range(arguments.seeds):
        for name in arguments.terms:
            latent_weight, decoding_weight, _ = TERMS[name]
            torch.manual_seed(seed)
            student = CausalVAE(architecture)
            student.encoder.linear.load_state_dict(start.encoder.linear.state_dict())
            optimizer = torch.optim.AdamW(student.encoder.parameters(), LEARNING_RATE)
            for step in range(arguments.steps):
                optimizer.param_groups[0]["lr"] = learning_rate(step, arguments.steps)
                target = clips[torch.randint(len(clips), (BATCH_SIZE,))]
                posterior = student.encode(target)
                latent = posterior.sample()
                loss = torch.zeros(())
                if latent_weight > 0:
                    moments = posterior.aux()["kl_loss"]
                    loss = loss + latent_weight * latent_term(
                        latent=latent, target=target, posterior=moments
                    )
                if decoding_weight > 0:
                    loss = loss + decoding_weight * decoding_terms[name](
                        latent=latent, target=target
                    )
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(student.encoder.parameters(), 1.0)
                optimizer.step()
            figures.setdefault(name, []).append(measure(student.eval(), teacher, unseen))
            print(name, seed, figures[name][-1], flush=True)
        print_table(figures)


def learning_rate(step: int, num_steps: int) -> float:
    """Return half a cosine after a warm-up of 20 updates."""
    warm_up = min(1.0, (step + 1) / 20)
    return LEARNING_RATE * warm_up * 0.5 * (1 + math.cos(math.pi * step / num_steps))


def read_clips(data: str, max_clips: int, **size: int) -> Tensor:
    """Return clips `(N, 3, T, H, W)` of the videos of a folder."""
    clips = ConfiguredClips(ClipConfig(**(size or TRAINED_SIZE)), max_clips)
    videos = []
    for span in clips.select(load_infos(data)):
        clip = clips.read(span)
        assert clip is not None
        videos.append(clip["video"])
    return torch.stack(videos)


@torch.no_grad()
def measure(
    encoder: VideoAutoencoder, teacher: VideoAutoencoder, unseen: Tensor
) -> dict[str, float]:
    """Return the metrics of what the teacher's decoder makes of an encoder's latents, and the error of these.

    The error is the mean squared one, each channel in units of its variance.

    Args:
        encoder: Encodes.
        teacher: Decodes.
        unseen: The clips.
    """
    metrics = ReconstructionMetrics({"lpips_alex": LPIPS("alex")}, metrics=METRICS[:-1])
    model = PairedAutoencoder(encoder, teacher).eval()
    ours = []
    theirs = []
    for clip in unseen.split(1):
        reconstruction = model(clip, sample_posterior=False)
        metrics.update(reconstruction=reconstruction.video.clamp(-1, 1), target=clip)
        ours.append(reconstruction.latent)
        theirs.append(teacher.encode(clip).mode())
    expected = torch.cat(theirs)
    variance = expected.var((0, 2, 3, 4), correction=0, keepdim=True)
    error = float(((torch.cat(ours) - expected).square() / variance).mean())
    return metrics.compute() | {"latent error": error}


def print_table(figures: dict[str, list[dict[str, float]]]) -> None:
    """Print the mean of each metric over seeds, and the smallest and the largest."""
    names = [*METRICS, "latent error"]
    print(f"| encoder | {' | '.join(names)} |")
    print(f"|---|{'---:|' * len(names)}")
    for encoder, seeds in figures.items():
        cells = []
        for name in names:
            values = [seed[name] for seed in seeds]
            cell = f"{mean(values):.4g}"
            if len(values) > 1:
                cell += f" ({min(values):.4g} to {max(values):.4g})"
            cells.append(cell)
        print(f"| {encoder} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
