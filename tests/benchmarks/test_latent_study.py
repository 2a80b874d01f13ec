"""What a call of the study of latents refuses, before it reads a video."""

import pytest

from telecine.base.files import write_json


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (
            ["round_trip"],
            "`--arms` must be some of predictive, nothing, local_correlation, decoder",
        ),
        (
            ["nothing"],
            '`--arms` must have predictive, but got nothing. "nothing" stops at its PSNR.',
        ),
    ],
)
def test_arms_that_a_study_cannot_have_are_refused(run_here, tmp_path, arms, message):
    words = ["equal_psnr", "--videos", "none", "-o", str(tmp_path), "--arms", *arms, "--tables"]
    assert message in run_here("latent_study.py", *words, returns=2)


def test_figures_are_of_one_study_and_its_lengths(run_here, tmp_path):
    folder = tmp_path / "round_trips"
    folder.mkdir()
    figures = {"steps": 50, "probe_steps": 200, "PSNR": 20.0, "updates": 50, "PSNR, noise 0.2": 9.0}
    write_json(folder / "predictive-0.json", figures)
    words = ["--videos", "none", "-o", str(tmp_path), "--arms", "predictive", "--tables"]
    row = "| predictive | 1 |"
    assert row in run_here("latent_study.py", "round_trips", *words, "--steps", "50")
    assert row not in run_here("latent_study.py", "equal_psnr", *words, "--steps", "50")
    error = run_here("latent_study.py", "round_trips", *words, returns=2)
    assert "`--steps` must be 50, with which " in error
    assert "but got 100. Use another --output." in error
