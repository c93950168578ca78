"""Passwords and tokens, kept out of what is written and printed."""

import os
import re

HIDDEN = "<hidden>"
# Variables that hold one, by their names: HF_TOKEN, WANDB_API_KEY, AWS_SECRET_ACCESS_KEY, ...
_NAMED = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY")
_SHORTEST = 8  # characters; a shorter value stands in too many words
_SHAPES = (
    (re.compile(r"(?<=://)[^\s/@'\"]+:[^\s/@'\"]*(?=@)"), HIDDEN),  # user:password@host
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), HIDDEN),  # Hugging Face
    (re.compile(r"\bya29\.[\w.-]{16,}"), HIDDEN),  # Google
    (re.compile(r"(?<=Bearer )[\w.~+/=-]{8,}"), HIDDEN),
    (
        re.compile(
            r"((?:token|secret|password|api_?key|access_?key)[\"']?\s*[=:]\s*[\"']?)[^\s&\"',;]{8,}",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
)


def redact(text: str) -> str:
    """Return a text without the secrets of the environment, or what looks like one."""
    for name, value in os.environ.items():
        is_path = value.startswith(("/", "~", "."))  # GOOGLE_APPLICATION_CREDENTIALS names a file
        if len(value) >= _SHORTEST and not is_path and _NAMED.search(name.upper()):
            text = text.replace(value, HIDDEN)
    for shape, instead in _SHAPES:
        text = shape.sub(instead, text)
    return text
