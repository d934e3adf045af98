"""The most memory that a training took is measured, and the one before it leaves no trace."""

import sys

import numpy as np
import psutil
import pytest

from metalearn_core.memory import PeakMemory

BYTES = 300 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="only there the mark can be set back")
def test_a_peak_is_that_of_its_own_block() -> None:
    before = psutil.Process().memory_info().rss
    with PeakMemory() as large:
        block = np.ones(BYTES, np.uint8)
        del block
    with PeakMemory() as small:
        pass
    assert large.resident_bytes > before + 0.9 * BYTES
    assert small.resident_bytes < large.resident_bytes - 0.5 * BYTES
    assert small.resident_bytes == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
