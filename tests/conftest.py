"""Shape types are checked at run time, in tests only.

`telecine.perceptual` is left out: its functions raise errors of their own, which are tested, for the very arguments
that the shape types refuse, and the checker would speak first.
"""

import sys

from jaxtyping import install_import_hook

CHECKED = ("telecine.losses", "telecine.discriminators")

assert not any(name.startswith("telecine") for name in sys.modules), "telecine was imported before the hook"
install_import_hook(list(CHECKED), "beartype.beartype")
