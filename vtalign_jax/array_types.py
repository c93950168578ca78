"""The arrays that travel from the loader to the loss, and the legend of their axes.

Axes: `B` pairs, `F` frames, `H`/`W` pixels, `P` patches, `Q` tokens a frame, `T` text tokens,
`S` clip (merged) sequence, `D` text width, `V` vision width, `N` heads, `K` kv heads, `H` head
size, `E` embedding, `R` LoRA rank, `L` stacked layers, `A` ancestors, `G` a text's
signature. In every `*_mask`, True is real.
"""

import contextlib
import dataclasses
from typing import Any, NamedTuple

Array = Any  # numpy.ndarray on the host, jax.Array (or a tracer) on the device.

MAX_ANCESTORS = 3  # a DST is step > substep > action: an action has two, and one to spare.


class Identity(NamedTuple):
    """Who each row is, as dense integers over the dataset; what the loss weights are computed from.

    Attributes:
      row_mask: bool[B], False for the padding rows of an epoch's last batch.
      record: int32[B], index of the record in its split; -1 in padding rows.
      recording: int32[B], the recording (all cameras and task parts of it are one).
      uid: int32[B], the annotated video.
      level: int32[B], the node's level in the tree.
      order: int32[B], rank of the node within its uid and level.
      node: int32[B], the node itself, unique over all uids.
      ancestors: int32[B, A], `node` ids of the ancestors in the same uid, -1 where there is none.
      text: int32[B], the normalised text (`text_key`).
      window: float32[B, 2], seconds, start and end of the sampled window.
      span: float32[B, 2], seconds, start and end of the annotated node.
      signature: float32[B, G], of the text, see `training.signatures`; G is 0 unless similar texts
        are compared, and then nothing is carried.
    """

    row_mask: Array
    record: Array
    recording: Array
    uid: Array
    level: Array
    order: Array
    node: Array
    ancestors: Array
    text: Array
    window: Array
    span: Array
    signature: Array


@dataclasses.dataclass(frozen=True)
class Features:
    """What the frozen part of the model makes of a batch, read from disk instead of computed.

    Attributes:
      clips: bfloat16, float32 or int8; of depth "tower" [B, F, P, V], "connector" [B, F, Q, D],
        "decoder" [B, S, D]. Zeros where a row has no frame or token.
      clip_scales: float32, as `clips` without the last axis: what int8 vectors are multiplied with;
        None for the other dtypes.
      texts: [B, T, D] of depth "decoder", else None.
      text_scales: float32[B, T], of int8 texts.
      depth: how far the frozen part was followed, see `AlignerModel.clip_prefix`.
    """

    clips: Array
    clip_scales: Array | None
    texts: Array | None
    text_scales: Array | None
    depth: str = dataclasses.field(metadata={"static": True})


with contextlib.suppress(ModuleNotFoundError):  # exports are verified where there is no JAX, too
    import jax

    jax.tree_util.register_dataclass(Features)


class Batch(NamedTuple):
    """One global batch (or this process's slice of it).

    Attributes:
      frames: uint8[B, F, H, W, 3], valid frames first; None where `features` stand for them.
      frame_mask: bool[B, F].
      clip_ids: int32[B, S], the user turn that holds the video, padded on the right; where captions
        are learnt, the assistant's turn that says the text comes directly after.
      clip_mask: bool[B, S], of the user turn.
      caption_mask: bool[B, S], the tokens of `clip_ids` to be predicted: text and end of a caption.
      text_ids: int32[B, T], the user turn that holds the text, padded on the right.
      text_mask: bool[B, T].
      identity: see `Identity`.
      features: of a feature cache, if one is used.
    """

    frames: Array | None
    frame_mask: Array
    clip_ids: Array
    clip_mask: Array
    caption_mask: Array
    text_ids: Array
    text_mask: Array
    identity: Identity
    features: Features | None = None
