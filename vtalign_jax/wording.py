"""Words of printed lines: counts with their nouns, and commands to paste."""

import shlex
from collections.abc import Mapping


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: "1 clip", "2,000 clips"."""
    return f"{count:,} {noun if count == 1 else f'{noun}s'}"


def typed_command(name: str, *flags: str) -> str:
    """Return a command of launch/ as one types it in a shell, whatever is in its paths.

    Args:
      name: such as "train".
      flags: --name=value, not quoted.
    """
    return shlex.join(["python", f"launch/{name}.py", *flags])


def typed_overrides(fields: Mapping[str, object]) -> list[str]:
    """Return the flags that set fields of a configuration, by section.field."""
    return [f"--config.{name}={value}" for name, value in fields.items()]
