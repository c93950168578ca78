"""The arrays that travel from the loader to the loss, and the legend of their axes.

Axes: `B` pairs, `F` frames, `H`/`W` pixels, `P` patches, `Q` tokens a frame, `T` text tokens,
`S` clip (merged) sequence, `D` text width, `V` vision width, `N` heads, `K` kv heads, `H` head
size, `E` embedding, `R` LoRA rank, `L` stacked layers, `A` ancestors, `G` a text's
signature. In every `*_mask`, True is real.
"""

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


class Batch(NamedTuple):
    """One global batch (or this process's slice of it).

    Attributes:
      frames: uint8[B, F, H, W, 3], valid frames first.
      frame_mask: bool[B, F].
      clip_ids: int32[B, S], the user turn that holds the video, padded on the right; where captions
        are learnt, the assistant's turn that says the text comes directly after.
      clip_mask: bool[B, S], of the user turn.
      caption_mask: bool[B, S], the tokens of `clip_ids` to be predicted: text and end of a caption.
      text_ids: int32[B, T], the user turn that holds the text, padded on the right.
      text_mask: bool[B, T].
      identity: see `Identity`.
    """

    frames: Array
    frame_mask: Array
    clip_ids: Array
    clip_mask: Array
    caption_mask: Array
    text_ids: Array
    text_mask: Array
    identity: Identity
