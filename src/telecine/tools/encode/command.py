"""The command `telecine encode`."""

from typing import Annotated

from telecine.base.terminal import console
from telecine.settings.argument_kinds import ModelPath, Output
from telecine.tools.encode.settings import EncodeConfig


def encode(
    settings: EncodeConfig,
    checkpoint: ModelPath,
    *,
    output: Annotated[str, Output("Folder for the shards, manifest.json and README.md.")],
) -> None:
    """Encode a data set, in shards that WebDataset reads. The same command again encodes what is missing."""
    from telecine.tools.encode.encode import encode_data

    encode_data(checkpoint, settings, output).print_to(console)
