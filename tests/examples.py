"""Records of a prepared dataset as they are stored."""

import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2


def stored_examples(directory, split):
    """Return the records of a split, in order.

    Their bytes differ between processes (protobuf writes a map in any order), the messages do not.
    """
    source = tfds.builder_from_directory(str(directory)).as_data_source(split).data_source
    return [tf_example_pb2.Example.FromString(source[n]) for n in range(len(source))]
