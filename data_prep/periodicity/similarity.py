"""How alike the moments of a clip are, and how long one repetition takes.

Owns the temporal self-similarity matrix and the estimate of a period from it (autocorrelation) and
from the trajectory (spectrum), each checked against the other.

Sources:
    Dwibedi et al., "Counting Out Time: Class Agnostic Video Repetition Counting in the Wild"
        (RepNet, CVPR 2020): per-frame embeddings x_i, self-similarity S[i, j] = -|x_i - x_j|^2,
        softmax over each row with temperature 13.544; here |x_i - x_j| is scaled by the clip's
        amplitude, and the temperature is the one at which a frame half an amplitude away weighs
        1 / e^2.
    Cutler and Davis, "Robust Real-Time Periodic Motion Detection, Analysis, and Applications"
        (PAMI 2000): similarity of every pair of frames, its periodicity by autocorrelation, and a
        spectral peak that counts if P(f) > mean(P) + K std(P) of a detrended, Hann-windowed signal.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import detrend, find_peaks
from scipy.signal.windows import hann

Array = NDArray[np.float32]

TEMPERATURE = 0.125
SIGNIFICANCE = 3.0  # K of Cutler and Davis
_LEAST_CONTRAST = 0.2  # of a peak of the autocorrelation
_HARMONIC_SHARE = 0.8  # of the best peak: a shorter lag that is as good is the period
_SAME = 1.2  # ratio up to which two periods are the same


@dataclass(frozen=True)
class Period:
    """Estimates of the typical length of a repetition; None where nothing stands out.

    Attributes:
        period_s: The one that both agree on, or the autocorrelation's where they do not.
        by_autocorrelation_s: Of the self-similarity along its diagonals.
        by_spectrum_s: Of the trajectory's power spectrum, after the harmonic check.
        contrast: Height of the autocorrelation's peak over the trough before it, 0 to 1.
        agree: Whether both found the same.
    """

    period_s: float | None
    by_autocorrelation_s: float | None
    by_spectrum_s: float | None
    contrast: float
    agree: bool


def squared_distances(values: Array) -> Array:
    """|x_i - x_j|^2 of points [T, D]. float32 [T, T]"""
    values = values.astype(np.float64)
    squares = np.square(values).sum(axis=1)
    distances = squares[:, None] + squares[None] - 2.0 * values @ values.T
    positive: Array = np.maximum(distances, 0.0).astype(np.float32)
    return positive


def self_similarity(distances: Array) -> Array:
    """RepNet's matrix: softmax over each row of -d^2 / temperature. [T, T], rows sum to 1.

    Args:
        distances: Distances as shares of the clip's amplitude. [T, T]
    """
    scores = -np.square(distances) / TEMPERATURE
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def estimate_period(
    values: Array, distances: Array, fps: float, *, min_s: float, max_s: float
) -> Period:
    """The typical length of a repetition.

    Args:
        values: Trajectory. [T, D]
        distances: Distances of its points as shares of the amplitude. [T, T]
        fps: Points per second.
        min_s: Shortest period to look for.
        max_s: Longest; never more than half of the clip, since a period shows by its return.
    """
    low = max(2, round(min_s * fps))
    high = min(round(max_s * fps), len(values) // 2)
    if high <= low + 1:
        return Period(None, None, None, 0.0, False)
    curve = autocorrelation(distances, high + 1)
    by_lag, contrast = _first_peak(curve, low, high)
    by_spectrum = _spectral_period(values, curve, low, high)
    agree = by_lag is not None and by_spectrum is not None and _is_same(by_lag, by_spectrum)
    chosen = by_lag if by_lag is not None else by_spectrum
    lag_s, spectrum_s, period_s = (
        None if frames is None else float(frames / fps) for frames in (by_lag, by_spectrum, chosen)
    )
    return Period(period_s, lag_s, spectrum_s, contrast, agree)


def autocorrelation(distances: Array, num_lags: int) -> Array:
    """Similarity of the clip to itself after each lag 0 .. num_lags - 1: 1 is equal. [num_lags]

    The mean of a diagonal of the self-similarity matrix over the pairs of which one moves: time at
    rest resembles itself at every lag and would hide the period.
    """
    moving = distances.mean(axis=1) > 0.5 * np.median(distances.mean(axis=1))
    curve = np.ones(num_lags, np.float32)
    for lag in range(1, num_lags):
        used = moving[lag:] | moving[:-lag]
        diagonal = np.diagonal(distances, lag)
        curve[lag] = 1.0 - diagonal[used].mean() if used.any() else 0.0
    return curve


def _first_peak(curve: Array, low: int, high: int) -> tuple[int | None, float]:
    """Lag of the shortest peak that is nearly as good as the best one, and its contrast."""
    peaks, found = find_peaks(curve[: high + 1], prominence=0.0)
    keep = peaks >= low
    peaks, prominences = peaks[keep], found["prominences"][keep]
    if not len(peaks):
        return None, 0.0
    contrasts = np.array([curve[p] - curve[:p].min() for p in peaks])
    good = (contrasts >= _HARMONIC_SHARE * contrasts.max()) & (
        prominences >= 0.5 * prominences.max()
    )
    first = int(np.flatnonzero(good)[0]) if good.any() else int(contrasts.argmax())
    contrast = float(np.clip(contrasts[first], 0.0, 1.0))
    return (int(peaks[first]), contrast) if contrast >= _LEAST_CONTRAST else (None, contrast)


def _spectral_period(values: Array, curve: Array, low: int, high: int) -> float | None:
    """Period, in frames, of the strongest significant line of the spectrum.

    A back-and-forth motion of which frames show only the pose may have its strongest line at twice
    its frequency, and a sharp one at any multiple: the line stands for the multiple of its period
    (up to 4) after which the clip resembles itself best, the shorter one where they are alike.
    """
    steady = detrend(values.astype(np.float64), axis=0) * hann(len(values), sym=False)[:, None]
    size = 4 * len(values)
    power = np.square(np.abs(np.fft.rfft(steady, size, axis=0))).sum(axis=1)
    periods = size / np.maximum(np.arange(len(power)), 1e-9)
    band = (periods >= low) & (periods <= 2 * high)
    if not band.any():
        return None
    peak = int(np.flatnonzero(band)[power[band].argmax()])
    if power[peak] <= power.mean() + SIGNIFICANCE * power.std():
        return None
    multiples = [k * periods[peak] for k in (1, 2, 3, 4) if k * periods[peak] <= high]
    if not multiples:
        return None
    # A line lies between the bins of the spectrum: look around each multiple.
    likeness = [
        float(curve[max(1, int(0.93 * lag)) : int(np.ceil(1.07 * lag)) + 1].max())
        for lag in multiples
    ]
    trough = float(curve[: high + 1].min())
    good = trough + _HARMONIC_SHARE * (max(likeness) - trough)
    return float(next(m for m, s in zip(multiples, likeness, strict=True) if s >= good))


def _is_same(a: float, b: float) -> bool:
    return max(a, b) <= _SAME * min(a, b)
