"""Runs to report on, written without training."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from telecine.data import index_video, read_clip, sample_videos
from telecine.report.clips import ShownClip, write_clips

FPS = 25.0
STAMPED_FRAMES = 12


def records(num: int, *, every: int = 1, val_every: int = 20) -> list[dict[str, float]]:
    """Return lines of a journal that look like those of a run."""
    lines: list[dict[str, float]] = [{"step": 0, "val/psnr": 11.0, "val/ssim": 0.04, "val/lpips_alex": 0.97}]
    for step in range(every, num * every + 1, every):
        share = step / (num * every)
        wobble = ((step * 7919) % 13 - 6) / 40
        train = {
            "train/mse": 0.3 * 0.1**share * (1 + wobble),
            "train/recon_loss": 0.3 * 0.1**share * (1 + wobble),
            "train/perceptual_loss": 0.8 - 0.5 * share + wobble / 4,
            "train/logits_real": share + wobble,
            "train/logits_fake": -share + wobble,
            "train/adaptive_weight": 0.0 if share < 0.5 else 1.5 + wobble,
            "train/grad_norm": 2 - share + wobble,
            "train/disc_grad_norm": 0.3 + wobble / 4,
            "train/lr": 4e-3 * (1 - share),
            "train/clips_per_second": 4.0 + wobble,
        }
        lines.append({"step": step, **train})
        if step % val_every == 0:
            lines.append(
                {"step": step, "val/psnr": 11 + 10 * share, "val/ssim": share / 2, "val/lpips_alex": 1 - share}
            )
    return lines


def write_run(folder: Path, lines: list[dict[str, float]], settings: str = "steps: 60\nclips:\n  height: 64\n") -> Path:
    """Write the folder of a run as one without clips, environment and health log left it."""
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(settings)
    return folder


def stamped(num_frames: int = STAMPED_FRAMES, height: int = 48, width: int = 64) -> Tensor:
    """Return uint8 frames `(T, H, W, 3)` of one grey each, which tells their number; see `number_of`."""
    grey = (20 + 18 * torch.arange(num_frames)).to(torch.uint8)
    return grey.view(-1, 1, 1, 1).expand(-1, height, width, 3).contiguous()


def number_of(grey: float) -> int:
    """Return the number of a frame of `stamped` from its grey, and see that it is close to one."""
    number = round((grey - 20) / 18)
    assert abs(grey - 20 - 18 * number) < 4, f"grey {grey} is that of no frame"
    return number


def real_clip(which: int = 0, start: int = 10, num_frames: int = 9, size: int = 64) -> Tensor:
    """Return uint8 frames of a sample clip."""
    return read_clip(index_video(sample_videos()[which]), start, num_frames)[:, :size, :size].contiguous()


def shown_clips(noise: float) -> list[ShownClip]:
    """Return a stamped clip and two real ones, the reconstructions worse from one to the next."""
    generator = torch.Generator().manual_seed(0)
    clips = []
    for index, target in enumerate([stamped(), real_clip(0), real_clip(1, start=40)]):
        added = torch.randn(target.shape, generator=generator) * noise * index
        reconstruction = (target + added).clamp(0, 255).to(torch.uint8)
        metrics = {"psnr": 40.0 - noise * index, "ssim": 0.9 - index / 10, "lpips_alex": 0.1 + index / 10}
        clips.append(ShownClip(target, reconstruction, metrics, f"videos/clip {index}.mp4", 10 * index))
    return clips


def write_clips_of(run: Path, steps: tuple[int, ...] = (0, 60)) -> None:
    """Add the clips of validations to a run."""
    for step in steps:
        write_clips(run, step, shown_clips(noise=12.0 if step == 0 else 4.0), fps=FPS)
