"""The command `telecine latents`."""

from functools import partial
from pathlib import Path
from typing import Annotated

from telecine.base.checks import argument_error
from telecine.base.terminal import console
from telecine.settings import LatentsConfig, ProbeConfig
from telecine.settings.argument_kinds import Output


def latents(
    settings: LatentsConfig,
    models: Annotated[
        list[str],
        "Folders of runs (their last checkpoints), of checkpoints or of saved autoencoders, names on the Hub, or tiny, "
        "the model in the package; several are shown side by side.",
    ],
    *,
    output: Annotated[
        str, Output("Folder for latents.html and latents.json, by default `latents`.")
    ] = "latents",
    probe: Annotated[
        bool, "Also train a small generator on the latents, and measure it on unseen videos."
    ] = False,
) -> None:
    """Measure the latent spaces of autoencoders (channels, spectrum, equivariance, noise, drift), on a page."""
    from telecine.tools.latents.measures import measure_latent_spaces
    from telecine.tools.latents.page import write_latents

    folder = Path(output)
    train_one = None
    if not probe:
        for name, value in vars(settings.probe).items():
            if value != getattr(ProbeConfig, name):
                contract = "left out without `--probe`"
                raise argument_error(f"probe.{name}", contract, repr(value), "Add `--probe`.")
    if probe:
        from telecine.tools.latents.probe import train_probe

        train_one = partial(train_probe, config=settings, folder=folder / "probe", console=console)
    folder.mkdir(parents=True, exist_ok=True)  # before what takes long
    report = measure_latent_spaces(models, settings, train_one)
    report.print_to(console)
    page = write_latents(report, folder)
    console.say(f"written to {page.parent}; open {page} in a browser")
