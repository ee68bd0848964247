"""Trains the toy model: a byte-level BPE tokenizer with ChatML tokens and a small Qwen2, on the CPU.

    python examples/tiny/train.py --output examples/tiny/model

A toy for trying the pipeline offline: it knows the two kinds of requests of `compose.py` and nothing else. The text,
the initial weights and the order of the batches all come from `--seed`.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path

import torch
from compose import chatml, exchange
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTEXT = 1024


def train_tokenizer(rng: random.Random, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: every byte has a token, so any prompt can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, IM_START, IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = []
    for _ in range(4000):
        sample = exchange(rng)
        lines += [sample.system, sample.user, sample.answer]
    tokenizer.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[IM_START, IM_END],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def id_of(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of a single token."""
    token_id = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(token_id, int)
    return token_id


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """A Qwen2 of about 2.5 million weights, with grouped-query attention like the real one."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=640,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=id_of(tokenizer, END_OF_TEXT),
        eos_token_id=id_of(tokenizer, IM_END),
        pad_token_id=id_of(tokenizer, END_OF_TEXT),
    )
    return Qwen2ForCausalLM(config)


def make_batch(
    rng: random.Random, tokenizer: PreTrainedTokenizerFast, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, attention mask and labels, each [size, length]; the loss counts the answers' tokens only."""
    end = [id_of(tokenizer, token) for token in (IM_END, END_OF_TEXT)]
    rows, prompt_lengths = [], []
    for _ in range(size):
        sample = exchange(rng)
        prompt_ids = tokenizer.encode(chatml(sample.system, sample.user))
        rows.append(prompt_ids + tokenizer.encode(sample.answer) + end)
        prompt_lengths.append(len(prompt_ids))
    longest = max(map(len, rows))
    ids = torch.full((size, longest), end[1])
    mask = torch.zeros((size, longest), dtype=torch.long)
    labels = torch.full((size, longest), -100)
    for row, (tokens, prompt_length) in enumerate(zip(rows, prompt_lengths, strict=True)):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        labels[row, prompt_length : len(tokens)] = torch.tensor(tokens[prompt_length:])
    return ids, mask, labels


def train(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> None:
    """AdamW with warmup over 100 steps and a cosine schedule down to 2 % of the learning rate."""
    rng = random.Random(args.seed + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    model.train()
    started = time.monotonic()
    for step in range(1, args.steps + 1):
        warmup = min(1.0, step / 100)
        cosine = 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * warmup * max(cosine, 0.02)
        ids, mask, labels = make_batch(rng, tokenizer, args.batch)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == args.steps:
            print(f"step {step}  loss {loss.item():.4f}  {time.monotonic() - started:.0f} s", flush=True)


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Writes bfloat16 safetensors, the tokenizer and a generation_config with both end tokens."""
    end_ids = [id_of(tokenizer, token) for token in (IM_END, END_OF_TEXT)]
    model.generation_config = GenerationConfig(
        bos_token_id=end_ids[1], eos_token_id=end_ids, pad_token_id=end_ids[1], max_length=None
    )
    model.bfloat16().save_pretrained(output, safe_serialization=True)
    tokenizer.save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = train_tokenizer(random.Random(args.seed), args.vocab_size)
    model = build_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} weights, {len(tokenizer):,} tokens", flush=True)
    train(model, tokenizer, args)
    save(model, tokenizer, args.output)


if __name__ == "__main__":
    main()
