"""Damage and malice, drawn with a seed: to bytes, to JSON, to safetensors headers, to flags."""

import copy
import json
import random

OUTSIDE = "outside/secret"  # beside an item's folder; nothing may open it

_TEXTS = (
    "",
    " ",
    "\ud800",
    "\x00",
    "\u202e",
    "a" * 5000,
    f"../{OUTSIDE}",
    f"../../{OUTSIDE}",
    "/etc/passwd",
    "~/.ssh/id_rsa",
    "{0.__class__}",
    "%s%n",
    "nan",
    "1e400",
    "-1",
    "00:99:99.9",
    "gs://nobody/nothing",
    "http://localhost:1/x",
    "$(touch x)",
    "__import__('os')",
    "*" * 40,
    "**/*",
)
_NUMBERS = (
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**63) - 1,
    10**309,
    10**400,
    1e308,
    -1e308,
    5e-324,
    float("inf"),
    float("-inf"),
    float("nan"),
    0.5,
    1e400,
)
_OTHERS = (None, True, False, [], {}, [[]], [None], {"a": {}}, [1, "a"])
_WORDS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF)


def nasty(rng: random.Random):
    """Return a JSON value that few expect."""
    which = rng.random()
    if which < 0.4:
        return rng.choice(_TEXTS)
    if which < 0.75:
        return rng.choice(_NUMBERS)
    if which < 0.97:
        return copy.deepcopy(rng.choice(_OTHERS))
    deep = []
    for _ in range(rng.choice([50, 200])):
        deep = [deep]
    return deep


def mutate_json(rng: random.Random, value) -> bytes:
    """Return JSON with one to three places changed, or its bytes damaged."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        value = _changed(rng, value)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.7)
    if rng.random() < 0.1:
        text = _with_key_twice(rng, text)
    if rng.random() < 0.03:
        text = "[" * rng.choice([900, 100_000]) + text
    data = text.encode(rng.choice(["utf-8"] * 20 + ["utf-16"]), "surrogatepass")
    return mutate_bytes(rng, data) if rng.random() < 0.2 else data


def _places(value, path=()):
    yield path
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(each, (*path, key))


def _changed(rng, value):
    path = rng.choice(list(_places(value)))
    if not path:
        return rng.choice([value, [value], {"a": value}, nasty(rng)])
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    key, way = path[-1], rng.random()
    if way < 0.15:
        del holder[key]
    elif way < 0.25 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif way < 0.25:
        holder[rng.choice(_TEXTS)] = holder.pop(key)
    elif way < 0.35:
        holder[key] = [holder[key]]
    elif way < 0.4:
        holder[key] = str(holder[key])
    else:
        holder[key] = nasty(rng)
    return value


def _with_key_twice(rng, text):
    places = [n for n, char in enumerate(text) if char == "{" and text[n + 1 : n + 2] == '"']
    if not places:
        return text
    place = rng.choice(places) + 1
    key = text[place : text.index(":", place)]
    return f"{text[:place]}{key}: {json.dumps(nasty(rng))}, {text[place:]}"


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Return bytes that were cut, flipped, overwritten, doubled or put in another order."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        _damage(rng, data)
    return bytes(data)


def _damage(rng, data):
    if not data:
        data.extend(rng.randbytes(rng.choice([1, 8, 100])))
        return
    at, way = rng.randrange(len(data)), rng.random()
    if rng.random() < 0.4:
        at = rng.randrange(min(len(data), 256))  # headers
    size = min(len(data) - at, rng.choice([1, 2, 4, 8, 64, 1024]))
    if way < 0.25:
        data[at] ^= 1 << rng.randrange(8)
    elif way < 0.4:
        word = rng.choice(_WORDS).to_bytes(8, rng.choice(["little", "big"]))
        data[at : at + size] = word[: min(size, 8)].ljust(size, b"\0")
    elif way < 0.5:
        del data[at:]
    elif way < 0.6:
        del data[at : at + size]
    elif way < 0.7:
        data[at : at + size] = bytes(size)
    elif way < 0.8:
        data[at:at] = data[at : at + size] * rng.choice([1, 3])
    elif way < 0.9:
        data[at : at + size] = rng.randbytes(size)
    elif way < 0.97:
        other = rng.randrange(len(data))
        data[at : at + size] = data[other : other + size].ljust(size, b"\0")
    else:
        del data[:]


def mutate_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Return a file with a changed header, a wrong length before it, or damaged bytes."""
    way, size = rng.random(), int.from_bytes(data[:8], "little")
    header, values = json.loads(data[8 : 8 + size]), data[8 + size :]
    if way < 0.2:
        return mutate_bytes(rng, data)
    if way < 0.3:
        wrong = rng.choice([0, 1, size - 1, size + 1, 10**11, 2**63, 2**64 - 1])
        return wrong.to_bytes(8, "little") + data[8:]
    text = mutate_json(rng, header)
    return len(text).to_bytes(8, "little") + text + values


def mutate_lines(rng: random.Random, data: bytes) -> bytes:
    """Return JSON lines, one of them changed, or the bytes damaged."""
    lines = data.split(b"\n")
    which = rng.randrange(len(lines))
    if rng.random() < 0.3 or not lines[which].strip():
        return mutate_bytes(rng, data)
    lines[which] = mutate_json(rng, json.loads(lines[which])).replace(b"\n", b" ")
    return b"\n".join(lines)


def mutate_arguments(rng: random.Random, arguments: list[str]) -> list[str]:
    """Return a command line that somebody might type, or might send."""
    arguments = list(arguments)
    for _ in range(rng.choice([1, 1, 2, 3])):
        at, way = rng.randrange(len(arguments) + 1), rng.random()
        value = str(nasty(rng)).encode("utf-8", "replace").decode()[:3000].replace("\x00", "")
        # No network; and what a command line names is the user's own choice.
        value = value.replace("gs://", "s3://").replace("/etc/", "/nothing/")
        flag = arguments[at % max(1, len(arguments))].split("=")[0] if arguments else "--out"
        if way < 0.3:
            arguments[at : at + 1] = [f"{flag}={value}"]
        elif way < 0.4:
            arguments.insert(at, value)
        elif way < 0.5:
            arguments[at : at + 1] = []
        elif way < 0.6:
            arguments.insert(at, f"--{rng.choice(_FLAGS)}={value}")
        elif way < 0.8:
            section, field = rng.choice(_FIELDS)
            arguments.insert(at, f"--config.{section}.{field}={value}")
        elif way < 0.9:
            arguments[at : at + 1] = [flag[: rng.randrange(1, len(flag) + 1)]]
        else:
            arguments[at:at] = arguments[at : at + 1]
    return arguments


_FLAGS = (
    *("out", "workdir", "checkpoint", "dataset", "annotations", "videos", "layout", "frames"),
    *("json", "quiet", "workers", "max_skipped", "window_seconds", "strategy", "levels", "fit"),
    *("rotate", "source_fps", "format", "base", "topology", "num_slices", "process_id", "text"),
    *("num_processes", "widths", "stride", "nms_iou", "uid_pattern", "path_template", "nonsense"),
)
_FIELDS = (
    ("model", "base"),
    ("model", "embedding_dim"),
    ("optim", "learning_rate"),
    ("train", "contrastive_batch"),
    ("data", "dir"),
    ("data", "weights"),
    ("data", "parent_text"),
    ("mesh", "fsdp"),
    ("tune", "init"),
    ("no", "such"),
    ("train", "nothing"),
)
