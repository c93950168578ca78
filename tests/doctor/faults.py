"""Faults to plant in the package, and the checks that must, or may, find each."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vtalign_jax.dst import images
from vtalign_jax.interop import tokens
from vtalign_jax.models import aligner, attention, text
from vtalign_jax.objectives import info_nce, negatives
from vtalign_jax.pipeline import transforms
from vtalign_jax.training import grad_cache, step
from vtalign_jax.training.grad_cache import StreamedStep


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
      plant: puts it into the package by pytest's monkeypatch.
      fails: the checks that must fail.
      may_fail: those that may as well.
    """

    plant: Callable
    fails: set[str]
    may_fail: set[str] = frozenset()


def scale_gradient_by_devices(patch):
    backward = info_nce._Sweep.backward

    def scaled(self, *arguments):
        devices = jax.lax.psum(1.0, self._axes)
        return tuple(devices * slope for slope in backward(self, *arguments))

    patch.setattr(info_nce._Sweep, "backward", scaled)


def give_neighbours_the_weight_of_the_recording(patch):
    soft, policy = negatives.PRESETS["neighbours_soft"]
    patch.setitem(negatives.PRESETS, "plan", (soft, policy))


def swap_overlap_and_strangers(patch):
    class_weights = negatives.class_weights

    def swapped(objective):
        values = class_weights(objective)
        places = [negatives.CLASSES.index(name) for name in ("cross_recording", "overlap")]
        values[places] = values[places[::-1]]
        return values

    patch.setattr(negatives, "class_weights", swapped)


def count_padding_rows(patch):
    def everything(rows, columns):
        return jnp.ones((len(rows.row_mask), len(columns.row_mask)), bool)

    patch.setattr(negatives, "_both_real", everything)
    patch.setattr(info_nce, "_masked", lambda values, mask: values)


def pool_at_the_last_place(patch):
    patch.setattr(aligner, "pool", lambda hidden, mask, pooling: hidden[:, -1].astype(jnp.float32))


def attend_to_padding(patch):
    plain = attention.attention

    def unmasked(q, k, v, *, key_mask=None, causal=False):
        return plain(q, k, v, causal=causal)

    patch.setattr(text, "attention", unmasked)


def multiply_in_bfloat16(patch):
    weighted = info_nce._Sweep._weighted

    def rounded(self, z_video, identity, temperature, chunk):
        z_video, texts = (z.astype(jnp.bfloat16) for z in (z_video, chunk[0]))
        chunk = (texts.astype(jnp.float32), *chunk[1:])
        return weighted(self, z_video.astype(jnp.float32), identity, temperature, chunk)

    patch.setattr(info_nce._Sweep, "_weighted", rounded)


def draw_dropout_by_place_in_the_microbatch(patch):
    row_keys = grad_cache.row_keys

    def by_place(seed, step, identity):
        place = jnp.arange(len(identity.record), dtype=jnp.int32)
        return row_keys(seed, step, identity._replace(record=place))

    patch.setattr(grad_cache, "row_keys", by_place)


def leave_microbatches_out(patch):
    accumulate = StreamedStep._accumulate

    def only_the_last(self, found, *arguments):
        return accumulate(self, jax.tree.map(jnp.zeros_like, found), *arguments)

    patch.setattr(StreamedStep, "_accumulate", only_the_last)


def normalise_by_another_mean(patch):
    patch.setattr(aligner, "PIXEL_MEAN", 0.485)  # ImageNet's


def resize_by_bicubic(patch):
    bicubic = Image.Resampling.BICUBIC
    patch.setattr(images, "_resize", lambda picture, size: picture.resize(size, bicubic))


def shrink_stored_frames_by_half_pixel_bilinear(patch):
    decode = transforms.decode_frame

    def bilinear(encoded, stored_edge, edge):
        whole = Image.fromarray(decode(encoded, stored_edge, stored_edge))
        return np.asarray(whole.resize((edge, edge), Image.Resampling.BILINEAR))

    patch.setattr(transforms, "decode_frame", bilinear)


def say_frames_a_second_late(patch):
    label = tokens._label
    patch.setattr(tokens, "_label", lambda second: label(second + 1))


def count_frames_from_one(patch):
    whole_seconds = transforms.whole_seconds

    def late(numbers, window_seconds, sampled_frames):
        return whole_seconds([k + 1 for k in numbers], window_seconds, sampled_frames)

    patch.setattr(transforms, "whole_seconds", late)


def double_the_gradient_of_a_scanned_block(patch):
    scan_blocks = text.scan_blocks

    def doubled(blocks, x, call, **settings):
        def twice(block, x, index):
            y = call(block, x, index)
            return 2.0 * y - jax.lax.stop_gradient(y)

        return scan_blocks(blocks, x, twice, **settings)

    patch.setattr(text, "scan_blocks", doubled)


def project_in_bfloat16(patch):
    call = aligner.ProjectionHead.__call__

    def rounded(self, pooled):
        return call(self, pooled.astype(jnp.bfloat16).astype(jnp.float32))

    patch.setattr(aligner.ProjectionHead, "__call__", rounded)


def centre_over_the_batch(patch):
    pool = aligner.pool

    def centred(hidden, mask, pooling):
        pooled = pool(hidden, mask, pooling)
        return pooled - 0.5 * jnp.mean(pooled, axis=0)

    patch.setattr(aligner, "pool", centred)


def turn_gathered_rows(patch):
    all_gather = jax.lax.all_gather

    def turned(x, axes, **settings):
        gathered = all_gather(x, axes, **settings)
        return gathered if axes == "fsdp" else jnp.roll(gathered, 1, axis=0)  # of weights: no rows

    patch.setattr(jax.lax, "all_gather", turned)


def read_features_of_the_next_clip(patch):
    decoded = step._decoded

    def turned(values, scales, dtype):
        found = decoded(values, scales, dtype)
        return None if found is None else jnp.roll(found, 1, axis=0)

    patch.setattr(step, "_decoded", turned)


MODEL = {"padding_rows", "devices", "microbatches", "scans", "scans_bfloat16"}
FAULTS = {
    "gradient times devices": Fault(scale_gradient_by_devices, {"devices", "loss"}),
    "lambda for neighbours": Fault(give_neighbours_the_weight_of_the_recording, {"weights"}),
    "weights swapped": Fault(swap_overlap_and_strangers, {"weights"}, {"loss"}),
    "padding rows count": Fault(
        count_padding_rows, {"weights", "padding_rows", "loss"}, {"devices", "microbatches"}
    ),
    # The last place sees the caption in one pass of a streamed step and not in the other.
    "pooled at the last place": Fault(
        pool_at_the_last_place, {"padding_tokens", "scans", "scans_bfloat16"}, {"microbatches"}
    ),
    "attends to padding": Fault(attend_to_padding, {"padding_tokens"}),
    "loss in bfloat16": Fault(multiply_in_bfloat16, {"loss"}, MODEL),
    "dropout by place": Fault(draw_dropout_by_place_in_the_microbatch, {"microbatches"}),
    "microbatches left out": Fault(leave_microbatches_out, {"microbatches"}),
    "features of the next clip": Fault(read_features_of_the_next_clip, {"features"}),
    "another mean": Fault(normalise_by_another_mean, {"pixels"}),
    "bicubic": Fault(resize_by_bicubic, {"resize"}),
    "stored frames bilinear": Fault(shrink_stored_frames_by_half_pixel_bilinear, {"resize"}),
    "labels a second late": Fault(say_frames_a_second_late, {"prompt"}),
    "frames counted from one": Fault(count_frames_from_one, {"prompt"}),
    "gradient of a scan doubled": Fault(
        double_the_gradient_of_a_scanned_block, {"scans", "scans_bfloat16"}
    ),
    "head in bfloat16": Fault(project_in_bfloat16, {"heads"}, MODEL - {"scans_bfloat16"}),
    "centred over the batch": Fault(
        centre_over_the_batch, {"batch_mates", "scans"}, MODEL | {"padding_tokens"}
    ),
    "gathered rows turned": Fault(turn_gathered_rows, {"collectives", "loss"}, MODEL),
}
