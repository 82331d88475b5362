import pytest
import torch
from torch import nn

from salkit.data import load_images
from salkit.methods import RISE, FongVedaldi, get_method
from salkit.models import Classifier, load_classifier
from salkit.models.folding import EvenLinear, fold_batch_norms, round_alike

SIZES = (2, 3, 4, 8, 10, 16)


def small_net():
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 96, 1), nn.ReLU(), nn.Conv2d(96, 40, 1, stride=2)]
    return Classifier(nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(160, 48), nn.ReLU(), nn.Linear(48, 10)))


def computed(classifier, images, size, threads):
    """Logits and input gradients in passes of one size, the last filled up."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = []
        for chunk in torch.arange(len(images)).split(size):
            inputs = images[torch.cat([chunk, chunk[:1].expand(size - len(chunk))])].requires_grad_()
            logits = classifier.logits(inputs)
            (gradient,) = torch.autograd.grad(logits[:, 1].sum() - logits[:, 2].sum(), inputs)
            found.append((logits.detach()[: len(chunk)], gradient[: len(chunk)]))
    finally:
        torch.set_num_threads(before)
    return [torch.cat(values) for values in zip(*found, strict=True)]


@pytest.mark.parametrize(
    ("net", "side", "sizes"),
    # Passes of three on two threads are the exception: a gradient of ResNet-20 then differs by 3e-8.
    [("small", 32, SIZES), ("small", 20, SIZES), ("cifar10-resnet20", 32, (2, 4, 8, 10, 16)), ("efficientnet-lite0", 224, (2, 3, 10))],
)
def test_an_image_is_rounded_alike_in_passes_of_every_size_and_by_one_or_two_threads(net, side, sizes):
    classifier = small_net() if net == "small" else load_classifier(net)
    n = 2 if side == 224 else 10
    images = torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))
    expected = computed(classifier, images, sizes[0], 1)
    for size in sizes:
        for threads in (1, 2):
            for name, one, other in zip(("logits", "gradient"), expected, computed(classifier, images, size, threads), strict=True):
                assert torch.equal(one, other), f"{name}: passes of {size}, {threads} threads"


def test_filled_up_linear_layers_compute_what_plain_ones_do():
    plain = nn.Linear(7, 5)
    net = nn.Sequential(nn.Linear(7, 5))
    net[0].load_state_dict(plain.state_dict())
    round_alike(net)
    assert type(net[0]) is EvenLinear
    for shape in ((3, 7), (4, 7), (2, 3, 7)):
        inputs = torch.randn(shape)
        torch.testing.assert_close(net(inputs), plain(inputs))


def test_only_plain_linear_layers_and_1x1_convolutions_are_touched():
    class Own(nn.Linear):
        pass

    net = nn.Sequential(Own(3, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1))
    round_alike(net)
    assert type(net[0]) is Own
    assert [conv.dilation for conv in net[1:]] == [(1, 1), (1, 1), (2, 2)]


@pytest.mark.parametrize(
    "method",
    [
        FongVedaldi(n_steps=2),
        RISE(n_masks=16),
        get_method("phang", masker="phang-efficientnet-lite0"),
        get_method("dabkowski_gal", masker="dabkowski_gal-efficientnet-lite0"),
    ],
    ids=lambda method: type(method).__name__,
)
def test_methods_with_arithmetic_of_their_own_give_the_same_bits_whatever_the_threads_and_the_batch(method):
    classifier, images = load_classifier("efficientnet-lite0"), load_images("imagenet-samples", n=3)
    target, ids = images.labels, list(images.ids)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(method.attribute(classifier, images.images, target, ids=ids))
    torch.set_num_threads(1)
    apart = [method.attribute(classifier, images.images[i : i + 1], target[i : i + 1], ids=ids[i : i + 1]) for i in range(3)]
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(torch.cat(apart), found[0], atol=1e-5, rtol=0)


def with_statistics(net):
    """Batch norms as after training."""
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                tensor.normal_()
            module.running_var.uniform_(0.5, 2)
    return net.eval()


def test_folding_by_hand():
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0.0)).eval()
    net[0].weight.data.fill_(3.0)
    net[1].running_mean.fill_(2.0), net[1].running_var.fill_(4.0), net[1].weight.data.fill_(5.0), net[1].bias.data.fill_(1.0)
    folded = fold_batch_norms(net, torch.ones(1, 1, 2, 2))
    # 5 (3 x - 2) / 2 + 1
    assert (folded[0].weight.item(), folded[0].bias.item()) == (7.5, -4.0)
    assert isinstance(folded[1], nn.Identity)
    assert isinstance(net[1], nn.BatchNorm2d), "the net itself is left as it was"


class Shared(nn.Module):
    """Something else reads what comes out of a convolution, or the convolution runs twice."""

    def __init__(self, twice):
        super().__init__()
        self.conv, self.norm, self.twice = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), twice

    def forward(self, inputs):
        made = self.conv(inputs)
        other = self.conv(inputs + 1) if self.twice else made
        return (self.norm(made) + other).mean((2, 3))


@pytest.mark.parametrize("twice", [False, True])
def test_a_net_that_folding_would_change_is_left_as_it_is(images, twice):
    classifier = Classifier(with_statistics(Shared(twice)))
    fast = classifier.fast(images)
    torch.testing.assert_close(fast(images), classifier(images), rtol=0, atol=0)
    assert isinstance(fast.net.norm, nn.BatchNorm2d)


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


class ReadTwice(nn.Module):
    """Something else reads what goes into an activation."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()

    def forward(self, inputs):
        made = self.norm(self.conv(inputs))
        return (self.relu(made) - made).mean((2, 3))


@pytest.mark.parametrize("in_place", [True, False])
def test_activations_work_in_place_only_where_nothing_changes_by_that(images, in_place):
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = Classifier(with_statistics(net if in_place else ReadTwice()))
    fast = classifier.fast(images)
    (relu,) = (module for module in fast.net.modules() if isinstance(module, nn.ReLU))
    with torch.no_grad():
        torch.testing.assert_close(fast(images), classifier(images), rtol=0, atol=1e-5)
        assert relu.inplace == in_place
    inputs = images.clone().requires_grad_()
    gradients = [torch.autograd.grad(c(inputs)[:, 0].sum(), inputs)[0] for c in (fast, classifier)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)
    assert not relu.inplace


def test_the_image_itself_is_never_written_to(images):
    net = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    fast = Classifier(with_statistics(net)).fast(images)
    inputs = images.clone(memory_format=torch.channels_last)
    with torch.no_grad():
        fast(inputs)
    assert torch.equal(inputs, images)


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
