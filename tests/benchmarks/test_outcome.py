import re
from dataclasses import replace

import pytest
from PIL import Image

from telecine.training import train

NAMES = [
    "MSE",
    "+ LPIPS",
    "+ 3D GAN (demo)",
    "+ 3D GAN, patches",
    "+ 2D and 3D GAN, patches",
    "3D GAN, patches, no adaptive weight",
    "3D GAN, patches, inverted gate",
]
METRICS = ["PSNR, dB", "SSIM", "LPIPS-Alex", "flicker", "sharpness"]

pytestmark = pytest.mark.slow


def test_tables_picture_and_finished_runs(run_here, tables_in, tmp_path):
    runs, picture = tmp_path / "runs", tmp_path / "outcome.png"
    command = ("outcome.py", "--smoke", "--runs", str(runs), "-o", str(picture))
    (header, rows), (gains_header, gains), (_, seeds) = tables_in(run_here(*command))
    assert header == ["objective", *METRICS]
    assert [name for name, *_ in rows] == NAMES
    assert all(re.fullmatch(r"\d+\.\d+", cell) for _, *cells in rows for cell in cells)
    assert gains_header == ["objective", *METRICS, "LPIPS-Alex lower", "collapsed", "warned"]
    others = [name for name in NAMES if name != "+ LPIPS"]
    assert [name for name, *_ in gains] == [*others, "+ 3D GAN (demo), seeds 0 to 1"]
    for column in (-1, -2):
        assert [row[column] for row in gains] == ["n/a", *["0 of 1"] * (len(NAMES) - 2), "0 of 2"]
    assert [seed for seed, *_ in seeds] == ["0", "1"]
    with Image.open(picture) as opened:
        assert min(opened.size) > 500
    files = sorted(runs.iterdir())
    assert len(files) == 2 * (len(NAMES) + 2)

    times = {path: path.stat().st_mtime_ns for path in files}
    run_here(*command)
    assert {path: path.stat().st_mtime_ns for path in runs.iterdir()} == times, "finished runs are not repeated"

    file = runs / "mse-0.json"
    file.write_text(file.read_text().replace('"steps": 2', '"steps": 3'))
    with pytest.raises(ValueError, match="`--runs` must be a folder of runs with these settings"):
        run_here(*command)


def test_runs_equal_the_trainers_bit_for_bit(benchmark_module, cached_weights, without_pictures, tmp_path):
    outcome, runs = benchmark_module("outcome"), benchmark_module("outcome_runs")
    variant = outcome.VARIANTS[outcome.GAN]
    seed = runs.SeedRuns(3, 8, outcome.SMOKE, outcome.without_gan)
    assert 0 < seed.config.objective.gan.disc_train_start < seed.config.objective.disc_start < 8
    shared, whole = (seed.train(variant, share_start=share)[0].metrics for share in (True, False))
    last = train(replace(variant(seed.config), output_dir=str(tmp_path))).last
    assert shared == whole
    assert set(last) == {"psnr", "ssim", "lpips_alex"}
    assert last == {name: whole[name] for name in last}


def test_diagnostics_include_the_shared_start(benchmark_module, cached_weights, tmp_path):
    outcome, runs = benchmark_module("outcome"), benchmark_module("outcome_runs")
    seed = runs.SeedRuns(3, 4, outcome.SMOKE, outcome.without_gan)
    config = replace(outcome.without_gan(seed.config), log_every=2)
    first, second = (runs.Run(config, seed.clips, tmp_path) for _ in range(2))
    first.train_until(1)
    second.load(first.save())
    for run in (first, second):
        run.train_until(4)
    name = "train/perceptual_loss"
    assert len(first.diagnostics.history.first(name)) == 2
    assert second.diagnostics.history.first(name) == first.diagnostics.history.first(name)
