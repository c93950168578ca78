r"""Measure parts of the system side by side in one run; prints a JSON object a line.

    python launch/bench.py prepare [--annotations=... --videos=...]
    python launch/bench.py input [--dataset=...]
    python launch/bench.py loss
    python launch/bench.py similarity [--base=...] [--sentence_model=...]
    python launch/bench.py load [--forward] [--base=...] [--scratch=...]
    python launch/bench.py recall [--clips=100000] [--embedding_dim=1024]
    python launch/bench.py step --size=tiny|256M|500M|2.2B [--peer] [--cached] [--pairs=...] ...

`prepare`: rendering clips against a loop that opens, seeks and decodes for each clip, by default on
a synthetic video of 10 minutes with 200 nodes, and a worker's memory for 1 and 10 minutes of video.

`input`: clips a second that the loader delivers on one core against PyTorch's DataLoader, where
PyTorch is installed, by default on the clips of such a video.

`loss`: temporary memory of loss and gradient at 65,536 pairs and their time at 8,192, against the
dense form; a step streamed by GradCache against plain passes over the same microbatches.

`similarity`: which signature of texts tells 25 listed pairs of other actions from 25 paraphrases:
lexical ones, the base's own and a sentence-transformers model's.

`load`: time and peak anonymous memory of loading a base in bfloat16, from Hugging Face's files and
converted, against transformers' `from_pretrained` and a copy of every tensor; by default a random
2.2B checkpoint. With `--forward` the hidden states of a clip and a text in float32 against
transformers' instead.

`recall`: time of ranking random clips against as many texts, both ways, and the memory it takes
beside the embeddings.

`step`: the training step with random weights on one device: pairs a second, share of the rate of a
large matrix product (MFU), memory, time to compile. With `--peer` beside transformers and PEFT with
SDPA, in bfloat16 compiled by `torch.compile` on a GPU; with `--cached` the batch carries what the
tower made of the frames (the peer computes it). Needs no dataset, no download, and none of the
packages that read data. `processor_seconds` are of all cores, and disturbed less by other work.

Seconds differ between machines; the ratios are what to compare.
"""

import functools
import json
import os
import sys

from absl import flags

from vtalign_jax import commandline

_ANNOTATIONS = flags.DEFINE_string("annotations", "", "prepare: recordings to render instead")
_VIDEOS = flags.DEFINE_string("videos", "", "prepare: folder of those recordings")
_WORKERS = flags.DEFINE_integer("workers", 0, "prepare: processes; 0: one a core", lower_bound=0)
_DATASET = flags.DEFINE_string("dataset", "", "input: what prepare.py wrote with --out")
_BASE = flags.DEFINE_string("base", "", "similarity, load: directory or hub id of a base model")
_SENTENCE_MODEL = flags.DEFINE_string(
    "sentence_model", "", "similarity: folder of a sentence-transformers model"
)
_FORWARD = flags.DEFINE_bool("forward", False, "load: compare a forward pass in float32 instead")
_SCRATCH = flags.DEFINE_string("scratch", "", "load: folder for 10 GB, removed afterwards")
_CLIPS = flags.DEFINE_integer("clips", 100_000, "recall: to rank", lower_bound=2)
_EMBEDDING_DIM = flags.DEFINE_integer("embedding_dim", 1024, "recall: numbers each", lower_bound=1)
_SIZE = flags.DEFINE_enum("size", "256M", ("tiny", "256M", "500M", "2.2B"), "step: of the base")
_PAIRS = flags.DEFINE_integer("pairs", 32, "step: in the loss", lower_bound=2)
_FRAMES = flags.DEFINE_integer("frames", 8, "step: of a clip", lower_bound=1)
_TEXT_TOKENS = flags.DEFINE_integer("text_tokens", 32, "step: of a text", lower_bound=8)
_DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", ("bfloat16", "float32"), "step: of weights and products"
)
_MICROBATCH = flags.DEFINE_integer(
    "microbatch", 0, "step: pairs at once, streamed by GradCache; 0: all", lower_bound=0
)
_LOSSES = flags.DEFINE_multi_enum(
    "losses", [], ("itm", "caption"), "step: losses beside InfoNCE, with the plan's weights"
)
_CACHED = flags.DEFINE_bool("cached", False, "step: features of the tower instead of frames")
_PEER = flags.DEFINE_bool("peer", False, "step: measure transformers and PEFT as well")
_REPEATS = flags.DEFINE_integer("repeats", 3, "counted runs of each way", lower_bound=1)


def main(part: str) -> None:
    """Measure one part."""
    for row in PARTS[part]():
        print(json.dumps(row), flush=True)


def _prepare():
    from benchmarks import prepare

    return prepare.measure(_ANNOTATIONS.value, _VIDEOS.value, _WORKERS.value, _REPEATS.value)


def _input():
    from benchmarks import loader

    return loader.measure(_DATASET.value, _REPEATS.value)


def _loss():
    from benchmarks import loss

    return loss.measure(_REPEATS.value)


def _similarity():
    from benchmarks import similarity

    say = functools.partial(print, file=sys.stderr, flush=True)
    return similarity.measure(_BASE.value, _SENTENCE_MODEL.value, say)


def _load():
    from benchmarks import load

    say = functools.partial(print, file=sys.stderr, flush=True)
    return load.measure(_BASE.value, _SCRATCH.value, _REPEATS.value, say, forward=_FORWARD.value)


def _recall():
    from benchmarks import recall

    say = functools.partial(print, file=sys.stderr, flush=True)
    return recall.measure(_CLIPS.value, _EMBEDDING_DIM.value, say)


def _step():
    # JAX would take three quarters of a GPU's memory at once, and leave too little for the peer.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from benchmarks import train_step

    shape = train_step.Shape(
        values=train_step.SIZES[_SIZE.value],
        pairs=_PAIRS.value,
        frames=_FRAMES.value,
        text_tokens=_TEXT_TOKENS.value,
        dtype=_DTYPE.value,
        microbatch=_MICROBATCH.value,
        itm_weight=0.5 * ("itm" in _LOSSES.value),
        caption_weight=0.2 * ("caption" in _LOSSES.value),
        cached=_CACHED.value,
    )
    say = functools.partial(print, file=sys.stderr, flush=True)
    return train_step.measure(_SIZE.value, shape, _REPEATS.value, say, peer=_PEER.value)


PARTS = {  # each imports what it alone needs
    "prepare": _prepare,
    "input": _input,
    "loss": _loss,
    "similarity": _similarity,
    "load": _load,
    "recall": _recall,
    "step": _step,
}


if __name__ == "__main__":
    commandline.run(main, parts=tuple(PARTS))
