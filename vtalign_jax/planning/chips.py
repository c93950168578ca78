"""What each generation of TPU can do, by the name that JAX gives its devices."""

import dataclasses

from vtalign_jax.errors import UserError

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Sources: `hbm_bytes` is what the compiler of libtpu 0.0.42 says is available to programs;
    `peak_flops` (bfloat16) is Google's page of the generation (cloud.google.com/tpu/docs);
    bandwidths are those of "How to scale your model" (jax-ml.github.io/scaling-book/tpus), `ici`
    both ways along one axis of the torus, `dcn` a chip's share of its host's network; host memory
    is that of the machine type with whole hosts, a chip's share (cloud.google.com/tpu/docs/runtimes
    and the pages of the generations). None where no source was found.

    Attributes:
      name: as in `--topology`.
      hbm_bytes: for programs.
      peak_flops: a second, bfloat16.
      hbm_bandwidth: bytes a second.
      ici_bandwidth: bytes a second.
      dcn_bandwidth: bytes a second.
      clock_hz: of the cycles that the compiler estimates.
      host_bytes: memory of the host.
    """

    name: str
    hbm_bytes: int
    peak_flops: float
    hbm_bandwidth: float
    ici_bandwidth: float
    dcn_bandwidth: float | None
    clock_hz: float | None
    host_bytes: int | None


# Clocks: v5e, v5p and v6e as in the design (section 10); v2 to v4 are those of Jouppi et al. (2020,
# 2023), "A domain specific supercomputer for training deep neural networks" and "TPU v4".
CHIPS = {
    "TPU v2": Chip("v2", int(14.96 * _GIB), 46e12, 7.0e11, 1.24e11, None, 700e6, None),
    "TPU v3": Chip("v3", int(30.96 * _GIB), 123e12, 9.0e11, 2.0e11, None, 940e6, None),
    "TPU v4": Chip("v4", int(30.5 * _GIB), 275e12, 1.2e12, 9.0e10, 6.25e9, 1.05e9, 100 * _GIB),
    "TPU v5 lite": Chip(
        "v5e", int(15.75 * _GIB), 197e12, 8.2e11, 9.0e10, 3.125e9, 1.5e9, 48 * _GIB
    ),
    "TPU v5": Chip("v5p", int(95.74 * _GIB), 459e12, 2.8e12, 1.8e11, 6.25e9, 1.75e9, 112 * _GIB),
    "TPU v6 lite": Chip(
        "v6e", int(31.25 * _GIB), 918e12, 1.6e12, 1.8e11, 1.25e10, 1.75e9, 180 * _GIB
    ),
    "TPU7x": Chip("tpu7x", int(189.5 * _GIB), 2307e12, 7.4e12, 1.8e11, 1.25e10, None, None),
}


def chip_of(device_kind: str) -> Chip:
    """Return the chip of a device.

    Raises:
      UserError: a generation that is not in the table.
    """
    if device_kind not in CHIPS:
        names = ", ".join(chip.name for chip in CHIPS.values())
        raise UserError(
            f"--topology: no figures of {device_kind!r} are at hand; take one of {names}"
        )
    return CHIPS[device_kind]
