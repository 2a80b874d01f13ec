from dataclasses import replace

import pytest


@pytest.mark.slow
def test_operators_of_an_update(benchmark_module, tmp_path):
    module = benchmark_module("operators")
    ((name, config),) = module.cases(tmp_path, (5, 64, 64), ["demo"])
    config = replace(config, discriminator=replace(config.discriminator, video="patch"))  # cheaper to plan
    row = dict(zip(module.HEADER, module.row(name, config), strict=True))
    assert row["clips"] == "2 x 9 x 64 x 64"
    parts = sum(int(row[part]) for part in module.HEADER[3:7])
    assert 0 < parts <= int(row["operators"])
    assert float(row["GB moved"]) > 0
