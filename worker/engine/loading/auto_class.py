"""Transformers' class for a configuration: of a causal language model, or of one that also sees images."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def auto_class(config: Any) -> Any:
    """The loader of a configuration's model. Its text part is all that runs without an image."""
    if not is_causal(config) and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def concrete_class(config: Any) -> Any:
    """The class itself, which takes weights from memory as the loaders do not."""
    classes = auto_class(config)._model_mapping[type(config)]
    return classes[0] if isinstance(classes, tuple) else classes


def is_causal(config: Any) -> bool:
    """Whether Transformers has a causal language model of the configuration."""
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
