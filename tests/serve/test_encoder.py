"""Forward passes take the threads that the settings name."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rematch_ray.serve.encoder import _pass_thread


def openmp_threads() -> int:
    """How many threads a pass takes that starts in this thread."""
    found = re.search(r"omp_get_max_threads\(\) : (\d+)", torch.__config__.parallel_info())
    assert found is not None
    return int(found[1])


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
