"""The pages under docs/: their code runs, their links exist, and their tables are those of the config classes."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

import telecine
from telecine.losses import GAN_LOSSES, GRAD_PENALTIES, RECONSTRUCTION_LOSSES
from telecine.objective.term_functions import TERM_FUNCTIONS
from telecine.settings import EvaluateConfig, LatentsConfig, ObjectiveConfig, Term, TrainConfig
from telecine.settings.listing import settings_of
from telecine.training.diagnostics import RULES

from .test_readme import Model

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
# Of the pages about the loss; other tests run the code and the commands of the other pages.
NUM_BLOCKS = {"choosing.md": 1, "compilation.md": 1, "extending.md": 6}
OTHERS = {
    "autoencoder.md",
    "channels.md",
    "command-line.md",
    "comparison.md",
    "data.md",
    "distillation.md",
    "evaluation.md",
    "fast-decoder.md",
    "fine-tuning.md",
    "hardware.md",
    "health.md",
    "latents-on-disk.md",
    "latents.md",
    "many-gpus.md",
    "objective.md",
    "own-model.md",
    "protocols.md",
    "published-run.md",
    "reliability.md",
    "report.md",
    "start.md",
    "tiny.md",
    "trackers.md",
    "troubleshooting.md",
}


def text_of(page):
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


GROUPS = {"reconstruction", "perceptual", "gan", "penalty", "adaptive_weight"}


def test_every_page_is_tested():
    assert {page.name for page in PAGES} == set(NUM_BLOCKS) | OTHERS


@pytest.mark.parametrize("name", NUM_BLOCKS)
@pytest.mark.slow
def test_code_runs(name, cached_weights):
    blocks = re.findall(r"```python\n(.*?)```", text_of(name), flags=re.DOTALL)
    assert len(blocks) == NUM_BLOCKS[name]
    torch.manual_seed(0)
    x = torch.rand(2, 3, 4, 32, 32) * 2 - 1
    y = torch.rand(2, 3, 4, 32, 32, requires_grad=True)
    names = {"x": x, "y": y, "model": Model()}
    for block in blocks:
        exec(
            compile(block.replace("step=0, last_layer", "step=30_000, last_layer"), name, "exec"),
            names,
        )
        loss = names["loss"]
        for index in (0, 1) if loss.discriminators else (0,):
            total, _ = loss(
                x, y, index, 30_000, generator=[torch.Generator() for _ in x]
            )  # as training passes them
            assert total.isfinite()
            total.backward()
        both = names.pop("both", None)
        if both is not None:
            assert both.disc_loss.isfinite()
            assert "train/adaptive_weight" in both.log


def test_the_term_that_is_added_counts(cached_weights):
    page = text_of("extending.md")
    names = {
        "x": torch.zeros(1, 3, 1, 32, 32),
        "y": torch.rand(1, 3, 1, 32, 32, requires_grad=True),
    }
    exec(re.search(r"```python\n(.*?)```", page, flags=re.DOTALL).group(1), names)
    edges = names["edges"](names["y"], names["x"])
    torch.testing.assert_close(names["log"]["train/edges_loss"], edges.detach())
    others = names["log"]["train/recon_loss"] + names["log"]["train/perceptual_loss"]
    torch.testing.assert_close(names["total"], others + 0.1 * edges)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_exist(page):
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text_of(page.name)) if "://" not in link]
    assert links
    assert [link for link in links if not (page.parent / link.partition("#")[0]).exists()] == []


def test_settings_in_the_docs_exist():
    text = "".join(page.read_text(encoding="utf-8") for page in (*PAGES, ROOT / "README.md"))
    settings = {
        item.name
        for kind in (TrainConfig, EvaluateConfig, LatentsConfig)
        for item in settings_of(kind, inside_values=True)
    }
    named = set(re.findall(r"--([a-z_]+(?:\.[a-z_]+)+)", text))
    named |= set(
        re.findall(r"`((?:objective|discriminator|optimizer|clips|trainable)\.[a-z_.]+)[:`]", text)
    )
    assert len(named) > 15
    assert sorted(named - settings - {"clips.json", "tracker_options.wandb.group"}) == []


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        (
            "<td><code>clips.image_ratio</code></td>",
            "<td><code>clips.<wbr>image_<wbr>ratio</code></td>",
        ),
        (
            "<td>a.b <code>my_data/{0..9}.tar</code></td>",
            "<td>a.b <code>my_<wbr>data/{0..9}.<wbr>tar</code></td>",
        ),
        ("<p><code>clips.image_ratio</code></p>", "<p><code>clips.image_ratio</code></p>"),
        ("<td><code>1.5e-4</code></td>", "<td><code>1.5e-4</code></td>"),
        ("<td><code>(0.5, 0.9)</code></td>", "<td><code>(0.5, 0.9)</code></td>"),
        (
            "<p><code>--steps 3</code> -- <code>a--b</code></p>",
            "<p><code>{--s}teps 3</code> -- <code>a--b</code></p>",
        ),
        ("<td><code>--gan.loss</code></td>", "<td><code>{--g}an.<wbr>loss</code></td>"),
    ],
)
def test_where_code_on_the_site_is_broken(html, expected):
    expected = re.sub(r"\{(--\w)\}", r'<span class="option">\1</span>', expected)
    assert script("line_breaks").with_line_breaks(html) == expected


def test_tables_of_settings_are_up_to_date():
    page = text_of("choosing.md")
    assert page.count("<!-- settings: ") == 8
    assert script("settings_tables").with_tables(page) == page, (
        "run `python docs/settings_tables.py`"
    )


def test_tables_have_every_setting_of_the_objective():
    page = text_of("choosing.md")
    groups = {"": ObjectiveConfig(), "discriminator.": TrainConfig().discriminator}
    groups |= {f"{name}.": getattr(ObjectiveConfig(), name) for name in GROUPS}
    groups["discriminator.features."] = TrainConfig().discriminator.features
    settings = {
        f"{prefix}{name}" for prefix, group in groups.items() for name in vars(group)
    } - GROUPS
    settings.remove("discriminator.features")
    assert len(settings) >= 40
    assert [name for name in sorted(settings) if f"| `{name}` |" not in page] == []
    choices = (
        set(RECONSTRUCTION_LOSSES) | set(GAN_LOSSES) | set(GRAD_PENALTIES) | set(TERM_FUNCTIONS)
    )
    assert [name for name in sorted(choices) if f'"{name}"' not in page] == []


def test_a_setting_without_a_source_is_an_error():
    with pytest.raises(ValueError, match=r"Term\.target.*Source"):
        script("settings_tables").table(Term)


def test_health_speaks_of_every_rule_and_value():
    text = text_of("health.md")
    assert len(RULES) == 12
    assert [rule for rule in RULES if f"`{rule}`" not in text] == []
    logged = {
        "logits_real",
        "accuracy_real",
        "hinge_active",
        "adversarial_gradient_share",
        "ema_psnr_behind",
    }
    logged |= {
        "update_ratio",
        "grad_clipped",
        "grad_overflow",
        "grad_norm",
        "adaptive_weight",
        "frame_gradient_000",
    }
    assert [name for name in sorted(logged) if f"`{name}`" not in text] == []


def test_the_page_of_the_package_explains_every_public_name():
    pytest.importorskip("mkdocs")
    page = script("site").api()["api/telecine.md"]
    explained = {
        line.rpartition(".")[2] for line in page.splitlines() if line.startswith("::: telecine.")
    }
    assert explained == {*telecine.__all__}
    assert {
        "train",
        "evaluate",
        "reconstruct",
        "read_config",
        "TrainConfig",
        "EvaluateConfig",
    } <= explained


def test_the_search_of_the_site_leaves_out_code():
    pytest.importorskip("mkdocs")
    for path in (Path(__file__), ROOT / "src"):
        assert script("site").listing(path).startswith("---\nsearch: {exclude: true}\n---\n\n# `")
