"""The model's own defaults, of its generation config: `ModelDefaults`, and how its makers sample.

A field that would change answers and that the engine does not have is refused by its name.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from models.model_defaults import ModelDefaults
from models.params import GenerationParams
from producer.errors import UsageError
from producer.model_files.end_ids import end_ids
from producer.model_files.folder import ModelFiles

WAY_OUT = "--ignore-model-defaults decodes without the model's defaults"

#: Fields of `ModelDefaults` that a generation config has, and the values of each that change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "bad_words_ids": (),
    "sequence_bias": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
}

#: Fields that change logits or ends in a way that the engine does not have, and the values that change nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "guidance_scale": (1,),
    "watermarking_config": (),
    "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "stop_strings": ([],),
    "token_healing": (False,),
    "renormalize_logits": (False,),
    "constraints": ([],),
    "force_words_ids": ([],),
}

#: The same for what only the strategy `model` asks for.
UNSUPPORTED_SAMPLING: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "top_h": (),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
}

#: A job that gives the parameter overrides these defaults.
OVERRIDDEN_BY = {
    "eos_token_ids": ("eos_token_ids",),
    "repetition_penalty": ("repetition_penalty",),
    "min_new_tokens": ("min_length", "min_new_tokens"),
}


def model_defaults(files: ModelFiles) -> ModelDefaults:
    """The defaults that change answers. Raises `UsageError` for one that the engine does not have."""
    config = generation_config(files)
    _refuse(files, config, UNSUPPORTED, WAY_OUT)
    given = {name: config[name] for name, neutral in NEUTRAL.items() if _changes(config.get(name), neutral)}
    if isinstance(given.get("forced_eos_token_id"), int):
        given["forced_eos_token_id"] = [given["forced_eos_token_id"]]
    if isinstance(given.get("sequence_bias"), dict):
        raise UsageError(f"{_place(files)}: sequence_bias must be a list of [token ids, bias]; {WAY_OUT}")
    try:
        defaults = ModelDefaults.model_validate(given | {"eos_token_ids": end_ids(files) or None})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise UsageError(f"{_place(files)}: {name} {first['msg']}, got {given[name]!r:.60}; {WAY_OUT}") from error
    _check_ids(files, defaults)
    return defaults


def recommended_sampling(files: ModelFiles) -> dict[str, Any]:
    """The parameters of the strategy `model`: greedy, or a sample with every value given. Raises `UsageError`."""
    config = generation_config(files)
    _refuse(files, config, UNSUPPORTED_SAMPLING, "name the strategy and its parameters instead of strategy model")
    if not config.get("do_sample"):
        return {"strategy": "greedy"}
    values: dict[str, Any] = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None}  # Transformers' own
    values |= {name: config[name] for name in values if config.get(name) is not None}
    values["top_k"] = values["top_k"] or None
    params = {"strategy": "sample"} | {
        name: value if name == "top_k" else _as_float(value) for name, value in values.items() if value is not None
    }
    try:
        GenerationParams.model_validate(params)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{_place(files)}: {first['loc'][0]} {first['msg']}; name the strategy yourself") from error
    return params


def _as_float(value: Any) -> Any:
    return float(value) if isinstance(value, int) else value


def defaults_of_job(defaults: ModelDefaults, given: set[str]) -> ModelDefaults:
    """The defaults that stand beside the parameters that a job gives itself."""
    overridden = {name for parameter, names in OVERRIDDEN_BY.items() if parameter in given for name in names}
    return defaults.model_copy(update=dict.fromkeys(overridden)) if overridden else defaults


def defaults_text(defaults: ModelDefaults) -> str:
    """The defaults in a line for a person."""
    named = {name: value for name, value in (defaults.stored or {}).items() if name != "eos_token_ids"}
    ends = ", ".join(map(str, defaults.eos_token_ids or ())) or "nothing but the length"
    return "; ".join([*(f"{name} {value!r:.60}" for name, value in named.items()), f"answers end at {ends}"])


def generation_config(files: ModelFiles) -> dict[str, Any]:
    """The generation config; as in Transformers, a model without that file has its fields in the model's config."""
    return files.generation_config or files.config | files.text_config


def _refuse(files: ModelFiles, config: dict[str, Any], unsupported: dict[str, tuple[Any, ...]], way_out: str) -> None:
    for name, neutral in unsupported.items():
        if _changes(config.get(name), neutral):
            raise UsageError(f"{_place(files)}: {name} {config[name]!r:.60} is not supported; {way_out}")


def _changes(value: Any, neutral: tuple[Any, ...]) -> bool:
    return value is not None and value not in neutral


def _check_ids(files: ModelFiles, defaults: ModelDefaults) -> None:
    """Raises `UsageError` for token ids that Transformers would refuse while it generates, too."""
    vocab = files.text_config.get("vocab_size")
    if not isinstance(vocab, int):
        return
    named = {
        "bad_words_ids": [each for ids in defaults.bad_words_ids or () for each in ids],
        "sequence_bias": [each for ids, _ in defaults.sequence_bias or () for each in ids],
        "forced_bos_token_id": [] if defaults.forced_bos_token_id is None else [defaults.forced_bos_token_id],
        "forced_eos_token_id": list(defaults.forced_eos_token_id or ()),
    }
    for name, ids in named.items():
        if bad := [each for each in ids if not 0 <= each < vocab]:
            raise UsageError(
                f"{_place(files)}: {name} has the token id {bad[0]}, and the vocabulary is {vocab}; {WAY_OUT}"
            )


def _place(files: ModelFiles) -> str:
    name = "generation_config.json" if files.generation_config else "config.json"
    return f"{files.folder / name}"
