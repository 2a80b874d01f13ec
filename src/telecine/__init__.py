"""telecine trains video autoencoders: an objective, and the training run around it.

The names in `__init__.pyi` are the public API. `train`, `evaluate` and `reconstruct` need the extra `train`. Each name
is imported on first use: `telecine --version` need not wait for PyTorch, nor the objective for what the extra installs.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
