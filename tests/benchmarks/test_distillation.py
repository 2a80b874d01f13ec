import pytest


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_tables(run_here, tables_in, tmp_path, monkeypatch):
    monkeypatch.setattr("telecine.training.baseline.NUM_CLIPS", 4)
    text = run_here("distillation.py", "--smoke", "--runs", str(tmp_path))
    (header, rows), (_, updates) = tables_in(text)
    assert header[:3] == ["decoder", "weights, K", "PSNR, dB"]
    assert [row[0] for row in rows] == ["teacher", "student"]
    assert float(rows[1][1]) < float(rows[0][1])
    assert rows[0][-1] == updates[0][-1] == "1.00"
    assert (tmp_path / "student" / "metrics.jsonl").is_file()
