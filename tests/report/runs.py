"""Folders of runs for reports, written without training."""

import json
from functools import cache

import torch

from telecine.data import index_video, read_clip, sample_videos
from telecine.report.clips import ReconstructedClip, write_clips
from telecine.runs import Run

FPS = 25.0
STAMPED_FRAMES = 12


def records(num, *, every=1, val_every=20):
    """Return records that look like those of a run."""
    linear = {"linear/psnr": 25.4}
    lines = [{"step": 0, "val/psnr": 11.0, "val/ssim": 0.04, "val/lpips_alex": 0.97, **linear}]
    for step in range(every, num * every + 1, every):
        progress = step / (num * every)
        noise = ((step * 7919) % 13 - 6) / 40
        train = {
            "train/mse": 0.3 * 0.1**progress * (1 + noise),
            "train/recon_loss": 0.3 * 0.1**progress * (1 + noise),
            "train/perceptual_loss": 0.8 - 0.5 * progress + noise / 4,
            "train/logits_real": progress + noise,
            "train/logits_fake": -progress + noise,
            "train/adaptive_weight": 0.0 if progress < 0.5 else 1.5 + noise,
            "train/grad_norm": 2 - progress + noise,
            "train/disc_grad_norm": 0.3 + noise / 4,
            "train/lr": 4e-3 * (1 - progress),
            "train/clips_per_second": 4.0 + noise,
        }
        lines.append({"step": step, **train})
        if step % val_every == 0:
            held_out = {
                "val/psnr": 11 + 10 * progress,
                "val/ssim": progress / 2,
                "val/lpips_alex": 1 - progress,
            }
            lines.append({"step": step, **held_out, **linear})
    return lines


def few_records(num):
    """Return records with the values of five charts: each change in a page draws all charts near what is seen."""
    names = ("mse", "logits_real", "logits_fake")
    keys = {"step", *(f"train/{name}" for name in names), "val/psnr", "val/ssim", "val/lpips_alex"}
    return [{key: value for key, value in line.items() if key in keys} for line in records(num)]


def write_run(folder, lines, settings="steps: 60\nclips:\n  height: 64\n"):
    """Write the folder of a run without clips, environment and warnings."""
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(settings)
    return folder


def stamped(num_frames=STAMPED_FRAMES, height=48, width=64):
    """Return uint8 frames `(T, H, W, 3)` of one grey value each, which encodes their number; see `number_of`."""
    grey = (20 + 18 * torch.arange(num_frames)).to(torch.uint8)
    return grey.view(-1, 1, 1, 1).expand(-1, height, width, 3).contiguous()


def number_of(grey):
    """Return the number of a frame of `stamped` from its grey value."""
    number = round((grey - 20) / 18)
    assert abs(grey - 20 - 18 * number) < 4, f"no frame has the grey value {grey}"
    return number


@cache  # the index of a sample video takes longer than all else
def real_clip(which=0, start=10, num_frames=9, size=64):
    """Return uint8 frames of a sample clip."""
    return read_clip(index_video(sample_videos()[which]), start, num_frames)[
        :, :size, :size
    ].contiguous()


def validation_clips(noise):
    """Return a stamped clip and two real ones, with increasingly noisy reconstructions."""
    generator = torch.Generator().manual_seed(0)
    clips = []
    for index, target in enumerate([stamped(), real_clip(0), real_clip(1, start=40)]):
        added = torch.randn(target.shape, generator=generator) * noise * index
        reconstruction = (target + added).clamp(0, 255).to(torch.uint8)
        metrics = {
            "psnr": 40.0 - noise * index,
            "ssim": 0.9 - index / 10,
            "lpips_alex": 0.1 + index / 10,
        }
        clips.append(
            ReconstructedClip(
                target, reconstruction, metrics, f"videos/clip {index}.mp4", 10 * index, FPS
            )
        )
    return clips


def write_stamped_clip(run, metrics, source="a.mp4"):
    """Write a validation at step 20 with a clip of two frames."""
    clip = ReconstructedClip(stamped(2), stamped(2), metrics, source, 0, FPS)
    write_clips(Run(run), 20, [clip], fps=FPS)


def write_clips_of(run, steps=(0, 60)):
    """Write the clips of validations into a run's folder."""
    for step in steps:
        write_clips(Run(run), step, validation_clips(noise=12.0 if step == 0 else 4.0), fps=FPS)
