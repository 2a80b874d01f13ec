"""The card of a data set of latents, README.md."""

from typing import Any

from telecine.models.latent_shards import MEAN, LatentShards

_CARD = """\
---
tags:
- video-latents
- webdataset
- telecine
size_categories:
- {size}
configs:
- config_name: default
  data_files: "*.tar"
---

# Latents of {num_clips} clips

Encoded with telecine {telecine} by `{model}` (SHA-256 of its encoder: `{encoder}`).

| | |
|---|---|
| clips; frames of video | {num_clips}; {num_frames} |
| latent of the first clip | {shape}: channels, frames, height, width |
| tensors | {tensors}, {dtype} |
| normalised | {normalised} |
| mean of each channel | {mean} |
| standard deviation of each channel | {std} |

Each `latents-*.tar` has for each clip `KEY.safetensors` and `KEY.json`: the source's name, its first frame, frames,
height, width, frames per second, and the columns of the list. `latents-*.json` is the index of a shard,
`manifest.json` has their digests, the settings and the statistics. These are of the written numbers.

```python
import glob, json, webdataset
from safetensors.torch import load

for sample in webdataset.WebDataset(sorted(glob.glob("latents-*.tar")), shardshuffle=False):
    latent, metadata = load(sample["safetensors"])["mean"], json.loads(sample["json"])
```
"""
# The names of the Hub for numbers of samples.
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def dataset_card(manifest: dict[str, Any], shards: LatentShards) -> str:
    """Return the card.

    Args:
        manifest: The content of manifest.json.
        shards: The clips.
    """
    size = "1M<n<10M"
    for limit, name in reversed(_SIZES):
        if manifest["num_clips"] < limit:
            size = name
    shape = "none"
    tensors = "none"
    if len(shards) > 0:
        first = shards[0]
        shape = " x ".join(str(number) for number in first[MEAN].shape)
        tensors = ", ".join(name for name in first if name not in ("name", "metadata"))
    statistics = manifest["statistics"] or {"mean": [], "std": []}
    normalised = "no"
    if manifest["settings"]["normalise"]:
        normalised = "yes, by the statistics that the model carries"
    return _CARD.format(
        size=size,
        num_clips=manifest["num_clips"],
        num_frames=manifest["num_frames"],
        telecine=manifest["telecine"],
        model=manifest["model"],
        encoder=manifest["encoder_sha256"],
        shape=shape,
        tensors=tensors,
        dtype=manifest["settings"]["dtype"],
        normalised=normalised,
        mean=_numbers(statistics["mean"]),
        std=_numbers(statistics["std"]),
    )


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
