"""The command line, where the first process takes `$SECONDS_TO_INDEX` or `$SECONDS_TO_DECODE` for each video."""

import os
import runpy
import time
from pathlib import Path

from telecine.data import ahead_index, decoded_cache
from telecine.data.decode import read_clip
from telecine.data.index import index_video


def sleep(setting):
    if os.environ.get("RANK", "0") == "0":
        time.sleep(float(os.environ.get(setting, "0")))


def index_slowly(source, config, _deadline):
    """Index a video after a time that stands for that of many, and print its name."""
    print(f"process {os.environ.get('RANK', '0')} indexes {source.name}", flush=True)
    sleep("SECONDS_TO_INDEX")
    return index_video(source, config)


def read_slowly(*arguments, **options):
    """Decode a video into the cache."""
    sleep("SECONDS_TO_DECODE")
    return read_clip(*arguments, **options)


ahead_index.index_video = index_slowly
decoded_cache.read_clip = read_slowly
runpy.run_path(str(Path(__file__).parents[1] / "training" / "no_pictures.py"), run_name="__main__")
