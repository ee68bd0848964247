"""Models by their name on the Hugging Face hub: from its cache first, else fetched into it. Knows no Transformers.

The first request to the hub has a few seconds and no second attempt: a machine without a network says so at once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from models.checkpoint.download_progress import showing_progress
from models.checkpoint.small_files import CheckpointProblem, first_names, is_file, one_line, read_json_object
from models.checkpoint.tokenizer_files import TOKENIZERS
from models.checkpoint.weights import INDEX, SINGLE, shards_of
from models.model_name import split_revision

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

ANSWER_SECONDS = 2.0
ANSWER_VARIABLE = "HF_HUB_ETAG_TIMEOUT"  # the hub's own variable for the same wait

#: The files that are fetched before a run is written.
SMALL_FILES = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "additional_chat_templates/*.jinja", "chat_template.json", "adapter_config.json",
    "quantize_config.json", "quant_config.json", "hf_quant_config.json", INDEX, "tekken.json",
    *sorted({name for names in TOKENIZERS for name in names}),
)  # fmt: skip


def model_folder(model: str, revision: str | None = None, *, with_weights: bool = False) -> Path:
    """The folder of a model that is given as a folder, a hub id, or `ID@REVISION`. Raises `CheckpointProblem`."""
    if os.path.lexists(model):
        return Path(model)
    if revision is None:
        model, revision = split_revision(model)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise CheckpointProblem(
            f"unknown model {model!r}: there is no such folder; give a model folder or a hub id such as Qwen/Qwen2-0.5B"
        )
    seconds = answer_seconds()
    folder = _cached(model, revision)
    if folder is not None and _is_complete(folder, with_weights=with_weights):
        return folder
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return _fetch(model, revision, seconds, with_weights=with_weights)
    except CheckpointProblem:
        raise
    except Exception as error:  # the hub's client and the HTTP client below it have a type for each fault
        raise CheckpointProblem(
            f"unknown model {model!r}: it is not a folder here, and the model hub did not give it: "
            f"{_reason(error, model, revision)}"
        ) from error


def _cached(model: str, revision: str | None) -> Path | None:
    """The model's folder in the hub's cache, complete or not."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError as error:
        raise CheckpointProblem(
            f"unknown model {model!r}: neither a folder nor a hub id such as Qwen/Qwen2-0.5B"
        ) from error
    return Path(path).parent if isinstance(path, str) else None


def _is_complete(folder: Path, *, with_weights: bool) -> bool:
    """Whether the cache has what is needed; a damaged file counts as present, and is told of by its own check."""
    if not any(all(is_file(folder / name) for name in names) for names in TOKENIZERS):
        return False
    try:
        return not with_weights or all(is_file(folder / name) for name in _weight_names(folder, os.listdir(folder)))
    except CheckpointProblem:
        return True


def _weight_names(folder: Path, available: Container[str]) -> list[str]:
    """The files that Transformers loads of those that are available: the weights, or their index and its shards."""
    named = read_json_object(folder / "config.json").get("transformers_weights")
    first = named if isinstance(named, str) else SINGLE if SINGLE in available else INDEX
    is_index = first.endswith(".json") and first in available
    return [first, *sorted(set(shards_of(folder / first).values()))] if is_index else [first]


def _fetch(model: str, revision: str | None, seconds: float, *, with_weights: bool) -> Path:
    """Fetches the small files, then the weights where they are wanted; shows the progress of both."""
    from huggingface_hub import HfApi, get_session

    get_session()  # made before the clock runs: its certificates take a moment
    api = HfApi()
    info = _within(seconds, lambda: api.model_info(model, revision=revision, files_metadata=True, timeout=seconds))
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    _check_names(model, sizes)
    folder = _download(model, revision, SMALL_FILES, sizes)
    if with_weights:
        folder = _download(model, revision, _weight_names(folder, sizes), sizes)
    return folder


def _within(seconds: float, ask: Callable[[], ModelInfo]) -> ModelInfo:
    """The answer, if it comes in time: looking up a name has no timeout of its own. Raises `TimeoutError`."""
    answers: SimpleQueue[Any] = SimpleQueue()

    def put_answer() -> None:
        try:
            answers.put(ask())
        except Exception as error:
            answers.put(error)

    Thread(target=put_answer, daemon=True, name="hub").start()
    try:
        answer = answers.get(timeout=seconds)
    except Empty:
        raise TimeoutError from None
    if isinstance(answer, Exception):
        raise answer
    found: ModelInfo = answer
    return found


def _check_names(model: str, available: Iterable[str]) -> None:
    """Raises `CheckpointProblem` for a repository whose list of files shows that no engine could load it."""
    names = set(available)
    if not names & {"config.json", "adapter_config.json"}:
        found = first_names(sorted(names)) or "nothing"
        raise CheckpointProblem(
            f"the hub's model {model!r} has no config.json (it has {found}); give a Transformers model"
        )
    if not names & {SINGLE, INDEX, "adapter_config.json"}:
        others = sorted(name for name in names if "/" not in name and not name.endswith((".json", ".md", ".txt")))
        raise CheckpointProblem(
            f"the hub's model {model!r} has no safetensors (found: {first_names(others) or 'nothing'}); "
            "give one that has, other formats are not loaded"
        )


def _download(model: str, revision: str | None, names: Iterable[str], sizes: dict[str, int]) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # one bar for each of many files, and none in a log
    wanted = list(names)
    cache = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=model, repo_type="model")
    with showing_progress(model, cache, sum(sizes.get(name, 0) for name in wanted)):
        return Path(snapshot_download(model, revision=revision, allow_patterns=wanted))


def answer_seconds() -> float:
    """The time for the hub's first answer. Raises `CheckpointProblem`: the hub's client would give a traceback."""
    given = os.environ.get(ANSWER_VARIABLE)
    try:
        return ANSWER_SECONDS if given is None else int(given)
    except ValueError as error:
        raise CheckpointProblem(f"{ANSWER_VARIABLE} must be a whole number of seconds, got {given!r}") from error


def _reason(error: Exception, model: str, revision: str | None) -> str:
    """Cause and remedy of what the hub's client raised."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    if isinstance(error, errors.OfflineModeIsEnabled) or isinstance(error.__cause__, errors.OfflineModeIsEnabled):
        lacking = "the model" if revision is None else f"its revision {revision!r}"
        return f"HF_HUB_OFFLINE forbids asking it, and its cache lacks {lacking}; unset it, or give a model folder"
    if isinstance(error, TimeoutError):
        return (
            f"{hub} does not answer within {answer_seconds():g} s; check the network, set {ANSWER_VARIABLE}=30 for a "
            "slow one, or give a model folder"
        )
    if isinstance(error, errors.GatedRepoError):
        return f"it is gated; accept its terms at {hub}/{model}, then log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision!r}; give one of its branches, tags or commits"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{hub} has no such model, or a private one; check the spelling, or log in with `hf auth login` or HF_TOKEN"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _http_reason(hub, error.response.status_code)
    return f"{hub} cannot be reached ({one_line(error)}); check the network, or give a model folder"


def _http_reason(hub: str, status: int) -> str:
    if status in (401, 403):
        return f"{hub} refuses the access ({status}); log in with `hf auth login` or set HF_TOKEN to a valid token"
    return f"{hub} answers with the status {status}; try again later, or give a model folder"
