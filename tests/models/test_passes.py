import threading
import time
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import nn

from salkit.methods import get_method
from salkit.models import Classifier
from salkit.models import passes as passes_module
from salkit.models.passes import Stopped, cut, in_parallel, pass_by_pass, pass_size, smaller_when_out_of_memory, stop_if_told

CPU = torch.device("cpu")
CPU_IS_FULL = "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
FULL = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(CPU_IS_FULL), MemoryError()]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """A process that has not run out of memory yet."""
    for name, value in {"cap": None, "last": 1, "said": False}.items():
        monkeypatch.setattr(passes_module._Limit, name, value)


class Narrow(nn.Module):
    """Has memory for so many images a pass."""

    sizes: ClassVar = []

    def __init__(self, most, error):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3))
        self.most, self.error = most, error

    def forward(self, inputs):
        self.sizes.append(len(inputs))
        if len(inputs) > self.most:
            raise self.error
        return self.net(inputs)


def explain(most, error=FULL[0], name="learned_mask", **settings):
    torch.manual_seed(0)
    classifier = Classifier(Narrow(most, error), labels=[0, 1, 2])
    inputs = torch.randn(1, 3, 8, 8).expand(8, 3, 8, 8)  # all labels of one image, so that a pass has many
    pool = torch.randn(4, 3, 8, 8)
    return get_method(name, **settings).attribute(classifier, inputs, torch.arange(8) % 3, distractors=pool)


@pytest.mark.parametrize("error", FULL)
@pytest.mark.parametrize(
    ("name", "settings"), [("learned_mask", {"n_steps": 3, "n_distractors": 1}), ("rise", {"n_masks": 20}), ("gradient_x_input", {})]
)
def test_out_of_memory_changes_the_passes_and_not_the_maps(name, settings, error):
    undisturbed = explain(100, error, name, **settings)
    with pytest.warns(UserWarning, match="out of memory: from now on at most") as said:
        maps = explain(3, error, name, **settings)
    assert len(said) == 1
    assert passes_module._Limit.cap <= 3
    torch.testing.assert_close(maps, undisturbed, atol=1e-5, rtol=0)
    Narrow.sizes.clear()
    explain(3, error, name, **settings)  # no further message: warnings are errors
    assert max(Narrow.sizes) <= 3


def test_a_single_image_that_does_not_fit_is_an_error():
    with pytest.warns(UserWarning, match="out of memory"), pytest.raises(torch.OutOfMemoryError):
        explain(0, name="gradient_x_input")


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"):
        explain(3, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert passes_module._Limit.cap is None


def test_a_function_is_tried_with_halves_down_to_one():
    tried = []

    @smaller_when_out_of_memory
    def fill(inputs):
        tried.append(pass_size(inputs))
        if tried[-1] > 1:
            raise MemoryError
        return tried[-1]

    with pytest.warns(UserWarning, match="at most 25 images"):
        assert fill(torch.zeros(1, 3, 32, 32)) == 1
    assert tried == [50, 25, 12, 6, 3, 1]


def test_sizes_of_passes():
    small, large = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 224, 224)
    assert (pass_size(small), pass_size(large), pass_size(small, 10), pass_size(large, 10), pass_size(large, 30)) == (50, 20, 5, 2, 1)
    assert (pass_size(small, 1, 7), pass_size(small, 10, 7)) == (7, 1)
    with torch.no_grad():
        assert (pass_size(small), pass_size(large), pass_size(large, 1, 7)) == (100, 40, 7)
    assert pass_size(small, device=torch.device("cuda")) == 400
    with pytest.raises(ValueError, match="internal_batch_size: expected an integer >= 1, got 0"):
        pass_size(small, 1, 0)


@pytest.mark.parametrize(("n", "most", "sizes"), [(1, 8, [1]), (10, 4, [4, 4, 4]), (29, 20, [15, 15]), (10, 20, [10]), (100, 50, [50, 50])])
def test_rows_are_cut_evenly_and_filled_up(n, most, sizes):
    found = cut(torch.arange(n), most)
    assert [len(each.filled) for each in found] == sizes
    assert torch.cat([each.rows for each in found]).tolist() == list(range(n))
    for each in found:
        assert each.filled.tolist() == each.rows.tolist() + [int(each.rows[0])] * (len(each.filled) - len(each.rows))


def test_rows_of_different_groups_share_no_pass_on_a_cpu():
    found = passes_module.passes(["a", "b", "a", "b", "b"], 2, CPU)
    assert [each.rows.tolist() for each in found] == [[0, 2], [1, 3], [4]]
    assert [each.filled.tolist() for each in found] == [[0, 2], [1, 3], [4, 4]]
    assert [each.rows.tolist() for each in passes_module.passes("abab", 2, torch.device("cuda"))] == [[0, 1], [2, 3]]


@pytest.mark.parametrize("parallel", [True, False])
def test_results_come_back_in_the_order_of_the_rows_each_pass_on_one_thread(two_threads, parallel):
    threads = []

    def double(rows):
        threads.append(torch.get_num_threads())
        return 2 * rows

    assert pass_by_pass(double, ["b", "a", "b", "a", "b"], 2, CPU, parallel).tolist() == [0, 2, 4, 6, 8]
    assert pass_by_pass(double, "a", 2, CPU, parallel).tolist() == [0]
    assert set(threads) == {1}
    assert torch.get_num_threads() == 2


def test_parallel_work_comes_back_in_order_from_threads_of_one_thread_each(two_threads):
    met = threading.Barrier(2, timeout=10)  # passes only if two work at the same time

    def work(i):
        met.wait()
        time.sleep(0.02 * (4 - i))
        return i, torch.get_num_threads(), threading.current_thread().name, torch.is_grad_enabled()

    found = list(in_parallel(work, range(4), CPU))
    assert [i for i, *_ in found] == [0, 1, 2, 3]
    assert {n for _, n, *_ in found} == {1}
    assert len({name for *_, name, _ in found}) == 2
    assert all(grad for *_, grad in found)
    assert torch.get_num_threads() == 2
    with torch.no_grad():
        assert list(in_parallel(lambda i: torch.is_grad_enabled(), range(2), CPU)) == [False, False]
    with torch.inference_mode():
        assert list(in_parallel(lambda i: torch.is_inference_mode_enabled(), range(2), CPU)) == [True, True]
    assert list(in_parallel(lambda i: threading.current_thread(), range(1), CPU)) == [threading.main_thread()]


@pytest.mark.parametrize(("available", "at_once"), [(0, 1), (2**31, 1), (2**32, 2), (2**40, 2)])
def test_memory_limits_how_many_run_side_by_side(two_threads, monkeypatch, available, at_once):
    monkeypatch.setattr(passes_module.psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    names = list(in_parallel(lambda i: (time.sleep(0.02), threading.current_thread().name)[1], range(4), CPU))
    assert len(set(names)) == at_once


def test_what_runs_beside_an_error_is_stopped_at_its_next_pass(two_threads):
    started, ended = threading.Event(), []

    def work(i):
        if i == 0:
            started.wait(10)
            raise ValueError("no")
        try:
            while True:
                started.set()
                stop_if_told()
        except Stopped:
            ended.append(i)
            raise

    with pytest.raises(ValueError, match="no"):
        list(in_parallel(work, range(5), CPU))
    assert sorted(ended) in ([1], [1, 2])  # the free thread may have begun one more
    stop_if_told()  # nobody stops the main thread
    assert torch.get_num_threads() == 2
