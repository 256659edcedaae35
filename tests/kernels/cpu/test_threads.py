"""Shares of a batch in threads of one core each."""

import threading
import time

import pytest
import torch

from sparse_kernels.cpu import threads


def test_as_many_threads_as_torch_has_and_each_of_one_core(number_of_threads):
    def look(share):
        names.add(threading.current_thread().name)
        time.sleep(0.05)
        return len(share), torch.get_num_threads()

    names = set()
    seen = threads.shared(look, torch.zeros(8), rows=8)
    lengths = {1: [8], 3: [3, 3, 2]}[number_of_threads]
    assert [length for length, _ in seen] == lengths
    assert len(names) == number_of_threads
    assert {cores for _, cores in seen} == {1}
    assert torch.get_num_threads() == number_of_threads
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [number_of_threads]


@pytest.mark.usefixtures("number_of_threads")
def test_a_failure_in_a_thread_is_raised():
    def fail(share):
        raise ValueError(f"share of {len(share)}")

    with pytest.raises(ValueError, match="share of"):
        threads.shared(fail, torch.zeros(9), rows=9)
