"""``prunesampler condense``: a few synthetic images of each class."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunesampler.cli.console import write_json
from prunesampler.cli.options import Json, MethodOptions, Quiet, Seed, method_options
from prunesampler.errors import ArgumentError, CorruptFileError, MismatchError, StateError, check_int, missing

if TYPE_CHECKING:
    from torch import Tensor

_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff")


def condense(
    source: Annotated[
        str, typer.Argument(help="A folder with one of images a class, a Parquet file of images, or tar shards.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.", show_default=False)],
    images_per_class: Annotated[int, typer.Option("--images-per-class", "-n", help="How many.")] = 10,
    method: Annotated[str, typer.Option(help="dm, dc, dsa, idm or cafe.")] = "dm",
    network: Annotated[str, typer.Option(help="convnet, mlp or resnet18.")] = "convnet",
    width: Annotated[int | None, typer.Option(help="Of the network.", show_default="the network's own")] = None,
    augment: Annotated[str, typer.Option(help="dsa, none, or kinds as crop_scale.")] = "auto",
    iterations: Annotated[int | None, typer.Option(help="How many.", show_default="as published")] = None,
    init: Annotated[str, typer.Option(help="real, noise, herding or k_center.")] = "auto",
    learning_rate: Annotated[float | None, typer.Option(help="Of the images.", show_default="as published")] = None,
    size: Annotated[int | None, typer.Option(help="Scale every image to so many pixels a side.")] = None,
    option: MethodOptions = [],  # noqa: B006
    evaluate: Annotated[str | None, typer.Option(help="Test images, for networks trained on the result.")] = None,
    networks: Annotated[str, typer.Option(help="To evaluate on, separated by commas.")] = "convnet",
    epochs: Annotated[int | None, typer.Option(help="Of each evaluation.", show_default="as published")] = None,
    seeds: Annotated[int, typer.Option(help="Networks of each evaluation.")] = 3,
    seed: Seed = 0,
    device: Annotated[str | None, typer.Option(help="Where to work.", show_default="a GPU if there is one")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run into this folder was killed.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a few synthetic images of each class that a network can be trained on in the place of all.

    Writes condensed.parquet, and grids of the images as they change, into a folder.
    """
    from prunesampler.condensation import condense as condense_images
    from prunesampler.condensation import evaluate as evaluate_images
    from prunesampler.condensation.evaluate import table

    options = None if width is None else {"width": width}
    train = _images(source, size, "source")
    test = None if evaluate is None else _images(evaluate, size, "evaluate")
    if test is not None and test[0].shape[1:] != train[0].shape[1:]:
        rule = f"must be images of {tuple(train[0].shape[1:])}, as the source's"
        raise ArgumentError("evaluate", rule, f"{tuple(test[0].shape[1:])}")
    dataset = condense_images(
        train,
        images_per_class,
        method,
        network=network,
        augment=augment,
        iterations=iterations,
        init=init,
        learning_rate=learning_rate,
        seed=seed,
        device=device,
        save_dir=out,
        resume=resume,
        progress=not quiet,
        network_options=options,
        method_options=method_options(option),
    )
    results = []
    if test is not None:
        given: dict[str, Any] = {"seeds": seeds, "epochs": epochs, "device": device, "progress": not quiet}
        names = [name.strip() for name in networks.split(",")]
        results = evaluate_images(dataset, test, train=train, network=names, network_options=options, **given)
    path = out / "condensed.parquet"
    if json:
        figures = [each._asdict() | {"mean": each.mean, "spread": each.spread} for each in results]
        write_json({"images": len(dataset), "digest": dataset.digest, "out": str(path), "evaluation": figures})
        return
    if results:
        typer.echo(f"accuracy in percent, mean ± deviation of {seeds} networks\n\n{table(results)}\n")
    typer.echo(f"{len(dataset):,} images, written to {path}")


def _images(source: str, size: int | None, name: str) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) uint8 images, grey only if all are, and (N,) labels."""
    import numpy as np
    import torch

    try:
        from PIL import Image
    except ImportError as error:
        raise missing("vision", error) from error

    found: list[Any] = []
    labels = []
    for where, encoded, label in _encoded(source, name):
        try:
            with Image.open(io.BytesIO(encoded)) as file:
                image: Any = file.convert("L" if file.mode in ("1", "L", "I", "I;16") else "RGB")
                if size is not None:
                    image = image.resize((check_int("size", size, 2),) * 2, Image.Resampling.BILINEAR)
        except (OSError, ValueError, TypeError) as error:
            raise ArgumentError(name, f"must hold images ({where}: {error})", source) from error
        if found and image.size != found[0].size:
            rule = f"must hold images of one size, or --size be given ({where} is {image.size}, not {found[0].size})"
            raise ArgumentError(name, rule, source)
        found.append(image)
        labels.append(label)
    if not found:
        raise ArgumentError(name, "must be a folder with one of images a class, a Parquet file or tar shards", source)
    mode = "L" if all(image.mode == "L" for image in found) else "RGB"
    pixels = np.stack([np.asarray(image.convert(mode)).reshape(image.height, image.width, -1) for image in found])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor(labels)


def _encoded(source: str, name: str) -> Iterable[tuple[str, Any, int]]:
    """Where each image stands, its file, and its label."""
    path = Path(source)
    if path.is_dir():
        return _of_folder(path)
    if path.suffix == ".parquet":
        from prunesampler.tables.parquet import kind_of

        try:
            kind = kind_of(path)
        except CorruptFileError:  # none of ours
            return _of_parquet(path, name)
        if kind != "shards":
            raise MismatchError(f"{path} holds {kind!r}, not images")
    return _of_shards(source)


def _of_folder(folder: Path) -> Iterator[tuple[str, bytes, int]]:
    classes = sorted(each for each in folder.iterdir() if each.is_dir())
    for label, each in enumerate(classes):
        for file in sorted(path for path in each.rglob("*") if path.suffix.lower() in _EXTENSIONS):
            yield str(file), file.read_bytes(), label


def _of_parquet(path: Path, name: str) -> Iterator[tuple[str, Any, int]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise CorruptFileError(f"{path} is damaged: {error}") from error
    if not {"image", "label"} <= set(table.column_names):
        raise ArgumentError(name, "must have the columns image (encoded bytes) and label", str(path))
    rows = zip(table["image"], table["label"].to_pylist(), strict=True)
    for row, (image, label) in enumerate(rows):
        value = image.as_py()
        if not isinstance(label, int):
            raise ArgumentError(name, f"must have class indices as label (row {row})", label)
        yield f"row {row}", value.get("bytes") if isinstance(value, dict) else value, label


def _of_shards(source: str) -> Iterator[tuple[str, bytes, int]]:
    from prunesampler.shards.build import build_index
    from prunesampler.shards.dataset import IndexedShards
    from prunesampler.shards.index import ShardIndex

    index = ShardIndex.load(source) if source.endswith(".parquet") else build_index([source], progress=False)
    labels = index.labels
    if labels is None or bool((labels < 0).any()):
        raise StateError(f"{source} has samples without a class: files such as 000000.cls")
    dataset = IndexedShards(index)
    for row, label in enumerate(labels.tolist()):
        sample = dataset[row]
        files = [value for extension, value in sample.items() if f".{extension}" in _EXTENSIONS]
        yield str(sample["__key__"]), files[0] if files else b"", label
