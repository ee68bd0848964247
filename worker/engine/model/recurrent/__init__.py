"""Layers that keep a recurrent state: found when a model is loaded, computed on the states of each sequence."""
