"""The table of what fine-tuning does to published classes is printed, and complete."""


def test_the_table(run, tables_in):
    ((header, lines),) = tables_in(run("fine_tuning.py", "--smoke"))
    assert header == ["class", "updates", "seconds", "PSNR before", "after", "LPIPS-Alex before", "after"]
    assert list(lines) == ["AutoencoderKLCogVideoX", "AutoencoderKLWan"]
    for updates, seconds, *figures in lines.values():
        assert updates == "1"
        assert all(float(cell) > 0 for cell in (seconds, *figures))
