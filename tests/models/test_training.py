from dataclasses import replace

import pytest
import torch
from torch import nn

from salkit.data import ImageSet
from salkit.models.training import Recipe, _batches, accuracy, train_classifier


def stripes(n, seed):
    """Two classes a small net can tell apart: horizontal and vertical stripes, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    grid = (torch.arange(8) % 2).float()
    pattern = torch.stack([grid[:, None].expand(8, 8), grid.expand(8, 8)])[labels]
    images = pattern[:, None].expand(n, 3, 8, 8) + 0.3 * torch.randn(n, 3, 8, 8, generator=generator)
    return ImageSet(images.contiguous(), labels, tuple(map(str, range(n))), ("horizontal", "vertical"), (0.0,) * 3, (1.0,) * 3)


def small_net():
    torch.manual_seed(0)
    features = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


RECIPE = Recipe(epochs=3, batch_size=16, lr=0.1, padding=1)


def test_a_small_net_learns(tmp_path):
    net = small_net()
    log = train_classifier(net, [(stripes(128, 0), 2)], stripes(64, 1), RECIPE, show_progress=False)
    assert [row["epoch"] for row in log] == [1, 2, 3]
    assert log[-1]["val_accuracy"] == accuracy(net, stripes(64, 1)) > 0.9
    assert not net.training


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path):
    whole, resumed = small_net(), small_net()
    sets, val = [(stripes(64, 0), 1), (stripes(32, 2), 2)], stripes(32, 1)
    log = train_classifier(whole, sets, val, RECIPE, show_progress=False)
    state, calls = tmp_path / "run.state", []

    def stop_in_the_second_epoch(module, inputs):
        calls.append(1)
        if len(calls) == 14:
            raise KeyboardInterrupt

    hook = resumed.register_forward_pre_hook(stop_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(resumed, sets, val, RECIPE, state_path=state, show_progress=False)
    hook.remove()
    again = train_classifier(resumed, sets, val, RECIPE, state_path=state, show_progress=False)
    assert [row["loss"] for row in again] == [row["loss"] for row in log]
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))


def test_a_state_that_cannot_be_gone_on_from_is_named(tmp_path):
    state, train = tmp_path / "run.state", [(stripes(64, 0), 1)]
    train_classifier(small_net(), train, stripes(8, 1), RECIPE, state_path=state, show_progress=False)
    with pytest.raises(ValueError, match=rf"{state}: expected the weights of a Linear .* got others"):
        train_classifier(nn.Linear(1, 1), train, stripes(8, 1), RECIPE, state_path=state, show_progress=False)
    with pytest.raises(ValueError, match=rf"recipe: expected Recipe\(epochs=3.*, as in the .* training in {state}, got .*epochs=4"):
        train_classifier(small_net(), train, stripes(8, 1), replace(RECIPE, epochs=4), state_path=state, show_progress=False)


def test_batches_shift_and_flip_but_change_nothing_else():
    image = torch.arange(3 * 8 * 8.0).view(1, 3, 8, 8)
    images, labels, order = image.repeat(16, 1, 1, 1), torch.arange(16), torch.arange(16)
    generator = torch.Generator().manual_seed(0)
    ((batch, target),) = _batches(images, labels, order, Recipe(batch_size=16, padding=2), generator)
    assert sorted(target.tolist()) == list(range(16))
    padded = nn.functional.pad(image, (2,) * 4, mode="reflect")[0]
    windows = [padded[:, i : i + 8, j : j + 8] for i in range(5) for j in range(5)]
    for seen in batch:
        assert any(torch.equal(seen, w) or torch.equal(seen, w.flip(2)) for w in windows)
    assert len({tuple(seen.flatten().tolist()) for seen in batch}) > 8


def test_unlabelled_images_are_refused():
    images = stripes(4, 0)
    unlabelled = replace(images, labels=images.labels - 2)
    with pytest.raises(ValueError, match="sets: expected at least one set of images, all of them labelled"):
        train_classifier(small_net(), [(unlabelled, 1)], images, RECIPE)
