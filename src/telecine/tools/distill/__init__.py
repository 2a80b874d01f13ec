"""`telecine distill`: a small decoder, or autoencoder, that learns from another one.

Each name is imported on first use: the help of the command need not wait for PyTorch.
"""

import lazy_loader  # type: ignore[import-untyped]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "features": ["TeacherFeatures"],
        "latent": ["TeacherLatent"],
        "pruned_features": ["PrunedFeatures"],
        "reconstruction": ["TeacherReconstruction"],
        "decoding": ["TeacherDecoding"],
        "distillation": ["distill"],
    },
)
