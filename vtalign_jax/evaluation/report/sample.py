"""A bounded sample of an evaluation: what the report draws, kept in the workdir as one small file.

`evaluation_sample.npz` (NumPy's own format, nothing pickled) holds at most `MOST_CLIPS` clips of
whole recordings, embeddings in float16: at 1,024 numbers an embedding 8 MB, and at most 3 million
letters of names. The page is drawn from it long after the model and the dataset have gone.
"""

import io
import json
import zipfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from vtalign_jax import json_files, remote
from vtalign_jax.array_types import Identity
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation.retrieval import right_answers

FILE = "evaluation_sample.npz"  # inside a workdir
_MOST_BYTES = 2**28  # of a file, packed and unpacked; a full sample takes 10 MB
MOST_CLIPS = 2000
MOST_LETTERS = 500  # of a name that is kept
_FACTS = ("step", "total", "split", "clip_ids", "recordings", "texts", "fingerprint")


class Sample(NamedTuple):
    """M clips, ordered by recording and time, and their T distinct texts.

    Attributes:
      step: steps done.
      total: clips of the split.
      split: its name.
      fingerprint: of the dataset that `records` count in.
      clip_ids: M names.
      recordings: M names.
      texts: T, as an evaluation shows them.
      records: int64[M], indices in the split.
      text: int64[M], which of the T texts is each clip's own.
      right: bool[M, T], see `retrieval.right_answers`.
      z_video: float32[M, E], unit norm.
      z_text: float32[T, E], unit norm.
    """

    step: int
    total: int
    split: str
    fingerprint: str
    clip_ids: list[str]
    recordings: list[str]
    texts: list[str]
    records: np.ndarray
    text: np.ndarray
    right: np.ndarray
    z_video: np.ndarray
    z_text: np.ndarray


class Shown(NamedTuple):
    """The embeddings of chosen clips, before anybody asked for their names.

    Attributes:
      records: int64[M], ordered by recording and time.
      identity: M rows.
      z_video: float32[M, E].
      z_text: float32[M, E].
    """

    records: np.ndarray
    identity: Identity
    z_video: np.ndarray
    z_text: np.ndarray


def choose(
    identity: Identity, z_video: np.ndarray, z_text: np.ndarray, most: int = MOST_CLIPS
) -> Shown:
    """Return the clips of as many whole recordings as fit, drawn with a fixed seed.

    Args:
      identity: N real rows.
      z_video: float32[N, E], unit norm.
      z_text: float32[N, E], likewise.
      most: clips kept; the last recording is cut where it does not fit whole.
    """
    recording = np.asarray(identity.recording)
    names = np.random.default_rng(0).permutation(np.unique(recording))
    place = np.empty(recording.max() + 1, np.int64)
    place[names] = np.arange(len(names))
    start = np.asarray(identity.span)[:, 0]
    drawn = np.lexsort((start, place[recording]))[:most]
    rows = drawn[np.lexsort((start[drawn], recording[drawn]))]
    chosen = Identity(*(np.asarray(values)[rows] for values in identity))
    return Shown(rows, chosen, z_video[rows], z_text[rows])


def name(shown: Shown, step: int, split: Any, texts: Sequence[str]) -> Sample:
    """Return the sample with the names of its clips.

    Args:
      shown: the clips.
      step: steps done.
      split: a `ClipSplit`, whose records they are.
      texts: of every record of the split, as the evaluation shows them.
    """
    _, first, own = np.unique(shown.identity.text, return_index=True, return_inverse=True)
    right = np.zeros((len(own), len(first)), bool)
    answers = right_answers(shown.identity)
    right[answers.query, answers.candidate] = True
    rows = shown.records
    return Sample(
        step=step,
        total=len(split),
        split=split.name,
        fingerprint=split.fingerprint,
        clip_ids=[cut(each) for each in split.table["clip_id"].take(rows).to_pylist()],
        recordings=[cut(each) for each in split.table["recording_id"].take(rows).to_pylist()],
        texts=[cut(texts[row]) for row in rows[first]],
        records=rows,
        text=own,
        right=right,
        z_video=shown.z_video,
        z_text=shown.z_text[first],
    )


def cut(text: str) -> str:
    """Return a name as it is kept: a long one ends by saying how long it is."""
    if len(text) <= MOST_LETTERS:
        return text
    return f"{text[:MOST_LETTERS]}… ({len(text):,} characters)"


def write(workdir: str | epath.Path, sample: Sample) -> None:
    """Write the sample in place of an earlier one, which is seen whole until then."""
    facts = {fact: getattr(sample, fact) for fact in _FACTS}
    stream = io.BytesIO()
    np.savez(
        stream,
        facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
        records=sample.records,
        text=sample.text,
        right=np.packbits(sample.right, axis=1),
        z_video=sample.z_video.astype(np.float16),
        z_text=sample.z_text.astype(np.float16),
    )
    remote.write_bytes(epath.Path(workdir) / FILE, stream.getvalue())


def _bounded(path: epath.Path) -> bytes:
    """Return the file, if neither it nor what it unpacks to is too large."""
    with path.open("rb") as stream:
        data = stream.read(_MOST_BYTES + 1)
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        unpacked = sum(member.file_size for member in packed.infolist())
    if max(len(data), unpacked) > _MOST_BYTES:
        raise ValueError(f"more than {_MOST_BYTES // 2**20} MiB")
    return data


def read(workdir: str | epath.Path) -> Sample | None:
    """Return the sample of a workdir, None if there is none (runs of before had none).

    Raises:
      UserError: the file is damaged.
    """
    path = epath.Path(workdir) / FILE
    if not remote.is_file(path):
        return None
    try:
        data = _bounded(path)
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            facts = json_files.loads(stored["facts"].tobytes())
            count = len(facts["texts"])
            return Sample(
                **facts,
                records=stored["records"],
                text=stored["text"],
                right=np.unpackbits(stored["right"], axis=1, count=count).astype(bool),
                z_video=stored["z_video"].astype(np.float32),
                z_text=stored["z_text"].astype(np.float32),
            )
    except Exception as error:  # of zip files, NumPy and JSON
        raise UserError(
            f"{path} cannot be read ({' '.join(str(error).split())}); remove it, and the next "
            "evaluation of the run writes it again"
        ) from error
