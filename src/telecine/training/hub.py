"""Uploading the averaged weights to the Hugging Face Hub, from which diffusers loads them by name."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from huggingface_hub import constants, create_repo, upload_folder
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from telecine.base.checks import argument_error
from telecine.base.files import read_json, write_text
from telecine.models.load import is_hub_name
from telecine.models.pretrained import CONFIG_FILE

# All errors of requests. Those of the network have the base class of `HfHubHTTPError`, which differs between versions.
_HUB_ERRORS: tuple[type[Exception], ...] = (HFValidationError, *HfHubHTTPError.__bases__, OSError)


def create_repository(name: str) -> str:
    """Create the repository for the upload, if it does not exist, and return its full name.

    Raises:
        ValueError: It cannot be created: there is no connection, no login, or the name is wrong.
    """
    try:
        return create_repo(name, exist_ok=True).repo_id
    except _HUB_ERRORS as error:
        if isinstance(error, (HfHubHTTPError, LocalTokenNotFoundError)):
            remedy = "Log in with `hf auth login` or set HF_TOKEN, and check `hub_model_id`"
        elif isinstance(error, HFValidationError):
            remedy = "Check `hub_model_id`"
        else:
            remedy = f"Check the connection to {constants.ENDPOINT}"
        raise _hub_error(error, f"{remedy}; or turn `push_to_hub` off.") from error


def upload(
    repo_id: str, checkpoint: Path, base: str | None, metrics: Mapping[str, float], *, steps: int
) -> None:
    """Upload the averaged weights of a checkpoint, with a model card.

    Args:
        repo_id: The full name of the repository.
        checkpoint: The folder of the checkpoint.
        base: The model from which the run started. The card names it if it is on the Hub.
        metrics: The last metrics by name, for the card.
        steps: The number of updates, for the card.

    Raises:
        ValueError: If the upload fails.
    """
    folder = checkpoint / "ema"
    config = folder / CONFIG_FILE
    library = "telecine"
    if config.is_file() and "_diffusers_version" in read_json(config):
        library = "diffusers"
    origin = ""
    if base and is_hub_name(base) and not Path(base).exists():  # local paths are private
        origin = f" from {base}"
    figures = "\n".join(f"| {name} | {value:.4f} |" for name, value in metrics.items())
    template = resources.files(__package__).joinpath("model_card.md").read_text(encoding="utf-8")
    card = template.format(library=library, name=repo_id, base=origin, figures=figures, steps=steps)
    write_text(folder / "README.md", card)
    try:
        upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=f"Weights after {steps} updates"
        )
    except _HUB_ERRORS as error:
        remedy = f"The run is complete, with the weights in {folder}. Run the same command again to upload them."
        raise _hub_error(error, remedy) from error


def _hub_error(error: Exception, remedy: str) -> Exception:
    got = f"{type(error).__name__}: {str(error).rstrip('.')}"
    return argument_error("push_to_hub", "false without access to the Hub", got, remedy)
