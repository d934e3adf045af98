"""Examples by their content, in eight bytes each: enough to recognise those that a model has been trained on."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_BYTES = 8


def fingerprints(content_hashes: Iterable[bytes]) -> NDArray[np.int64]:
    """Return (n,) int64: the first eight bytes of each content hash, as `EpisodeDataset.example_hashes` has them."""
    joined = b"".join(content_hash[:_BYTES] for content_hash in content_hashes)
    return np.frombuffer(joined, "<i8").astype(np.int64)
