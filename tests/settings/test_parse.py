"""Recipes, files, typed arguments and the environment are one nested dict, and one validator reads it."""

from dataclasses import replace

import pytest

from telecine import Ramp, Term
from telecine.cli.program import COMMANDS
from telecine.runs.saved_settings import as_yaml, plain_settings
from telecine.settings import Bucket, ClipConfig, DistillConfig, TrainConfig
from telecine.settings.autoencoder import FlowConfig
from telecine.settings.distill import ResolvedStudent
from telecine.settings.listing import settings_of
from telecine.settings.parse import (
    FREE_NAMES,
    launcher_settings,
    merged,
    nested,
    read_config,
)
from telecine.settings.upgrade import DEFAULTS_OF_OLD_RUNS, REMOVED


def test_what_is_left_out_has_its_default(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("steps: 3\noptimizer: {lr: 0.5}\n")
    config = read_config(path)
    assert (config.steps, config.optimizer.lr) == (3, 0.5)
    assert config.batch_size == TrainConfig().batch_size
    path.write_text("")
    assert read_config(path) == TrainConfig()


# What is in a file, and what is said of it: the setting, what it must be, and what it is.
MISTAKES = {
    "unknown": ("stepz: 3", "`stepz` is not a setting. Did you mean `steps`?"),
    "unknown in a group": (
        "clips: {heigth: 3}",
        "`clips.heigth` is not a setting. Did you mean `clips.height`?",
    ),
    "unknown in the wrong group": ("clips: {window: 3}", "`clips.window` is not a setting."),
    "text for a number": ("steps: abc", "`steps` must be a whole number, but got 'abc' (str)."),
    "a fraction for a count": (
        "steps: 1.5",
        "`steps` must be a whole number, but got 1.5 (float).",
    ),
    "a list for a number": (
        "clips: {height: [3]}",
        "`clips.height` must be a whole number, but got [3] (list).",
    ),
    "null": (
        "clips: {height: null}",
        "`clips.height` must be a whole number, but got None (NoneType).",
    ),
    "a number for text": ("data: 5", "`data` must be a text or a list, but got 5 (int)."),
    "a word that is none of some": (
        "mixed_precision: bf61",
        "`mixed_precision` must be 'no', 'bf16' or 'fp16', but got 'bf61' (str). Did you mean `bf16`?",
    ),
    "fp8": (
        "mixed_precision: fp8",
        "`mixed_precision` must be 'no', 'bf16' or 'fp16', but got 'fp8' (str). Use bf16: fp8 is for large",
    ),
    "neither number nor word": (
        "batch_size: x",
        "`batch_size` must be a whole number or 'auto', but got 'x'",
    ),
    "a value for a group": (
        "optimizer: 3",
        "`optimizer` must be a group of settings, but got 3 (int).",
    ),
    "null for a group": ("clips:", "`clips` must be a group of settings, but got None"),
    "a list that is too short": (
        "optimizer: {betas: [0.5]}",
        "`optimizer.betas` must be a list of at least 2 values, but got [0.5] (list).",
    ),
    "a wrong value in a list": (
        "clips: {buckets: [{num_frames: 5, height: x, width: 4}]}",
        "`clips.buckets.0.height` must be a whole number, but got 'x' (str).",
    ),
    "a ramp with a wrong field": (
        "objective: {perceptual_weight: {weight: 1, strat: 5}}",
        "`objective.perceptual_weight.strat` is not a setting. Did you mean `objective.perceptual_weight.start`?",
    ),
    "a ramp without its weight": (
        "objective: {perceptual_weight: {start: 5}}",
        "`objective.perceptual_weight` must be a group with `weight`, but got {'start': 5} (dict).",
    ),
    "a ramp out of range": (
        "objective: {perceptual_weight: {weight: -1}}",
        "`objective.perceptual_weight.weight` must be at least 0, but got -1 (int).",
    ),
    "a term with a wrong field": (
        "objective: {terms: {wavelet: {weigth: 1}}}",
        "`objective.terms.wavelet.weigth` is not a setting. Did you mean `objective.terms.wavelet.weight`?",
    ),
    "a function of a wrong name": (
        "objective: {gan: {loss: hindge}}",
        "`objective.gan.loss` must be 'hinge', 'vanilla', 'least_squares' or 'relativistic' or the dotted path of a "
        "function, but got 'hindge' (str). Did you mean `hinge`?",
    ),
    "out of range": (
        "clips: {num_frames: 0}",
        "`clips.num_frames` must be at least 1, but got 0 (int). Without a recipe, it is 17.",
    ),
    "settings that contradict": (
        "discriminator: {num_scales: 2}",
        "above 0 exactly if `discriminator.num_scales` is",
    ),
    "a preset": (
        "causal_vae: {size: huge}",
        "`causal_vae.size` must be one of 'tiny', 'small', 'base', 'large'",
    ),
    "two spellings": (
        "clips.height: 3\nclips: {height: 4}",
        "settings that are each given once, but got `clips.height` twice.",
    ),
    "no mapping": ("- 1", "must be `key: value` lines, but got a list in line 1"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_clear_line(case, tmp_path):
    text, message = MISTAKES[case]
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"^`[^`]+` (must be|is not) ") as error:
        read_config(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_dotted_names_are_settings_of_groups():
    assert nested([("clips.height", 3), ("steps", 4), ("clips", {"width": 5})]) == {
        "clips": {"height": 3, "width": 5},
        "steps": 4,
    }
    assert nested([("objective", {"gan.window": 9, "gan": {"augment": []}})]) == {
        "objective": {"gan": {"window": 9, "augment": []}}
    }
    own = {"model_arguments": {"a.b": 1}, "objective": {"terms": {"x": {"params": {"layer.0": 1}}}}}
    assert nested(own.items()) == own, "names inside these values are not those of settings"


def test_later_layers_override_setting_by_setting():
    ramp = {"weight": 1, "start": 5, "steps": 7}
    layers = [{"objective": {"perceptual_weight": ramp, "terms": {"wavelet": 0.1}}}]
    layers.append({"objective": {"perceptual_weight": {"weight": 2}, "terms": {"temporal": 0.2}}})
    objective = read_config(*layers).objective
    assert objective.perceptual_weight == Ramp(2.0, start=5, steps=7)
    assert objective.terms == {"wavelet": Term("wavelet", 0.1), "temporal": Term("temporal", 0.2)}
    assert (
        read_config(*layers, {"objective": {"perceptual_weight": 3}}).objective.perceptual_weight
        == 3
    )
    assert layers[0]["objective"]["perceptual_weight"] is ramp, "layers are not changed"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("data", "2024", "2024"),
        ("val_data", "null", None),
        ("data", "[a, b]", ("a", "b")),
        ("steps", "1e3", 1000),
        ("batch_size", "auto", "auto"),
        ("clips.channels", "4", "rgba"),
        ("objective.perceptual_weight", "{weight: 1, start: 10}", Ramp(1.0, start=10)),
        ("objective.terms", "{gram: 0.5}", {"gram": Term("gram", 0.5)}),
        ("objective.terms.gram", "0.5", {"gram": Term("gram", 0.5)}),
        ("objective.terms.gram.params.levels", "2", {"gram": Term("gram", params={"levels": 2})}),
        ("tracker_options.wandb.group", "my_study", {"wandb": {"group": "my_study"}}),
        ("trackers", "wandb,tensorboard", ("wandb", "tensorboard")),
        ("trackers", "[]", ()),
        ("optimizer.betas", "0.1,0.2", (0.1, 0.2)),
        ("clips.buckets", "[{num_frames: 17, height: 256, width: 256}]", (Bucket(17, 256, 256),)),
    ],
)
def test_a_typed_value(name, text, value, tmp_path):
    file = tmp_path / "empty.yaml"
    file.touch()
    setting = COMMANDS["train"].parse([f"--config={file}", f"--{name}", text])[0]["settings"]
    for part in name.split("."):
        if isinstance(setting, dict) or not hasattr(setting, part):
            break
        setting = getattr(setting, part)
    assert setting == value


def test_typed_settings_override_the_environment_which_overrides_the_launcher_which_overrides_files(
    monkeypatch,
):
    def parse(*typed):
        return COMMANDS["train"].parse(["--config", "cpu", *typed])[0]["settings"]

    monkeypatch.setenv("TELECINE_WEIGHTS_DIR", "/weights")
    assert parse().mixed_precision == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert parse().mixed_precision == "bf16"
    monkeypatch.setenv("TELECINE__MIXED_PRECISION", "no")
    monkeypatch.setenv("TELECINE__OPTIMIZER__BETAS", "0.1,0.2")
    monkeypatch.setenv("TELECINE__OBJECTIVE__TERMS__GRAM", "0.5")
    config = parse("--optimizer.lr", "0.5")
    assert (config.mixed_precision, config.optimizer.betas, config.optimizer.lr) == (
        "no",
        (0.1, 0.2),
        0.5,
    )
    assert config.objective.terms == {"gram": Term("gram", 0.5)}
    config = parse("--mixed_precision", "fp16", "--optimizer.betas", "[0.3, 0.4]")
    assert (config.mixed_precision, config.optimizer.betas) == ("fp16", (0.3, 0.4))


@pytest.mark.parametrize(
    ("passed", "settings"),
    [
        ({}, {}),
        (
            {
                "ACCELERATE_MIXED_PRECISION": "no",
                "ACCELERATE_DYNAMO_BACKEND": "NO",
                "ACCELERATE_USE_CPU": "False",
            },
            {},
        ),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, {"mixed_precision": "bf16"}),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, {"dynamo_backend": "inductor"}),
        ({"ACCELERATE_USE_CPU": "True"}, {"device": "cpu"}),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, {"sharding": "fsdp2"}),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, {"sharding": "fsdp1"}),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {"sharding": "deepspeed"}),
    ],
)
def test_what_accelerates_launcher_passes_on(monkeypatch, passed, settings):
    for name, text in passed.items():
        monkeypatch.setenv(name, text)
    assert launcher_settings() == settings
    if settings.get("sharding") in ("fsdp1", "deepspeed"):
        with pytest.raises(
            ValueError, match=r"`sharding` must be 'none' or 'fsdp2', but got '(fsdp1|deepspeed)'"
        ):
            read_config(settings)
    else:
        read_config(settings)


def test_settings_that_are_no_more_are_read_if_they_have_the_value_that_they_have_now():
    assert len(REMOVED) == 7
    old = merged(nested([item]) for item in REMOVED.items())
    before = repr(old)
    assert read_config(old) == TrainConfig()
    assert repr(old) == before
    for name, value in REMOVED.items():
        other = "constant" if isinstance(value, str) else not value
        with pytest.raises(
            ValueError,
            match=f"`{name}` must be left out, but got {other!r}. Remove it: this version",
        ):
            read_config(nested([(name, other)]))


def test_a_file_of_a_run_of_an_older_version_does_what_the_run_did(tmp_path):
    """Not one of a user, in which settings that are left out have the defaults of this version."""
    of_run = plain_settings(TrainConfig(seed=3))
    for name in DEFAULTS_OF_OLD_RUNS:
        del of_run["clips"][name]
    of_run["causal_vae"]["flow"]["shift"] = 1.0
    del of_run["causal_vae"]["flow"]["noise_fraction"]
    path = tmp_path / "mine.yaml"
    path.write_text(as_yaml(of_run))
    config = read_config(path, {"clips.order": "epochs"})
    assert config.seed == 3
    assert config.clips == ClipConfig(**{**DEFAULTS_OF_OLD_RUNS, "order": "epochs"})
    assert config.causal_vae.flow == FlowConfig(shift=1.0, noise_fraction=0.0)
    del of_run["hub_model_id"]
    path.write_text(as_yaml(of_run))
    assert read_config(path).clips == ClipConfig()


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        (
            {"model": "/run", "teacher": "/wan", "student": "tiny"},
            DistillConfig(teacher="/run", student="tiny", resolved=ResolvedStudent(encoder="/wan")),
        ),
        (
            {"model": "/pruned", "teacher": "/wan", "student": "/pruned"},
            DistillConfig(
                teacher="/wan", resolved=ResolvedStudent(encoder="/wan", pruned_model="/pruned")
            ),
        ),
    ],
)
def test_a_file_of_a_distillation_of_an_older_version_starts_it_again(tmp_path, saved, expected):
    """Of a student of a student, and of a pruned model."""
    of_run = plain_settings(DistillConfig()) | saved
    del of_run["resolved"]
    path = tmp_path / "config.yaml"
    path.write_text(as_yaml(of_run))
    settings = COMMANDS["distill"].parse(["--config", str(path)]).arguments["settings"]
    assert settings == replace(expected, model=saved["model"])


def test_no_group_is_called_like_a_setting_in_whose_value_all_names_are_free():
    assert len(FREE_NAMES) == 3
    for setting in settings_of(DistillConfig, inside_values=True):
        if setting.name.rpartition(".")[2] in FREE_NAMES:
            assert setting.is_free, setting.name
