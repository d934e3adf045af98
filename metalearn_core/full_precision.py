"""Full precision on GPUs: by torch's default convolutions of fp32 numbers are TF32, of which 10 bits count."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_BACKENDS: Any = torch.backends  # which have no types for this


@contextmanager
def full_precision() -> Iterator[None]:
    """Have fp32 be fp32 inside the block, on a GPU too: no TF32 in convolutions, recurrent layers and products."""
    settings = _BACKENDS.cudnn.conv, _BACKENDS.cudnn.rnn, _BACKENDS.cuda.matmul
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value
