"""The command `telecine decode`."""

from typing import Annotated

from telecine.base.terminal import console
from telecine.settings.argument_kinds import Data, Output
from telecine.tools.decode.settings import DecodeConfig


def decode(
    settings: DecodeConfig,
    latents: Annotated[str, Data("Folder of latents, as `telecine encode` writes it.")],
    *,
    output: Annotated[str, Output("Folder for the videos, which have the names of the sources.")],
) -> None:
    """Decode latents to videos and images. The same command again decodes what is missing."""
    from telecine.tools.decode.decode import decode_latents

    num_new = decode_latents(latents, settings, output)
    console.say(f"{num_new} new files in {output}")
