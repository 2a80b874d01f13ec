import json

import pytest

SMALL = """
val_clips: 1
batch_size: 1
clips: {num_frames: 5, height: 32, width: 32, cache: true}
objective: {perceptual_weight: 0}
"""


@pytest.mark.slow
def test_models_of_one_latent_have_the_same_baseline(run_here, tables_in, tmp_path, monkeypatch):
    monkeypatch.setattr("telecine.training.baseline.NUM_CLIPS", 12)
    (tmp_path / "small.yaml").write_text(SMALL)
    arguments = ["--minutes", "0.001", "--config", str(tmp_path / "small.yaml"), "-o", str(tmp_path / "figures")]
    text = run_here("architectures.py", "--models", "telecine", "wan", *arguments)
    header, (ours, wan) = tables_in(text)[-1]
    assert header[1:] == ["weights", "updates", "PSNR", "SSIM", "LPIPS-Alex", "LPIPS-VGG"]
    assert [value.partition(" (")[2] for value in ours[3:]] == [value.partition(" (")[2] for value in wan[3:]]
    assert float(ours[3].split()[0]) > float(wan[3].split()[0]) + 5, "a fitted start against random weights"
    results = json.loads((tmp_path / "figures" / "architectures.json").read_text())
    assert [len(result["points"]) >= 2 for result in results] == [True, True]
    assert results[0]["points"][0]["metrics"]["psnr"] == pytest.approx(results[0]["linear"]["psnr"], rel=1e-4)
    assert (tmp_path / "figures" / "architectures.png").is_file()
