"""Callbacks of training: checkpoints, health, probes, progress."""
