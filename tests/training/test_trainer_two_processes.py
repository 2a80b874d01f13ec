"""Two processes give the same losses and weights as one, and resume to the same bits."""

import json
import pickle
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, AutoModel
from safetensors.torch import load_file

from telecine.runs import Run
from telecine.runs.checkpoints import Checkpoints
from telecine.settings import (
    AdaptiveWeightConfig,
    ClipConfig,
    GANConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PenaltyConfig,
    PerceptualConfig,
    Term,
    TrainableConfig,
)
from telecine.training import train
from telecine.training.tensor_files import load_into, saved_tensors

from ..models.tiny_models import FEW_LEVELS, tiny_model
from .helpers import (
    LIGHT,
    assert_equal,
    assert_equal_tensors,
    last_checkpoint,
    run_to,
    statistics_in,
    tensors,
)

pytestmark = pytest.mark.slow

no_pictures = runpy.run_path(str(Path(__file__).with_name("no_pictures.py")))

NUM_STEPS = 3
LR = 2e-4
# AdamW makes steps of about the learning rate, in a direction that rounding decides where a gradient is almost 0.
QUARTER_STEP = LR / 4
# Two processes are stopped after the second update of these; one process makes the first and the last one.
CROSSING = ("crossing", "context_crossing")

SHARDS = {
    "ddp": [],
    "fsdp2": [f"shards/shard-{rank:05d}-of-00002.safetensors" for rank in range(2)],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cached_weights, tiny_config, forks):
    """Train all runs; return their settings by name, and what the two processes printed."""
    folder = tmp_path_factory.mktemp("runs")
    objective = ObjectiveConfig(
        disc_start=1,
        gan=GANConfig(disc_train_start=0, lecam_loss_weight=0.01),
        penalty=PenaltyConfig(every=2),
        perceptual=PerceptualConfig(net="alex", num_frames=2),
        adversarial_loss_weight=0.5,
        grad_penalty_loss_weight=10.0,
        quantizer_aux_loss_weight=1e-3,
    )
    base = replace(
        tiny_config(folder),
        steps=NUM_STEPS,
        log_every=1,
        val_every=NUM_STEPS,
        val_clips=3,
        save_every=NUM_STEPS,
        clips=ClipConfig(num_frames=5, height=32, width=32, num_workers=0),
        objective=objective,
        optimizer=OptimizerConfig(
            lr=LR, disc_lr=LR, betas=(0.9, 0.99), warmup_steps=0, ema_decay=0.9
        ),
    )

    def named(name, **changes):
        return replace(base, output_dir=str(folder / name), **changes)

    # The adaptive weight and LeCam's averages are computed for each micro-batch.
    fixed = replace(
        objective,
        adaptive_weight=AdaptiveWeightConfig(reference="none"),
        gan=GANConfig(lecam_loss_weight=0.0),
    )
    # The decoder runs twice in the graph, outside of its wrapper, and the objective has weights of its own.
    alignment = Term("alignment", weight=0.1, params={"latent_channels": 4})
    # The encoder runs a second time, too.
    trip = Term("round_trip", weight=0.1, params={"trains": "both"})
    terms = {"latent_noise": 0.1, "alignment": alignment, "round_trip": trip}
    noisy = replace(fixed, terms=terms)
    # With single frames, the weights of Wan that mix frames get no gradient.
    model = tiny_model("wan", **FEW_LEVELS["wan"])
    model.save_pretrained(folder / "wan")
    still = ClipConfig(num_frames=1, height=32, width=32, num_workers=0)
    # Where a gradient is almost 0, Adam's step depends on its rounding, which differs between kernels.
    slow = {"objective": fixed, "optimizer": replace(base.optimizer, lr=2e-5, disc_lr=2e-5)}
    images = {"model": str(folder / "wan"), "clips": still, **slow}
    # A few layers: DTensor decides for each new shape how it is sharded. `test_distributed.py` has all layers.
    few_layers = TrainableConfig(weights="lora", lora_rank=2, patterns=("decoder.mid_block.*",))
    lora = {"model": str(folder / "wan"), "trainable": few_layers, **slow}
    alone = {
        "one_images": named("one_images", batch_size=2, **images),
        "one_lora": named("one_lora", batch_size=4, **lora),
        "one": named("one", batch_size=4),
        "one_fixed": named("one_fixed", batch_size=4, objective=noisy),
    }
    workers = {"clips": replace(base.clips, num_workers=1)}
    together = {
        "ddp": named("ddp", batch_size=2, save_every=2, **workers),
        "ddp_accumulated": named(
            "ddp_accumulated", batch_size=1, gradient_accumulation_steps=2, objective=noisy
        ),
        "ddp_resumed": named("ddp_resumed", batch_size=2, save_every=2),
        "images": named("images", batch_size=1, **images),
        "sharded_lora": named("sharded_lora", batch_size=2, sharding="fsdp2", **lora),
        "crossing": named("crossing", batch_size=2, sharding="fsdp2"),
        "context": named("context", batch_size=4, context_parallel=2),
        "context_crossing": named("context_crossing", batch_size=4, context_parallel=2),
        "rolled_back": named(
            "rolled_back",
            **LIGHT,
            sharding="fsdp2",
            on_divergence="rollback",
            steps=2,
            save_every=1,
        ),
        "fsdp2": named("fsdp2", batch_size=2, save_every=2, sharding="fsdp2"),
        "fsdp2_resumed": named("fsdp2_resumed", batch_size=2, save_every=2, sharding="fsdp2"),
    }
    with pytest.MonkeyPatch.context() as patch:
        no_pictures["leave_pictures_out"](patch.setattr)
        for config in alone.values():
            train(config)
        crossing = [
            replace(together[name], batch_size=4, sharding="none", context_parallel=1)
            for name in CROSSING
        ]
        for config in crossing:
            run_to(config, 1).close()
        for name, config in together.items():
            file = f"{name}.2.pickle" if name in CROSSING else f"{name}.pickle"
            (folder / file).write_bytes(pickle.dumps(config))
        script = str(Path(__file__).with_name("two_ranks.py"))
        done = forks.run(
            "-m", "torch.distributed.run", "--nproc-per-node", "2", script, str(folder)
        )
        assert done.returncode == 0, done.stderr[-4000:]
        for config in crossing:
            train(config)
    return alone | together, done.stdout


def losses(config):
    """Return the records without the values that depend on how clips are distributed over processes."""
    # Standard deviations and norms over parts of a batch differ from those of the whole batch, and so do their means.
    excluded = ("clips_per_second", "_std", "frame_gradient", "adversarial_gradient_share")
    records = Run(config.output_dir).history.read()
    return [
        {k: v for k, v in record.items() if not any(part in k for part in excluded)}
        for record in records
    ]


def weights(config, name):
    (path,) = (last_checkpoint(config) / name).glob("*.safetensors")
    return load_file(path)


def depends_on_gradients(name):
    """Return whether a value depends on gradients, or is a small difference of large values.

    Gradients jump where rounding changes the sign of an activation.
    """
    return any(
        part in name for part in ("adaptive_weight", "grad_norm", "update_ratio", "ema_psnr_behind")
    )


@pytest.mark.parametrize(
    ("name", "reference", "tolerance"),
    [
        ("ddp", "one", 1e-5),
        ("fsdp2", "one", 1e-5),
        ("sharded_lora", "one_lora", 1e-4),
        ("crossing", "one", 1e-5),
        ("context", "one", 1e-5),
        ("context_crossing", "one", 1e-5),
        ("images", "one_images", 1e-5),
        ("ddp_accumulated", "one_fixed", 1e-4),
    ],
)
def test_the_same_clips_give_the_same_losses_and_weights(runs, name, reference, tolerance):
    configs, _ = runs
    ours = losses(configs[reference])
    theirs = losses(configs[name])
    assert [record["step"] for record in ours] == [0, 1, 2, 3, 3]
    assert len(ours[3]) > 15, "both steps, the penalty included"
    assert "train/grad_penalty_loss" in ours[3]
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        first_steps = one["step"] <= 2
        exact = {
            key for key in one if "train/" in key and (first_steps or not depends_on_gradients(key))
        }
        expected = {key: one[key] for key in exact}
        assert {key: other[key] for key in exact} == pytest.approx(
            expected, rel=tolerance, abs=tolerance
        )
        assert other == pytest.approx(one, rel=1e-2, abs=1e-5)
    if reference == "one":
        assert ours[2]["train/adaptive_weight"] > 0, "the first step of the adversarial term"
    whole = last_checkpoint(configs[reference])
    parts = last_checkpoint(configs[name])
    for kind in ("model", "ema"):
        assert_close(
            weights(configs[name], kind),
            weights(configs[reference], kind),
            max(tolerance, QUARTER_STEP),
        )
    objectives = [load_file(folder / "objective.safetensors") for folder in (parts, whole)]
    assert_close(*objectives, max(tolerance, QUARTER_STEP))
    expected, _ = statistics_in(whole)
    statistics, _ = statistics_in(parts)
    if name == "sharded_lora":
        assert statistics is expected is None
    else:
        assert statistics.pop("mean") == pytest.approx(expected.pop("mean"), rel=1e-3, abs=1e-4)
        assert statistics.pop("std") == pytest.approx(expected.pop("std"), rel=1e-3)
        assert statistics == expected == {"step": NUM_STEPS, "num_clips": 2}


def assert_close(ours, theirs, tolerance):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_a_resumed_run_equals_the_whole_one_bit_for_bit(runs, name):
    configs, _ = runs
    straight = tensors(last_checkpoint(configs[name]))
    assert [path for path in straight if path.startswith("shards/")] == SHARDS[name]
    assert len(straight) == 6 + (name == "fsdp2")
    random = straight["random.safetensors"]
    assert sorted(random) == ["0.cpu", "1.cpu"], "the random state of each process"
    assert not torch.equal(random["0.cpu"], random["1.cpu"]), (
        "each process draws its own dropout masks"
    )
    assert_equal_tensors(straight, tensors(last_checkpoint(configs[f"{name}_resumed"])))
    assert losses(configs[name]) == losses(configs[f"{name}_resumed"])


def test_every_process_goes_back_if_one_of_them_finds_a_shard_that_is_not_finite(runs):
    configs, printed = runs
    run = Run(configs["rolled_back"].output_dir)
    assert [step for step, _ in run.checkpoints.all()] == [1, 2]
    ((step, to, value),) = json.loads((run.checkpoints.path(2) / "state.json").read_text())[
        "rollbacks"
    ]
    assert (step, to) == (2, 1)
    assert value.endswith(" of the averaged weights")
    assert printed.count(f"`{value}` was not finite after step") == 1


def test_the_weights_that_other_programs_load_are_those_of_the_shards(runs):
    configs, _ = runs
    folder = last_checkpoint(configs["fsdp2"])
    for kind in ("model", "ema"):
        published = weights(configs["fsdp2"], kind)
        shards = {key: torch.empty_like(published[key]) for key in saved_tensors(folder, kind)}
        load_into(shards, folder, kind)
        assert len(shards) > 10
        assert_equal(shards, {key: published[key] for key in shards})
        loaded = AutoModel.from_pretrained(str(last_checkpoint(configs["sharded_lora"]) / kind))
        assert isinstance(loaded, AutoencoderKLWan)
        assert_equal(dict(loaded.state_dict()), weights(configs["sharded_lora"], kind))
    assert Checkpoints.damage_of(folder) is None
    parts = [load_file(folder / path) for path in SHARDS["fsdp2"]]
    num_bytes = [sum(tensor.nbytes for tensor in part.values()) for part in parts]
    assert num_bytes[0] == pytest.approx(num_bytes[1], rel=0.1), "each process has half"


def test_only_the_first_process_prints(runs):
    _, printed = runs
    assert printed.count("computing on cpu in each of 2 processes, mixed precision: no") == 4
    assert printed.count("weights sharded by fsdp2") == 5


def test_resuming_with_another_number_of_processes_prints_what_is_not_exact(runs, tmp_path, capsys):
    configs, _ = runs
    config = replace(configs["ddp"], batch_size=4, steps=NUM_STEPS + 1)
    train(config)
    assert (
        "now 1 processes instead of 2: the clips and the noise drawn for them stay the same"
        in one_line(capsys)
    )
    train(replace(config, batch_size=2, steps=NUM_STEPS + 2))
    assert "an update now has 2 clips instead of 4" in one_line(capsys)


def one_line(capsys):
    return " ".join(capsys.readouterr().out.split())
