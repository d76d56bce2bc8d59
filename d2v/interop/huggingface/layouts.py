"""Registry of layouts of Hugging Face's folders: one file an owner, one entry here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from d2v.interop.huggingface import eat
from d2v.interop.huggingface.names import FAMILIES
from d2v.interop.huggingface.reading import load_huggingface
from d2v.interop.imported import Imported

# Readers of folders, by model_type in config.json.
READERS: dict[str, Callable[[Path], Imported]] = {
    **dict.fromkeys(FAMILIES, load_huggingface),
    eat.MODEL_TYPE: eat.load_eat,
}
