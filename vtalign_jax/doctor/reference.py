"""What the devices and the pipeline should compute, plainly, in float64 NumPy."""

import numpy as np

_LOBES = 3  # of the Lanczos kernel


def info_nce(
    z_video: np.ndarray,
    z_text: np.ndarray,
    temperature: float,
    weights: np.ndarray,
    right: np.ndarray | None = None,
) -> float:
    """Return the loss, term by term.

    Args:
      z_video: float[B, E], unit norm.
      z_text: float[B, E], unit norm.
      temperature: > 0.
      weights: float[B, B], of text j as a negative of clip i.
      right: bool[B, B], text j answers clip i; None if only its own does.

    Source: pretraining plan, section 6.1.
    """
    v, x, w = (np.asarray(a, np.float64) for a in (z_video, z_text, weights))
    s = v @ x.T / float(temperature)
    p = np.eye(len(s), dtype=bool) if right is None else np.asarray(right)
    total = 0.0
    for i in range(len(s)):
        for e, row, weight in ((np.exp(s[i]), p[i], w[i]), (np.exp(s[:, i]), p[:, i], w[:, i])):
            total -= np.log(e[row].sum() / (e[row].sum() + (weight * e)[~row].sum()))
    return total / len(s)


def info_nce_gradient(
    z_video: np.ndarray, z_text: np.ndarray, temperature: float, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the gradient of `info_nce` to clips, texts and temperature; own answers alone."""
    v, x, w = (np.asarray(a, np.float64) for a in (z_video, z_text, weights))
    s = v @ x.T / float(temperature)
    e = w * np.exp(s - s.max())
    slope = e / e.sum(axis=1, keepdims=True) + e / e.sum(axis=0, keepdims=True)
    slope = (slope - 2.0 * np.eye(len(s))) / len(s)
    return (
        slope @ x / temperature,
        slope.T @ v / temperature,
        -float((slope * s).sum()) / temperature,
    )


def square(picture: np.ndarray, size: int) -> np.ndarray:
    """Return what SmolVLM's processor makes of a picture: uint8[H, W, 3] -> uint8[size, size, 3].

    Lanczos to the longest edge, the other one even, then to the square.

    Source: transformers, `SmolVLMImageProcessor.resize`.
    """
    height, width = picture.shape[:2]
    if width >= height:
        other = int(size * height / width)
        first = (other + other % 2, size)
    else:
        other = int(size * width / height)
        first = (size, other + other % 2)
    return lanczos(lanczos(picture, *first), size, size)


def lanczos(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return uint8[height, width, 3], resampled across and then down, whole levels after each."""
    across = _kernel(picture.shape[1], width) @ picture.astype(np.float64)  # [H, width, 3]
    down = np.tensordot(_kernel(picture.shape[0], height), _levels(across), axes=1)
    return _levels(down)


def _kernel(source: int, target: int) -> np.ndarray:
    """Return float64[target, source]; each row sums to 1. Shrinking widens the kernel."""
    if source == target:
        return np.eye(source)
    step = source / target
    centre = (np.arange(target) + 0.5) * step
    x = (np.arange(source) + 0.5 - centre[:, None]) / max(step, 1.0)
    weights = np.where(np.abs(x) < _LOBES, np.sinc(x) * np.sinc(x / _LOBES), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def _levels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)
