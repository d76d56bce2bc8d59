"""Code that exports hold: an encoder for Hugging Face's Auto classes that needs torch and transformers only."""
