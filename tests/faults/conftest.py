"""Settings of tiny runs, those of the tests of training."""

import runpy
from pathlib import Path

training = runpy.run_path(str(Path(__file__).parents[1] / "training" / "conftest.py"))
small_video, tiny, tiny_config = (training[name] for name in ("small_video", "tiny", "tiny_config"))
one_thread = training["one_thread"]
