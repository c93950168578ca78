"""Prints what `--helpfull` of each command says, as JSON by command: launch/train.py ...

Libraries are imported once; each command then starts in a copy of this process.
"""

import importlib
import json
import os
import runpy
import sys

_LIBRARIES = ("jax", "flax.nnx", "optax", "orbax.checkpoint", "tensorflow_datasets", "tokenizers")


def help_of(command: str) -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writing, 1)
        os.close(writing)
        os.close(reading)
        sys.argv = [command, "--helpfull"]
        try:
            runpy.run_path(command, run_name="__main__")
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        text = said.read()
    os.waitpid(child, 0)
    return text


if __name__ == "__main__":
    commands = sys.argv[1:]
    for library in _LIBRARIES:
        importlib.import_module(library)
    json.dump({command: help_of(command) for command in commands}, sys.stdout)
