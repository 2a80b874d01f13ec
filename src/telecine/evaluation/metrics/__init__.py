"""The metrics of `evaluate`. Each one is defined by a `register(...)` below the function that computes it.

| module | metrics |
|---|---|
| `pixels` | of pixel values: PSNR, SSIM, flicker, sharpness, grids |
| `published_pixels` | PSNR and SSIM as the code of published protocols computes them |
| `lpips` | perceptual distances |
| `frechet` | Frechet distances of the features of videos |
| `flow` | the warping error |
| `flat` | of clips of one colour |
| `round_trips` | of clips that are reconstructed again and again |
| `seams` | the difference between a reconstruction in chunks and tiles and that of the whole clip |

`metric` says what a metric is and has all of them by name. `reconstruction_metrics` accumulates those of pixels and
perceptual distances over clips. `measure` is what the others have in common that are measured of each clip.
`metric_set` has the metrics of one evaluation.
"""

# These modules register the metrics of `METRICS`.
from telecine.evaluation.metrics import (  # noqa: F401
    flat,
    flow,
    frechet,
    lpips,
    pixels,
    published_pixels,
    round_trips,
    seams,
)
from telecine.evaluation.metrics.metric import METRICS
from telecine.evaluation.metrics.reconstruction_metrics import (
    ReconstructionMetrics,
    default_metrics,
    mean_over_clips,
)

__all__ = ["METRICS", "ReconstructionMetrics", "default_metrics", "mean_over_clips"]
