"""Checks of what joins the devices and of the loss, without the model below it."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from scipy.special import erf  # JAX depends on SciPy

from vtalign_jax import sharding
from vtalign_jax.array_types import Identity
from vtalign_jax.config import ObjectiveConfig
from vtalign_jax.doctor import reference, slow_rule
from vtalign_jax.doctor.figures import Finding, relative_error, worst
from vtalign_jax.doctor.recordings import make_nodes, make_split
from vtalign_jax.doctor.subject import FRAMES, SEED, Subject, spread
from vtalign_jax.objectives import negatives
from vtalign_jax.objectives.info_nce import make_info_nce

_EMBEDDING, _TEMPERATURE = 64, 0.02  # scores of some tens: what a product loses, exp shows
_LAMBDA, _SIMILAR = 0.3, 0.25
_PADDING = 4  # rows


def collectives(subject: Subject) -> Finding:
    """Gather, sum, maximum and scattered sum of whole numbers over the mesh."""
    count, rng = subject.mesh.size, np.random.default_rng(SEED)
    rows = rng.integers(-4096, 4096, (4 * count, 3)).astype(np.float32)
    found = jax.device_get(_collect(subject.mesh)(spread(rows, subject.mesh)))
    by_device = rows.reshape(count, 4, 3)
    factor = 1.0 + np.arange(count) % 2
    expected = {
        "all_gather": rows,
        "psum": by_device.sum(axis=0),
        "pmax": by_device.max(axis=0),
        "psum_scatter": rows * factor.sum(),
    }
    errors = {name: float(np.max(np.abs(found[name] - x))) for name, x in expected.items()}
    figure, name = worst(errors)
    compared = f"{', '.join(expected)} of {count} device(s) with NumPy, difference"
    return Finding(compared, figure, 0.0, name if figure else "")


def _collect(mesh: Mesh) -> Callable:
    axes = mesh.axis_names

    def body(x: jax.Array) -> dict[str, jax.Array]:
        gathered = jax.lax.all_gather(x, axes, tiled=True)
        factor = 1.0 + (jax.lax.axis_index(axes) % 2).astype(jnp.float32)
        scattered = jax.lax.psum_scatter(gathered * factor, axes, scatter_dimension=0, tiled=True)
        return {
            "all_gather": gathered,
            "psum": jax.lax.psum(x, axes),
            "pmax": jax.lax.pmax(x, axes),
            "psum_scatter": jax.lax.all_gather(scattered, axes, tiled=True),
        }

    whole = PartitionSpec()
    return jax.jit(
        jax.shard_map(
            body, mesh=mesh, in_specs=PartitionSpec(axes), out_specs=whole, check_vma=False
        )
    )


def loss(subject: Subject) -> Finding:
    """InfoNCE and its gradient over the mesh in several tiles, at the precision it asks for."""
    mesh, identity = subject.mesh, subject.batch.identity
    real = identity.row_mask
    rng = np.random.default_rng(SEED)
    video, text = _unit_rows(rng, len(real)), _unit_rows(rng, len(real))
    objective = subject.config.objective
    rows = len(real) // mesh.size
    function = make_info_nce(objective, mesh, tile=5 * rows, kept=10 * rows)
    differentiate = jax.jit(
        jax.value_and_grad(lambda *z: function(*z), argnums=(0, 1, 2)),
        out_shardings=jax.NamedSharding(mesh, sharding.WHOLE),
    )
    on_mesh = [spread(x, mesh) for x in (video, text)]
    value, slopes = jax.device_get(
        differentiate(*on_mesh, jnp.float32(_TEMPERATURE), spread(identity, mesh))
    )
    weights = np.exp(jax.device_get(negatives.log_weights(identity, identity, objective)))
    arguments = (video[real], text[real], _TEMPERATURE, weights[real][:, real])
    expected = reference.info_nce_gradient(*arguments)
    errors = {"loss": relative_error(value, reference.info_nce(*arguments))}
    for name, ours, theirs in zip(
        ("to clips", "to texts", "to temperature"), slopes, expected, strict=True
    ):
        errors[f"gradient {name}"] = relative_error(ours[real] if ours.ndim else ours, theirs)
    return Finding("InfoNCE and gradient with float64", *_with_limit(worst(errors), 1e-4))


def heads(subject: Subject) -> Finding:
    """The projection and matching heads, at the precision they ask for."""
    trained, frozen = subject.on(subject.alone)
    rng = np.random.default_rng(SEED)
    pooled = rng.standard_normal((16, len(trained["head.fc1.bias"])), np.float32)
    pairs = np.concatenate([_unit_rows(rng, 16, subject.config.model.embedding_dim)] * 2, axis=1)

    def both(leaves: dict, pooled: jax.Array, pairs: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = subject.bind(leaves)
        return model.project_clips(pooled), model.matching_head(pairs)

    z, logits = jax.device_get(jax.jit(both)(trained | frozen, pooled, pairs))
    leaves = subject.leaves[0]
    projected = _mlp(leaves, "head", pooled)
    projected /= np.linalg.norm(projected, axis=1, keepdims=True)
    matched = _mlp(leaves, "matching_head", pairs * subject.config.model.embedding_dim**0.5)
    errors = {
        "projection": relative_error(z, projected),
        "matching": relative_error(logits, matched[:, 0]),
    }
    return Finding("projection and matching head with float64", *_with_limit(worst(errors), 1e-4))


def _mlp(leaves: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    """Return fc2(gelu(fc1(x))) in float64, the exact GELU."""
    first, bias, second, last = (
        leaves[f"{name}.{part}"].astype(np.float64)
        for part in ("fc1.kernel", "fc1.bias", "fc2.kernel", "fc2.bias")
    )
    hidden = x.astype(np.float64) @ first + bias
    return (0.5 * hidden * (1.0 + erf(hidden / 2**0.5))) @ second + last


def weights(subject: Subject) -> Finding:
    """W and the right answers of every preset, from annotated nodes on, with the slow rule."""
    nodes, identity = _annotated()
    items = [nodes.get(n) for n in identity.record.tolist()]
    found = [[slow_rule.relations(a, b, 1, _SIMILAR) for b in items] for a in items]
    errors = {}
    for preset in negatives.PRESETS:
        objective = ObjectiveConfig(
            preset=preset, same_recording_weight=_LAMBDA, similar_text_threshold=_SIMILAR
        )
        on_device = jax.jit(
            lambda rows, objective=objective: (
                jnp.exp(negatives.log_weights(rows, rows, objective)),
                negatives.is_positive(rows, rows, objective),
            )
        )
        w, right = jax.device_get(on_device(identity))
        slow = [[slow_rule.weight(r, preset, "preset", _LAMBDA) for r in row] for row in found]
        answers = [[slow_rule.is_right(r, preset, "preset") for r in row] for row in found]
        errors[f"w of preset {preset}"] = float(np.max(np.abs(w - slow)))
        errors[f"right answers of preset {preset}"] = float(np.sum(right != np.array(answers)))
    count = f"{len(items)} x {len(items)} pairs, {len(negatives.PRESETS)} presets"
    compared = f"w of {count}, with plain Python"
    return Finding(compared, *_with_limit(worst(errors), 1e-5))


def _annotated() -> tuple[dict[int, slow_rule.Annotated], Identity]:
    """Return nodes by record, and the identity of all of them and of padding rows."""
    annotated = make_nodes(112, recordings=4)
    split = make_split(annotated, 16, FRAMES)
    identity = jax.tree.map(lambda x: np.concatenate([x, x[:_PADDING]]), split.identity)
    identity.row_mask[-_PADDING:], identity.record[-_PADDING:] = False, -1
    # Whole eighths: every product of signatures is exact.
    drawn = np.random.default_rng(SEED).integers(-3, 4, (identity.text.max() + 1, 8)) / 8
    signature = drawn[identity.text].astype(np.float32)
    by_clip = {f"{node.uid}/{node.node_id}": node for node in annotated}
    nodes = {
        record: dataclasses.replace(by_clip[clip_id], signature=tuple(signature[record].tolist()))
        for record, clip_id in enumerate(split.table["clip_id"].to_pylist())
    }
    return nodes, identity._replace(signature=signature)


def _with_limit(found: tuple[float, str], limit: float) -> tuple[float, float, str]:
    figure, name = found
    return figure, limit, name


def _unit_rows(rng: np.random.Generator, rows: int, size: int = _EMBEDDING) -> np.ndarray:
    z = rng.standard_normal((rows, size))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
