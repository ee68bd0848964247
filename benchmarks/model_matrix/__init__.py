"""Every causal language model of the installed Transformers as a tiny random twin, against its own `generate`."""
