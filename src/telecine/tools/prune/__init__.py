"""`telecine prune`: a model with some of the channels of another one, which starts with its weights.

Each name is imported on first use: the help of the command need not wait for PyTorch.
"""

import lazy_loader  # type: ignore[import-untyped]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__, submod_attrs={"pruning": ["PruneResult", "prune"]}
)
