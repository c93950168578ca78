"""A module as a pure function of a flat dictionary `{"base.text_model.norm.scale": array, ...}`.

Everything beyond the modules (partition, sharding, optimizer, checkpoints, export) works on such
dictionaries: one path string a leaf is what the rule tables match.
"""

import functools
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import jax
from flax import nnx

Value = TypeVar("Value")
Parameters = dict[str, jax.Array]
Read = Callable[[jax.Array], jax.Array]
NOTHING: Mapping[str, Read] = types.MappingProxyType({})


def abstract(
    make_model: Callable[[], nnx.Module],
) -> tuple[Callable[[Mapping[str, jax.Array]], nnx.Module], dict[str, jax.ShapeDtypeStruct]]:
    """Return a module's parameters without making any, and the function that binds arrays to it.

    Args:
      make_model: builds the module; it is only traced.

    Returns:
      `bind(parameters, reads={})`, which gives the module holding these arrays, and `{path: shape
      and dtype}`. What a layer reads of a leaf in `reads` went through the function there. `bind`
      raises KeyError for a path that is missing.
    """
    graphdef, state = nnx.split(nnx.eval_shape(make_model))
    flat = list(nnx.to_flat_state(state))

    def bind(
        parameters: Mapping[str, jax.Array], reads: Mapping[str, Read] = NOTHING
    ) -> nnx.Module:
        filled = []
        for path, leaf in flat:
            name = _join(path)
            leaf = leaf.replace(parameters[name])
            if name in reads:
                leaf.set_metadata(on_get_value=functools.partial(_read, reads[name]))
            filled.append((path, leaf))
        return nnx.merge(graphdef, nnx.from_flat_state(filled))

    return bind, {_join(path): leaf.get_value() for path, leaf in flat}


def parameters_of(model: nnx.Module) -> Parameters:
    """Return the arrays of a concrete module by path."""
    _, state = nnx.split(model)
    return {_join(path): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def matches(pattern: str, path: str) -> bool:
    """Return whether the pattern describes the whole path."""
    return re.fullmatch(pattern, path) is not None


def match(rules: Sequence[tuple[str, Value]], paths: Sequence[str]) -> dict[str, Value]:
    """Return the value of the one rule whose pattern matches each whole path.

    Args:
      rules: (regular expression, value); every rule must match a path.
      paths: parameter paths; each must be matched by exactly one rule.

    Raises:
      ValueError: lists every path with no rule or several, and every rule without a path.
    """
    problems, matched = [], {}
    used = set()
    for path in paths:
        hits = [i for i, (pattern, _) in enumerate(rules) if matches(pattern, path)]
        used.update(hits)
        if len(hits) == 1:
            matched[path] = rules[hits[0]][1]
        else:
            names = [rules[i][0] for i in hits]
            problems.append(f"{path} is matched by {names or 'no rule'}")
    problems += [f"rule {r!r} matches nothing" for i, (r, _) in enumerate(rules) if i not in used]
    if problems:
        raise ValueError("parameter rules do not fit the model: " + "; ".join(problems))
    return matched


def _read(read: Read, variable: nnx.Variable, value: jax.Array) -> jax.Array:
    return read(value)


def _join(path: tuple) -> str:
    return ".".join(map(str, path))
