"""Trials and records: one finished trial is one flat record is one line of JSON.

Every writing process appends to a file of its own under `records/`, so that folders merge by copying and no two writers
meet. A line torn by a crash is set aside and reported; its trial is measured again. Where two writers recorded one
trial, the earliest complete record counts. The environments that records refer to by hash lie beside them, one file
each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from attnbench.config import DType, Inference, Level, Mode, Network, Recipe
from attnbench.errors import UsageError
from attnbench.reading import Loaded, load, load_environments
from attnbench.schema import PROTOCOL, Record, validate

__all__ = [
    "PROTOCOL",
    "Implementation",
    "Loaded",
    "Record",
    "RecordWriter",
    "Status",
    "Task",
    "Trial",
    "identity",
    "load",
    "load_environments",
    "trial_key",
    "validate",
]

Task = Literal["cost", "accuracy"]
Implementation = Literal["reference", "fused"]
Status = Literal["ok", "out_of_memory", "error", "timeout", "crashed", "nonconforming", "unsupported"]


@dataclass(frozen=True)
class Trial:
    """One unit of work, fully resolved; fields that do not apply to its task are none.

    Args:
        task: `"cost"` or `"accuracy"`.
        operator: registry name.
        implementation: `"reference"` or `"fused"`.
        settings: JSON of the operator's hyper-parameters that differ from its defaults.
        device: `"cpu"` or `"cuda"`.
        level: level of cost.
        mode: `"forward"` or `"training"`.
        channels: channels of the slot.
        height: height of the feature map.
        width: width of the feature map.
        batch: batch size.
        dtype: floating-point type.
        channels_last: true where weights and inputs are laid out with channels innermost.
        compiled: true where latency is that of `torch.compile`.
        in_channels: input channels of the head level.
        num_classes: classes of the head and network levels.
        network: the network, at the network level and for accuracy.
        dataset: name of the dataset.
        image_size: size that images are loaded at.
        train_split: split that is trained on.
        eval_split: split that is scored.
        freeze_backbone: whether the backbone stays as it is.
        cache_features: true where the backbone's features are computed once, of whole images.
        recipe: the training recipe.
        seed: seed of the training run.
        threads: threads of torch in the training run, on CPU.
        weights_hash: hash of the file of backbone weights.
        processes: processes that trained together, where there were several.
        predicted: true where the figures are predicted, and nothing is run.
        inference: how images were read, where that is not whole and once.
        boundary: true where the boundary F-score was computed.
    """

    task: Task
    operator: str
    implementation: Implementation
    device: str
    settings: str = "{}"
    level: Level | None = None
    mode: Mode | None = None
    channels: int | None = None
    height: int | None = None
    width: int | None = None
    batch: int | None = None
    dtype: DType | None = None
    channels_last: bool | None = None
    compiled: bool | None = None
    in_channels: int | None = None
    num_classes: int | None = None
    network: Network | None = None
    dataset: str | None = None
    image_size: tuple[int, int] | None = None
    train_split: str | None = None
    eval_split: str | None = None
    freeze_backbone: bool | None = None
    cache_features: bool | None = None
    recipe: Recipe | None = None
    seed: int | None = None
    threads: int | None = None
    weights_hash: str | None = None
    processes: int | None = None
    predicted: bool | None = None
    inference: Inference | None = None
    boundary: bool | None = None

    def fields(self) -> Record:
        """The trial as flat plain data; keys of nested parts are dotted, and what does not apply is left out.

        Of a file of weights the name stays and the folder goes: records travel, and folders do not.
        """
        fields = dict(_flatten("", self))
        if "network.backbone_weights" in fields:
            fields["network.backbone_weights"] = Path(fields["network.backbone_weights"]).name
        return fields

    @property
    def folder_name(self) -> str:
        """Name of a folder for what one training run leaves, as a person would call it."""
        parts = [self.operator, *([self.implementation] if self.implementation != "reference" else [])]
        parts += [self.dataset or "", *(["frozen"] if self.freeze_backbone else []), f"seed{self.seed}"]
        return "-".join(parts)

    @property
    def label(self) -> str:
        """Operator and implementation as shown to a person."""
        return self.operator if self.implementation == "reference" else f"{self.operator} ({self.implementation})"


def _flatten(prefix: str, value: Any) -> Iterable[tuple[str, Any]]:
    """Names and values; a field that came later than the first records is left out where it has its default."""
    for item in dataclasses.fields(value):
        inner, name = getattr(value, item.name), f"{prefix}{item.name}"
        if inner is None or (item.metadata.get("later") and inner == item.default):
            continue
        if dataclasses.is_dataclass(inner):
            yield from _flatten(f"{name}.", inner)
        else:
            yield name, list(inner) if isinstance(inner, tuple) else inner


def identity(trial: Trial, environment: str, source: str) -> str:
    """Resume key of a trial: hash of its every field, the protocol, the environment and the operator's source.

    A figure from another machine, another version of the code or another protocol has another identity. The place of
    a file of weights is not part of it; the hash of its content is.
    """
    fields = {**trial.fields(), "protocol": PROTOCOL, "environment": environment, "source": source}
    fields.pop("network.backbone_weights", None)
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:24]


_APART = frozenset({"threads", "network.backbone_weights"})
_TRIAL = frozenset(Trial.__dataclass_fields__)


def trial_key(fields: Record, *, seeds: bool = True) -> str:
    """What tells a trial from others, of a record or of `Trial.fields`: neither machine nor threads nor code."""
    kept = {
        name: value
        for name, value in fields.items()
        if (name in _TRIAL or name.startswith(("network.", "recipe.", "inference."))) and name not in _APART
    }
    if not seeds:
        kept.pop("seed", None)
    return json.dumps(kept, sort_keys=True)


class RecordWriter:
    """Appends records to this process's own file in `folder/records/`, each synced to disk before `write` returns.

    Args:
        folder: folder of the run; created if it does not exist.

    Raises:
        UsageError: if the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        machine = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
        # Containers may share name, process number and second; what is drawn tells their files apart.
        self.path = folder / "records" / f"{stamp}-{machine}-{os.getpid()}-{secrets.token_hex(3)}.jsonl"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("xb", buffering=0)
        except OSError as error:
            raise _unwritable(folder, error) from error
        self._size = 0

    def write(self, record: Record) -> None:
        """Validates and appends one record; what the disk took of a record that did not fit is taken back.

        Raises:
            ValueError: if the record does not fit the schema.
            UsageError: if the disk refuses it.
        """
        validate(record)
        line = (json.dumps(record, sort_keys=True, allow_nan=False) + "\n").encode()
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise _unwritable(self.folder, error) from error
        self._size += len(line)

    def write_environment(self, environment: Mapping[str, Any], key: str) -> None:
        """Stores the environment that records refer to as `key`, once."""
        path = self.folder / "environments" / f"{key}.json"
        if path.exists():
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}.partial")
            partial.write_text(json.dumps(environment, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def close(self) -> None:
        """Closes the file, and removes it if nothing was written."""
        with contextlib.suppress(OSError):
            self._file.close()
        if not self._size:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _unwritable(folder: Path, error: OSError) -> UsageError:
    return UsageError(
        f"results folder {str(folder)!r}: expected a folder that can be written, got {error.strerror or error}"
    )
