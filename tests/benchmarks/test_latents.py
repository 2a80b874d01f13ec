import pytest


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_tables(run_here, tables_in, tmp_path, monkeypatch):
    monkeypatch.setattr("telecine.training.baseline.NUM_CLIPS", 12)
    text = run_here("latents.py", "--smoke", "--runs", str(tmp_path), "--terms", "equivariance", "--seeds", "0")
    (header, rows), (_, differences) = tables_in(text)
    assert header[:3] == ["term", "PSNR, dB", "equivariance error, MSE"]
    assert [row[0] for row in rows] == ["none", "equivariance"]
    assert float(rows[1][1]) - float(rows[0][1]) == pytest.approx(float(differences[0][1]), abs=0.02)
    assert (tmp_path / "equivariance-0" / "latents.json").is_file()
