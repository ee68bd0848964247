"""The search for stop strings in the text of an answer as it grows."""

from __future__ import annotations

from collections.abc import Sequence

from worker.engine.text.streams import TextStream


class StopSearch:
    """Finds the stop strings of one answer; keeps no more of its text than a stop string may begin in."""

    def __init__(self, stream: TextStream, stops: Sequence[str]) -> None:
        self._stream = stream
        self._stops = stops
        self._last_characters = frozenset(stop[-1] for stop in stops)
        self._num_kept = max(map(len, stops)) - 1
        self._end = ""  # the last characters that no later token changes
        self._num_dropped = 0  # characters before those
        self._num_tokens = 0

    @property
    def kind(self) -> type:
        """The kind of its stream: `may_complete` is the same for all searches of a kind for the same strings."""
        return type(self._stream)

    def may_complete(self, token_id: int) -> bool:
        """Whether a stop string may end with the token, whatever comes before it."""
        return self._stream.may_show(token_id, self._last_characters)

    def extend(self, token_ids: Sequence[int], end: int) -> int | None:
        """Adds the tokens of the answer up to `end` that are new; the place of the first stop string in their text.

        None but the last of them may complete one.
        """
        if end <= self._num_tokens:
            return None
        text = self._end + "".join([self._stream.append(token_id) for token_id in token_ids[self._num_tokens : end]])
        self._num_tokens = end
        start = self._find(text + self._stream.open)
        num_final = max(0, len(text) - self._num_kept)
        self._num_dropped += num_final
        self._end = text[num_final:]
        return start

    def close(self) -> int | None:
        """The place of a stop string that the end of the text completes, if no other token follows."""
        return self._find(self._end + self._stream.close())

    def copy(self) -> StopSearch:
        other = StopSearch(self._stream.copy(), self._stops)
        other._end, other._num_dropped, other._num_tokens = self._end, self._num_dropped, self._num_tokens
        return other

    def _find(self, text: str) -> int | None:
        starts = [start for start in map(text.find, self._stops) if start >= 0]
        return self._num_dropped + min(starts) if starts else None
