"""The figures of some returned sequences, as an array of each: a million answers are measured in seconds."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeVar

import numpy
from numpy.typing import NDArray

from producer.results.report.distinct import Numbers
from producer.results.report.measures import is_json, repetition

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


#: The key of what an answer answers, and whether that speaks of JSON.
Asked = tuple[int, bool]


class Answers(NamedTuple):
    """The figures of returned sequences; each array has an element for each of them."""

    prompts: Numbers  # their prompts' keys
    texts: Numbers  # their texts' keys
    lengths: NDArray[numpy.int64]  # tokens
    logprobs: NDArray[numpy.float64]  # the mean over the tokens, in nats; NaN for no tokens
    repetitions: NDArray[numpy.float64]
    json: NDArray[numpy.int8]  # 1 for valid JSON, 0 for other text, -1 where the prompt asks for none
    finish_reasons: NDArray[numpy.object_]

    def where(self, chosen: NDArray[numpy.bool_]) -> Answers:
        """The figures of some of the sequences."""
        return Answers._make(column[chosen] for column in self)


def measured(
    asked: Sequence[Asked],
    texts: Sequence[str],
    lengths: Sequence[int],
    logprobs: Sequence[float],
    finish_reasons: Sequence[str],
) -> Answers:
    """The figures of texts; `lengths` are in tokens, `logprobs` sums over them."""
    tokens, sums = numpy.array(lengths, numpy.int64), numpy.array(logprobs, numpy.float64)
    is_of_json = [is_json(text) if asks else -1 for (_, asks), text in zip(asked, texts, strict=True)]
    return Answers(
        numpy.array([key for key, _ in asked], numpy.uint64),
        text_keys(texts),
        tokens,
        numpy.divide(sums, tokens, out=numpy.full(len(texts), numpy.nan), where=tokens > 0),
        numpy.array(each_once(repetition, texts), numpy.float64),
        numpy.array(is_of_json, numpy.int8),
        numpy.array(finish_reasons, numpy.object_),
    )


def text_keys(texts: Sequence[str]) -> Numbers:
    """The `text_key` of each text."""
    return numpy.fromiter(map(hash, texts), numpy.int64, len(texts)).view(numpy.uint64)


def each_once(function: Callable[[Key], Value], keys: Sequence[Key]) -> list[Value]:
    """The function of each key, called once for those that are equal, in the order of the first ones."""
    known = {key: function(key) for key in dict.fromkeys(keys)}
    return [known[key] for key in keys]
