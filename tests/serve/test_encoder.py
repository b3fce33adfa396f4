"""Forward passes take the threads that the settings name."""

import ctypes
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from rematch_ray.serve.encoder import _pass_thread


def openmp_threads() -> int:
    """How many threads a matrix product takes that starts in this thread."""
    # asking torch would set it: the library that torch has loaded is asked instead
    found = re.search(r"\S*/torch/lib/libgomp\S*", Path("/proc/self/maps").read_text())
    assert found is not None
    return int(ctypes.CDLL(found[0]).omp_get_max_threads())


@pytest.mark.parametrize("count", [1, 3])
def test_a_pass_takes_as_many_threads_as_it_is_given(count: int) -> None:
    before = torch.get_num_threads()
    try:
        with _pass_thread("test", count) as threads:
            assert threads.submit(openmp_threads).result() == count
        # what is set elsewhere does not hold there: that is why they are threads of their own
        torch.set_num_threads(count + 4)
        with ThreadPoolExecutor(1) as others:
            assert others.submit(openmp_threads).result() != count + 4
    finally:
        torch.set_num_threads(before)
