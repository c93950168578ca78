"""Which recording a uid belongs to, and when two texts are the same."""

import hashlib
import re
import unicodedata

_PREFIXES = ("disassembly_", "assembly_")
_ARTICLES = frozenset(("a", "an", "the"))
_UNSAFE = re.compile(r"\.\.|[/\\\x00-\x1f]")


def is_safe_uid(uid: str) -> bool:
    """Return whether a uid can become part of a path: no `..`, slash or control character."""
    return bool(uid) and not uid.startswith(("~", ".")) and not _UNSAFE.search(uid)


def recording_id(uid: str) -> str:
    """Return the recording of a uid: without camera suffix, and then without task prefix.

    `assembly_{seq}__{cam}` and `disassembly_{seq}__{cam}` of every camera are recording `{seq}`;
    ids without a `__{cam}` part are untouched.
    """
    stem, separator, camera = uid.rpartition("__")
    if not separator or not stem or not camera:
        return uid
    prefix = next((prefix for prefix in _PREFIXES if stem.startswith(prefix)), "")
    return stem.removeprefix(prefix) or uid


def normalise_text(text: str) -> str:
    """Return the text without differences of Unicode form, case, punctuation, articles, spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(" " if unicodedata.category(char)[0] in "PZC" else char for char in folded)
    words = kept.split()
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def text_key(text: str) -> str:
    """Return the key that equal texts share: 16 hex digits of the normalised text's SHA-256."""
    return hashlib.sha256(normalise_text(text).encode()).hexdigest()[:16]
