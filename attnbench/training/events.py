"""TensorBoard: curves of a training run as event files, written by torch's own writer."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from attnbench.errors import UsageError
from attnbench.training.watching import Step

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def expect_tensorboard() -> None:
    """Raises a `UsageError` where events cannot be written, without importing what writes them."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError(
            "--tensorboard: expected the package tensorboard, got none: pip install 'attnbench[tensorboard]'"
        )


class Events:
    """Event files of one training run.

    Args:
        folder: folder of all runs.
        name: name of this one; where it is taken, a number is added, so that curves of two runs never mix.

    Raises:
        UsageError: if tensorboard is not installed, or the folder cannot be written.
    """

    def __init__(self, folder: str | Path, name: str) -> None:
        expect_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        try:
            self.folder = _make_folder(Path(folder), name)
        except OSError as error:
            raise UsageError(
                f"--tensorboard: expected a folder that can be written, got {str(folder)!r} ({error.strerror})"
            ) from error
        self._writer: SummaryWriter = SummaryWriter(str(self.folder))

    def __call__(self, step: Step) -> None:
        """Writes loss, learning rate, images per second and the share of waiting of one iteration."""
        seconds = max(step.step_s, 1e-9)
        self._write(
            step.iteration,
            {
                "training/loss": step.loss,
                "training/learning_rate": step.learning_rate,
                "training/images_per_s": step.images / seconds,
                "training/data_wait_share": step.waited_s / seconds,
            },
        )

    def scores(self, iteration: int, scores: Mapping[str, float]) -> None:
        """Writes the scores of one evaluation, such as `{"miou": 0.7}`."""
        self._write(iteration, {f"scores/{name}": value for name, value in scores.items()})

    def _write(self, iteration: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, iteration)

    def close(self) -> None:
        """Writes what waits, and closes the files."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _make_folder(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    own, number = folder / name, 1
    while True:
        try:
            own.mkdir()
        except FileExistsError:
            number += 1
            own = folder / f"{name}-{number}"
        else:
            return own
