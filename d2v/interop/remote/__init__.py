"""What an export takes along: an encoder for Hugging Face's Auto classes that needs torch and transformers only."""
