"""The outcome of each part of the objective is printed and drawn, and finished runs are not made again."""

import re

from PIL import Image

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


def test_tables_and_picture(run, tables_in, tmp_path):
    command = ("outcome.py", "--smoke", "--runs", str(tmp_path / "runs"), "-o", str(tmp_path / "outcome.png"))
    (header, lines), (gains_header, gains), (_, seeds) = tables_in(run(*command))
    assert header == ["objective", *METRICS]
    assert list(lines) == NAMES
    assert all(re.fullmatch(r"\d+\.\d+", cell) for cells in lines.values() for cell in cells)
    assert gains_header == ["objective", *METRICS, "LPIPS-Alex lower", "collapsed", "warned"]
    assert list(gains) == [*(name for name in NAMES if name != "+ LPIPS"), "+ 3D GAN (demo), seeds 0 to 1"]
    for column in (-1, -2):
        assert [cells[column] for cells in gains.values()] == ["n/a", *["0 of 1"] * (len(NAMES) - 2), "0 of 2"]
    assert list(seeds) == ["0", "1"]
    with Image.open(tmp_path / "outcome.png") as picture:
        assert min(picture.size) > 500
    kept = sorted((tmp_path / "runs").iterdir())
    assert len(kept) == 2 * (len(NAMES) + 2)
    times = {path: path.stat().st_mtime_ns for path in kept}
    run(*command)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()} == times
    # Runs of other settings are refused.
    first = next((tmp_path / "runs").glob("mse-0.json"))
    first.write_text(first.read_text().replace('"steps": 2', '"steps": 3'))
    again = ("outcome.py", "--smoke", "--gan-seeds", "2", "--runs", str(tmp_path / "runs"), "-o", "none.png")
    assert "`--runs` must be a folder of runs with these settings" in run(*again, returns=1)


def test_runs_are_the_trainers_bit_for_bit(run, tmp_path):
    code = f"""
from dataclasses import replace
from outcome import GAN, VARIANTS, without_gan
from outcome_runs import Seed
from telecine.training import train
from training import SMOKE

seed = Seed(3, 8, SMOKE, without_gan)
assert 0 < seed.config.objective.disc_train_start < seed.config.objective.disc_start < 8
shared, whole = (seed.outcome(VARIANTS[GAN], shares=shares)[0].metrics for shares in (True, False))
last = train(replace(VARIANTS[GAN](seed.config), output_dir={str(tmp_path / "run")!r})).last
assert shared == whole
assert set(last) == {{"psnr", "ssim", "lpips_alex"}}
assert last == {{name: whole[name] for name in last}}
print("equal")
"""
    assert run("-c", code).endswith("equal\n")


def test_a_run_that_goes_on_from_a_shared_part_judges_its_health_by_all_of_it(run, tmp_path):
    code = f"""
from dataclasses import replace
from pathlib import Path
from outcome import without_gan
from outcome_runs import Run, Seed
from training import SMOKE

seed = Seed(3, 4, SMOKE, without_gan)
config = replace(without_gan(seed.config), log_every=1)
first, second = (Run(config, seed.clips.train, Path({str(tmp_path)!r})) for _ in range(2))
first.go_on(0, 2)
second.take(first.state())
for run, steps in ((first, (2, 4)), (second, (2, 3))):
    run.go_on(*steps)
name = "train/perceptual_loss"
assert len(first.diagnostics.history.first(name)) == 4
assert second.diagnostics.history.first(name) == first.diagnostics.history.first(name)[:3]
print("equal")
"""
    assert run("-c", code).endswith("equal\n")
