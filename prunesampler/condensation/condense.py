"""The loop: a few synthetic images a class, moved until a network makes of them what it makes of the real ones."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from prunesampler._random import mix
from prunesampler.condensation.augment import kinds_of
from prunesampler.condensation.cafe import CAFE
from prunesampler.condensation.dataset import CondensedDataset
from prunesampler.condensation.dc import DC
from prunesampler.condensation.dm import DM
from prunesampler.condensation.dsa import DSA
from prunesampler.condensation.idm import IDM
from prunesampler.condensation.networks import Network, check_network, new_network
from prunesampler.condensation.objective import Objective, Task, contract, seeded, stacked, train_step
from prunesampler.condensation.png import grid
from prunesampler.condensation.source import CORESETS, Normalization, check_classes, choose_rows, read_images
from prunesampler.errors import ArgumentError, CorruptFileError, StateError, check_choice, check_int, check_number
from prunesampler.tables.atomic import atomic_write, naming
from prunesampler.tables.coreset import Coreset
from prunesampler.tracking.inputs import torch_device

METHODS: dict[str, Callable[..., Objective]] = {
    "dm": lambda per_class, **options: DM(**options),
    "dc": DC,
    "dsa": DSA,
    "idm": lambda per_class, **options: IDM(**options),
    "cafe": lambda per_class, **options: CAFE(**options),
}
INITS = ("real", "noise", *CORESETS[1:])
_MOMENTUM = 0.5
_FILES = ("state.pt", "condensed.parquet")


def condense(
    source: Any,
    images_per_class: int = 10,
    method: str = "dm",
    *,
    network: Network = "convnet",
    augment: str | Iterable[str] | None = "auto",
    iterations: int | None = None,
    init: str | Coreset = "auto",
    learning_rate: float | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    device: torch.device | str | int | None = None,
    save_dir: str | os.PathLike[str] | None = None,
    save_every: int | None = None,
    resume: bool = False,
    progress: bool = True,
    network_options: Mapping[str, Any] | None = None,
    method_options: Mapping[str, Any] | None = None,
) -> CondensedDataset:
    """Make a few synthetic images of each class, on which a network learns what it would from all the real ones.

    Methods:

    - ``"dm"``: mean embeddings of fresh networks (Zhao and Bilen 2023).
    - ``"dc"``: gradients of a network that is trained on the images meanwhile (Zhao, Mopuri and Bilen 2021); options
      ``outer`` and ``inner``, its loops.
    - ``"dsa"``: the same under augmentation (Zhao and Bilen 2021), from real images on; options as of ``"dc"``.
    - ``"idm"``: ``"dm"`` by a queue of partly trained networks, with cross entropy; each image holds four of half the
      height and width, so that there are four times as many to train on (Zhao et al. 2023); options ``queue``, the
      most networks in it, and ``steps`` of their training.
    - ``"cafe"``: mean features of every layer, and how well the images' centres tell real ones apart (Wang et al.
      2022); options ``window`` and ``most``, which end its loops.

    Args:
        source: a DataLoader, a map-style dataset of (image, label), or a pair of tensors; it is read once, and held in
            memory. Images are (C, H, W), floats or uint8, of one size and best without augmentation; labels are class
            indices.
        images_per_class: an int >= 1.
        method: as above.
        network: ``"convnet"``, ``"mlp"``, ``"resnet18"``, or a function of an image's shape and the number of classes
            to a :class:`~prunesampler.condensation.Blocks`.
        augment: what real and synthetic images alike go through at each step: ``"auto"``, what the method's source
            does; ``"dsa"``, any of ``color``, ``crop``, ``cutout``, ``flip``, ``scale`` and ``rotate``; some of these,
            as ``"crop_scale"``, or None. Leave ``flip`` out where left and right mean something, as in digits.
        iterations: by default as published: 1,000 for ``dc`` and ``dsa``, 2,000 for ``cafe``, 20,000 for the others.
        init: ``"auto"``, what the method's source does; ``"real"``, random images; ``"noise"``; ``"herding"`` or
            ``"k_center"``, chosen by the embedding of a network that was trained on the real images for a moment; or
            a coreset of the source, whose first rows of each class are taken.
        learning_rate: of the images; by default as published. They are normalized, and have momentum 0.5.
        batch_size: how many real images of each class a step looks at; by default 256.
        seed: an int >= 0. The same seed gives the same images, on the same machine.
        device: where it is done; by default the GPU if there is one.
        save_dir: a folder for ``condensed.parquet``, for grids of the images at the start, the end and in between, and
            for what a killed run needs to go on.
        save_every: iterations between two such grids and states; by default a tenth of all.
        resume: go on where the run in ``save_dir`` was killed, if there was one; the images come out as without the
            interruption. A finished run is read.
        progress: show a bar with the loss, and the mean step of a pixel.
        network_options: of the named network, such as ``{"width": 64, "norm": "batch"}``.
        method_options: of the method.

    Returns:
        The images, class by class.

    Raises:
        ArgumentError: an argument breaks its rule, there are fewer images of a class than asked for, or a network that
            cannot take them.
        WriteError: an ``OSError``: ``save_dir`` cannot be written.
        StateError: ``save_dir`` is occupied, or its run had other options or data; the loss is no longer finite.
        CorruptFileError: the state of the killed run is damaged.

    >>> from prunesampler.condensation import condense
    >>> images, labels = torch.rand(40, 1, 8, 8), torch.arange(40) % 2
    >>> condense((images, labels), 2, iterations=3, network_options={"width": 8}, progress=False)
    CondensedDataset(images=4, classes=2, shape=(1, 8, 8))
    """
    check_choice("method", method, tuple(METHODS))
    check_int("images_per_class", images_per_class, 1)
    try:
        objective = METHODS[method](images_per_class, **(method_options or {}))
    except TypeError as error:
        raise ArgumentError("method_options", f"must be options of {method!r} ({error})", method_options) from error
    iterations = check_int("iterations", objective.iterations if iterations is None else iterations, 1)
    if learning_rate is not None:
        objective.rate = check_number("learning_rate", learning_rate, 0, above=True)
    batch = check_int("batch_size", objective.batch if batch_size is None else batch_size, 1)
    every = check_int("save_every", max(1, iterations // 10) if save_every is None else save_every, 1)
    kinds = kinds_of(objective.augment if augment == "auto" else augment)
    start = objective.init if isinstance(init, str) and init == "auto" else init
    if not isinstance(start, Coreset):
        check_choice("init", start, INITS)
    where = torch_device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
    seed = check_int("seed", seed)

    images, labels = read_images(source)
    classes = check_classes(labels, images_per_class * (1 if start == "noise" else objective.parts**2))
    shape: Any = tuple(images.shape[1:])
    if any(side % objective.parts for side in shape[1:]):
        raise ArgumentError("source", f"must give images whose sides {objective.parts} divides", shape)
    options = dict(network_options or {})

    def make(number: int) -> nn.Module:
        return new_network(network, shape, classes, number, **options).to(where)

    check_network(make(0).cpu(), shape, classes)
    provenance = {
        "method": method,
        "images_per_class": images_per_class,
        "network": network if isinstance(network, str) else getattr(network, "__qualname__", repr(network)),
        "network_options": options,
        "method_options": dict(method_options or {}),
        "augment": list(kinds),
        "iterations": iterations,
        "init": start if isinstance(start, str) else f"coreset {start.digest}",
        "learning_rate": objective.rate,
        "batch_size": batch,
        "seed": seed,
        "source": f"sha256:{hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()}",
    }
    folder = None if save_dir is None else Path(os.path.abspath(save_dir))
    state = None if folder is None else _claimed(folder, resume, provenance)
    if isinstance(state, CondensedDataset):
        return state

    normalization = Normalization.of(images)
    low, high = float(images.min()), float(images.max())
    real = normalization.apply(images).to(where)
    first = _first_images(start, real, labels, images_per_class, objective.parts, make, seed)
    if folder is not None:
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
    by_class = [real[(labels == label).to(where)] for label in range(classes)]
    task = Task(by_class, first.requires_grad_(), make, kinds, seed, batch, objective.parts)
    optimizer = torch.optim.SGD([task.synthetic], objective.rate, momentum=_MOMENTUM)
    done = 0
    if state is not None:
        done = state["done"]
        with torch.no_grad():
            task.synthetic.copy_(state["images"])
        optimizer.load_state_dict(state["optimizer"])
        objective.load_state_dict(state["objective"], task)

    def result() -> CondensedDataset:
        found, targets = stacked([normalization.undo(each).cpu() for each in task.synthetic.detach()])
        mean, std = (each.flatten().tolist() for each in (normalization.mean, normalization.std))
        made: dict[str, Any] = {"augment": kinds, "parts": objective.parts, "provenance": provenance}
        return CondensedDataset(found, targets, mean=mean, std=std, **made)

    def save() -> None:
        if folder is None:
            return
        if shape[0] in (1, 3):
            with atomic_write(folder / f"images-{done:06d}.png") as file:
                file.write(grid(result().stored, images_per_class, low, high))
        kept = {"done": done, "images": task.synthetic.detach(), "optimizer": optimizer.state_dict()}
        with atomic_write(folder / _FILES[0]) as file:
            torch.save({**kept, "objective": objective.state_dict(), "provenance": provenance}, file)

    if not done:
        save()
    with tqdm(total=iterations, initial=done, desc=method, unit="it", disable=not progress or None) as bar:
        while done < iterations:
            optimizer.param_groups[0]["lr"] = objective.rate_at(done / iterations)
            loss, step = _iterate(objective, task, optimizer, done)
            if not math.isfinite(loss) or not math.isfinite(step):
                raise StateError(f"the loss is {loss} in iteration {done}: give a lower learning_rate")
            done += 1
            bar.set_postfix(loss=f"{loss:.4g}", step=f"{step:.2g}", refresh=False)
            bar.update()
            if done % every == 0 or done == iterations:
                save()
    dataset = result()
    if folder is not None:
        dataset.save(folder / _FILES[1])
        (folder / _FILES[0]).unlink()
    return dataset


def _iterate(objective: Objective, task: Task, optimizer: torch.optim.Optimizer, iteration: int) -> tuple[float, float]:
    """One iteration; its mean loss, and the root mean square of the images' last step."""
    losses: list[Tensor] = []
    before = task.synthetic.detach().clone()
    for update, network in enumerate(objective.networks(task, iteration)):
        real, synthetic = task.pairs(seeded(task.seed, 3, iteration, update))
        loss = objective.loss(network, real, synthetic)
        (task.synthetic.grad,) = torch.autograd.grad(loss, task.synthetic)
        before.copy_(task.synthetic.detach())
        optimizer.step()
        losses.append(loss.detach())
    step = (task.synthetic.detach() - before).square().mean().sqrt()
    return float(torch.stack(losses).mean()), float(step)


def _first_images(
    start: str | Coreset,
    real: Tensor,
    labels: Tensor,
    per_class: int,
    parts: int,
    make: Callable[[int], nn.Module],
    seed: int,
) -> Tensor:
    """(K, n, C, H, W) normalized images to begin with."""
    classes, count = int(labels.max()) + 1, per_class * parts**2
    if start == "noise":
        noise = torch.randn((classes, per_class, *real.shape[1:]), generator=seeded(seed, 0))
        return noise.to(real.device)
    if isinstance(start, Coreset):
        if start.num_rows != len(labels):
            raise ArgumentError("init", f"must be a coreset of the source's {len(labels)} rows", start)
        kept = torch.from_numpy(start.rows.copy())
        rows = [kept[labels[kept] == label][:count] for label in range(classes)]
        if short := [label for label, each in enumerate(rows) if len(each) < count]:
            raise ArgumentError("init", f"must hold {count} rows of each class; class {short[0]} has fewer", start)
    elif start == "real":
        rows = choose_rows(labels, count, "random", mix(seed, 0))
    else:
        features = trained_features(make(mix(seed, 5)), real, labels, seed)
        rows = choose_rows(labels, count, start, mix(seed, 0), features)
    return torch.stack([contract(real[each.to(real.device)], parts) for each in rows])


def trained_features(network: nn.Module, real: Tensor, labels: Tensor, seed: int, epochs: int = 5) -> Tensor:
    """(N, d) embeddings of normalized images, by a network that was trained on them for some epochs; on the CPU."""
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    rng, targets = seeded(seed, 6), labels.to(real.device)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=rng).split(64):
            train_step(network, optimizer, real[rows], targets[rows])
    with torch.no_grad():
        return torch.cat([network.eval().embed(part).cpu() for part in real.split(512)])  # type: ignore[operator]


def _claimed(folder: Path, resume: bool, provenance: dict[str, Any]) -> dict[str, Any] | CondensedDataset | None:
    """The state that a run in the folder goes on from, or its result; None where it starts."""
    held = [name for name in _FILES if (folder / name).exists()]
    if held and not resume:
        raise StateError(f"{folder} holds {held[-1]} already: give another save_dir, or resume=True to go on")
    if not held:
        return None
    found: Any
    if _FILES[1] in held:
        found = CondensedDataset.load(folder / _FILES[1])
        other = found.provenance
    else:
        try:
            found = torch.load(folder / _FILES[0], map_location="cpu", weights_only=True)
            other = found["provenance"]
        except Exception as error:
            raise CorruptFileError(f"{folder / _FILES[0]} is damaged or cut short: {error}") from error
    if changed := [name for name in provenance if other.get(name) != provenance[name]]:
        name = changed[0]
        raise StateError(
            f"{folder} holds a run with {name} {other.get(name)!r}, not {provenance[name]!r}: give another save_dir"
        )
    return found  # type: ignore[no-any-return]
