"""Folders as people have them: quantized weights, models that see images, adapters."""
