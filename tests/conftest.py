import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from salkit.methods import get_method
from salkit.methods.masker_training import MaskerRecipe, make_masker
from salkit.models import Classifier

# Small nets gain nothing from a second thread, and two that wait for each other on a busy core lose much. `make test-portable` sets two.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session")
def reference() -> dict[str, Tensor]:
    """What the paper's released functions computed on a small fixed net (fixtures/released_code_small_net.npz)."""
    with np.load(Path(__file__).parent / "fixtures" / "released_code_small_net.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture(scope="session")
def reference_classifier(reference: dict[str, Tensor]) -> Classifier:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(512, 10))
    names = {"0.weight": "conv_weight", "0.bias": "conv_bias", "4.weight": "fc_weight", "4.bias": "fc_bias"}
    net.load_state_dict({key: reference[name] for key, name in names.items()})
    return Classifier(net)


class MeanPixel(nn.Module):
    """Logits are the channel means: every composite's probability can be worked out by hand."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.mean((2, 3))


class Quadrant(nn.Module):
    """Looks at the upper left quadrant only: label 0 grows with its brightness, label 1 is its contrary."""

    def forward(self, inputs: Tensor) -> Tensor:
        side = inputs.shape[-1] // 2
        bright = inputs[..., :side, :side].mean((1, 2, 3))
        return torch.stack([4 * bright, -4 * bright], 1)


@pytest.fixture
def mean_pixel() -> Classifier:
    return Classifier(MeanPixel())


@pytest.fixture
def quadrant() -> Classifier:
    return Classifier(Quadrant())


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def with_statistics():
    """Gives a net's batch norms numbers as after training."""

    def change(net: nn.Module) -> nn.Module:
        torch.manual_seed(1)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.running_mean, module.weight.data, module.bias.data):
                    tensor.normal_()
                module.running_var.uniform_(0.5, 2)
        return net.eval()

    return change


QUICK = {
    "learned_mask": {"scale": 2, "n_steps": 3, "n_distractors": 2, "lr": 0.3},
    "igos_pp": {"n_steps": 1, "n_path": 3},
    "fong_vedaldi": {"n_steps": 2, "start": "circle"},
    "rise": {"n_masks": 70},
    "smooth_grad": {"n_samples": 3},
    "integrated_gradients": {"n_steps": 3},
}


@pytest.fixture(scope="session")
def quick():
    """Methods by name that take no time on a small net; untrained maskers read its two `taps`, Grad-CAM the last of them."""

    def make(name, classifier, taps):
        if name in ("dabkowski_gal", "phang"):
            return get_method(name, masker=make_masker(classifier, taps, MaskerRecipe(name, widths=(4,)), side=32))
        return get_method(name, **{"layer": taps[-1]} if name == "grad_cam" else QUICK.get(name, {}))

    return make
