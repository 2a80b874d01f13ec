"""The command `telecine prune`."""

from pathlib import Path
from typing import Annotated

from telecine.base.terminal import console
from telecine.settings.argument_kinds import ModelPath, Output
from telecine.settings.distill import PRUNE_FILE
from telecine.tools.prune.settings import PruneConfig


def prune(
    settings: PruneConfig,
    model: ModelPath,
    *,
    output: Annotated[
        str, Output("Folder for the pruned model and prune.json, by default `pruned`.")
    ] = "pruned",
) -> None:
    """Remove the channels of a decoder that matter least, or make its convolutions cheaper, before it is distilled."""
    from telecine.base.files import write_json
    from telecine.tools.prune import pruning

    console.say(f"finding the channels of {model} that matter least")
    result = pruning.prune(model, settings)
    folder = Path(output)
    result.model.save_pretrained(folder)
    write_json(folder / PRUNE_FILE, result.report())
    result.print_to(console)
    console.say(f"written to {folder}")
