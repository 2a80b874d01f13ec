import pytest
from rich.console import Console

from telecine.cli.tables import print_dry_run, print_plan
from telecine.settings import ObjectiveConfig
from telecine.training.planning.capacity import AS_CONFIGURED, SWITCHES, Plan, _LargestBatch
from telecine.training.planning.speed import Speed
from telecine.training.planning.update import UpdatePlan
from telecine.training.run import DryRun


@pytest.fixture
def console():
    return Console(record=True, width=200, markup=False)  # as the command line's


@pytest.mark.parametrize(("memory", "fits"), [(100, True), (99, False)])
def test_a_plan_says_whether_the_settings_fit(console, memory, fits):
    """Nine tenths of the memory are used."""
    update = UpdatePlan({"parameters": 10}, {"parameters": 10, "autoencoder": 80}, {"parameters": 10}, {}, 0)
    speed = Speed(1e9, 1e9, 1.0, "this machine's cpu")
    largest = [_LargestBatch("as configured", 1, 9, 90)]
    print_plan(console, Plan("4 x 17 x 256 x 256, float32", update, speed, memory, largest))
    text = console.export_text()
    assert ("\nWith these settings an update does not fit." in text) != fits


def test_what_fits_is_readable_in_80_columns():
    console = Console(record=True, width=80)
    speed = Speed(1e9, 1e9, 1.0, "this machine's cpu")
    switches = [f"and --{name} {value}".lower() for name, value in SWITCHES.items()]
    titles = (AS_CONFIGURED, *switches, "and --sharding fsdp2, 8 processes")
    fits = [_LargestBatch(title, 4, 165, 90 * 2**30) for title in titles]
    update = UpdatePlan({"parameters": 10}, {"parameters": 10, "autoencoder": 80}, {"parameters": 10}, {}, 0)
    print_plan(console, Plan("4 x 17 x 256 x 256, float32", update, speed, 100, fits))
    lines = console.export_text().splitlines()
    assert len(fits) == 5
    for fit in fits:
        row = ["", fit.title, "4", "165", "90.00 GiB", ""]
        assert row in [[cell.strip() for cell in line.split("│")] for line in lines]


def test_a_dry_run_says_whether_every_term_is_on(console):
    objective = ObjectiveConfig(disc_start=5, adversarial_loss_weight=0.5)
    print_dry_run(console, DryRun(2, 1.0, None, {"train/recon_loss": 0.1}), objective, num_steps=3)
    assert "not on in this update: adversarial_loss_weight" in console.export_text()
    print_dry_run(console, DryRun(5, 1.0, None, {"train/recon_loss": 0.1}), objective, num_steps=9)
    assert "every term is on in this update" in console.export_text()
