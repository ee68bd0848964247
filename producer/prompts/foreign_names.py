"""The tables of `foreign_fields`: names of other tools' parameters. Data only.

Sources: openai-python's completion, chat and response parameters; vLLM's `SamplingParams` and chat request; TGI's
`GenerateParameters`; the README of llama.cpp's server; Transformers' `GenerationConfig`; Ollama's API page; SGLang's
sampling parameters; TensorRT-LLM's backend; LMDeploy, MLX-LM, ExLlamaV2 with TabbyAPI, Aphrodite, KoboldCpp and
text-generation-webui; Anthropic's, Gemini's, Mistral's, Fireworks' and Qwen's APIs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

#: Ask for nothing, whatever the field.
EMPTY: tuple[Any, ...] = (None, "", [], {})

#: Mean the same as our parameter, with the same values.
RENAMED = {
    "max_tokens": "max_new_tokens",  # OpenAI, vLLM
    "max_completion_tokens": "max_new_tokens",  # OpenAI
    "max_output_tokens": "max_new_tokens",  # OpenAI's responses
    "min_tokens": "min_new_tokens",  # vLLM
    "stop_sequences": "stop",  # TGI, Anthropic
    "stop_strings": "stop",  # Transformers
    "random_seed": "seed",
    "n_cmpl": "n",  # llama.cpp
    "n_probs": "top_logprobs",  # llama.cpp
    "top_n_tokens": "top_logprobs",  # TGI
    "top_logprobs_num": "top_logprobs",  # SGLang
    "sampling_seed": "seed",  # SGLang
}

#: Misspellings that are not close in letters: warned about.
MISSPELLED = {
    "temp": "temperature", "max_len": "max_new_tokens", "maxlen": "max_new_tokens", "max_gen_len": "max_new_tokens",
    "max_gen_toks": "max_new_tokens", "max_generated_tokens": "max_new_tokens", "token_limit": "max_new_tokens",
    "num_tokens_to_generate": "max_new_tokens", "max_tokens_to_sample": "max_new_tokens", "maxtokens": "max_new_tokens",
    "stopwords": "stop", "stop_words": "stop", "stop_string": "stop", "until": "stop", "stop_tokens": "stop_token_ids",
    "num_samples": "n", "num_generations": "n", "num_outputs": "n", "num_completions": "n", "beams": "num_beams",
    "beam_size": "num_beams", "beam_width": "num_beams", "topp": "top_p", "topk": "top_k", "minp": "min_p",
    "top_prob": "top_p", "rep_pen": "repetition_penalty", "rep_penalty": "repetition_penalty",
    "freq_penalty": "frequency_penalty", "pres_penalty": "presence_penalty", "len_penalty": "length_penalty",
    "eos_token": "eos_token_ids", "eos_id": "eos_token_ids",
    "decoding_strategy": "strategy",
    "candidate_count": "n", "num_results": "n", "max_token_count": "max_new_tokens",  # Gemini, AI21, Bedrock
    "custom_stopping_strings": "stop", "stopping_strings": "stop",  # text-generation-webui
    "request_output_len": "max_new_tokens", "output_len": "max_new_tokens", "max_output_len": "max_new_tokens",
    "max_out_len": "max_new_tokens", "max_out_tokens": "max_new_tokens", "max_tokens_out": "max_new_tokens",
    "max_response_tokens": "max_new_tokens", "max_answer_tokens": "max_new_tokens",
    "max_completion_length": "max_new_tokens", "min_out_len": "min_new_tokens",
    "stop_words_list": "stop", "stop_token": "stop", "stop_seq": "stop", "end_id": "eos_token_ids",
    "end_token": "eos_token_ids", "stop_ids": "stop_token_ids",
    "n_samples": "n", "samples_per_prompt": "n", "num_responses": "n", "num_candidates": "n", "num_sequences": "n",
    "rng_seed": "seed", "random_state": "seed", "runtime_top_p": "top_p", "nucleus_p": "top_p",
    "token_repetition_penalty": "repetition_penalty", "decoding_method": "strategy", "decode_strategy": "strategy",
    "use_greedy": "strategy", "logit_biases": "logit_bias",
}  # fmt: skip

#: Change nothing about the answer: kept as metadata.
WITHOUT_EFFECT = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "stream_options", "prediction", "request_id", "session_id", "cache_salt",
    "cache_prompt", "n_cache_reuse", "id_slot", "timings_per_token", "return_progress", "sse_ping_interval",
    "response_fields", "return_tokens", "return_token_ids", "spaces_between_special_tokens", "use_cache",
    "cache_implementation", "cache_config", "low_memory", "output_kind", "stream_interval", "skip_clone",
    "flat_logprobs", "skip_reading_prefix_cache", "return_dict_in_generate", "transformers_version", "compile_config",
    "disable_compile", "continuous_batching_config", "prefill_chunk_size", "max_cache_len", "pad_token_id",
    "details", "keep_alive", "_from_model_config", "access_programs", "background_options",
    "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "f16_kv", "low_vram",  # Ollama
    "return_logprob", "return_log_probs", "return_text_in_logprobs", "rid",  # SGLang, TensorRT-LLM
    "anthropic_version", "anthropic_beta", "perf_metrics_in_response", "genkey",
    "prompt_id",  # of UltraChat
})  # fmt: skip

#: Texts and pictures that another tool would show the model: warned about, refused in a body.
UNSEEN = {
    **dict.fromkeys(
        ("system", "system_prompt", "system_message", "system_instruction", "instructions", "preamble"),
        "write messages with a system message, or give --system for all lines",
    ),
    **dict.fromkeys(
        ("history", "chat_history"),  # of LLaMA-Factory's Alpaca files, and Cohere's
        "write messages with the earlier turns, or give a --template that names it",
    ),
    **dict.fromkeys(
        ("prefill", "assistant_prefill", "assistant_prefix", "response_prefix"),
        "write messages that end with the assistant, which the answer continues",
    ),
    **dict.fromkeys(
        ("input", "inputs", "text_input", "input_text"), "give --prompt-column or a --template that names it"
    ),
    **dict.fromkeys(("image", "images", "audio", "multi_modal_data", "multimodal_data"), "prompts are text only"),
}


class Rejection(NamedTuple):
    """A field that cannot be done, the reason with what to do instead, and its values that ask for nothing."""

    advice: str
    neutral: tuple[Any, ...] = ()


def _refused(advice: str, **neutral: tuple[Any, ...]) -> dict[str, Rejection]:
    return {name: Rejection(advice, values) for name, values in neutral.items()}


OFF = (False,)

#: Hold parameters; an object without any is data.
OBJECTS = (
    "sampling_params", "generation_config", "generation_kwargs", "gen_kwargs", "extra_body", "parameters", "options",
    "model_kwargs",
)  # fmt: skip

REFUSED: dict[str, Rejection] = {
    **_refused(
        "would bind the answer to a form, which is not supported: ask for the form in the prompt",
        response_format=({"type": "text"},), guided_json=(), guided_regex=(), guided_choice=(), guided_grammar=(),
        guided_decoding_backend=(), guided_whitespace_pattern=(), guided_json_object=OFF, structural_tag=(),
        structured_outputs=(), grammar=(), json_schema=(), json_mode=OFF, format=(), regex=(), choices=(),
        logits_processors=(), logits_processor=(), force_words_ids=(), constraints=(), n_indent=(0,), grammar_lazy=OFF,
        ebnf=(), stop_regex=(), response_mime_type=("text/plain",), response_schema=(), response_json_schema=(),
        output_config=(), custom_logit_processor=(), custom_params=(),
    ),
    **_refused("counts the prompt too: give max_new_tokens, which counts the answer", max_length=()),
    **_refused("counts the prompt too: give min_new_tokens, which counts the answer", min_length=(0,)),
    **_refused("would repeat the prompt in the text, which has the answer alone", echo=OFF, return_full_text=OFF),
    **_refused("would be the text behind the answer, which is not supported", suffix=()),
    **_refused(
        "is a rule of sampling that is not supported: temperature, top_k, top_p and min_p are",
        typical_p=(1,), typical=(1,), tfs_z=(1,), tfs=(1,), top_a=(0,), top_h=(), epsilon_cutoff=(0,), eta_cutoff=(0,),
        mirostat=(0,), mirostat_tau=(5, 5.0), mirostat_eta=(0.1,), dynatemp_range=(0,), dynatemp_exponent=(1,),
        xtc_probability=(0,), xtc_threshold=(0.1,), dry_multiplier=(0,), dry_base=(1.75,), dry_allowed_length=(2,),
        dry_penalty_last_n=(64, -1, 0), dry_sequence_breakers=(["\n", ":", '"', "*"],), samplers=(), min_keep=(0,),
        penalty_alpha=(0,), dola_layers=(), top_nsigma=(-1,), top_n_sigma=(-1,), adaptive_target=(-1,),
        sampler_seq=(), renormalize_logits=OFF, smoothing_factor=(0,), smoothing_curve=(1,),
        temperature_last=OFF, trace_decode_token_ids=(), mirostat_mode=(0,), mirostat_lr=(0.1,), mirostat_target=(5,),
        dynatemp_min=(0,), dynatemp_max=(0,), nsigma=(0, -1), skew=(0,), sampler_order=(), sampler_priority=(),
        xtc_special_tokens=(), beam_search_diversity_rate=(0,),
    ),
    **_refused(
        "counts the last repeat_last_n tokens alone in llama.cpp: give repetition_penalty, which counts all",
        repeat_penalty=(1,), repeat_last_n=(64, -1, 0), penalize_nl=OFF, penalize_newline=OFF,
    ),
    **_refused(
        "would bound or bend the repetition penalty: repetition_penalty counts all tokens of prompt and answer",
        repetition_context_size=(), repetition_penalty_range=(0, -1), penalty_range=(0, -1), rep_pen_range=(0, -1),
        rep_pen_slope=(0, 1), repetition_decay=(0,),
    ),
    **_refused(
        "would change the probabilities in a way that is not supported: logit_bias and the three penalties are",
        no_repeat_ngram_size=(0,), encoder_no_repeat_ngram_size=(0,), encoder_repetition_penalty=(1,),
        diversity_penalty=(0,), num_beam_groups=(1,), bad_words=(), bad_words_ids=(), suppress_tokens=(),
        begin_suppress_tokens=(), sequence_bias=(), allowed_token_ids=(), forced_bos_token_id=(),
        forced_eos_token_id=(), exponential_decay_length_penalty=(), remove_invalid_values=OFF, guidance_scale=(1,),
        watermark=OFF, watermarking=OFF, watermarking_config=(), token_healing=OFF, thinking_token_budget=(-1,),
        repetition_detection=(), bos_token_id=(), decoder_start_token_id=(), banned_tokens=(), banned_strings=(),
        repetition_ngram_size=(0,), no_repeat_ngram=(0,), cfg_scale=(1,), negative_prompt=(), bad_words_list=(),
        bad_token_ids=(), token_bans=(), custom_token_bans=(), embedding_bias_words=(),
    ),
    **_refused(
        "cannot be done: answers are the text without special tokens and stop strings; the trace has all tokens",
        skip_special_tokens=(True,), include_stop_str_in_output=OFF, detokenize=(True,),
        return_tokens_as_token_ids=OFF, post_sampling_probs=OFF, no_stop_trim=OFF, trim_stop=(True,),
        add_bos_token=(True,),
    ),
    **_refused(
        "asks for output that is not kept: log-probabilities of the answer's tokens are",
        prompt_logprobs=(), prompt_logprob_token_ids=(), prompt_logprob_start=(), logprob_token_ids=(),
        decoder_input_details=OFF, output_scores=OFF, output_logits=OFF, output_attentions=OFF,
        output_hidden_states=OFF, routed_experts_prompt_start=(0,), return_prompt_text=OFF, return_token_offsets=OFF,
        return_mm_kwargs=(True,), include=(), return_context_logits=OFF, return_generation_logits=OFF,
        logprob_start_len=(-1,), token_ids_logprob=(),
    ),
    **_refused("would cut the prompt: cut it in the file", truncate=(), truncate_prompt_tokens=(),
               truncation=("disabled",), truncation_side=(), n_keep=(0,), n_discard=(0,), num_ctx=(),
               num_keep=(0,), prompt_truncate_len=(), prompt_truncate_length=(), truncation_length=(),
               context_length_exceeded_behavior=("error",), max_context_length=(), max_prompt_tokens=(),
               max_input_tokens=()),
    **_refused("would stop by the clock, not by the tokens: give max_new_tokens", max_time=(), t_max_predict_ms=(0,),
               max_tokens_second=(0,)),
    **_refused("would be a draft or another way to the same tokens, which is not supported",
               prompt_lookup_num_tokens=(), max_matching_ngram_size=(), num_assistant_tokens=(20,),
               num_assistant_tokens_schedule=("constant",), assistant_confidence_threshold=(0.4,),
               assistant_early_exit=(), assistant_ensemble_weight=(), assistant_lookbehind=(10,),
               target_lookbehind=(10,), is_assistant=OFF, speculation_type=(), use_mtp=OFF,
               draft_model=(), num_draft_tokens=(), speculative_ngram=OFF),
    **_refused("is vLLM's beam search: give strategy beam with num_beams and num_return", use_beam_search=OFF),
    **_refused("would stream: a batch has its answers at the end", stream=OFF),
    **_refused("would take an adapter for this line alone: --adapter merges one for the whole run", adapter_id=(),
               lora=(), lora_request=(), lora_path=(), lora_name=(), adapter_name=()),
    **_refused("cannot be done: token ids are not a prompt, give its text", prompt_token_ids=(), input_ids=(),
               prompt_embeds=(), inputs_embeds=()),
    **{name: Rejection("is an object of parameters: write its fields into the line itself") for name in OBJECTS},
    **_refused("is for the whole run: give --keep-prompts", keep_prompt=OFF, keep_prompts=OFF),
    **_refused("is read from the model's folder: --ignore-model-defaults decodes without them", model_defaults=()),
    **_refused("is ignore_eos here", ban_eos_token=OFF, bypass_eos=OFF),
    **_refused("would fill the context window: give max_new_tokens", auto_max_new_tokens=OFF),
    **_refused("would put a text of its maker's before the chat: write it into messages", safe_prompt=OFF,
               prompt_mode=()),
    **_refused("goes to extensions that are not here", extra_args=(), vllm_xargs=()),
    **_refused("is another template than the model's: put it into the model's folder", chat_template=()),
    **_refused("asks for another form of the prompt, which is not supported", raw=OFF, mm_processor_kwargs=(),
               media_io_kwargs=(), kv_transfer_params=(), ec_transfer_params=()),
    **_refused("cannot be promised: the model writes what it writes", tool_choice=("none", "auto"),
               parallel_tool_calls=(True,), max_tool_calls=(), include_reasoning=(True,)),
    **_refused("is the old name: write tools", functions=(), function_call=("none", "auto")),
    **_refused("is a service that is not here", web_search_options=(), moderation=(), modalities=(["text"],),
               previous_response_id=(), conversation=(), background=OFF, context_management=(), verbosity=("medium",),
               cached_content=(), tool_config=(), mcp_servers=([],), safety_model=(),
               reasoning=(), text=({"format": {"type": "text"}},)),
    **_refused("goes to the chat template: write chat_template_kwargs", thinking=(), think=(),
               reasoning_effort=(), thinking_config=(), thinking_budget=()),
    **_refused("cannot be turned: the answer begins a new message, unless the assistant's is the last",
               add_generation_prompt=(True,), continue_final_message=OFF),
}  # fmt: skip

#: Words that are data where their value is of a type that the tool's parameter does not have.
DATA: dict[str, tuple[type, ...]] = {
    "format": (str,), "text": (str,), "include": (str,), "options": (list, str), "choices": (list, str),
    "parameters": (list, str, int, float), "reasoning": (str,), "thinking": (str,), "background": (str,),
    "conversation": (list,), "functions": (str,), "documents": (str,), "tools": (str,), "raw": (str,),
    "regex": (str,), "typical": (str,), "samplers": (str,), "constraints": (str,),
    "moderation": (str, bool), "system": (list, dict), "suffix": (list, dict), "verbosity": (int, float),
    "image": (int, float), "images": (int, float), "details": (str,), "grammar": (list, dict, int, float),
    "echo": (str,), "logprobs": (bool,),  # true or false: logprobs are always kept
    "lora": (str,), "input": (list, dict), "inputs": (list, dict), "history": (str, dict), "chat_history": (str, dict),
}  # fmt: skip
