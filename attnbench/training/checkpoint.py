"""Checkpoints of a training run: whole or not there, complete, and of that run alone.

The name of a file is `<iteration>-<digest>.pt` with the first digits of the SHA-256 of its bytes, so that a file that
the disk tore is told from a whole one, and the one before it counts. The last two are kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnbench.atomic import write_atomically
from attnbench.errors import UsageError
from attnbench.training.random_states import States

_LOG = logging.getLogger(__name__)
_FORMAT = 1
_KEPT = 2
_NAME = re.compile(r"(\d{8})-([0-9a-f]{16})\.pt")


@dataclass(frozen=True)
class Snapshot:
    """All that a training run is after an iteration.

    Args:
        iteration: iterations done; order and augmentation of what follows depend on it and on the seed alone, so that
            it is the position in the data and in the schedule, too.
        model: weights and buffers.
        optimizer: state of the optimiser.
        scaler: state of the scaling of float16 gradients.
        random: states of the random generators of each process.
        losses: loss of each iteration so far.
    """

    iteration: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]
    random: Sequence[States]
    losses: Sequence[float]


class Checkpoints:
    """The checkpoints of one training run in a folder of its own.

    Args:
        folder: the folder; created with the first checkpoint.
        belongs: plain data that must be equal for a checkpoint to go on from: operator, network, recipe, data, seed.
        every: iterations between two checkpoints.
        sitting: machine, software and code at work now; a run may go on with others, and says so.
    """

    def __init__(self, folder: Path, belongs: Mapping[str, Any], *, every: int, sitting: str = "") -> None:
        self.folder, self.every = folder, every
        self.sittings = [sitting]
        self._belongs: dict[str, Any] = json.loads(json.dumps(dict(belongs)))

    def due(self, iteration: int, iterations: int) -> bool:
        """Whether a checkpoint is written after `iteration` of `iterations`."""
        return iteration % self.every == 0 or iteration == iterations

    def present(self) -> list[Path]:
        """Files of checkpoints, the latest first."""
        found = [path for path in self.folder.glob("*.pt") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: (path.name[:8], path.stat().st_mtime_ns), reverse=True)

    def save(self, snapshot: Snapshot) -> Path:
        """Writes a checkpoint, and then removes all but the last two.

        Raises:
            UsageError: if the folder cannot be written.
        """
        stream = io.BytesIO()
        digest = hashlib.sha256(json.dumps(self._belongs, sort_keys=True).encode()).hexdigest()
        torch.save(
            {
                "format": _FORMAT,
                "belongs": json.dumps(self._belongs),
                "belongs_hash": digest,
                "sittings": self.sittings,
                "iteration": snapshot.iteration,
                "model": dict(snapshot.model),
                "optimizer": dict(snapshot.optimizer),
                "scaler": dict(snapshot.scaler),
                "random": list(snapshot.random),
                "losses": torch.tensor(list(snapshot.losses), dtype=torch.float64),
            },
            stream,
        )
        data = stream.getvalue()
        path = self.folder / f"{snapshot.iteration:08d}-{hashlib.sha256(data).hexdigest()[:16]}.pt"
        write_atomically(path, data)
        for left in [*self.present()[_KEPT:], *self.folder.glob("*.partial")]:
            with contextlib.suppress(OSError):
                left.unlink()
        return path

    def latest(self) -> Snapshot | None:
        """The last checkpoint that is whole; none where there is no checkpoint.

        Raises:
            UsageError: if none of those that are there is whole, or it belongs to another run.
        """
        present = self.present()
        for path in present:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest().startswith(path.stem.partition("-")[2]):
                return self._snapshot(data, path)
            _LOG.warning("checkpoint %s is cut short or damaged; the one before it is taken", path)
        if present:
            raise UsageError(
                f"checkpoints in {str(self.folder)!r}: expected a whole file, got {len(present)} cut short or damaged; "
                "remove them to begin again"
            )
        return None

    def _snapshot(self, data: bytes, path: Path) -> Snapshot:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if not isinstance(loaded, dict) or loaded.get("format") != _FORMAT:
            raise UsageError(f"checkpoint {str(path)!r}: expected a checkpoint of train.py, got another file")
        self._expect_own(json.loads(loaded["belongs"]), path)
        earlier = [sitting for sitting in loaded.get("sittings", []) if sitting != self.sittings[-1]]
        if earlier:
            self.sittings = [*earlier, self.sittings[-1]]
            _LOG.warning("checkpoint %s is of %s; the run goes on with %s", path, earlier[-1], self.sittings[-1])
        return Snapshot(
            iteration=loaded["iteration"],
            model=loaded["model"],
            optimizer=loaded["optimizer"],
            scaler=loaded["scaler"],
            random=loaded["random"],
            losses=loaded["losses"].tolist(),
        )

    def _expect_own(self, belongs: Mapping[str, Any], path: Path) -> None:
        for name in sorted({*belongs, *self._belongs}):
            expected, got = self._belongs.get(name), belongs.get(name)
            if expected != got:
                raise UsageError(
                    f"checkpoint {str(path)!r}: expected one of this run, with {name} {expected!r}, got {got!r}; "
                    "another --output begins anew"
                )
