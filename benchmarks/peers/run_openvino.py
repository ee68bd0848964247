"""OpenVINO GenAI's continuous batching: python run_openvino.py MODEL REQUESTS DTYPE, DTYPE bf16, f32 or int8.

Needs openvino-genai and optimum-intel. The model is exported beside its folder at the first call.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
from loop import requests_of, serve


def exported(model: Path, dtype: str) -> Path:
    """The model as OpenVINO's intermediate representation, weights in int8 where that is asked for."""
    target = model.with_name(f"{model.name}-openvino{'-int8' if dtype == 'int8' else ''}")
    if not (target / "openvino_model.xml").exists():
        from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

        quantization = OVWeightQuantizationConfig(bits=8) if dtype == "int8" else None
        OVModelForCausalLM.from_pretrained(
            model, export=True, load_in_8bit=False, quantization_config=quantization, compile=False
        ).save_pretrained(target)
    return target


def main() -> None:
    model, dtype = exported(Path(sys.argv[1]), sys.argv[3]), sys.argv[3]
    requests = requests_of(sys.argv[2])
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_seqs, scheduler.cache_size, scheduler.max_num_batched_tokens = 64, 2, 2048
    hint = {"INFERENCE_PRECISION_HINT": "f32" if dtype == "f32" else "bf16"}
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(model), scheduler, "CPU", hint)
    prompts = [openvino.Tensor(np.asarray([request["prompt_ids"]], dtype=np.int64)) for request in requests]
    configs = []
    for request in requests:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = request["max_new_tokens"], True, False
        configs.append(config)

    def decode() -> int:
        return sum(len(done.m_generation_ids[0]) for done in pipeline.generate(prompts, configs))

    serve(decode)


if __name__ == "__main__":
    main()
