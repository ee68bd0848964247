"""Checking that a model exists: by a folder's files, or by asking the hub. Loads no weights."""

from __future__ import annotations

from pathlib import Path

from models.model_name import canonical_model
from producer.errors import UsageError


def check_model(model: str) -> str:
    """The model's canonical name. Raises `UsageError` for a model that no worker could load."""
    path = Path(model)
    if path.is_dir():
        _check_folder(path)
    elif path.exists() or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UsageError(f"unknown model {model!r}: there is no such folder; give a model folder or a hub id")
    else:
        _check_hub(model)
    return canonical_model(model)


def _check_folder(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise UsageError(
            f"unknown model {str(path)!r}: the folder has no config.json; give a Transformers model folder"
        )
    if not any(path.glob("*.safetensors")):
        found = ", ".join(sorted(file.name for file in path.glob("*.bin"))) or "no weights"
        raise UsageError(
            f"the model folder {path} has no safetensors (found: {found}); "
            "convert it with save_pretrained, other formats are not loaded"
        )


def _check_hub(model: str) -> None:
    import logging

    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        hf_hub_download(model, "config.json")
    except HFValidationError as error:
        raise UsageError(f"unknown model {model!r}: neither a folder nor a hub id such as Qwen/Qwen2-0.5B") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UsageError(
            f"unknown model {model!r}: it is no folder here, and the model hub did not give it "
            f"({type(error).__name__}); check the name, the network or your access, or give a model folder"
        ) from error
