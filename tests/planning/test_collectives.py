import math

import pytest

from vtalign_jax.planning import collectives, hlo
from vtalign_jax.planning.chips import CHIPS
from vtalign_jax.planning.collectives import Collective


def found_in(lines, *, devices=8, slices=1, more=""):
    body = "\n".join(f"  {line}" for line in lines)
    module = hlo.parse(f"{more}\nENTRY %main () -> f32[] {{\n{body}\n}}\n")
    return collectives.find(module, devices, slices)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", 2),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([2,4]T(1,0)) {'a','b'}", 8),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}", 2),
        ("replica_groups={}", 8),
        ("", 8),
    ],
)
def test_the_size_of_a_group_is_read_in_every_form(groups, size):
    line = f"%a = f32[16,4]{{1,0}} all-gather(%x), channel_id=1, {groups}, dimensions={{0}}"
    assert dict(found_in([line])) == {Collective("all-gather", "ICI", "f32[16,4]", 256, size): 1}


@pytest.mark.parametrize(
    ("line", "kind", "bytes_", "sent"),
    [
        ("%a = f32[64] all-reduce(%x), replica_groups=[1,8]<=[8]", "all-reduce", 256, 448),
        ("%a = f32[64] all-gather(%x), replica_groups=[1,8]<=[8]", "all-gather", 256, 224),
        ("%a = f32[8] reduce-scatter(%x), replica_groups=[1,8]<=[8]", "reduce-scatter", 256, 224),
        ("%a = f32[64] all-to-all(%x), replica_groups=[1,8]<=[8]", "all-to-all", 256, 224),
        (
            "%a = (f32[8], f32[64]) all-gather-start(%x), replica_groups=[1,8]<=[8]",
            "all-gather",
            256,
            224,
        ),
        (
            "%a = (f32[64], f32[64], u32[], u32[]) collective-permute-start(%x), "
            "source_target_pairs={{0,1},{1,0}}",
            "collective-permute",
            256,
            256,
        ),
    ],
)
def test_bytes_are_those_of_the_whole_and_a_ring_sends_its_share(line, kind, bytes_, sent):
    (collective,) = found_in([line])
    assert (collective.kind, collective.bytes) == (kind, bytes_)
    assert collective.sent_bytes == pytest.approx(sent)


def test_the_ends_of_an_exchange_are_not_counted_again():
    assert not found_in(["%a = f32[64] all-gather-done(%x)", "%b = f32[64] all-reduce-done(%x)"])


def test_an_exchange_fused_into_several_steps_counts_once():
    fused = """%one (p: f32[8]) -> f32[64] {
  ROOT %g = f32[64] all-gather(%p), channel_id=5, replica_groups=[1,8]<=[8]
}
%two (p: f32[8]) -> f32[64] {
  ROOT %g = f32[64] all-gather(%p), channel_id=5, replica_groups=[1,8]<=[8]
}
%three (p: f32[8]) -> f32[64] {
  ROOT %g = f32[64] all-gather(%p), channel_id=6, replica_groups=[1,8]<=[8]
}
%four (p: f32[8]) -> f32[64] {
  ROOT %g = f32[64] all-gather(%p), channel_id=6, frontend_attributes={chain_id="1"}
}"""
    lines = [f"%{n} = f32[64] fusion(%x), calls=%{n}" for n in ("one", "two", "three", "four")]
    assert list(found_in(lines, more=fused).values()) == [3]  # two chains share a channel


def test_between_slices_what_megascale_receives_is_dcn_and_nothing_else_is():
    said = (
        'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
        '_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    found = found_in(
        [
            f"%r = (f32[64], u32[], token[]) recv(%t), channel_id=1, {said}",
            f"%s = (f32[64], u32[], token[]) send(%x, %t), channel_id=2, {said}",
            f"%d = (f32[64], token[]) recv-done(%r), channel_id=1, {said}",
            "%h = (f32[64], u32[], token[]) recv(%t), channel_id=3",
        ],
        slices=2,
    )
    assert dict(found) == {Collective("all-reduce", "DCN", "f32[64]", 256, 2): 1}


def test_seconds_are_bytes_over_the_bandwidth_of_each_net():
    chip = CHIPS["TPU v5"]
    exchanges = [
        (Collective("all-reduce", "ICI", "", 1000, 2), 3),
        (Collective("all-gather", "DCN", "", 1000, 2), 1),
    ]
    seconds = collectives.seconds(exchanges, chip, 1)
    assert seconds["ICI"] == pytest.approx(3 * 1000 / chip.ici_bandwidth)
    assert seconds["DCN"] == pytest.approx(500 / chip.dcn_bandwidth)
    assert math.isnan(collectives.seconds(exchanges, CHIPS["TPU v2"], 1)["DCN"])
    assert collectives.seconds([], chip, 1) == {"ICI": 0.0, "DCN": 0.0}
