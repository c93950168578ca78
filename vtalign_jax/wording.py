"""Words of printed lines that depend on numbers."""


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: "1 clip", "2,000 clips"."""
    return f"{count:,} {noun if count == 1 else f'{noun}s'}"
