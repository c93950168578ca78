"""Path templates: names in braces are filled in from a uid, `*` stands for any part of a name."""

import glob
import re
import string
from collections.abc import Collection, Mapping

from vtalign_jax.errors import UserError

_BAD_CHARACTERS = re.compile(r"[\\\x00-\x1f]")


def check_template(template: str, names: Collection[str], flag: str, pattern_flag: str) -> None:
    """Check that a template is well formed and uses known names only.

    Args:
      template: text with `{name}` in it.
      names: what may stand in braces.
      flag: the flag that the template comes from, for messages.
      pattern_flag: the flag that could define more names.

    Raises:
      UserError: unbalanced braces, an unknown name, or anything in braces beside a name.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"--{flag}={template} is no template: {error}") from None
    for _, name, options, conversion in parts:
        if name is None:
            continue
        if name not in names or options or conversion:
            known = ", ".join(f"{{{known}}}" for known in sorted(names))
            raise UserError(
                f"--{flag}={template} holds {{{name}}}, but {known} are all that it may hold; "
                f"name another group in --{pattern_flag} as (?P<name>...)"
            )


def check_path_template(template: str, flag: str) -> None:
    """Check that what a path template fills in can only lie below the folder it is used in.

    Raises:
      UserError: an absolute path, a `..` part, an empty part, or `**`.
    """
    parts = template.split("/")
    if not template.strip() or template.startswith(("/", "~")) or "://" in template:
        raise UserError(f"--{flag}={template} must be a path below the folders of --videos")
    if any(part in ("", ".", "..") for part in parts) or _BAD_CHARACTERS.search(template):
        raise UserError(f"--{flag}={template} has an empty, . or .. part; leave it out")
    if "**" in template:
        raise UserError(f"--{flag}={template} has **; write one * for each folder, as in */*.mp4")


def fill(template: str, values: Mapping[str, str]) -> str:
    """Return the template with its names filled in."""
    return template.format(**values)


def fill_path(template: str, values: Mapping[str, str]) -> str:
    """Return the template with its names filled in, as a path that stays below its folder.

    Raises:
      ValueError: the values make a part of the path empty, `..`, or more than one part.
    """
    path = fill(template, values)
    parts = path.split("/")
    if len(parts) != template.count("/") + 1 or _BAD_CHARACTERS.search(path):
        raise ValueError("a slash or a control character")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError("an empty, . or .. part")
    return path


def fill_glob(template: str, values: Mapping[str, str]) -> str:
    """Return the pattern of a template with `*`: everything else stands for itself."""
    literal = glob.escape(template).replace("[*]", "*")
    return fill(literal, {name: glob.escape(value) for name, value in values.items()})
