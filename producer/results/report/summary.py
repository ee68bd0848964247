"""Figures of a set of answers, gathered one at a time: counts, means, distinct answers, lengths and endings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from models.states import FinishReason
from producer.results.report.distinct import DistinctCounter


class Answer(NamedTuple):
    """The figures of one returned sequence."""

    prompt: int  # its prompt's key
    text: int  # its text's key
    length: int  # tokens
    logprob: float | None  # mean over its tokens
    repetition: float
    is_json: bool | None  # None: its prompt asks for none
    finish_reason: str


@dataclass
class Summary:
    """The figures of the answers so far. Memory grows by eight bytes for each distinct answer and prompt."""

    count: int = 0
    jobs: Counter[str] = field(default_factory=Counter)  # by state
    length: int = 0
    logprob: float = 0.0
    num_logprobs: int = 0
    repetition: float = 0.0
    json: int = 0
    num_json: int = 0
    finish_reasons: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    texts: DistinctCounter = field(default_factory=DistinctCounter)
    prompts: DistinctCounter = field(default_factory=DistinctCounter)

    @classmethod
    def merged(cls, parts: Iterable[Summary]) -> Summary:
        """The figures of all answers of the parts."""
        whole = cls()
        for part in parts:
            for each in fields(cls):
                mine, other = getattr(whole, each.name), getattr(part, each.name)
                if isinstance(mine, Counter | DistinctCounter):
                    mine.update(other)
                else:
                    setattr(whole, each.name, mine + other)
        return whole

    def add(self, answer: Answer) -> None:
        self.count += 1
        self.length += answer.length
        if answer.logprob is not None:
            self.logprob += answer.logprob
            self.num_logprobs += 1
        self.repetition += answer.repetition
        self.json += bool(answer.is_json)
        self.num_json += answer.is_json is not None
        self.finish_reasons[answer.finish_reason] += 1
        self.lengths[answer.length] += 1
        self.texts.add(answer.prompt ^ (answer.text * 3 & 2**64 - 1))
        self.prompts.add(answer.prompt)

    def described(self) -> dict[str, Any]:
        """The figures as a page has them; None where there is nothing to divide by."""
        ended = self.count - self.finish_reasons[FinishReason.LENGTH]
        repeated = self.count - len(self.prompts)
        return {
            "count": self.count,
            "jobs": dict(self.jobs),
            "distinct": len(self.texts),
            "diversity": _ratio(len(self.texts) - len(self.prompts), repeated),
            "length": _ratio(self.length, self.count),
            "logprob": _ratio(self.logprob, self.num_logprobs),
            "repetition": _ratio(self.repetition, self.count),
            "json": _ratio(self.json, self.num_json),
            "ended": _ratio(ended, self.count),
            "finish": dict(self.finish_reasons),
        }


def _ratio(part: float, whole: int) -> float | None:
    return round(part / whole, 5) if whole else None
