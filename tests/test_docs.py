"""The pages under docs/: their code runs, their links lead somewhere, and they speak of what exists."""

import inspect
import re
from pathlib import Path

import pytest
import torch

from telecine import VideoAutoencoderLoss
from telecine.losses import GAN_LOSSES, GRAD_PENALTIES, RECONSTRUCTION_LOSSES
from telecine.training.diagnostic_rules import RULES

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
# Of the pages about the loss; the code and the commands of the others are run by tests of their own.
NUM_BLOCKS = {"choosing.md": 1, "extending.md": 3}
OTHERS = {"data.md", "evaluation.md", "fine-tuning.md", "health.md", "many-gpus.md", "own-model.md", "report.md"}


def test_every_page_is_looked_at():
    assert {page.name for page in PAGES} == set(NUM_BLOCKS) | OTHERS


@pytest.mark.parametrize("name", NUM_BLOCKS)
def test_the_code_runs(name, cached_weights):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == NUM_BLOCKS[name]
    torch.manual_seed(0)
    names = {"x": torch.rand(2, 3, 4, 32, 32) * 2 - 1, "y": torch.rand(2, 3, 4, 32, 32, requires_grad=True)}
    for block in blocks:
        exec(compile(block, name, "exec"), names)
        assert names["total"].isfinite()
        assert names["total"].requires_grad
        names["total"].backward()
        for index in (0, 1):
            total, _ = names["loss"](names["x"], names["y"], index, 30_000)
            assert total.isfinite()
            total.backward()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")) if "://" not in link]
    assert links
    assert [link for link in links if not (page.parent / link.partition("#")[0]).exists()] == []


def test_how_to_choose_speaks_of_every_option():
    text = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    options = set(inspect.signature(VideoAutoencoderLoss).parameters)
    words = options | set(RECONSTRUCTION_LOSSES) | set(GAN_LOSSES) | set(GRAD_PENALTIES)
    assert len(words) > 45
    assert [word for word in sorted(words) if not re.search(rf"`[^`]*\b{word}\b[^`]*`", text)] == []
    mentioned = set(re.findall(r"`(\w+_(?:weight|loss|every|start|frames|stride|decay|levels|kwargs))`", text))
    call = set(inspect.signature(VideoAutoencoderLoss.forward).parameters)
    logged = {"recon_loss", "gen_loss", "discr_loss", "perceptual_loss", "adaptive_weight", "kl_loss"}
    assert mentioned <= options | call | logged | {f"{name.removesuffix('_weight')}" for name in options}


def test_health_speaks_of_every_rule_and_value():
    text = (ROOT / "docs" / "health.md").read_text(encoding="utf-8")
    assert len(RULES) == 11
    assert [rule.name for rule in RULES if f"`{rule.name}`" not in text] == []
    logged = {"logits_real", "accuracy_real", "hinge_active", "adversarial_gradient_share", "ema_psnr_behind"}
    logged |= {"update_ratio", "grad_clipped", "grad_overflow", "grad_norm", "adaptive_weight", "frame_gradient_000"}
    assert [name for name in sorted(logged) if f"`{name}`" not in text] == []
