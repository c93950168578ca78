"""How many clips of each dataset an epoch takes."""

import fractions
from collections.abc import Mapping

from vtalign_jax.errors import UserError


def epoch_counts(sizes: Mapping[str, int], weights: str) -> list[int]:
    """Return how many records of each dataset an epoch takes.

    Args:
      sizes: dataset -> records.
      weights: "" for all records of every dataset; or comma-separated numbers, one a dataset, the
        share of each in the epoch. The epoch is then the longest in which no record comes twice:
        the dataset that has the fewest records for its share gives all of them.

    Raises:
      UserError: another number of weights, one that is no number >= 0, or a share of nothing.
    """
    if not weights.strip():
        return list(sizes.values())
    shares = _parse(weights, sizes)
    for (name, size), share in zip(sizes.items(), shares, strict=True):
        if share and not size:
            raise UserError(
                f"config.data.weights gives {name} a share, but it has no clips to train on; leave "
                f"it out of config.data.dir, or give it 0"
            )
    total = sum(shares)
    shares = [share / total for share in shares]
    longest = min(size / share for size, share in zip(sizes.values(), shares, strict=True) if share)
    exact = [int(longest) * share for share in shares]  # as fractions: nothing is rounded
    counts = [int(count) for count in exact]
    by_remainder = sorted(range(len(exact)), key=lambda n: counts[n] - exact[n])
    for n in by_remainder[: int(longest) - sum(counts)]:
        counts[n] += 1
    return counts


def _parse(weights: str, sizes: Mapping[str, int]) -> list[fractions.Fraction]:
    try:
        shares = [fractions.Fraction(part.strip()) for part in weights.split(",")]
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"config.data.weights {weights!r} are not comma-separated numbers ({error})"
        ) from error
    if len(shares) != len(sizes) or min(shares) < 0 or not any(shares):
        raise UserError(
            f"config.data.weights {weights!r} must give each dataset of config.data.dir a number "
            f">= 0, not all of them 0, in this order: {', '.join(sizes)}"
        )
    return shares


def describe(sizes: Mapping[str, int], counts: list[int]) -> str:
    """Return one line: what is taken of each dataset."""
    taken = [
        f"{count:,} clips of {name}" if count == size else f"{count:,} of {size:,} clips of {name}"
        for (name, size), count in zip(sizes.items(), counts, strict=True)
    ]
    return ", ".join(taken)
