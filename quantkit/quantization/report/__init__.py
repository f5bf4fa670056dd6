"""What a conversion says of itself: how far it is, and what it made or would make.

`conversion/` measures, and no weight is read here. `card.py` writes the packed folder's README.md, `saved.py` a file
of one's own, of which `page.py` and `chart.py` make an HTML page.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from quantkit.tensor import Role


@dataclass(frozen=True)
class Progress:
    """How far a conversion is.

    Attributes
    ----------
    tensor : str
        The tensor that was just written, or what was just measured.
    done, total : int
        Weights written, and weights in all; or what was measured, and all that is.
    """

    tensor: str
    done: int
    total: int


@dataclass(frozen=True)
class TensorReport:
    """A tensor of the packed folder.

    Attributes
    ----------
    name, kind, role : str
    shape : tuple of int
    nbytes : int
        With row scales.
    reason : str
        Why it has its kind.
    error : float or None
        Squared error, relative to its sum of squares; None where nothing was packed.
    kept_codes : float or None
        Of a tensor that its source has quantized before, in a way that fits its kind: the share of rows that keep the
        source's codes, since that errs less than a search for other ones.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    role: Role
    nbytes: int
    reason: str
    error: float | None = None
    kept_codes: float | None = None

    @property
    def weights(self) -> int:
        """Number of elements, without padding."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class KindReport:
    """What the tensors of a kind, or of a kind for one reason, add up to.

    Attributes
    ----------
    kind : str
    reasons : tuple of str
        Why they have it.
    tensors, weights, nbytes : int
        How many they are, their elements, their bytes with row scales.
    mean_error, largest_error : float or None
        Of their relative squared errors, the mean weighted by elements; None where nothing was packed.
    """

    kind: str
    reasons: tuple[str, ...]
    tensors: int
    weights: int
    nbytes: int
    mean_error: float | None
    largest_error: float | None


def counting(
    progress: Callable[[Progress], None] | None, weights: Mapping[str, int], total: int
) -> Callable[[str], None]:
    """Return what is to be called with the name of each tensor that is done, so that `progress` hears of it.

    Parameters
    ----------
    progress : callable or None
    weights : Mapping of str to int
        How much each tensor counts.
    total : int
        What all calls will add up to.
    """
    done = 0

    def tell(name: str) -> None:
        nonlocal done
        done += weights[name]
        if progress:
            progress(Progress(name, done, total))

    return tell


@dataclass(frozen=True)
class CalibrationReport:
    """What calibration did.

    Attributes
    ----------
    text : str
        Name of the text.
    tokens : int
        Tokens of it that were taken.
    output_errors : Mapping of str to float
        Of each matrix that was calibrated, the squared error of its output on the text, relative to the sum of squares.
    uncalibrated : tuple of str
        Matrices that too few tokens reached, such as those of a rare expert: they are packed as without a text.
    """

    text: str
    tokens: int
    output_errors: Mapping[str, float]
    uncalibrated: tuple[str, ...]


@dataclass(frozen=True)
class AllocationReport:
    """How bytes were spent on matrices.

    Attributes
    ----------
    target, least : int
        Bytes that all tensors may take, and those that they take at least.
    sensitivities : {"measured", "rule"}
        What says which matrices matter.
    costs : Mapping of str to float
        For each matrix, the divergence that int4 causes where nothing else is rounded, in nats; together with those
        that get their kind with it, such as the experts of a layer. By a rule, a number to compare with others.
    divergence, all_int4 : float or None
        Sums of those that are left, and of all; None where they were not measured.
    memory : int
        Bytes that measuring needs at most.
    """

    target: int
    least: int
    sensitivities: str
    costs: Mapping[str, float]
    divergence: float | None
    all_int4: float | None
    memory: int


@dataclass(frozen=True)
class Report:
    """What a conversion made, or would make.

    Attributes
    ----------
    source : Mapping
        Name of the checkpoint, and the type that most of its weights are stored in.
    options : Mapping
        The recipe, as quantkit.json records it.
    version : str
        Of quantkit.
    tensors : tuple of TensorReport
        In the order of the file.
    files : Mapping of str to int
        Bytes of each file of the packed folder, exactly, also before it is written.
    source_bytes : int
        Bytes of all tensors of the checkpoint.
    unused : tuple of str
        Tensors of the checkpoint that the model does not use; they were left out.
    notices : tuple of str
        What is said of this and of all else that was left out, or that stands in for something missing.
    disk_free : int
        Bytes free on the disk of the folder, before it was written.
    memory : int
        More bytes than packing needs in memory, the whole process included.
    seconds : float
        Duration.
    peak_rss : int
        The most bytes that this process had in memory at once until now.
    calibration : CalibrationReport or None
    allocation : AllocationReport or None
    """

    source: Mapping[str, str]
    options: Mapping[str, Any]
    version: str
    tensors: tuple[TensorReport, ...]
    files: Mapping[str, int]
    source_bytes: int
    unused: tuple[str, ...]
    notices: tuple[str, ...]
    disk_free: int
    memory: int
    seconds: float
    peak_rss: int
    calibration: CalibrationReport | None = None
    allocation: AllocationReport | None = None

    @property
    def kinds(self) -> tuple[KindReport, ...]:
        """What the tensors of each kind add up to, largest first."""
        return summed(self.tensors, by_reason=False)

    @property
    def reasons(self) -> tuple[KindReport, ...]:
        """What the tensors of each kind for each reason add up to, largest first."""
        return summed(self.tensors, by_reason=True)

    @property
    def errors(self) -> dict[str, float]:
        """Each tensor's squared error, relative to its sum of squares; empty where nothing was packed."""
        return {tensor.name: tensor.error for tensor in self.tensors if tensor.error is not None}

    @property
    def kept_codes(self) -> dict[str, float]:
        """The share of rows with the source's codes, of each tensor that the source has quantized in a fitting way."""
        return {tensor.name: tensor.kept_codes for tensor in self.tensors if tensor.kept_codes is not None}

    @property
    def packed_bytes(self) -> int:
        """Bytes of all tensors of the packed folder."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def folder_bytes(self) -> int:
        """Bytes of all files of the packed folder."""
        return sum(self.files.values())

    @property
    def bits_per_weight(self) -> float:
        """Of all tensors, row scales included."""
        return 8 * self.packed_bytes / sum(tensor.weights for tensor in self.tensors)

    @property
    def bytes_per_second(self) -> float | None:
        """How fast the checkpoint's tensors were packed; None where nothing was."""
        return self.source_bytes / self.seconds if self.errors else None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON holds it: attributes and properties, by their names."""
        totals = ("packed_bytes", "folder_bytes", "bits_per_weight", "bytes_per_second")
        return {
            **{name: getattr(self, name) for name in ("version", "source", "options", "source_bytes", *totals)},
            **{
                name: getattr(self, name)
                for name in ("seconds", "peak_rss", "memory", "disk_free", "files", "unused", "notices")
            },
            "calibration": asdict(self.calibration) if self.calibration else None,
            "allocation": asdict(self.allocation) if self.allocation else None,
            "kinds": [asdict(row) for row in self.kinds],
            "tensors": [asdict(row) for row in self.tensors],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report to a file, which appears complete or not at all, and replaces what stands there.

        Parameters
        ----------
        path : path
            `.json`, what `to_dict` says, or `.html`, a page with a chart that needs nothing but itself.

        Raises
        ------
        OptionError
            For another suffix, and when the file cannot be written.
        """
        from quantkit.quantization.report.saved import save

        save(self, path)


def codes(kept: float | None) -> str:
    """Say where the codes of a tensor come from, by `TensorReport.kept_codes`; nothing where the source has none."""
    if kept is None:
        return ""
    return {0.0: "searched", 1.0: "kept"}.get(kept) or f"{min(max(kept, 0.01), 0.99):.0%} kept"


def summed(tensors: Iterable[TensorReport], *, by_reason: bool) -> tuple[KindReport, ...]:
    """Return what the tensors of each kind, or of each kind for each reason, add up to, largest first."""
    groups: dict[tuple[str, str], list[TensorReport]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.kind, tensor.reason if by_reason else ""), []).append(tensor)
    rows = [_sum(kind, group) for (kind, _), group in groups.items()]
    return tuple(sorted(rows, key=lambda row: -row.nbytes))


def _sum(kind: str, group: list[TensorReport]) -> KindReport:
    weights = sum(tensor.weights for tensor in group)
    errors = [(tensor.error, tensor.weights) for tensor in group if tensor.error is not None]
    return KindReport(
        kind,
        tuple(dict.fromkeys(tensor.reason for tensor in group)),
        len(group),
        weights,
        sum(tensor.nbytes for tensor in group),
        sum(error * count for error, count in errors) / weights if errors else None,
        max(error for error, _ in errors) if errors else None,
    )
