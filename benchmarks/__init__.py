"""The measurements of `launch/bench.py`, one module a part."""
