"""The verdict on a model's path: a kept one, or the self check's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from models.checkpoint.paths.verdict import Verdict, store_verdict, stored_verdict, verdict_key
from worker.engine.backend import Backend, LoadOptions
from worker.engine.loading.deadline import TookTooLong
from worker.engine.loading.self_check import SECONDS, check

logger = logging.getLogger(__name__)


def checked_path(
    given: Mapping[str, Any], config: Any, backend: type[Backend], device: torch.device, options: LoadOptions
) -> Verdict:
    """The path of a configuration, `given` as its file has it; a new verdict is kept for later loads."""
    key = verdict_key(given, device.type)
    verdict = stored_verdict(key)
    if verdict is None:
        try:
            verdict = check(config, backend, device, LoadOptions(deterministic=options.deterministic, allow_slow=True))
        except TookTooLong:  # not kept: the next load may have the machine for itself
            return Verdict("fallback", f"its self check took more than {SECONDS:g} s")
        try:
            store_verdict(key, verdict)
        except OSError as error:
            logger.warning("the verdict of the model's self check cannot be kept: %s", error)
    logger.log(logging.INFO if verdict.path == "packed" else logging.WARNING, "decoding is %s", verdict.sentence)
    return verdict
