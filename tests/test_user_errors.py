"""Words of errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from d2v.data.bad_samples import BadSample
from d2v.errors import without_stack


class Broken(Dataset[Any]):
    """Fails in a worker."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        raise self.error("data.root=/a: b.png: cut off\nin two lines: here")


@pytest.mark.parametrize("error", [BadSample, OSError, RuntimeError])
def test_a_workers_error_keeps_its_words_without_its_stack(error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        next(iter(DataLoader(Broken(error), num_workers=1)))
    assert "Traceback" in str(raised.value)
    assert without_stack(str(raised.value)) == "data.root=/a: b.png: cut off\nin two lines: here"
    assert without_stack("as it is: this") == "as it is: this"
