"""What condensed images are worth: networks trained on them, beside as many real ones."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from prunesampler._format import text_table
from prunesampler._random import mix
from prunesampler.condensation.augment import augment, draw
from prunesampler.condensation.condense import trained_features
from prunesampler.condensation.dataset import CondensedDataset
from prunesampler.condensation.networks import Network, check_network, new_network
from prunesampler.condensation.objective import seeded, train_step
from prunesampler.condensation.source import CORESETS, check_classes, choose_rows, read_images
from prunesampler.errors import ArgumentError, check_choice, check_int
from prunesampler.tracking.inputs import torch_device

BESIDE = (*CORESETS, "all")


class Result(NamedTuple):
    """The accuracies of networks trained on one set of images.

    Attributes:
        images: ``"condensed"``, or one of :data:`BESIDE`.
        network: its name.
        accuracies: (S,) in [0, 1], one a seed.
    """

    images: str
    network: str
    accuracies: list[float]

    @property
    def mean(self) -> float:
        """Of the accuracies."""
        return statistics.fmean(self.accuracies)

    @property
    def spread(self) -> float:
        """Their standard deviation; 0 of a single one."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


def evaluate(
    dataset: CondensedDataset,
    test: Any,
    *,
    train: Any = None,
    beside: Sequence[str] = CORESETS,
    network: Network | Sequence[Network] = "convnet",
    seeds: int = 5,
    epochs: int | None = None,
    device: torch.device | str | int | None = None,
    progress: bool = True,
    network_options: dict[str, Any] | None = None,
) -> list[Result]:
    """Train fresh networks on the condensed images, and on as many real ones, and test them on images never seen.

    As published (Zhao and Bilen 2021): SGD with rate 0.01, × 0.1 halfway, momentum 0.9, weight decay 5e-4 and batches
    of 256, 300 epochs, or 1,000 where the images were made with augmentation, which then goes on here, for all sets
    alike.

    Args:
        dataset: the condensed images.
        test: real images to test on, as ``source`` of :func:`~prunesampler.condensation.condense`.
        train: the real images that they were made of; None trains on the condensed ones alone.
        beside: sets of real images, as many of each class as there are condensed ones: ``"random"`` ones (others for
            each seed), those by ``"herding"`` and by ``"k_center"``, chosen as for ``init`` of ``condense`` by the
            first network; or ``"all"``.
        network: one or several, as of ``condense``, for images must serve networks that they were not made for too.
        seeds: how many networks are trained on each set.
        epochs: over each set; by default as published.
        device: by default the GPU if there is one.
        progress: show a bar.
        network_options: of each of them.

    Raises:
        ArgumentError: an argument breaks its rule; images are of another shape, or classes others.

    >>> dataset = CondensedDataset(torch.rand(4, 1, 8, 8), [0, 0, 1, 1], mean=[0.5], std=[0.3])
    >>> test = torch.rand(6, 1, 8, 8), torch.tensor([0, 1] * 3)
    >>> [result] = evaluate(dataset, test, network="mlp", epochs=2, seeds=2, progress=False)
    >>> result.images, len(result.accuracies)
    ('condensed', 2)
    """
    networks = [network] if isinstance(network, str) or callable(network) else list(network)
    seeds, options = check_int("seeds", seeds, 1), network_options or {}
    epochs = check_int("epochs", (1000 if dataset.kinds else 300) if epochs is None else epochs, 1)
    for name in beside:
        check_choice("beside", name, BESIDE)
    where = torch_device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
    shape: Any = tuple(dataset.images.shape[1:])
    classes = int(dataset.labels.max()) + 1
    given = {"test": read_images(test, "test")}
    if train is not None:
        given["train"] = read_images(train, "train")
    for name, (images, labels) in given.items():
        if tuple(images.shape[1:]) != shape or int(labels.max()) >= classes:
            found = f"images of {tuple(images.shape[1:])} and labels up to {int(labels.max())}"
            raise ArgumentError(name, f"must be images of {shape} with labels below {classes}, as condensed", found)
        given[name] = dataset.normalization.apply(images).to(where), labels
    condensed = dataset.normalization.apply(dataset.images).to(where), dataset.labels

    def make(network: Network, number: int) -> nn.Module:
        return new_network(network, shape, classes, number, **options).to(where)

    for each in networks:
        check_network(make(each, 0).cpu(), shape, classes)
    sets = {"condensed": [condensed] * seeds}
    if train is not None:
        images, labels = given["train"]
        per_class = len(dataset.stored) // classes
        check_classes(labels, per_class)
        sets |= _sets(beside, images, labels, per_class, seeds, functools.partial(make, networks[0]))
    results = []
    with tqdm(total=len(networks) * len(sets) * seeds, desc="evaluate", disable=not progress or None) as bar:
        for each in networks:
            for name, of_seeds in sets.items():
                accuracies = []
                for seed, (images, labels) in enumerate(of_seeds):
                    model = make(each, mix(7, seed))
                    train_network(model, images, labels.to(where), epochs, dataset.kinds, seed)
                    accuracies.append(accuracy(model, *given["test"]))
                    bar.update()
                results.append(Result(name, each if isinstance(each, str) else each.__qualname__, accuracies))
    return results


def train_network(
    network: nn.Module, images: Tensor, labels: Tensor, epochs: int, kinds: tuple[str, ...] = (), seed: int = 0
) -> None:
    """The published training, on normalized images; see :func:`evaluate`."""
    optimizer = torch.optim.SGD(network.train().parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [epochs // 2 + 1])
    rng = seeded(8, seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=rng).split(256):
            train_step(network, optimizer, augment(images[rows], draw(kinds, rng, len(rows))), labels[rows])
        schedule.step()


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of right answers."""
    network.eval()
    answers = torch.cat([network(part).argmax(1) for part in images.split(512)])
    return float((answers.cpu() == labels).double().mean())


def table(results: Sequence[Result]) -> str:
    """Results for a terminal: accuracy in percent ± its standard deviation over the seeds.

    >>> print(table([Result("condensed", "mlp", [0.5, 0.6])]))
       images         mlp
    condensed  55.0 ± 7.1
    """
    networks = list(dict.fromkeys(each.network for each in results))
    found = {(each.images, each.network): f"{100 * each.mean:.1f} ± {100 * each.spread:.1f}" for each in results}
    names = list(dict.fromkeys(each.images for each in results))
    return text_table(["images", *networks], [[name, *(found[name, each] for each in networks)] for name in names])


def _sets(
    names: Sequence[str], images: Tensor, labels: Tensor, per_class: int, seeds: int, make: Callable[[int], nn.Module]
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """The real images of each name, for each seed."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    for seed in range(seeds):
        by_features = {"herding", "k_center"} & found.keys()
        features = trained_features(make(mix(9, seed)), images, labels, seed) if by_features else None
        for name, sets in found.items():
            if name == "all":
                sets.append((images, labels))
                continue
            rows = torch.cat(choose_rows(labels, per_class, name, mix(10, seed), features))
            sets.append((images[rows.to(images.device)], labels[rows]))
    return found
