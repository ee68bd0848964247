"""A layer with a recurrent state inside a step."""

from __future__ import annotations

from torch import nn

from worker.engine.model.attention import AttentionStep


class RecurrentMixer(nn.Module):
    """Takes the place of the layer; the decoder sets `step` before it calls the model."""

    step: AttentionStep | None = None
