"""The README's code runs, its links lead somewhere, its commands exist."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_out = nn.Conv3d(4, 3, 3, padding=1)

    def forward(self, latent):
        return self.conv_out(latent)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Conv3d(3, 4, 3, padding=1), Decoder()

    def forward(self, video):
        return self.decoder(self.encoder(video))


@pytest.mark.slow
def test_the_example_trains_a_model(cached_weights):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    torch.manual_seed(0)
    model = Model()
    before = model.decoder.conv_out.weight.detach().clone()
    loader = [torch.rand(1, 3, 4, 32, 32) * 2 - 1 for _ in range(2)]
    small = code.replace('"dim": 32', '"dim": 4')
    assert small != code
    names = {"model": model, "loader": loader, "device": "cpu"}
    exec(compile(small, "README.md", "exec"), names)
    assert names["step"] == 1
    assert torch.isfinite(names["loss"])
    assert "train/total_disc_loss" in names["both"].disc_log
    assert not torch.equal(before, model.decoder.conv_out.weight)


def test_links_exist():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert len(links) >= 15
    missing = [link for link in links if not (ROOT / link.partition("#")[0]).exists()]
    assert missing == []


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", README, flags=re.MULTILINE)
    assert sorted(targets) == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_no_placeholder_is_left():
    assert not re.search(r"\b[A-Z]+_[A-Z]+\b", re.sub(r"`[^`]*`", "", README)), (
        "a figure that nobody filled in"
    )
