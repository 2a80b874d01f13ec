from pathlib import Path

from telecine.evaluation.config import EvaluateConfig


def test_home_is_meant_where_no_shell_has_said_so():
    config = EvaluateConfig(data="~/videos", features="~/i3d.pt")
    assert (config.data, config.features) == (str(Path.home() / "videos"), str(Path.home() / "i3d.pt"))
    assert EvaluateConfig(features="transnetv2").features == "transnetv2"
