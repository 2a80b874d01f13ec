import re

import pytest

# Narrower and shallower than those of the command.
MODELS = {
    "Wan 2.1": {"_class_name": "AutoencoderKLWan", "base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
    "CogVideoX": {
        "_class_name": "AutoencoderKLCogVideoX",
        "block_out_channels": [8, 8, 8, 8],
        "layers_per_block": 1,
        "norm_num_groups": 2,
    },
}


@pytest.fixture
def module(benchmark_module, monkeypatch):
    module = benchmark_module("plain_loop")
    assert set(module.MODELS) == set(MODELS)
    monkeypatch.setattr(module, "MODELS", MODELS)
    monkeypatch.setattr(module, "DISC_CHANNELS", 16)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_losses_of_both_loops_are_equal(module, cached_weights, tables_in, monkeypatch, capsys, name):
    trained = []
    monkeypatch.setattr(module, "train", lambda *given, train=module.train: trained.append(train(*given)) or trained[0])
    monkeypatch.setattr(module, "extra_peak", lambda make, name, *_: {"telecine": 7_000_000, "plain loop": 10**7}[name])
    monkeypatch.setattr("sys.argv", ["plain_loop.py", "--only", name, "--sizes", "1,9,32", "--repeats", "1"])
    module.main()
    ((seconds, losses),) = trained
    assert [len(seconds[loop]) for loop in seconds] == [1, 1]
    assert [len(losses[loop]) for loop in losses] == [2, 2, 2]
    first, second = losses["telecine"]
    assert first.keys() == set(module.LOSSES)
    assert all(first[loss] != second[loss] for loss in first), "the loops train, on other clips each time"
    assert first == pytest.approx(losses["plain loop"][0], rel=1e-4)
    assert second == pytest.approx(losses["plain loop"][1], rel=1e-2)
    assert losses["plain loop, one rounding off"] != losses["plain loop"]

    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if line.startswith("##")] == [f"## {name}, 2 updates"]
    ((header, rows),) = tables_in(text)
    assert header == list(module.HEADER)
    (cells,) = rows
    assert cells[0] == "1 x 9 x 32 x 32"
    assert re.fullmatch(r"\d+\.\d\d x \(\d+\.\d\d to \d+\.\d\d\)", cells[3])
    assert cells[4:7] == ["7.00", "10.0", "0.70 x"]
    assert all(0 < float(cell) < 1e-2 for cell in cells[7:])


def test_a_difference_is_relative_to_the_largest_value_of_that_loss(module):
    ones, others = ([{loss: value for loss in module.LOSSES} for value in values] for values in ([1, -4], [1, -5]))
    assert module.largest_difference(ones, others) == pytest.approx(1 / 5)


def test_a_size_that_is_none(run_here):
    assert "must be batch,frames,side, but got '1,9'" in run_here("plain_loop.py", "--sizes", "1,9", returns=2)
