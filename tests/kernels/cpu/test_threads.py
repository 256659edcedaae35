"""Calls in threads of one core each."""

import threading
import time

import pytest
import torch

from sparse_kernels.cpu import threads


def test_as_many_threads_as_torch_has_and_each_of_one_core(number_of_threads):
    def look():
        names.add(threading.current_thread().name)
        time.sleep(0.05)
        return torch.get_num_threads()

    names = set()
    assert threads.in_threads([look] * 3) == [1] * 3
    assert len(names) == number_of_threads
    assert torch.get_num_threads() == number_of_threads
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [number_of_threads]


@pytest.mark.usefixtures("number_of_threads")
def test_a_failure_in_a_thread_is_raised():
    def fail():
        raise ValueError("share of work")

    with pytest.raises(ValueError, match="share of"):
        threads.in_threads([fail])
