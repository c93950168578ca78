"""The TFDS dataset of clip-text pairs."""
