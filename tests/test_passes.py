from typing import ClassVar

import pytest
import torch
from torch import nn

from salkit import passes
from salkit.methods import get_method
from salkit.models import Classifier
from salkit.passes import batch_size, pass_size, same_size_chunks, smaller_when_out_of_memory


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
    inputs = torch.randn(6, 3, 8, 8)
    return get_method(name, **settings).attribute(classifier, inputs, torch.arange(6) % 3, distractors=inputs)


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

    with pytest.warns(UserWarning, match="at most 32 images"):
        assert fill(torch.zeros(1, 3, 32, 32)) == 1
    assert tried == [64, 32, 16, 8, 4, 2, 1]


def test_the_environment_caps_passes(monkeypatch):
    inputs = torch.zeros(1, 3, 32, 32)
    assert (batch_size(inputs), pass_size(inputs, 10)) == (64, 4)
    monkeypatch.setenv("SALKIT_BATCH_SIZE", "12")
    assert (batch_size(inputs), batch_size(inputs, 100), batch_size(inputs, 5), pass_size(inputs, 10), pass_size(inputs)) == (
        12,
        12,
        5,
        1,
        8,
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
