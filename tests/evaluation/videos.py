"""Synthetic frames, and noisy copies of them."""

import torch


def waves(num_frames=26, height=48, width=64, seed=0):
    """Return uint8 `(T, H, W, 3)`: a smooth moving pattern."""
    phase = torch.rand(3, 1, 1, 1, generator=torch.Generator().manual_seed(seed)) * 6
    time = torch.arange(num_frames).view(1, -1, 1, 1) * 0.3
    rows = torch.arange(height).view(1, 1, -1, 1) / 8
    columns = torch.arange(width).view(1, 1, 1, -1) / 6
    pattern = 128 + 80 * torch.sin(phase + time + rows) * torch.cos(columns - time)
    return pattern.round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def noisy(frames, scale, seed=0):
    """Return the frames with Gaussian noise."""
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(seed)) * scale
    return (frames + noise).clamp(0, 255).round().to(torch.uint8)
