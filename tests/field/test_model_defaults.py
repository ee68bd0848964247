"""A model's own defaults: resolved by the producer, stored with the job, decoded as `transformers.generate` does."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from models.model_defaults import ModelDefaults
from models.params import GenerationParams
from producer.errors import LineProblem, UsageError
from producer.model_files.end_ids import end_ids, end_of_turn
from producer.model_files.folder import ModelFiles
from producer.model_files.generation_defaults import defaults_of_job, model_defaults, recommended_sampling
from producer.prompts.grid import Grid, validate
from tests.conftest import TOY_MODEL, Producer
from tests.support.random_models import VOCAB, random_pair, random_prompts
from worker.engine.request import Request

ENDS = (2, *range(20, 26))
BEFORE_END, AFTER = tuple(range(30, 60)), tuple(range(100, 130))

#: The generation config's fields, one kind a row; then all of them together.
KINDS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.1},
    {"repetition_penalty": 0.8},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 1},
    {"bad_words_ids": [[token_id] for token_id in BEFORE_END]},
    {"bad_words_ids": [[first, second] for first in range(3, 60) for second in (7, 8, 70, 71, 72)] + [[2]]},
    {"sequence_bias": [[[token_id], 3.5] for token_id in AFTER]},
    {"sequence_bias": [[[first, 50], 6.0] for first in range(VOCAB)] + [[[9], -4.0]]},
    {"suppress_tokens": list(AFTER) + list(ENDS[:2])},
    {"begin_suppress_tokens": list(range(3, 150))},
    {"min_length": 45},
    {"min_new_tokens": 12},
    {"min_new_tokens": 3, "min_length": 60},
    {"forced_bos_token_id": 77},
    {"forced_eos_token_id": 2},
    {"forced_eos_token_id": [22, 21]},
    {"exponential_decay_length_penalty": [4, 1.4]},
    {"forced_bos_token_id": 77, "begin_suppress_tokens": list(range(60, 160))},
    {"repetition_penalty": 1.2, "suppress_tokens": [5, 6], "min_new_tokens": 8, "begin_suppress_tokens": [40]},
    {
        "repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "bad_words_ids": [[30], [31, 32]], "min_length": 40,
        "sequence_bias": [[[40], 2.0], [[41, 42], 5.0]], "exponential_decay_length_penalty": [6, 1.1],
        "suppress_tokens": [50], "begin_suppress_tokens": [51],
    },
]  # fmt: skip


def files_of(tmp_path: Path, generation_config: dict[str, Any] | None, **more: Any) -> ModelFiles:
    """A folder with a generation config, and with more files by their names without the ending."""
    contents = {
        "config": {"vocab_size": VOCAB, "eos_token_id": list(ENDS)},
        "generation_config": generation_config,
        **more,
    }
    for name, content in contents.items():
        if content is not None:
            (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return ModelFiles(str(tmp_path), tmp_path)


def generated(prompt_ids: tuple[int, ...], config: dict[str, Any], **options: Any) -> list[list[int]]:
    """Transformers' own answers, without padding, the best first."""
    reference = random_pair("llama-grouped").reference
    given = GenerationConfig(eos_token_id=list(ENDS), pad_token_id=0, bos_token_id=1, **config, **options)
    with torch.inference_mode(), warnings.catch_warnings(action="ignore"):  # a minimum beyond the most tokens
        output = reference.generate(
            torch.tensor([prompt_ids]),
            attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
            generation_config=given,
        )
    return [list(_to_end(row)) for row in output[:, len(prompt_ids) :].tolist()]


def _to_end(token_ids: list[int]) -> Iterator[int]:
    for token_id in token_ids:
        yield token_id
        if token_id in ENDS:
            return


@pytest.mark.parametrize("config", KINDS, ids=lambda config: "+".join(config))
def test_greedy_and_beams_are_those_of_generate(config: dict[str, Any], tmp_path: Path) -> None:
    defaults = model_defaults(files_of(tmp_path, config))
    rng = random.Random(str(config))
    prompts = [(9,), *random_prompts(5, seed=rng.randint(0, 99), longest=40)]
    requests, expected = [], []
    for index, prompt_ids in enumerate(prompts):
        length = rng.choice([5, 14, 25])
        beams = {"strategy": "beam", "num_beams": 3, "num_return": 3} if index % 3 == 2 else {}
        params = GenerationParams.model_validate({"max_new_tokens": length, **beams}).with_model_defaults(defaults)
        requests.append(Request(index, prompt_ids, params))
        options = {"num_beams": 3, "num_return_sequences": 3, "early_stopping": True} if beams else {}
        expected.append(generated(prompt_ids, {**config, **options}, max_new_tokens=length))
    engine = random_pair("llama-grouped").engine(max_num_seqs=12)
    for output in engine.generate(requests):
        assert output.error is None
        found = [list(done.token_ids) for done in output.completions]
        assert found == expected[output.request_id], requests[output.request_id]


def test_each_kind_changes_some_answer() -> None:
    """Otherwise the comparison above says nothing."""
    prompts = [(9,), *random_prompts(20, seed=3, longest=40)]
    plain = [generated(prompt_ids, {}, max_new_tokens=14) for prompt_ids in prompts]
    for config in KINDS:
        answers = (generated(prompt_ids, config, max_new_tokens=14) for prompt_ids in prompts)
        assert any(answer != before for answer, before in zip(answers, plain, strict=True)), config


def test_a_row_without_defaults_decodes_as_it_always_did() -> None:
    stored = GenerationParams(max_new_tokens=3).stored
    assert "model_defaults" not in stored
    params = GenerationParams(max_new_tokens=3).with_model_defaults(ModelDefaults(repetition_penalty=1.1))
    assert GenerationParams.model_validate_json(json.dumps(params.stored)) == params
    assert params.keyed_json == GenerationParams(max_new_tokens=3).keyed_json


def test_a_job_overrides_what_it_gives_itself() -> None:
    defaults = ModelDefaults(eos_token_ids=(1,), repetition_penalty=1.1, min_length=3, suppress_tokens=(4,))
    assert defaults_of_job(defaults, {"repetition_penalty"}).repetition_penalty is None
    assert defaults_of_job(defaults, {"min_new_tokens"}).stored == {
        "eos_token_ids": [1], "repetition_penalty": 1.1, "suppress_tokens": [4],
    }  # fmt: skip
    assert defaults_of_job(defaults, {"eos_token_ids", "max_new_tokens"}).eos_token_ids is None
    assert defaults_of_job(defaults, {"temperature"}) is defaults


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"guidance_scale": 1.5}, "guidance_scale 1.5 is not supported"),
        ({"watermarking_config": {"greenlist_ratio": 0.25}}, "watermarking_config"),
        ({"encoder_repetition_penalty": 1.2}, "encoder_repetition_penalty"),
        ({"encoder_no_repeat_ngram_size": 2}, "encoder_no_repeat_ngram_size"),
        ({"stop_strings": ["x"]}, "stop_strings"),
        ({"bad_words_ids": [[VOCAB]]}, f"bad_words_ids has the token id {VOCAB}, and the vocabulary is {VOCAB}"),
        ({"suppress_tokens": [5, 2**31]}, f"suppress_tokens Input should be less than {2**31}"),
        ({"repetition_penalty": "high"}, "repetition_penalty .*'high'"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
        ({"sequence_bias": {"(5,)": 1.0}}, "sequence_bias must be a list"),
    ],
)
def test_a_default_that_cannot_be_done_is_refused_by_name(config: dict[str, Any], word: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"generation_config.json: {word}.*--ignore-model-defaults"):
        model_defaults(files_of(tmp_path, config))


@pytest.mark.parametrize(
    "config",
    [
        {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "bad_words_ids": None, "suppress_tokens": []},
        {"guidance_scale": None, "encoder_repetition_penalty": 1.0, "num_beams": 4, "max_length": 20, "min_length": 0},
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "remove_invalid_values": True},
    ],
)
def test_neutral_values_leave_no_trace(config: dict[str, Any], tmp_path: Path) -> None:
    assert model_defaults(files_of(tmp_path, config)).stored == {"eos_token_ids": list(ENDS)}


def test_without_a_generation_config_the_models_config_is_read_as_transformers_does(tmp_path: Path) -> None:
    config = {"vocab_size": VOCAB, "eos_token_id": 2, "repetition_penalty": 1.2}
    files = files_of(tmp_path, None, config=config)
    assert model_defaults(files).stored == {"eos_token_ids": [2], "repetition_penalty": 1.2}


# ---- ends

LLAMA = "{% for m in messages %}<|start|>{{ m.role }}<|end_header|>\n\n{{ m.content }}<|eot_id|>{% endfor %}"
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TURNS = [
    (LLAMA + "{% if add_generation_prompt %}<|start|>assistant{% endif %}", "<|eot_id|>"),
    (PLAIN + "{% if add_generation_prompt %}<|start|>{% endif %}", None),
    ("{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}", "<|end_of_text|>"),
    ("{% for m in messages %}{{ m.content }} <|im_end|>\n{% endfor %}", "<|im_end|>"),
    ("{{ raise_exception('no') }}", None),
    ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}<|start|>{% endif %}{% endfor %}", None),
]
TOKENS = ["<|end_of_text|>", "<|eot_id|>", "<|start|>", "<|end_header|>", "<|im_end|>", "<|eot"]


def chat_files(tmp_path: Path, template: str, **config: Any) -> ModelFiles:
    added = {str(100 + index): {"content": token, "special": True} for index, token in enumerate(TOKENS)}
    tokenizer = {"eos_token": "<|end_of_text|>", "bos_token": "<|b|>", "chat_template": template}
    return files_of(
        tmp_path, {"eos_token_id": 100}, config={"vocab_size": VOCAB, **config},
        tokenizer_config={**tokenizer, "added_tokens_decoder": added},
    )  # fmt: skip


@pytest.mark.parametrize(("template", "token"), TURNS)
def test_the_end_of_turn_is_the_token_that_closes_the_assistants_message(
    template: str, token: str | None, tmp_path: Path
) -> None:
    assert end_of_turn(chat_files(tmp_path, template)) == token


def test_the_ids_of_all_places_are_joined(tmp_path: Path) -> None:
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|end_header|>"}}', encoding="utf-8")
    files = chat_files(tmp_path, TURNS[0][0], eos_token_id=[7, 100])
    assert end_ids(files) == (100, 7, 103, 101, 104)  # the configs', the map's, the end of turn's, ChatML's


# ---- strategy model


@pytest.mark.parametrize(
    ("config", "params"),
    [
        ({}, {"strategy": "greedy"}),
        ({"do_sample": False, "temperature": 0.6}, {"strategy": "greedy"}),
        ({"do_sample": True}, {"strategy": "sample", "temperature": 1.0, "top_k": 50, "top_p": 1.0}),
        (
            {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
            {"strategy": "sample", "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
        ),
        ({"do_sample": True, "top_k": 0, "temperature": 1}, {"strategy": "sample", "temperature": 1.0, "top_p": 1.0}),
    ],
)
def test_strategy_model_is_what_the_makers_recommend(
    config: dict[str, Any], params: dict[str, Any], tmp_path: Path
) -> None:
    assert recommended_sampling(files_of(tmp_path, config)) == params
    (point,) = [each for each, _ in Grid({"strategy": ["model"]}, recommended=lambda: params).points({})]
    assert validate(point).stored == GenerationParams.model_validate(params).stored


@pytest.mark.parametrize(
    "config",
    [
        {"do_sample": True, "typical_p": 0.9},
        {"num_beams": 4},
        {"do_sample": True, "temperature": 0.0},
        {"do_sample": True, "epsilon_cutoff": 0.1},
        {"penalty_alpha": 0.6},
    ],
)
def test_strategy_model_refuses_what_it_cannot_do(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=list(config)[-1]):
        recommended_sampling(files_of(tmp_path, config))


def test_strategy_model_takes_no_parameters_of_sampling() -> None:
    with pytest.raises(LineProblem, match="is not a parameter of strategy model") as raised:
        list(Grid({}).points({"strategy": "model", "temperature": 0.5}))
    assert raised.value.field == "temperature"


# ---- the command line


def model_copy(tmp_path: Path, **config: Any) -> Path:
    """The toy model with another generation config."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in TOY_MODEL.iterdir():
        if file.name != "generation_config.json":
            (folder / file.name).write_bytes(file.read_bytes())
    own = json.loads((TOY_MODEL / "generation_config.json").read_text(encoding="utf-8"))
    (folder / "generation_config.json").write_text(json.dumps({**own, **config}), encoding="utf-8")
    return folder


def test_run_stores_the_defaults_and_decodes_with_them(producer: Producer, tmp_path: Path) -> None:
    model = model_copy(tmp_path, repetition_penalty=1.5, do_sample=True, temperature=0.5, top_k=7)
    (tmp_path / "a.jsonl").write_text(
        '{"custom_id": "a", "prompt": "Once upon a time"}\n'
        '{"custom_id": "b", "prompt": "Once upon a time", "repetition_penalty": 1.0}\n'
        '{"custom_id": "c", "url": "/v1/completions", "body": {"prompt": "Once", "seed": 1, "max_tokens": 4}}\n'
        '{"custom_id": "d", "prompt": "Once upon a time", "strategy": "model"}\n',
        encoding="utf-8",
    )
    producer("run", "a.jsonl", "--model", model, "--max-new-tokens", 40, "--name", "with")
    producer("run", "a.jsonl", "--model", model, "--max-new-tokens", 40, "--name", "without", "--ignore-model-defaults")
    statement = "select run_name, custom_id, strategy, params, text from job_results order by 1, 2"
    rows = json.loads(producer("sql", "--format", "json", statement).stdout)
    found = {(row["run_name"], row["custom_id"]): row for row in rows}
    params = {
        key: row["params"] if isinstance(row["params"], dict) else json.loads(row["params"])
        for key, row in found.items()
    }
    assert params["with", "a"]["model_defaults"]["repetition_penalty"] == 1.5
    assert "repetition_penalty" not in params["with", "b"]["model_defaults"]
    assert params["with", "c"]["model_defaults"]["repetition_penalty"] == 1.5
    assert {name: params["with", "d"][name] for name in ("strategy", "temperature", "top_k")} == {
        "strategy": "sample", "temperature": 0.5, "top_k": 7,
    }  # fmt: skip
    assert not [key for key, given in params.items() if key[0] == "without" and "model_defaults" in given]
    assert found["with", "a"]["text"] != found["without", "a"]["text"] == found["with", "b"]["text"]


def test_a_default_that_cannot_be_done_ends_before_anything_is_written(producer: Producer, tmp_path: Path) -> None:
    model = model_copy(tmp_path, guidance_scale=2.0)
    (tmp_path / "a.jsonl").write_text('{"prompt": "x", "max_new_tokens": 1}\n', encoding="utf-8")
    failed = producer("run", "a.jsonl", "--model", model, exit_code=2)
    assert "guidance_scale 2.0 is not supported" in failed.stderr and "--ignore-model-defaults" in failed.stderr
    assert not (tmp_path / ".nocturne").exists()
    doctor = producer("doctor", "--model", model, exit_code=2)
    assert "guidance_scale" in doctor.stdout


def test_submit_needs_the_models_files_and_names_the_way_out(producer: Producer, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n', encoding="utf-8")
    arguments = ["submit", "a.jsonl", "--model", "some/absent-model", "--dry-run"]
    refused = producer(*arguments, exit_code=2)
    assert "unknown model 'some/absent-model'" in refused.stderr and "--ignore-model-defaults" in refused.stderr
    assert "1 jobs from 1 lines" in producer(*arguments, "--ignore-model-defaults").stdout
