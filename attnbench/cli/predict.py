"""`predict.py`: a coloured mask and an overlay for every image, from a trained checkpoint."""

from __future__ import annotations

import argparse
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.cli.arguments import Parser, amount
from attnbench.cli.checkpoint_options import NATIVE, add_operator, asked_size, register, size_or_native
from attnbench.cli.reading_options import add_reading, asked_reading
from attnbench.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from attnbench.config import Inference
    from attnbench.models.saved import Saved

PROG = "predict.py"
MASK, OVERLAY = ".mask.png", ".overlay"
_JPEG = (".jpg", ".jpeg")
_PHOTOGRAPHS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Formats, as pillow names them, of what is taken from a folder: a PDF or a film beside the images is none."""
_EPILOG = """\
examples:
  python scripts/predict.py --checkpoint ema.safetensors street.jpg
  python scripts/predict.py --checkpoint ema.safetensors photos/ --output masks
  python scripts/predict.py --checkpoint ccnet_r50-d8.pth large.png --slide 769x769 --flip

For each image NAME.mask.png has the number of the class of each pixel, and its colour as palette, and NAME.overlay.jpg
(.png where the image is no JPEG) the image with the colours over it. Both are upright and as large as the image.
"""


def _opacity(text: str) -> float:
    value = amount(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def _parser() -> Parser:
    parser = Parser(PROG, "Segment images with a trained checkpoint, ours or mmsegmentation's.", _EPILOG)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="images, or folders of images")
    parser.add_argument("--checkpoint", required=True, type=Path, metavar="FILE", help="the checkpoint file")
    add_operator(parser)
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: beside each image)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument(
        "--opacity", type=_opacity, default=0.5, metavar="X", help="share of the colours in the overlay (default: 0.5)"
    )
    parser.add_argument(
        "--image-size",
        type=size_or_native,
        metavar="HxW",
        help=f"fit images into this size before they are read, or {NATIVE!r} for as they are "
        "(default: the size of the images that the network was trained on, where the file says)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    add_reading(parser)
    return parser


@dataclass(frozen=True)
class _Job:
    image: Path
    mask: Path
    overlay: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes mask and overlay of every image that the command line names; returns the exit code."""
    parsed = _parser().parse(arguments)
    logging.basicConfig(level=logging.WARNING, format=f"{PROG}: %(message)s")
    jobs = _jobs(_found(parsed.images), parsed.output, overwrite=parsed.overwrite)

    from attnbench.data.folder import voc_colours
    from attnbench.data.photos import LARGEST_PALETTE
    from attnbench.models.saved import load_any
    from attnbench.planning import resolve_device

    device = resolve_device(parsed.device)
    register(parsed.operator)
    saved = load_any(parsed.checkpoint)
    if not 2 <= saved.num_classes <= LARGEST_PALETTE:
        raise UsageError(
            f"checkpoint {str(parsed.checkpoint)!r}: expected 2 to {LARGEST_PALETTE} classes with a logit each, "
            f"got {saved.num_classes}"
        )
    inference = asked_reading(parsed, saved.inference)
    wanted = asked_size(parsed.image_size, saved.image_size)
    classes = saved.classes or tuple(f"class {label}" for label in range(saved.num_classes))
    palette = saved.palette or voc_colours(saved.num_classes)
    saved.model.to(device)
    for job in jobs:
        labels = _predict_file(job, saved, inference, wanted, device, palette, parsed.opacity)
        print(f"{job.image} ({labels.shape[1]}x{labels.shape[0]}): {job.mask}, {job.overlay}")
        for name, share in shares(labels, classes):
            print(f"  {100 * share:5.1f} %  {name}")
    return 0


def _found(paths: Sequence[Path]) -> list[Path]:
    """The images that were named, those of a folder in the order of their names; their headers have been read."""
    from PIL import Image

    from attnbench.data.photos import check_photo

    known = {ending for ending, kind in Image.registered_extensions().items() if kind in _PHOTOGRAPHS}
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = [file for file in sorted(path.iterdir()) if file.suffix.lower() in known and not _written_here(file)]
        if not inside:
            raise UsageError(f"folder {str(path)!r}: expected images, got none")
        found += inside
    for path in found:
        check_photo(path)
    return found


def _written_here(file: Path) -> bool:
    return file.name.endswith(MASK) or file.stem.endswith(OVERLAY) or file.name.startswith(".")


def _jobs(images: Sequence[Path], output: Path | None, *, overwrite: bool) -> list[_Job]:
    """What is written for each image; no two write one file, and none is replaced unasked."""
    jobs: list[_Job] = []
    owners: dict[Path, Path] = {}
    for image in dict.fromkeys(images):
        folder = output or image.parent
        suffix = ".jpg" if image.suffix.lower() in _JPEG else ".png"
        job = _Job(image, folder / f"{image.stem}{MASK}", folder / f"{image.stem}{OVERLAY}{suffix}")
        for path in (job.mask, job.overlay):
            other = owners.setdefault(path, image)
            if other != image:
                raise UsageError(
                    f"image {str(image)!r}: expected a name of its own, got that of {str(other)!r}: both would be "
                    f"written as {str(path)!r}"
                )
            if path.exists() and not overwrite:
                raise UsageError(f"{str(path)!r}: expected no such file, got one; --overwrite replaces it")
        jobs.append(job)
    return jobs


def _predict_file(
    job: _Job,
    saved: Saved,
    inference: Inference,
    wanted: tuple[int, int] | None,
    device: str,
    palette: Sequence[Sequence[int]],
    opacity: float,
) -> NDArray[np.uint8]:
    from attnbench.atomic import write_atomically
    from attnbench.data.photos import overlay, palette_mask, read_photo
    from attnbench.faults import failure

    photo = read_photo(job.image)
    try:
        labels = predict(saved, photo, inference, wanted, device)
    except (RuntimeError, MemoryError, ValueError) as error:
        status, reason = failure(error)
        hint = "; read it in windows (--slide 512x512) or smaller (--image-size)" if status == "out_of_memory" else ""
        raise UsageError(
            f"image {str(job.image)!r}: expected a network that can read it, got {reason}{hint}"
        ) from error
    mask, over = palette_mask(labels, palette), overlay(photo, labels, palette, opacity)
    for path, picture in ((job.mask, mask), (job.overlay, over)):
        write_atomically(path, _encoded(picture, path))
    return labels


def _encoded(picture: Image.Image, path: Path) -> bytes:
    data = io.BytesIO()
    if path.suffix == ".jpg":
        picture.save(data, "JPEG", quality=95)
    else:
        picture.save(data, "PNG")
    return data.getvalue()


def predict(
    saved: Saved, photo: Image.Image, inference: Inference, wanted: tuple[int, int] | None, device: str
) -> NDArray[np.uint8]:
    """Class of every pixel of an RGB image.

    Args:
        saved: the network, on `device`.
        photo: the image.
        inference: how it is read.
        wanted: height and width that the image is fitted into before it is read; none reads it as it is.
        device: where the network runs.
    """
    import numpy as np
    import torch
    import torch.nn.functional as F

    from attnbench.data.base import IMAGENET_MEAN, IMAGENET_STD, image_tensor
    from attnbench.data.photos import fitted
    from attnbench.data.transforms import normalise
    from attnbench.evaluation import segment
    from attnbench.metrics import classes_of

    read = photo if wanted is None else fitted(photo, wanted)
    image = normalise(image_tensor(read), saved.mean or IMAGENET_MEAN, saved.std or IMAGENET_STD)
    with torch.inference_mode():
        scores = segment(saved.model, image[None].to(device), inference)
        if read.size != photo.size:
            scores = F.interpolate(scores.float(), photo.size[::-1], mode="bilinear", align_corners=False)
        return classes_of(scores)[0].cpu().numpy().astype(np.uint8)


def shares(labels: NDArray[np.uint8], classes: Sequence[str]) -> list[tuple[str, float]]:
    """Name and share of the pixels of each class that occurs, the largest first.

    Example:
        >>> import numpy as np
        >>> shares(np.array([[1, 1], [1, 0]], np.uint8), ["sky", "road", "tree"])
        [('road', 0.75), ('sky', 0.25)]
    """
    import numpy as np

    counts = np.bincount(labels.ravel(), minlength=len(classes))
    order = sorted(range(len(classes)), key=lambda label: -counts[label])
    return [(classes[label], float(counts[label] / labels.size)) for label in order if counts[label]]
