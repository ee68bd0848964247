"""Figures of a set of answers, gathered some at a time: counts, means, distinct answers, lengths and endings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy

from models.states import FinishReason
from producer.results.report.answer_figures import Answers
from producer.results.report.distinct import DistinctCounter
from producer.results.report.measures import rounded


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

    def add(self, answers: Answers) -> None:
        has_logprob, asks_for_json = ~numpy.isnan(answers.logprobs), answers.json >= 0
        self.count += len(answers.texts)
        self.length += int(answers.lengths.sum())
        self.logprob += float(answers.logprobs[has_logprob].sum())
        self.num_logprobs += int(has_logprob.sum())
        self.repetition += float(answers.repetitions.sum())
        self.json += int(answers.json[asks_for_json].sum())
        self.num_json += int(asks_for_json.sum())
        self.finish_reasons.update(answers.finish_reasons.tolist())
        self.lengths.update(answers.lengths.tolist())
        self.texts.add(answers.prompts ^ (answers.texts * numpy.uint64(3)))
        self.prompts.add(answers.prompts)

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
    return rounded(part / whole, 5) if whole else None
