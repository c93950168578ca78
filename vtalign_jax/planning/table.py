"""A plan for people to read."""

from typing import Any

from vtalign_jax.planning.collectives import DCN, ICI

_SHOWN = 6  # exchanges
_NAMES = {
    "trainable": "trainable leaves",
    "optimizer": "optimizer state",
    "frozen": "frozen weights",
    "prefixes": "prefixes of a microbatch",
    "gradient": "sums of the gradient",
    "code": "the program itself",
}


def lines(report: dict[str, Any]) -> list[str]:
    """Return the report as lines of text."""
    found = [_head(report), *_memory_lines(report)]
    if "step" not in report:
        return found
    return found + _network_lines(report) + _speed_lines(report) + _data_lines(report)


def size(count: float) -> str:
    """Return bytes as people say them."""
    for unit, power in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= power:
            return f"{count / power:,.2f} {unit}"
    return f"{count:,.0f} B"


def _head(report: dict[str, Any]) -> str:
    topology, mesh = report["topology"], report["mesh"]
    slices = f"{topology['slices']} slices of " if topology["slices"] > 1 else ""
    way, step = "", report.get("step", {})
    if step.get("way") == "streamed":
        way = (
            f", streamed in {step['microbatches']} microbatches of {step['pairs_per_device']} a "
            f"device, prefixes {_kept(step)}"
        )
    chips = f"{topology['chips']} chip{'s' * (topology['chips'] > 1)}"
    return (
        f"{report['base']['name']} on {slices}{topology['name']} ({chips}, data {mesh['data']} x "
        f"fsdp {mesh['fsdp']}): {report['pairs']:,} pairs a step{way}, remat {report['remat']}; "
        f"libtpu {report['versions']['libtpu']}"
    )


def _kept(step: dict[str, Any]) -> str:
    if step["keep_prefix"] == "never":
        return "computed twice"
    return f"kept on the {step['keep_prefix']} ({size(step['prefix_bytes_per_device'])} a device)"


def _memory_lines(report: dict[str, Any]) -> list[str]:
    memory = report["memory"]
    total = size(memory["total_bytes"]) if memory["total_bytes"] else "more"
    verdict = "fits" if report["fits"] else "does NOT fit"
    found = [f"HBM of a device: {total} of {size(memory['hbm_bytes'])}, {verdict}"]
    rows = list(memory.get("parts", {}).items())
    rows += [(f"{name}, beside", bytes_) for name, bytes_ in memory.get("beside", {}).items()]
    for name, bytes_ in sorted(rows, key=lambda row: -row[1]):
        if bytes_ >= 2**20:
            found.append(f"  {size(bytes_):>12}  {_NAMES.get(name, name)}")
    if memory.get("largest_temporaries"):
        found.append("  largest temporaries:")
    for each in memory.get("largest_temporaries", []):
        found.append(f"  {size(each['bytes']):>12}    {each['shape']} {_short(each['source'])}")
    found += [f"  largest: {line}" for line in memory.get("largest", [])]
    return found + _program_lines(memory)


def _program_lines(memory: dict[str, Any]) -> list[str]:
    found, several = [], len(memory.get("programs", [])) > 1
    for program in memory.get("programs", []):
        if several:
            found.append(
                f"  {size(program['total_bytes']):>12}  while {program['name']} runs "
                f"({program['times']} x, {size(program['temporary_bytes'])} of temporaries)"
            )
        if program["unread_loops"]:
            found.append(
                f"warning: {program['name']} has {len(program['unread_loops'])} loops whose rounds "
                "cannot be read; they are counted once, so its time is too short"
            )
    return found


def _short(source: str) -> str:
    parts = [part for part in source.split("/") if part not in ("while", "body", "closed_call")]
    return "/".join(parts)[:70]


def _network_lines(report: dict[str, Any]) -> list[str]:
    found = []
    for title, rows in (
        ("exchanges of a step", report["collectives"]),
        ("of these the loss", report.get("loss", {}).get("collectives", [])),
    ):
        for net in (ICI, DCN):
            of_net = [row for row in rows if row["net"] == net]
            if not of_net:
                continue
            sent = sum(row["sent_bytes"] for row in of_net)
            count = sum(row["times"] for row in of_net)
            found.append(f"{title}, {net}: {count:,}, {size(sent)} sent by a device")
            found += [_exchange(row) for row in of_net[:_SHOWN] if row["sent_bytes"] >= 2**10]
    if "loss" in report:
        found.append(f"the loss alone: {size(report['loss']['temporary_bytes'])} of temporaries")
    return found


def _exchange(row: dict[str, Any]) -> str:
    times = f"{row['times']:,} x {row['kind']}"
    return f"  {times:>24}  {size(row['bytes'])} over {row['group']}: {row['shape'][:60]}"


def _speed_lines(report: dict[str, Any]) -> list[str]:
    topology = report["topology"]
    nets = f"; ICI {report['ici_seconds']:.4f} s" if topology["devices"] > 1 else ""
    if topology["slices"] > 1:
        nets += f", DCN {report['dcn_seconds']:.4f} s"
    if "compute_seconds" not in report:
        chip = topology["chip"]["name"]
        return [f"time: {report['cycles']:,} cycles of {chip}, whose clock is not known{nets}"]
    if nets:
        nets += f" by bandwidth; {report['step_seconds']:.3f} s if nothing overlaps"
    work = f"{report['flops_per_pair']['weights'] / 1e12:.2f} TFLOP a pair in products with weights"
    fed = f"decode {report['frames_per_second']:,.0f} frames/s"
    if "cached" in report:
        read = report["read_bytes_per_second"] / 1e6
        fed = f"read {read:,.0f} MB/s of features (depth {report['cached']}, bfloat16)"
    return [
        f"a step computes for {report['compute_seconds']:.3f} s by the compiler's estimate"
        f"{_kernels(report)}{nets}",
        f"MFU {report['mfu']:.1%} while computing ({work}); {report['pairs_per_second']:,.1f} "
        f"pairs/s, for which the hosts {fed}",
    ]


def _kernels(report: dict[str, Any]) -> str:
    """Return what is said of custom kernels, of which the compiler estimates nothing."""
    if not report["kernel_seconds"]:
        return ""
    return f", attention of it {report['kernel_seconds']:.3f} s at 0.6 of the peak"


def _data_lines(report: dict[str, Any]) -> list[str]:
    cache = f"features after the tower, bfloat16: {report['cache_bytes_per_clip'] / 1e6:.1f} MB"
    if "epoch_pairs" not in report:
        return [f"{cache} a clip; with --pairs or a prepared config.data.dir an epoch is planned"]
    cache += f" a clip, {report['cache_bytes'] / 1e9:,.0f} GB for the dataset"
    epoch = f"an epoch of {report['epoch_pairs']:,} pairs: {report['epoch_steps']:,} steps"
    if "epoch_hours" in report:
        epoch += f", {report['epoch_hours']:.2f} hours"
    if "epoch_usd" in report:
        epoch += f", {report['epoch_usd']:,.2f} USD"
    return [cache, epoch]
