"""Load an autoencoder of any kind from a folder or a Hub name, by the class in its configuration."""

from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from telecine.base.checks import argument_error, nearest
from telecine.base.files import read_json
from telecine.base.imports import how_to_install, is_class_path
from telecine.models.causal import CausalVAE
from telecine.models.custom import ARGUMENTS_KEY, CLASS_PATH_KEY
from telecine.models.custom_reload import build_custom
from telecine.models.frozen_encoder import folder_of_teacher
from telecine.models.interface import VideoAutoencoder
from telecine.models.pretrained import CLASS_KEY, CONFIG_FILE, WEIGHTS_FILE
from telecine.models.student import StudentAutoencoder
from telecine.runs.checkpoints import Checkpoints, find_checkpoint
from telecine.runs.saved_settings import read_saved_settings

# Trained models of the package, by name; the manifest beside them has the digests of their files.
_PACKAGED = Path(__file__).with_name("packaged")
DIFFUSION_DECODER = "LTX2VideoDiffusionDecoderModel"
"""The class of diffusers that decodes the latents of another one."""


def load_autoencoder(
    name_or_folder: str | PathLike[str],
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    with_weights: bool = True,
) -> VideoAutoencoder:
    """Return the autoencoder of a folder or a Hub name, on the CPU, in float32 and training mode.

    Args:
        name_or_folder: A run (its last checkpoint) or a checkpoint, for its averaged weights; a folder that
            `save_pretrained` of telecine or diffusers wrote, or a pipeline's; or the name of a model on the Hugging
            Face Hub, such as "Wan-AI/Wan2.1-T2V-1.3B-Diffusers". A `.json` file is a diffusers configuration; its model
            has random weights. "tiny" is the model of this package, unless there is a folder of that name. The class of
            a custom module must be in a package that `allow_code` allows.
        subfolder: Subfolder of the model. Default: "vae" for a whole pipeline.
        revision: Branch, tag or commit on the Hub.
        with_weights: Whether the model has its weights. Otherwise they are random, only the configuration is read, and
            no weights are fetched.

    Raises:
        FileNotFoundError: The folder does not exist or contains no weights.
        ValueError: There is no configuration, its class is unknown, or the weights do not match it; or the folder is
            part of a checkpoint and was changed since (a `DamagedError`).
        ImportError: The model needs diffusers, which is not installed.
    """
    if subfolder is None:
        checkpoint = find_checkpoint(Path(name_or_folder))
        if checkpoint is not None:
            name_or_folder = checkpoint / "ema"
    folder = _folder_of(name_or_folder, subfolder, revision, with_weights=with_weights)
    if with_weights:
        Checkpoints.check_model(folder)
    kind = class_in(folder)
    load_teacher = partial(load_autoencoder, with_weights=with_weights)
    if kind == CausalVAE.__name__:
        return CausalVAE.from_pretrained(folder, with_weights=with_weights)
    if kind == StudentAutoencoder.__name__:
        return StudentAutoencoder.from_pretrained(folder, load_teacher, with_weights=with_weights)
    if kind == DIFFUSION_DECODER:
        from telecine.models.diffusers import DiffusionDecoder

        return DiffusionDecoder.from_pretrained(
            folder, teacher_of(folder), load_teacher, with_weights=with_weights
        )
    if "." in kind:
        module = build_custom_in(folder)
        return module.load_weights(folder) if with_weights else module
    is_config = folder.suffix == ".json"
    if not is_config and not Path(name_or_folder).is_dir() and not is_hub_name(str(name_or_folder)):
        raise _missing_error(str(name_or_folder))
    from telecine.models.diffusers import DiffusersAutoencoder

    if is_config:
        return DiffusersAutoencoder.from_config(folder)
    return DiffusersAutoencoder.from_pretrained(
        name_or_folder, subfolder=subfolder, revision=revision, with_weights=with_weights
    )


def is_custom(name: str) -> bool:
    """Return whether a name stands for a custom module: the dotted path of its class, or a folder or a run with it."""
    if is_class_path(name) and not Path(name).exists():
        return True
    return "." in class_in(folder_without_weights(name))


def _missing_error(name: str) -> Exception:
    contract = f"a run, a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, a Hub name such as `owner/name`, or `tiny`"
    if Path(name).is_file():
        got = f"{name!r}, which is a file"
        remedy = "Name the model's folder; files to reconstruct come after it."
    else:
        got = f"{name!r}, which does not exist"
        remedy = nearest(name, ["tiny"]) or "Check the spelling."
    return argument_error("the model", contract, got, remedy, FileNotFoundError)


def _folder_of(
    source: str | PathLike[str],
    subfolder: str | None = None,
    revision: str | None = None,
    *,
    with_weights: bool = True,
) -> Path:
    """Return a model's folder, downloaded if it is telecine's on the Hub; for others on the Hub it does not exist."""
    name = str(source)
    folder = Path(name) / (subfolder or "")
    if not folder.exists() and folder.name == name and (_PACKAGED / name).is_dir():
        return _PACKAGED / name
    in_pipeline = folder / "vae"
    is_pipeline = subfolder is None and not (folder / CONFIG_FILE).is_file()
    if is_pipeline and (in_pipeline / CONFIG_FILE).is_file():
        return in_pipeline
    if folder.exists() or folder.suffix == ".json" or not is_hub_name(name):
        return folder
    try:
        from huggingface_hub import hf_hub_download, snapshot_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
    except ImportError as missing:
        raise ImportError(
            f"Models on the Hub need huggingface_hub. {how_to_install('train')}"
        ) from missing
    try:
        config = Path(hf_hub_download(name, CONFIG_FILE, subfolder=subfolder, revision=revision))
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError):
        return folder  # it may be a pipeline; else the request of diffusers fails, too, and its error is explained
    kind = class_in(config.parent)
    is_own = kind in (CausalVAE.__name__, StudentAutoencoder.__name__) or "." in kind
    if not is_own:
        return folder
    files = ["*.json"]
    if with_weights:
        files.append("*.safetensors")
    return Path(snapshot_download(name, revision=revision, allow_patterns=files)) / (
        subfolder or ""
    )


def folder_without_weights(name: str) -> Path:
    """Return the folder of a model; for a run, the folder of its averaged weights. No weights are fetched."""
    checkpoint = find_checkpoint(Path(name))
    source = name if checkpoint is None else checkpoint / "ema"
    return _folder_of(source, with_weights=False)


def class_in(folder: Path) -> str:
    """Return the class name in a folder's configuration, of a custom module its dotted path; "" if it has none."""
    config = _config_in(folder)
    return str(config.get(CLASS_PATH_KEY) or config.get(CLASS_KEY, ""))


def _config_in(folder: Path) -> dict[str, Any]:
    file = folder if folder.suffix == ".json" else folder / CONFIG_FILE
    return read_json(file) if file.is_file() else {}


def teacher_of(folder: Path) -> str:
    """Return the autoencoder that a diffusion decoder's configuration names, by default the one of the same pipeline.

    It is a path from the model that the decoder's run has started from, or from the decoder; or a name on the Hub.
    """
    model = read_saved_settings(folder.parent).get("model")
    if isinstance(model, str):
        origin = folder_without_weights(model)
        if origin != folder and origin.exists():
            return teacher_of(origin)
    name = _config_in(folder).get("_teacher", "vae")
    local = folder_of_teacher(folder, name)
    return name if local is None else str(local)


def build_custom_in(folder: Path) -> VideoAutoencoder:
    """Return the custom module of a folder with new weights; see `build_custom`."""
    path = class_in(folder)
    arguments = _config_in(folder).get(ARGUMENTS_KEY)
    settings = read_saved_settings(folder.parent)
    if arguments is None and settings.get("model") == path:  # runs of early versions
        arguments = settings.get("model_arguments")
    return build_custom(path, arguments, f"{CLASS_PATH_KEY} in {folder}")


def is_hub_name(text: str) -> bool:
    """Return whether `text` has the form `owner/name` of a model on the Hub, and is not a path in a folder here."""
    has_form = (
        text.count("/") == 1 and not text.startswith(("/", ".", "~")) and not text.endswith("/")
    )
    return has_form and not Path(text).parent.is_dir()
