import pytest


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_tables(run_here, tables_in, tmp_path, monkeypatch):
    monkeypatch.setattr("telecine.training.baseline.NUM_CLIPS", 12)
    command = ("latents.py", "--smoke", "--runs", str(tmp_path), "--terms", "equivariance", "--seeds", "0")
    text = run_here(*command, "--picture", str(tmp_path / "effects.png"))
    (header, rows), (_, differences), (_, by_transformation) = tables_in(text)
    assert header[:4] == ["term", "PSNR, dB", "equivariance error, MSE", "its floor, MSE"]
    assert [row[0] for row in rows] == ["linear start", "none", "equivariance"]
    assert float(rows[2][1]) - float(rows[1][1]) == pytest.approx(float(differences[0][1]), abs=0.02)
    assert all(float(row[3]) < float(row[2]) for row in rows), "the floor is below the error"
    for row, parts in zip(rows, by_transformation, strict=True):
        assert sum(map(float, parts[1:])) / 6 == pytest.approx(float(row[2]), abs=2e-4)
    assert (tmp_path / "effects.png").stat().st_size > 1000
    assert (tmp_path / "equivariance-0" / "latents.json").is_file()
    with pytest.raises(ValueError, match="`--runs` must be a folder of runs with these settings"):
        run_here(*command, "--batch_size", "3")
