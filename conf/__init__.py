"""Hydra configuration, shipped in the wheel as the package ``d2v.conf``."""
