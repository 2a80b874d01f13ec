"""Names of layers of a model before and after residual blocks were removed."""

import pytest

from telecine.models.removed_blocks import RemovedBlocks

REMOVED = RemovedBlocks({"decoder.up.0.resnets": [1, 3], "decoder.mid": [0]})


@pytest.mark.parametrize(
    ("teacher", "pruned"),
    [
        ("decoder.up.0.resnets.0.conv.weight", "decoder.up.0.resnets.0.conv.weight"),
        ("decoder.up.0.resnets.2.conv.weight", "decoder.up.0.resnets.1.conv.weight"),
        ("decoder.up.0.resnets.4", "decoder.up.0.resnets.2"),
        ("decoder.mid.1.norm", "decoder.mid.0.norm"),
        ("decoder.up.0.resnets_of_others.2", "decoder.up.0.resnets_of_others.2"),
        ("decoder.up.0.resnets", "decoder.up.0.resnets"),
    ],
)
def test_blocks_behind_a_removed_one_have_smaller_numbers(teacher, pruned):
    assert REMOVED.to_pruned(teacher) == pruned
    assert REMOVED.to_teacher(pruned) == teacher


def test_layers_of_removed_blocks_have_no_name():
    assert REMOVED.to_pruned("decoder.up.0.resnets.3.conv.weight") is None
    assert REMOVED.to_pruned("decoder.mid.0") is None


def test_names_inside_the_decoder():
    assert REMOVED.of_decoder().to_pruned("up.0.resnets.2.conv") == "up.0.resnets.1.conv"
