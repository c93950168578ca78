"""How every command starts: flags parsed, user errors as one line, exit code 2."""

import contextlib
import io
import json
import math
import os
import re
import sys
import traceback
from collections.abc import Callable

from absl import app, flags, logging

from vtalign_jax import system_faults
from vtalign_jax.errors import UserError
from vtalign_jax.secret_words import redact

# What absl and ml_collections say of a flag, and how a user can read it.
_PLAINER = (
    (r"flag (--[^=]+=.*): invalid literal for int\(\).*", r"\1 is no whole number"),
    (r"flag (--[^=]+=.*): could not convert string to float.*", r"\1 is no number"),
    (r"flag (--[^=]+=.*): value should be one of <(.*)>", r"\1 is none of \2"),
    (r"flag (--[^=]+=.*): \('Non-boolean argument.*", r"\1 is neither true nor false"),
    (
        r"flag (--[^=]+=.*): Error whilst parsing .*\b(\w+Error: .*)",
        r"cannot load the file of \1: \2",
    ),
    (r".* Path to config file is an empty string\.", r"it has no name"),
    (r"flag (--[^=]+=.*)", r"\1"),
    (r"Unknown command line flag '([^']+)'", r"no flag --\1; see --help"),
    (
        r"Unknown .* flag '([^']+)'\. Did you mean: (.*), (.*) \?",
        r"no flag --\1; did you mean --\2 or --\3?",
    ),
    (r"Unknown .* flag '([^']+)'\. Did you mean: (.*) \?", r"no flag --\1; did you mean --\2?"),
    (r"Missing value for flag (--\S+)", r"\1 has no value; a flag is --name=value"),
    (r"ERROR:: (.*)", r"\1"),
    (r".*\[Errno \d+\] (.*)", r"\1; name a file such as configs/pretrain.py"),
)
# What flags and the file of --config that are wrong end with.
_WRONG = (
    flags.Error,
    UserError,
    AttributeError,
    ImportError,
    KeyError,
    NameError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
)


def run(
    main: Callable[..., None],
    required: tuple[str, ...] = (),
    parts: tuple[str, ...] = (),
    takes_more: bool = False,
    around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> None:
    """Parse the flags, call `main`, and end with `error: ...` and code 2 on a user's mistake.

    absl exits with 1 on a bad flag and on --help, ml_collections with a traceback, hence an own
    parser.

    Args:
      main: called once the flags are parsed, without arguments or with the part.
      required: names of flags that must be given.
      parts: what the command's one positional argument may be; () for no such argument.
      takes_more: whether `main` takes what is no flag.
      around: entered once the flags are parsed, left when `main` returns or raises.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is getattr(sys, f"__{name}__") is not None:
            setattr(sys, name, _lasting(getattr(sys, name)))

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
            if parts and (len(rest) < 2 or rest[1] not in parts):
                raise UserError(f"say which part: {' or '.join(parts)}; see --help")
            if len(rest) > 1 + bool(parts) and not takes_more:
                raise UserError(f"unexpected argument {rest[-1]!r}; a flag is --name=value")
            for name in required:
                value = flags.FLAGS[name].value
                hasattr(value, "to_dict")  # a --config that failed to load raises on any access
                if not value:
                    raise UserError(f"--{name} is missing; see --help")
        except _WRONG as error:
            _refuse(error)
        except SystemExit as end:  # --help has been shown, which absl ends with 1
            frames = [frame for frame, _ in traceback.walk_tb(end.__traceback__)]
            if frames[-1].f_globals["__name__"] != app.__name__:
                raise  # of the file of --config
            sys.exit()
        return rest

    def guarded(argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # libraries tell their every step at INFO
        try:
            with around():
                _guard(main, argv[1:])
        except UserError as error:
            _fail(error)
        except KeyboardInterrupt:
            _say_interrupted()
            sys.exit(130)  # as a shell reports SIGINT

    app.run(guarded, flags_parser=parse)


def _guard(main: Callable[..., None], arguments: list[str]) -> None:
    """Call `main`; what the operating system refuses it is the user's to mend."""
    try:
        main(*arguments)
    except UserError:
        raise
    except Exception as error:
        named = [name for name in ("workdir", "out") if name in flags.FLAGS]
        places = [f"--{name}={value}" for name in named if (value := flags.FLAGS[name].value)]
        line = system_faults.told(error, (places or ["the folder it writes"])[0])
        if line is None:
            raise
        raise UserError(line) from error


class _Lasting(io.FileIO):
    """Standard output or error; once nobody reads it any more, what is written is dropped."""

    def write(self, data: bytes) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(data)


def _lasting(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """Return a stream that ends no command: of `train | tee`, Ctrl-C ends the reader first."""
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering or stream.write_through,
    )


def _refuse(error: Exception) -> None:
    """End with what is wrong with flags or the file of --config."""
    if inside := _in_config_file(error):
        _fail(f"cannot load the file of --config: {inside}")
    if "has no attribute 'get_config'" in str(error):
        _fail("the file of --config has no get_config(); write one as in configs/tiny.py")
    if isinstance(error, (AttributeError, KeyError)):  # ml_collections: an override of no field
        said = str(error)  # the field, quoted twice over, and perhaps a hint
        field, hint = re.search(r"\w+", said), re.search(r'Did you mean "(\w+)"', said)
        mend = f"did you mean {hint[1]}?" if hint else "vtalign_jax/config.py lists the fields"
        _fail(f"--config has no field {field[0] if field else said}; {mend}")
    if isinstance(error, (OSError, SyntaxError, ImportError, NameError)):  # of ml_collections
        _fail(f"cannot load the file of --config: {_plainer(error)}")
    _fail(_plainer(error))


def _in_config_file(error: BaseException | None) -> str:
    """Return what the code of --config's file raised and in which line, "" if it raised nothing.

    ml_collections and absl raise errors of their own from it.
    """
    while error is not None:
        for frame, line in traceback.walk_tb(error.__traceback__):
            if frame.f_globals["__name__"] == "config_config":  # ml_collections' name for it
                place = f"{frame.f_code.co_filename}, line {line}"
                return f"{type(error).__name__}: {error} ({place})"
        error = error.__cause__ or error.__context__
    return ""


def _plainer(error: Exception) -> str:
    line = " ".join(str(error).split())
    for theirs, ours in _PLAINER:
        if found := re.fullmatch(theirs, line):
            return found.expand(ours)
    return line


def print_json(value: object) -> None:
    """Print a JSON value, with null for every number that JSON cannot say (NaN, infinity)."""
    print(json.dumps(_finite(value), indent=2))


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _say_interrupted() -> None:
    print("interrupted", file=sys.stderr, flush=True)


def _tell_uncaught(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """Say of Ctrl-C before `run`, while libraries are imported, what `run` says of it."""
    if kind is KeyboardInterrupt:
        _say_interrupted()  # Python then ends by SIGINT itself
    else:
        _hook_before(kind, error, trace)


def _fail(message: object) -> None:
    line = redact(" ".join(str(message).split()))
    print(f"error: {line}", file=sys.stderr, flush=True)
    # What libraries leave half done, such as Orbax's coroutines, would tell so at the end.
    sys.unraisablehook = lambda _: None
    sys.exit(2)


_hook_before = sys.excepthook
sys.excepthook = _tell_uncaught  # set here, as commands import what takes seconds after this
