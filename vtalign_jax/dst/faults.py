"""What all frame sources share: the tolerance of times, and how they say that frames are bad."""

import dataclasses

EPSILON = 1e-6  # seconds; a time this close below a frame's start counts as that frame's


class FrameError(Exception):
    """A file that gives no frames at all.

    Attributes:
      reason: short and without values, so that equal reasons can be counted.
      detail: the values.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclasses.dataclass(frozen=True)
class FrameFault:
    """A time at which there is a picture, but a damaged one."""

    reason: str
    detail: str
