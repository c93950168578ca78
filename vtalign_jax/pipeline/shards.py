"""Which ArrayRecord files make up the splits of a TFDS dataset, by its `dataset_info.json`.

TFDS itself would import whatever classes `features.json` names and open whatever files a template
of `dataset_info.json` makes; a dataset of `launch/prepare.py` has neither.

Source: TFDS's `DatasetInfo` as JSON, https://www.tensorflow.org/datasets/format_specific_dataset_builders.
"""

from typing import Any, NamedTuple

from etils import epath

from vtalign_jax import json_files
from vtalign_jax.errors import UserError

INFO = "dataset_info.json"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"  # TFDS's own
_FORMAT, _MOST_SHARDS, _MOST_RECORDS = "array_record", 10**5, 2**31 - 1
_AGAIN = "prepare the dataset again"


class Shard(NamedTuple):
    """A file of a split, as `grain.sources.ArrayRecordDataSource` takes it.

    Attributes:
      filename: the path.
      skip: records passed over.
      take: records read.
      examples_in_shard: records in the file.
    """

    filename: str
    skip: int
    take: int
    examples_in_shard: int


def read_splits(directory: epath.Path, name: str) -> dict[str, list[Shard]]:
    """Return the files of each split that has records, in order.

    Args:
      directory: of one version of the dataset.
      name: of the dataset, which its files start with.

    Raises:
      UserError: the description is damaged, or not that of such a dataset.
    """
    file = directory / INFO
    info = json_files.read_object(file, _AGAIN)
    json_files.require(info, {"fileFormat": str, "splits": list}, file, _AGAIN)
    if info["fileFormat"] != _FORMAT:
        raise UserError(f"{file}: fileFormat is not {_FORMAT}; {_AGAIN}")
    found: dict[str, list[Shard]] = {}
    for split in info["splits"]:
        try:
            named, lengths = _read_split(split)
        except ValueError as error:
            raise UserError(f"{file}: {error}; {_AGAIN}") from None
        start, count = f"{name}-{named}.{_FORMAT}", len(lengths)
        found[named] = [
            Shard(str(directory / f"{start}-{n:05d}-of-{count:05d}"), 0, length, length)
            for n, length in enumerate(lengths)
            if length
        ]
    return {named: shards for named, shards in found.items() if shards}


def _read_split(split: Any) -> tuple[str, list[int]]:
    """Return a split's name and the records of its files; a ValueError says what is wrong."""
    if not isinstance(split, dict):
        raise ValueError("a split is no object")
    named, lengths = split.get("name"), split.get("shardLengths", [])
    if not isinstance(named, str) or not named.isidentifier():
        raise ValueError(f"a split has the name {named!r:.80}")
    if split.get("filepathTemplate", _TEMPLATE) != _TEMPLATE:
        raise ValueError(f"the files of split {named} are named otherwise than {_TEMPLATE}")
    if not isinstance(lengths, list) or len(lengths) > _MOST_SHARDS:
        raise ValueError(f"split {named} has no list of shardLengths")
    if not all(isinstance(n, str | int) and not isinstance(n, bool) for n in lengths):
        raise ValueError(f"split {named} has shardLengths that are no numbers")
    counts = [int(n) for n in lengths]
    if not all(0 <= count <= _MOST_RECORDS for count in counts):
        raise ValueError(f"split {named} has shardLengths that no file has")
    return named, counts
