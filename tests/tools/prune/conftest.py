"""The fixtures of tiny runs."""

from ...training.conftest import one_thread, recorded_once, small_video, without_pictures

__all__ = ["one_thread", "recorded_once", "small_video", "without_pictures"]
