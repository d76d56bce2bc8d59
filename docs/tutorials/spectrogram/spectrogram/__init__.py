"""Spectrogram patches as a modality of d2v: a frontend and data."""
