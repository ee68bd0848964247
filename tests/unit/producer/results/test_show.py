"""The colours of `show`: each token by its probability."""

from __future__ import annotations

from producer.results.show import colour_of


def test_colours_go_with_probability() -> None:
    assert [colour_of(logprob) for logprob in (0.0, -0.5, -1.0, -3.0, -9.0, -1e9)] == [
        "green", "cyan", "yellow", "magenta", "red", "red"
    ]  # fmt: skip
