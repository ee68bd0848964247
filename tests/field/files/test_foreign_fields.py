"""Fields that other tools know are done, warned about or refused by name; none is metadata in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_completion_create_params
from openai.types.responses import response_create_params

from producer.errors import LineProblem, UsageError
from producer.options import DecodingOptions
from producer.prompts.foreign_fields import OUR_FIELDS, native_fields, remark
from producer.prompts.foreign_names import MISSPELLED, UNSEEN, WITHOUT_EFFECT
from producer.prompts.job_drafts import JobDraft, Line, Submission, read_lines
from producer.prompts.openai_lines import CHAT_URL, native_line
from producer.prompts.records import ReaderOptions

#: openai-python's parameters as its types have them, so that a new client shows what is new.
OPENAI = {
    *get_type_hints(completion_create_params.CompletionCreateParamsNonStreaming),
    *get_type_hints(chat_completion_create_params.CompletionCreateParamsNonStreaming),
    *get_type_hints(response_create_params.ResponseCreateParamsNonStreaming),
}

#: vllm/sampling_params.py `SamplingParams`, November 2026, and its guided decoding of 2025.
VLLM_SAMPLING = """
    n presence_penalty frequency_penalty repetition_penalty temperature top_p top_k min_p seed stop stop_token_ids
    ignore_eos max_tokens min_tokens logprobs prompt_logprobs prompt_logprob_token_ids prompt_logprob_start
    logprob_token_ids flat_logprobs detokenize skip_special_tokens spaces_between_special_tokens
    include_stop_str_in_output output_kind stream_interval skip_clone structured_outputs logit_bias allowed_token_ids
    extra_args bad_words skip_reading_prefix_cache thinking_token_budget repetition_detection
    routed_experts_prompt_start trace_decode_token_ids best_of truncate_prompt_tokens logits_processors
"""

#: vllm/entrypoints/openai/chat_completion/protocol.py `ChatCompletionRequest`, its fields beyond OpenAI's.
VLLM_BODY = """
    use_beam_search top_k min_p repetition_penalty watermarking length_penalty stop_token_ids
    include_stop_str_in_output ignore_eos min_tokens skip_special_tokens spaces_between_special_tokens
    truncate_prompt_tokens truncation_side prompt_logprobs logprob_token_ids allowed_token_ids bad_words echo
    add_generation_prompt continue_final_message add_special_tokens documents chat_template chat_template_kwargs
    media_io_kwargs mm_processor_kwargs structured_outputs guided_json guided_regex guided_choice guided_grammar
    structural_tag guided_decoding_backend guided_whitespace_pattern priority request_id session_id
    return_tokens_as_token_ids return_token_ids routed_experts_prompt_start return_token_offsets return_prompt_text
    return_mm_kwargs cache_salt kv_transfer_params ec_transfer_params vllm_xargs repetition_detection stream_interval
    thinking_token_budget include_reasoning reasoning_effort
"""

#: text-generation-inference's clients/python/text_generation/types.py `Parameters`, and router/src/lib.rs.
TGI = """
    adapter_id best_of decoder_input_details details do_sample frequency_penalty grammar max_new_tokens
    repetition_penalty return_full_text seed stop stop_sequences temperature top_k top_n_tokens top_p truncate
    typical_p watermark inputs parameters
"""

#: llama.cpp's tools/server/README.md, `POST /completion`.
LLAMA_CPP = """
    prompt temperature dynatemp_range dynatemp_exponent top_k top_p min_p n_predict n_indent n_keep n_cmpl
    n_cache_reuse stream stop typical_p repeat_penalty repeat_last_n presence_penalty frequency_penalty dry_multiplier
    dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers xtc_probability xtc_threshold mirostat
    mirostat_tau mirostat_eta grammar json_schema seed ignore_eos logit_bias n_probs min_keep t_max_predict_ms id_slot
    cache_prompt return_tokens samplers timings_per_token return_progress sse_ping_interval post_sampling_probs
    response_fields lora
"""

#: transformers 5.23 `GenerationConfig`, and arguments of `generate`.
TRANSFORMERS = """
    assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind bad_words_ids
    begin_suppress_tokens bos_token_id cache_config cache_implementation compile_config constraints
    continuous_batching_config decoder_start_token_id disable_compile diversity_penalty do_sample dola_layers
    early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty eos_token_id epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty force_words_ids forced_bos_token_id forced_eos_token_id guidance_scale
    is_assistant length_penalty low_memory max_cache_len max_length max_matching_ngram_size max_new_tokens max_time
    min_length min_new_tokens min_p no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule
    num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states output_logits output_scores
    pad_token_id penalty_alpha prefill_chunk_size prompt_lookup_num_tokens remove_invalid_values renormalize_logits
    repetition_penalty return_dict_in_generate sequence_bias speculation_type stop_strings suppress_tokens
    target_lookbehind temperature token_healing top_h top_k top_p transformers_version typical_p use_cache use_mtp
    watermarking_config logits_processor
"""

#: docs.ollama.com/api, and names that people write.
OTHERS = """
    num_predict num_ctx tfs_z keep_alive think options system images guided_json_object best_of enable_thinking
    system_prompt temp max_len stopwords num_samples beam_size topp topk rep_penalty maxTokens topP stopSequences
    maxOutputTokens max-new-tokens frequencyPenalty doSample MaxLength eos_token max_gen_toks temprature Top_P
"""

#: docs.sglang.ai, TensorRT-LLM's backend, LMDeploy, MLX-LM, ExLlamaV2, Aphrodite, KoboldCpp, text-generation-webui.
ENGINES = """
    top_logprobs_num sampling_seed logprob_start_len token_ids_logprob custom_params custom_logit_processor lora_path
    ebnf stop_regex no_stop_trim request_output_len beam_search_diversity_rate runtime_top_p end_id stop_words_list
    bad_words_list embedding_bias_words return_context_logits return_generation_logits repetition_ngram_size
    bad_token_ids repetition_context_size num_draft_tokens draft_model xtc_special_tokens token_repetition_penalty
    repetition_decay penalty_range skew cfg_scale negative_prompt add_bos_token ban_eos_token speculative_ngram
    dynatemp_min dynatemp_max nsigma sampler_priority token_bans custom_token_bans max_context_length rep_pen
    rep_pen_range rep_pen_slope sampler_order trim_stop bypass_eos logit_biases mirostat_mode auto_max_new_tokens
    truncation_length max_tokens_second repetition_penalty_range smoothing_factor num_keep penalize_newline
"""

#: Anthropic's, Gemini's, Mistral's, Fireworks' and Qwen's APIs, and names that harnesses have.
SERVICES = """
    max_tokens_to_sample thinking mcp_servers output_config responseMimeType responseSchema thinkingConfig
    cachedContent toolConfig candidateCount safe_prompt prompt_mode random_seed mirostat_lr mirostat_target
    prompt_truncate_len context_length_exceeded_behavior thinking_budget lora_name prefill n_samples max_out_len
    samples_per_prompt num_responses max_completion_length random_state decoding_method stop_seq
"""

#: The run's own, and words of a file that no tool reads.
NOT_IN_THE_TABLE = {"model"}

KNOWN = sorted(
    {*OPENAI, *(VLLM_SAMPLING + VLLM_BODY + TGI + LLAMA_CPP + TRANSFORMERS + OTHERS + ENGINES + SERVICES).split()}
    - OUR_FIELDS
    - WITHOUT_EFFECT
    - NOT_IN_THE_TABLE
)

#: Values that ask for something, where 7 is of a wrong type or asks for nothing.
TELLING: dict[str, Any] = {
    **dict.fromkeys(
        ("do_sample", "add_special_tokens", "early_stopping", "skip_special_tokens", "detokenize", "include_reasoning",
         "add_generation_prompt", "parallel_tool_calls", "return_mm_kwargs", "cache_prompt"), False
    ),
    "stop_sequences": ["."], "stop_strings": ["."], "text": {"format": {"type": "json_object"}}, "verbosity": "low",
    "suffix": "end", "image": "a.png", "images": ["a.png"], "options": {"temperature": 0.5}, "grammar": "root ::= x",
    "parameters": {"max_new_tokens": 3}, "input": "unseen", "inputs": "unseen", "system": "Be brief",
    "trim_stop": False, "add_bos_token": False,
}  # fmt: skip


def lines_of(
    folder: Path, *records: dict[str, Any], name: str = "a.jsonl", **options: Any
) -> tuple[list[Line], list[str]]:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    submission = Submission(path, "m", DecodingOptions().grid(), reader=ReaderOptions(**options))
    warnings: dict[str, str] = {}
    return list(read_lines(submission, frozenset(), warnings)), list(warnings.values())


def draft_of(folder: Path, record: dict[str, Any], **options: Any) -> JobDraft:
    ((line,), warnings) = lines_of(folder, {"prompt": "x"} | record, **options)
    assert line.problem is None, line.problem
    assert not warnings
    return line.drafts[0]


@pytest.mark.parametrize("name", KNOWN)
def test_no_field_of_another_tool_is_metadata_in_silence(tmp_path: Path, name: str) -> None:
    ((line,), warnings) = lines_of(tmp_path, {"prompt": "x", name: TELLING.get(name, 7)})
    if line.problem is not None:
        assert name in str(line.problem) and len(str(line.problem)) > len(name) + 20
    elif name in line.drafts[0].metadata and name != "logprobs":
        (warning,) = warnings
        assert warning.startswith(f"{tmp_path / 'a.jsonl'}:1: {name} is kept as metadata")
    else:
        default = draft_of(tmp_path, {}).params
        assert line.drafts[0].params != default or TELLING.get(name, 7) is False or warnings


@pytest.mark.parametrize("name", KNOWN)
def test_a_column_of_such_a_name_is_data_that_is_warned_about(tmp_path: Path, name: str) -> None:
    value = TELLING.get(name, 7)
    cell = value if isinstance(value, str) else json.dumps(value)
    path = tmp_path / "a.csv"
    path.write_text(f"prompt,{name}\nx,{json.dumps(cell)}\n".replace('\\"', '""'), encoding="utf-8")
    for metadata_columns, num_warnings in ((None, 1), ((name,), 0)):
        reader = ReaderOptions(metadata_columns=metadata_columns)
        warnings: dict[str, str] = {}
        submission = Submission(path, "m", DecodingOptions().grid(), reader=reader)
        (line,) = read_lines(submission, frozenset(), warnings)
        assert line.problem is None and line.drafts[0].metadata == {name: cell}
        assert remark(name, cell) is None or len(warnings) == num_warnings


@pytest.mark.parametrize(
    ("fields", "params"),
    [
        ({"max_tokens": 9}, {"max_new_tokens": 9}),
        ({"max_tokens": 9, "max_new_tokens": 9}, {"max_new_tokens": 9}),
        ({"max_completion_tokens": 9}, {"max_new_tokens": 9}),
        ({"n_predict": 9}, {"max_new_tokens": 9}),
        ({"min_tokens": 2}, {"min_new_tokens": 2}),
        ({"stop_sequences": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"stop_strings": "a"}, {"stop": ("a",)}),
        ({"eos_token_id": 3}, {"eos_token_ids": (3,)}),
        ({"eos_token_id": [3, 4]}, {"eos_token_ids": (3, 4)}),
        ({"num_return_sequences": 3, "do_sample": True}, {"strategy": "sample", "n": 3}),
        (
            {"num_return_sequences": 2, "num_beams": 4, "do_sample": False},
            {"strategy": "beam", "num_return": 2, "n": 1},
        ),
        ({"num_return_sequences": 1, "num_beams": 1, "do_sample": False}, {"strategy": "greedy"}),
        # Transformers reads none of the parameters of drawing without do_sample.
        ({"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}, {"strategy": "greedy"}),
        ({"do_sample": True, "temperature": 0.7, "top_k": 50}, {"strategy": "sample", "temperature": 0.7, "top_k": 50}),
        ({"do_sample": True, "strategy": "nucleus", "top_p": 0.5}, {"strategy": "nucleus"}),
        ({"logprobs": 5}, {"top_logprobs": 5}),
        ({"logprobs": True, "top_n_tokens": 2}, {"top_logprobs": 2}),
        ({"n": 3, "best_of": 3}, {"n": 3}),
    ],
)
def test_what_means_the_same_is_done(tmp_path: Path, fields: dict[str, Any], params: dict[str, Any]) -> None:
    found = draft_of(tmp_path, fields).params
    assert {name: getattr(found, name) for name in params} == params


NEUTRAL: dict[str, Any] = {
    "stream": False, "n": 1, "best_of": 1, "echo": False, "suffix": None, "response_format": {"type": "text"},
    "typical_p": 1.0, "num_beam_groups": 1, "no_repeat_ngram_size": 0, "repeat_penalty": 1.0, "mirostat": 0,
    "temperature": None, "top_k": None, "seed": None, "stop": None, "guided_json": None, "tools": [],
    "tool_choice": "auto", "bad_words": [], "skip_special_tokens": True, "include_stop_str_in_output": False,
    "add_generation_prompt": True, "continue_final_message": False, "add_special_tokens": True, "watermark": False,
    "early_stopping": False, "return_full_text": False, "num_return_sequences": 1, "guidance_scale": 1.0,
    "messages": None, "priority": None, "use_beam_search": False, "truncation": "disabled", "min_length": 0,
}  # fmt: skip


def test_values_that_ask_for_nothing_are_accepted(tmp_path: Path) -> None:
    assert draft_of(tmp_path, NEUTRAL).params == draft_of(tmp_path, {}).params
    assert draft_of(tmp_path, NEUTRAL).metadata == {}


def test_what_changes_nothing_is_kept(tmp_path: Path) -> None:
    kept = {"user": "u", "metadata": {"a": 1}, "service_tier": "auto", "store": True, "request_id": "r"}
    assert draft_of(tmp_path, kept).metadata == kept


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_length": 50}, r"max_length \(50\) counts the prompt too: give max_new_tokens"),
        ({"guided_json": {"type": "object"}}, r"guided_json \(.*ask for the form in the prompt"),
        ({"n_predict": -1}, r"n_predict \(-1\) sets no limit"),
        ({"max_tokens": 5, "max_new_tokens": 6}, r"max_tokens means max_new_tokens, and they differ \(5 and 6\)"),
        ({"max_tokens": "many"}, r"max_new_tokens must be a whole number .* got 'many'"),
        ({"do_sample": False, "strategy": "sample"}, r"do_sample \(False\) does not go with strategy 'sample'"),
        ({"do_sample": "yes"}, r"do_sample must be true or false, got 'yes'"),
        ({"sampling_params": {"temperature": 0.5}}, r"sampling_params \(.*write its fields into the line itself"),
        ({"repeat_penalty": 1.1}, r"give repetition_penalty"),
        ({"keep_prompt": True}, r"keep_prompt \(True\) is for the whole run: give --keep-prompts"),
        ({"echo": True}, r"name it in --metadata-columns if it is data of yours"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_value_and_the_way_out(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    ((line,), _) = lines_of(tmp_path, {"prompt": "x"} | fields)
    with pytest.raises(LineProblem, match=message):
        raise line.problem or AssertionError(line.drafts)


def test_fields_that_the_options_name_are_data(tmp_path: Path) -> None:
    record = {"prompt": "x", "max_length": 3, "echo": True, "suffix": "y"}
    assert draft_of(tmp_path, record, metadata_columns=("max_length", "echo", "suffix")).metadata == {
        "max_length": 3, "echo": True, "suffix": "y"
    }  # fmt: skip
    draft = draft_of(tmp_path, {"prefix": "a", "suffix": "b"}, template="{prefix} … {suffix}")
    assert draft.prompt == "a … b" and draft.metadata["suffix"] == "b"


def test_a_column_to_keep_that_no_line_has_is_named(tmp_path: Path) -> None:
    """Its data would be lost without a word."""
    assert draft_of(tmp_path, {"topic": "cats"}, metadata_columns=("topic",)).metadata == {"topic": "cats"}
    with pytest.raises(UsageError, match="--metadata-columns names 'topik', and no line of .*a.jsonl has it"):
        lines_of(tmp_path, {"prompt": "x", "topic": "cats"}, {"prompt": "y"}, metadata_columns=("topic", "topik"))
    lines_of(tmp_path, {"prompt": "x"}, {"prompt": "y", "topic": "cats"}, metadata_columns=("topic",), limit=1)


@pytest.mark.parametrize(
    "name",
    "id topic text tokens num_tokens source label answer output response question title url date score category "
    "instruction stop_reason name role language domain step weight length duration rating options choices difficulty "
    "conversation format parameters query chat status created_at".split(),
)
def test_ordinary_names_are_data_without_a_word(tmp_path: Path, name: str) -> None:
    value: Any = {"type": "object"} if name in ("options", "parameters") else ["a"] if name == "choices" else "word"
    value = [{"from": "human", "value": "x"}] if name == "conversation" else value
    assert draft_of(tmp_path, {name: value}).metadata == {name: value}


def test_a_cell_of_deep_brackets_is_data() -> None:
    assert remark("format", "[" * 100_000) is None


@pytest.mark.parametrize("name", sorted({*MISSPELLED, *UNSEEN}))
def test_a_body_takes_no_name_that_it_does_not_know(name: str) -> None:
    with pytest.raises(LineProblem, match=f"body.{name} "):
        body = {"messages": [{"role": "user", "content": "Hi"}], name: "word"}
        native_line({"custom_id": "a", "url": CHAT_URL, "body": body})


def test_fields_without_such_names_are_the_same_object() -> None:
    fields = {"prompt": "x", "topic": "cats", "max_new_tokens": 3}
    assert native_fields(fields) is fields
