"""Statistics of features as npz files: ours, those of ADM, and raw features."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..models.files import write_whole
from .data.errors import UNREADABLE
from .statistics import FeatureOrigin, Moments, Statistics, StatisticsError

# The keys by output: mean, covariance, rows of features.
KEYS = {"pool": ("mu", "sigma", "pool_3"), "spatial": ("mu_s", "sigma_s", "spatial_3")}


def save_npz(path: Path, statistics: Mapping[str, Statistics], rows: Mapping[str, Any]) -> None:
    """Writes one set's statistics and rows of features (n, D), by output, into one npz."""
    arrays: dict[str, Any] = {}
    for output, each in statistics.items():
        mean, cov, _ = KEYS[output]
        arrays |= {mean: each.mu, cov: each.cov, "n": np.int64(each.n)}
        if each.origin is not None:
            arrays["origin"] = np.array(json.dumps(asdict(each.origin)))
    arrays |= {KEYS[output][2]: each for output, each in rows.items()}
    write_whole(path, lambda file: np.savez(file, **arrays))


def load_npz(path: Path) -> tuple[dict[str, Statistics], dict[str, Any]]:
    """Returns statistics and rows by output, from an npz of ours, of ADM's, or of raw features.

    Keys: mu, sigma and pool_3 (n, D) are of the pooled features, mu_s, sigma_s and spatial_3 of the
    spatial ones; n and origin are ours. Rows without statistics are summed up here.

    Raises:
        StatisticsError: if the file is missing or broken, or holds none of these.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            kinds = {output: keys for output, keys in KEYS.items() if keys[2] in file}
            rows = {output: _numbers(file, keys[2], None) for output, keys in kinds.items()}
            origin = FeatureOrigin(**json.loads(str(file["origin"]))) if "origin" in file else None
            n = int(file["n"]) if "n" in file else 0
            fits = {
                output: Statistics(_numbers(file, keys[0]), _numbers(file, keys[1]), n, origin)
                for output, keys in KEYS.items()
                if keys[0] in file and keys[1] in file
            }
            sums = {output: _sum_up(each, origin) for output, each in rows.items()}
    except FileNotFoundError:
        raise StatisticsError(f"there is no file {str(path)!r}") from None
    except StatisticsError as error:
        raise StatisticsError(f"{str(path)!r}: {error}") from None
    except UNREADABLE as error:
        raise StatisticsError(f"{str(path)!r} is not a readable npz: {error}") from error
    if not fits and not rows:
        raise StatisticsError(
            f"{str(path)!r} holds no statistics; it needs the keys mu and sigma, or pool_3"
        )
    return {**sums, **fits}, rows


def load_output(path: Path, output: str = "pool") -> Statistics:
    """Returns the statistics of one output of the extractor, from an npz.

    Raises:
        StatisticsError: if the file is missing or broken, or holds nothing of that output.
    """
    statistics, _ = load_npz(path)
    if output not in statistics:
        raise StatisticsError(
            f"{str(path)!r} holds no statistics of {output} features, only of"
            f" {', '.join(statistics)}; give the images instead"
        )
    return statistics[output]


def _numbers(file: Any, key: str, dtype: Any = np.float64) -> Any:
    """Returns an array of an npz in a dtype; raises StatisticsError if it is not real."""
    array = file[key]
    if array.dtype.kind not in "fiu":
        raise StatisticsError(f"{key} must hold real numbers, not {array.dtype}")
    return array if dtype is None else array.astype(dtype)


def holds_statistics(path: Path) -> bool:
    """Returns whether an npz has statistics or rows of features; False for images or no npz."""
    keys = {f"{key}.npy" for names in KEYS.values() for key in (names[0], names[2])}
    try:
        with zipfile.ZipFile(path) as archive:
            return not keys.isdisjoint(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _sum_up(rows: Any, origin: FeatureOrigin | None) -> Statistics:
    if rows.ndim != 2:
        raise StatisticsError(f"rows of features must be (n, D), not {rows.shape}")
    moments = Moments(rows.shape[1])
    moments.update(torch.from_numpy(rows))
    return moments.statistics(origin)
