import matplotlib as mpl
import numpy as np
import pytest
import torch
import xarray as xr

from salkit.data.images import ImageSet

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    mpl.pyplot.close("all")


@pytest.fixture
def result():
    """An evaluation of two methods on three 8 x 8 images with three labels, numbers drawn at random."""
    rng = np.random.default_rng(0)
    prob = rng.dirichlet(np.ones(3), 3)
    dims = ("method", "image", "label")
    scores = {name: (dims, rng.random((2, 3, 3))) for name in ("insertion_auc", "deletion_auc", "completeness", "soundness")}
    made = xr.Dataset(
        {"prob": (dims[1:], prob)} | scores,
        {"method": ["0", "0.1"], "image": list("abc"), "label": ["cat", "dog", "ship"], "kept": [0, 32, 64]},
    )
    made["prediction"] = made.prob.argmax("label")
    made["insertion_curve"] = ((*dims, "kept"), rng.random((2, 3, 3, 3)))
    made["heatmap"] = ((*dims, "y", "x"), rng.random((2, 3, 3, 8, 8)))
    made["pixels"] = (("image", "y", "x", "channel"), rng.random((3, 8, 8, 3)))
    return made


@pytest.fixture
def images():
    """The images of `result` among others, in another order; the net is right about none but those it happens to be."""
    pixels = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    names = ("truck", "ship", "dog", "cat")
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
    normalised = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    return ImageSet(normalised, torch.tensor([0, 1, 2, 0, 3]), ("x", "c", "b", "y", "a"), names, mean, std)
