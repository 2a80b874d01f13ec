"""The command `telecine data index`."""

import re
from typing import Annotated

from telecine.base.checks import argument_error
from telecine.base.terminal import console
from telecine.settings import TrainConfig
from telecine.settings.argument_kinds import Data

_SHARD = re.compile(r"(\d{1,9})/(\d{1,9})")


def data_index(
    settings: TrainConfig,
    path: Annotated[str, Data("The data, as --data of `telecine train`.")],
    *,
    shard: Annotated[
        str | None,
        "The part of the files to index: 0/8 is the first of eight, which other processes or machines complete. By "
        "default all, or the part of each process of torchrun.",
    ] = None,
) -> None:
    """Index data before training with `--clips.index lazy`. The same command again indexes what is missing.

    Raises:
        ValueError: `shard` is not a part.
    """
    from telecine.base.devices import launched_process
    from telecine.tools.index.write_index import write_index

    part, num_parts = launched_process()
    if shard is not None:
        match = _SHARD.fullmatch(shard)
        if match is None or int(match[1]) >= int(match[2]):
            contract = "a number and the number of parts"
            raise argument_error("shard", contract, repr(shard), "Write for example 0/8 to 7/8.")
        part = int(match[1])
        num_parts = int(match[2])
    write_index(path, settings.clips, part, num_parts).print_to(console)
