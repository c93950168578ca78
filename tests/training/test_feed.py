import time

from vtalign_jax.training.feed import Feed


class Result:
    """Of a step that the devices compute, or have computed."""

    def __init__(self, ready):
        self.ready = ready

    def is_ready(self):
        return self.ready


def test_the_next_batch_is_on_its_way_before_the_step_is_done():
    sent = []
    feed = Feed(iter(enumerate("abc")), lambda batch: sent.append(batch) or batch.upper())
    seen = []
    for step, batch in feed:
        assert sent == list("abc"[: step + 1])  # not earlier: batches take room
        feed.fetch({"loss": Result(ready=False)})
        assert sent == list("abc"[: step + 2])
        seen.append((step, batch))
    assert seen == [(0, "A"), (1, "B"), (2, "C")]


def test_only_devices_that_stand_still_lose_time_to_data():
    def slow():
        for step in range(4):
            time.sleep(0.02 * (step > 0))
            yield step, None

    feed = Feed(slow(), lambda batch: batch)
    next(feed)
    assert feed.fetch({"loss": Result(True), "norm": Result(False)}) == 0.0
    next(feed)
    assert feed.fetch({"loss": Result(True), "norm": Result(True)}) >= 0.02


def test_a_run_without_a_batch_makes_no_step():
    assert list(Feed(iter(()), lambda batch: batch)) == []
