import threading
import time
from typing import ClassVar

import pytest
import torch
from torch import nn

from salkit.curves import insertion_curve
from salkit.methods import get_method
from salkit.models import Classifier, passes
from salkit.models.passes import (
    Stopped,
    batch_size,
    even_size,
    in_parallel,
    pass_by_pass,
    pass_size,
    same_size_chunks,
    same_size_passes,
    smaller_when_out_of_memory,
    stop_if_told,
    tiled,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """A process that has not run out of memory yet."""
    for name, value in {"cap": None, "last": 1, "said": False}.items():
        monkeypatch.setattr(passes._Limit, name, value)
    monkeypatch.delenv("SALKIT_BATCH_SIZE", raising=False)


def cuda_is_full():
    return torch.OutOfMemoryError("CUDA out of memory")


def cpu_is_full():
    return RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


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
            raise self.error()
        return self.net(inputs)


def explain(most, error=cuda_is_full, name="learned_mask", **settings):
    torch.manual_seed(0)
    classifier = Classifier(Narrow(most, error), labels=[0, 1, 2])
    inputs = torch.randn(8, 3, 8, 8)
    return get_method(name, **settings).attribute(classifier, inputs, torch.arange(8) % 3, distractors=inputs)


@pytest.mark.parametrize("error", [cuda_is_full, cpu_is_full, MemoryError])
@pytest.mark.parametrize(
    ("name", "settings"), [("learned_mask", {"n_steps": 3, "n_distractors": 1}), ("rise", {"n_masks": 20}), ("gradient_x_input", {})]
)
def test_out_of_memory_changes_the_passes_and_not_the_maps(name, settings, error):
    undisturbed = explain(100, error, name, **settings)
    with pytest.warns(UserWarning, match="out of memory: from now on at most") as said:
        maps = explain(3, error, name, **settings)
    assert len(said) == 1
    assert passes._Limit.cap <= 3
    torch.testing.assert_close(maps, undisturbed, atol=1e-5, rtol=0)
    Narrow.sizes.clear()
    explain(3, error, name, **settings)  # no further message: warnings are errors
    assert max(Narrow.sizes) <= 3


def test_a_single_image_that_does_not_fit_is_an_error():
    with pytest.warns(UserWarning, match="out of memory"), pytest.raises(torch.OutOfMemoryError):
        explain(0, name="gradient_x_input")


def test_other_errors_pass():
    def wrong():
        return RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        explain(3, wrong)
    assert passes._Limit.cap is None


def test_a_function_is_tried_with_halves_down_to_one():
    tried = []

    @smaller_when_out_of_memory
    def fill(inputs):
        tried.append(batch_size(inputs))
        if tried[-1] > 1:
            raise MemoryError
        return tried[-1]

    with pytest.warns(UserWarning, match="at most 40 images"):
        assert fill(torch.zeros(1, 3, 32, 32)) == 1
    assert tried == [80, 40, 20, 10, 5, 2, 1]


def test_the_environment_caps_passes(monkeypatch):
    inputs = torch.zeros(1, 3, 32, 32)
    assert (batch_size(inputs), pass_size(inputs, 10)) == (80, 8)
    monkeypatch.setenv("SALKIT_BATCH_SIZE", "12")
    assert (batch_size(inputs), batch_size(inputs, 100), batch_size(inputs, 5), pass_size(inputs, 10), pass_size(inputs)) == (
        12,
        12,
        5,
        1,
        12,
    )
    monkeypatch.setenv("SALKIT_BATCH_SIZE", "many")
    with pytest.raises(ValueError, match="SALKIT_BATCH_SIZE: expected an integer >= 1 in the environment, got 'many'"):
        batch_size(inputs)


def test_passes_have_at_least_two_composites():
    assert pass_size(torch.zeros(1, 3, 32, 32), 1, 1) == 2
    assert pass_size(torch.zeros(1, 3, 32, 32), 10, 1) == 1


def test_chunks_are_filled_up_with_their_first():
    chunks = [(chunk.tolist(), full.tolist()) for chunk, full in same_size_chunks(5, 4)]
    assert chunks == [([0, 1, 2, 3], [0, 1, 2, 3]), ([4], [4, 4, 4, 4])]


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


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


def test_even_passes_keep_two_workers_busy(two_threads):
    assert [even_size(n, 8, CPU) for n in (1, 2, 8, 16, 17, 20, 50)] == [2, 2, 4, 8, 6, 6, 8]
    assert even_size(20, 8, torch.device("cuda")) == 8
    torch.set_num_threads(1)
    assert [even_size(n, 8, CPU) for n in (1, 3, 8, 9, 20)] == [2, 4, 8, 6, 8]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("n_rows", "n_columns", "size"), [(1, 1, 8), (1, 29, 20), (3, 29, 20), (20, 3, 80), (7, 65, 80), (5, 4, 1), (5, 3, 8)]
)
def test_tiles_cover_a_grid_once_and_evenly(two_threads, n_rows, n_columns, size, threads):
    torch.set_num_threads(threads)
    tiles = tiled(n_rows, n_columns, size, CPU)
    cells = [(i, j) for row in tiles for rows, columns in row for i in rows.tolist() for j in columns.tolist()]
    assert sorted(cells) == [(i, j) for i in range(n_rows) for j in range(n_columns)]
    sizes = [len(rows) * len(columns) for row in tiles for rows, columns in row]
    assert max(sizes) <= size
    assert min(sizes) >= min(2, size, n_rows * n_columns)
    if n_rows * n_columns >= 2 * threads:
        assert len(sizes) >= threads, "a worker without work"


def test_chunks_come_back_without_what_filled_them_up(two_threads):
    sizes = []

    def double(rows):
        sizes.append(len(rows))
        return 2 * rows

    found = [(pairs.tolist(), twice.tolist()) for pairs, twice in same_size_passes(double, 5, 2, CPU)]
    assert found == [([0, 1], [0, 2]), ([2, 3], [4, 6]), ([4], [8])]
    assert sizes == [2, 2, 2]
    assert pass_by_pass(double, torch.arange(5), 4, CPU).tolist() == [0, 2, 4, 6, 8]


def test_masks_and_curves_have_the_same_bits_on_two_workers(two_threads, images, reference_classifier):
    target = torch.arange(5)
    method = get_method("learned_mask", n_steps=3, n_distractors=2, scale=1)
    found = []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        maps = method.attribute(reference_classifier, images, target, distractors=images)
        found.append((maps, insertion_curve(reference_classifier, images, target, maps, n_steps=7)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
