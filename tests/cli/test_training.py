from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import RandomSampler

from prunesampler.cli.training import (
    Images,
    Recipe,
    accuracies,
    digits_network,
    fast_precision,
    load_cifar10,
    load_digits,
    loader,
    new_model,
    one_cycle,
    small,
    train,
)
from prunesampler.errors import UnsupportedError
from prunesampler.tables.fingerprint import fingerprint
from tests.helpers.pictures import pictures, write_parquet

DIGITS = Recipe(digits_network, 64, precision=torch.float32)


def pixels(images: Images, rows: list[int]) -> torch.Tensor:
    """A batch as it was before it was normalized: (B, C, H, W) uint8."""
    inputs = images.__getitems__(rows)[0].permute(0, 2, 3, 1)
    return (inputs * images.std + images.mean).round().byte().permute(0, 3, 1, 2)


def test_digits_are_split_alike_every_time_and_by_class() -> None:
    (train, test), (again, _) = load_digits(), load_digits()
    assert torch.equal(train.padded, again.padded)
    assert (len(train), len(test)) == (1347, 450)
    shares = [torch.bincount(part.targets) / len(part) for part in (train, test)]
    assert (shares[0] - shares[1]).abs().max() < 0.003
    known = {image.numpy().tobytes() for image in train.padded}
    assert len({image.numpy().tobytes() for image in test.padded} - known) > 440
    inputs = train.__getitems__([0, 1])[0]
    assert (inputs.min(), inputs.max()) == (-2, 2)


def test_both_parts_of_cifar10_are_read(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    train, test = load_cifar10(tmp_path, rows=150, quiet=True)
    assert torch.equal(pixels(train, list(range(150))), pictures(300, 300)[:150])
    assert torch.equal(pixels(test, list(range(120))), pictures(120, 120))


def test_a_batch_is_its_samples() -> None:
    images = Images.of(pictures(5), torch.arange(5))
    inputs, targets = images.__getitems__([3, 0])
    for place, row in enumerate([3, 0]):
        alone, target = images[row]
        assert torch.equal(inputs[place], alone)
        assert targets[place] == target == row
    assert torch.equal(pixels(images.subset(slice(2)), [1]), pictures(5)[1:2])
    assert torch.equal(pixels(images.subset(torch.tensor([4, 2])), [0]), pictures(5)[4:])


def test_augmented_images_are_crops_of_the_reflected_image_or_its_mirror_image() -> None:
    augmented = Images.of(pictures(4), torch.arange(4)).augmented(0)
    whole = nn.functional.pad(pictures(4).float(), (4,) * 4, mode="reflect").byte()
    possible = []
    for image in whole:
        crops = [image[:, i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
        possible.append({each.contiguous().numpy().tobytes() for crop in crops for each in (crop, crop.flip(-1))})
    made: list[set[bytes]] = [set() for _ in range(4)]
    for _ in range(50):
        for row, image in zip([2, 0, 3, 1], pixels(augmented, [2, 0, 3, 1]), strict=True):
            made[row].add(image.contiguous().numpy().tobytes())
    assert all(found <= allowed for found, allowed in zip(made, possible, strict=True))
    assert all(len(found) > 30 for found in made)


def test_augmentation_and_order_depend_on_their_seeds_alone() -> None:
    images = Images.of(pictures(10), torch.arange(10))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (pixels(images.augmented(seed), [0, 1, 2]) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert fingerprint(images.augmented(7)) == fingerprint(images)

    def order(seed: int) -> list[int]:
        batches = loader(images, RandomSampler(images, generator=torch.Generator().manual_seed(seed)), 4)
        return [int(target) for _, targets in batches for target in targets]

    assert order(3) == order(3) != order(4)
    assert len(set(order(3))) == 8  # the last, smaller batch is left out
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("network", [digits_network, small])
def test_a_model_depends_on_its_seed_alone(network: object) -> None:
    images = load_digits()[0] if network is digits_network else Images.of(pictures(32), torch.arange(32) % 10)
    before = torch.get_rng_state()
    models = [new_model(network, seed, images) for seed in (0, 0, 1)]  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    logits = models[0](images.__getitems__([0, 1])[0])
    assert logits.shape == (2, 10)
    logits.sum().backward()
    assert all(p.grad is not None for p in models[0].parameters() if p.requires_grad)


def test_training_takes_the_steps_it_is_given_and_learns() -> None:
    images, test = load_digits()
    model = new_model(digits_network, 0, images)
    order = RandomSampler(images, generator=torch.Generator().manual_seed(0))
    untrained = accuracies(model, test, DIGITS)[0]
    done: list[int] = []
    assert train(model, loader(images, order, 64), DIGITS, 50, progress=lambda: done.append(1)) > 0
    assert len(done) == 50
    accuracy, by_class = accuracies(model, test, DIGITS)
    assert untrained < 0.3 < 0.9 < accuracy <= 1
    assert 0 <= min(by_class) <= accuracy


def test_a_part_of_a_schedule_is_its_beginning() -> None:
    def trained(steps: int, of: int | None) -> float:
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
        nn.init.zeros_(model[1].weight)
        nn.init.zeros_(model[1].bias)
        images = Images.of(pictures(4), torch.arange(4) % 2)
        train(model, loader(images, range(4), 4), Recipe(small, 4, precision=torch.float32), steps, of=of)
        return float(model[1].weight.detach().abs().sum())

    assert trained(2, 100) < trained(2, None) / 2  # the rate rises slowly at the beginning of 100 steps


def test_accuracies_against_counting_by_hand() -> None:
    class Echo(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return nn.functional.one_hot((inputs[:, 0, 0, 0] * 4 + 8).round().long(), 5).float()

    answers = torch.tensor([0, 0, 1, 1, 1, 3], dtype=torch.uint8)[:, None, None, None].expand(6, 1, 8, 8)

    def found(*targets: int) -> tuple[float, list[float]]:
        return accuracies(Echo(), Images.of(answers, torch.tensor(targets), (8.0,), (4.0,)), DIGITS)

    assert found(0, 0, 1, 1, 0, 1) == (pytest.approx(4 / 6), pytest.approx([2 / 3, 2 / 3]))
    accuracy, by_class = found(0, 0, 4, 4, 1, 1)
    assert (accuracy, by_class) == (0.5, pytest.approx([1, 0.5, float("nan"), float("nan"), 0], nan_ok=True))


def test_the_schedule_rises_and_falls_to_nearly_nothing() -> None:
    rates = [one_cycle(step, 100) for step in range(100)]
    assert max(rates) == rates[25] == 1
    assert rates[-1] < 0.002
    assert rates == [*sorted(rates[:26]), *sorted(rates[26:], reverse=True)]


def test_bfloat16_only_where_it_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, precision in (("AVX2", torch.float32), ("AVX512", torch.bfloat16)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda found=capability: found)
        assert fast_precision("cpu") is precision
        assert fast_precision("cuda") is torch.bfloat16
    for recipe in (DIGITS, Recipe(small, 64)):
        with recipe.autocast(torch.device("cpu")):
            assert torch.is_autocast_enabled("cpu") == (recipe is not DIGITS)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'prunesampler\[demo\]'"):
        load_digits()
