import pytest
import torch
from torch import nn

from salkit.models import Classifier, load_classifier
from salkit.models.folding import fold_batch_norms


def test_folding_by_hand():
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0.0)).eval()
    net[0].weight.data.fill_(3.0)
    net[1].running_mean.fill_(2.0), net[1].running_var.fill_(4.0), net[1].weight.data.fill_(5.0), net[1].bias.data.fill_(1.0)
    folded = fold_batch_norms(net, torch.ones(1, 1, 2, 2))
    # 5 (3 x - 2) / 2 + 1
    assert (folded[0].weight.item(), folded[0].bias.item()) == (7.5, -4.0)
    assert isinstance(folded[1], nn.Identity)
    assert isinstance(net[1], nn.BatchNorm2d), "the net itself is left as it was"


class Reads(nn.Module):
    """Something else reads what comes out of a convolution or goes into an activation, or the convolution runs twice."""

    def __init__(self, other):
        super().__init__()
        self.conv, self.norm, self.relu, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), other

    def forward(self, inputs):
        made = self.conv(inputs)
        normed = self.norm(made)
        active = self.relu(normed)
        other = self.conv(inputs + 1) if self.other == "twice" else made if self.other == "conv" else -normed
        return (active + other).mean((2, 3))


@pytest.mark.parametrize("other", ["conv", "twice"])
def test_a_net_that_folding_would_change_is_left_as_it_is(images, other, with_statistics):
    classifier = Classifier(with_statistics(Reads(other)))
    fast = classifier.fast(images)
    torch.testing.assert_close(fast(images), classifier(images), rtol=0, atol=0)
    assert isinstance(fast.net.norm, nn.BatchNorm2d)


FOLDS = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
ENDS = nn.AdaptiveAvgPool2d(1), nn.Flatten()


@pytest.mark.parametrize(
    ("net", "in_place"),
    [(nn.Sequential(*FOLDS, nn.ReLU(), *ENDS), True), (nn.Sequential(nn.ReLU(), *FOLDS, *ENDS), False), (Reads("norm"), False)],
)
def test_activations_work_in_place_only_where_nothing_changes_by_that(images, net, in_place, with_statistics):
    classifier = Classifier(with_statistics(net))
    fast, inputs = classifier.fast(images), images.clone(memory_format=torch.channels_last)
    (relu,) = (module for module in fast.net.modules() if isinstance(module, nn.ReLU))
    with torch.no_grad():
        torch.testing.assert_close(fast(inputs), classifier(images), rtol=0, atol=1e-5)
        assert relu.inplace == in_place
    assert torch.equal(inputs, images), "the image itself is never written to"
    inputs.requires_grad_()
    gradients = [torch.autograd.grad(c(inputs)[:, 0].sum(), inputs)[0] for c in (fast, classifier)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)
    assert not relu.inplace


class Padded(nn.Conv2d):
    """As EfficientNet-Lite's: pads by itself, not alike on all sides."""

    def __init__(self, pads, **settings):
        super().__init__(3, 3, (3, 5), groups=3, **settings)
        self.static_padding = nn.ZeroPad2d(pads)

    def forward(self, inputs):
        return super().forward(self.static_padding(inputs))


@pytest.mark.parametrize("pads", [(0, 1, 2, 1), (2, 2, 2, 2), (0, 3, 0, 0)])
@pytest.mark.parametrize("stride", [1, 2])
def test_paddings_become_the_convolutions_own(pads, stride):
    torch.manual_seed(0)
    net = nn.Sequential(Padded(pads, stride=stride)).eval()
    inputs = torch.randn(2, 3, 11, 12)
    for widen in (True, False):
        folded = fold_batch_norms(net, inputs, widen)
        torch.testing.assert_close(folded(inputs), net(inputs), rtol=0, atol=1e-6)
        assert isinstance(folded[0].static_padding, nn.Identity) == (widen or len(set(pads)) == 1)


@pytest.mark.parametrize(("net", "side"), [("cifar10-resnet20", 32), ("efficientnet-lite0", 224), ("cifar10-resnet164", 32)])
def test_folded_nets_compute_the_same(net, side):
    classifier = load_classifier(net, pretrained=net != "cifar10-resnet164")
    inputs = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    fast = classifier.fast(inputs)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.net.modules())
    expected = classifier.logits(inputs)
    size = expected.abs().max().item()
    # The rounding of float32 (24 bits) over up to 164 layers, of bfloat16 (8 bits) over as many.
    torch.testing.assert_close(fast.logits(inputs), expected, rtol=0, atol=2e-5 * size)
    half = classifier.fast(inputs, "bfloat16").logits(inputs)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=0, atol=0.05 * size)
