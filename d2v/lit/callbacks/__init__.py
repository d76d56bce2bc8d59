"""What happens around training: checkpoints, health, probes, progress."""
