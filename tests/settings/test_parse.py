"""A file of settings is read whole, or refused with one clear error."""

import pytest

from telecine.settings import TrainConfig
from telecine.settings.parse import config_from, read_config


def test_what_is_left_out_has_its_default(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("steps: 3\noptimizer: {lr: 0.5}\n")
    config = read_config(path)
    assert (config.steps, config.optimizer.lr) == (3, 0.5)
    assert config.batch_size == TrainConfig().batch_size
    path.write_text("")
    assert read_config(path) == TrainConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "`key: value` lines"),
        ("optimizer: 3", "`optimizer` must be a group of settings"),
        ("stepz: 3", "stepz"),
        ("steps: abc", "steps"),
        ("optimizer: {lrr: 1}", "lrr"),
    ],
)
def test_what_is_no_setting_is_refused(text, message, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(path)


def test_plain_values_are_read_as_files_are():
    assert config_from({"clips": {"height": 32}}).clips.height == 32
