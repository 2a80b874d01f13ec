"""The table of what fine-tuning does to published classes is printed, and complete, and it does them good."""


def test_the_table(run, tables_in):
    ((header, lines),) = tables_in(run("fine_tuning.py", "--smoke"))
    assert header == ["class", "updates", "seconds", "PSNR before", "after", "LPIPS-Alex before", "after"]
    assert list(lines) == ["AutoencoderKLCogVideoX", "AutoencoderKLWan"]
    for updates, *figures in lines.values():
        _, before, after, *_ = values = [float(cell) for cell in figures]
        assert updates == "30"
        assert min(values) > 0
        assert after > before + 1, "a decibel of held-out PSNR"
