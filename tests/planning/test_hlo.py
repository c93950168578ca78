import re

import pytest

from vtalign_jax.planning import hlo

LOOP = """HloModule jit_f, is_scheduled=true

%fused (p.0: f32[8,16]) -> f32[8,16] {
  %p.0 = f32[8,16]{1,0:T(8,128)} parameter(0)
  ROOT %inner.1 = f32[8,16]{1,0:T(8,128)} add(%p.0, %p.0), backend_config={"estimated_cycles":"7"}
}

%body (arg: (s32[], f32[8,16], s32[])) -> (s32[], f32[8,16], s32[]) {
  %arg = (s32[]{:T(128)}, /*index=1*/f32[8,16]{1,0:T(8,128)}, s32[]) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %copy.1 = s32[]{:T(128)S(6)} copy(%i.1)
  %x = f32[8,16]{1,0:T(8,128)} get-tuple-element(%arg), index=1
  %two = s32[] get-tuple-element(%arg), index=2
  %next = s32[]{:T(128)} add(%copy.1, %two)
  %f.1 = f32[8,16]{1,0:T(8,128)S(1)} fusion(%x), kind=kLoop, calls=%fused, \
metadata={op_name="jit(f)/while/body/add"}, backend_config={"estimated_cycles":"100"}
  ROOT %out = (s32[], f32[8,16], s32[]) tuple(%next, %f.1, %two)
}

%condition (arg: (s32[], f32[8,16], s32[])) -> pred[] {
  %limit = s32[]{:T(128)} constant(10)
  %arg.2 = (s32[], f32[8,16]{1,0:T(8,128)}, s32[]) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%arg.2), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.2, %limit), direction=LT
}

ENTRY %main (x.1: f32[8,16]) -> f32[8,16] {
  %x.1 = f32[8,16]{0,1:T(8,128)} parameter(0), metadata={op_name="batch.frames"}
  %zero = s32[] constant(1)
  %begin = s32[] copy(%zero)
  %step = s32[] constant(3)
  %begun = (s32[], f32[8,16], s32[]) tuple(%begin, %x.1, %step)
  %loop = (s32[], f32[8,16], s32[]) while(%begun), condition=%condition, body=%body
  ROOT %y = f32[8,16]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


def loop_of(module):
    computation = module.computations[module.entry]
    return computation, computation["loop"]


def test_a_loops_rounds_are_read_from_its_counter():
    module = hlo.parse(LOOP)
    assert module.entry == "main"
    assert hlo.trip_count(module, *loop_of(module)) == 3  # 1, 4, 7
    assert hlo.unread_loops(module) == []


@pytest.mark.parametrize(
    ("old", "new", "rounds"),
    [
        ("constant(10)", "constant(11)", 4),
        ("constant(10)", "constant(1)", 0),
        ("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"42"}}', 42),
        ("direction=LT", "direction=NE", None),
        ("s32[] constant(3)", "s32[] parameter(1)", None),
        ("s32[] constant(1)", "s32[] parameter(2)", None),
    ],
)
def test_rounds_follow_start_limit_and_step_or_are_not_known(old, new, rounds):
    module = hlo.parse(LOOP.replace(old, new))
    assert hlo.trip_count(module, *loop_of(module)) == rounds
    assert hlo.unread_loops(module) == ([] if rounds is not None else ["loop"])


def test_what_a_loop_runs_counts_once_a_round_and_a_fusion_as_a_whole():
    module = hlo.parse(LOOP)
    times = {v.instruction.name: (v.times, v.is_fused) for v in hlo.visits(module)}
    assert times["f.1"] == (3, False)
    assert times["inner.1"] == (3, True)
    assert times["x.1"] == (1, False)
    unfused = [v for v in hlo.visits(module) if not v.is_fused]
    cycles = sum(v.times * (v.instruction.number("estimated_cycles") or 0) for v in unfused)
    assert cycles == 300


def test_both_branches_of_a_conditional_and_calls_are_visited():
    text = """ENTRY %main (p: pred[]) -> f32[] {
  %p = pred[] parameter(0)
  %a = f32[] conditional(%p), branch_computations={%left, %right}
  ROOT %b = f32[] call(%a), to_apply=%right
}
%left () -> f32[] {
  ROOT %one = f32[] constant(1)
}
%right () -> f32[] {
  ROOT %more = f32[] constant(2)
}
"""
    names = [visit.instruction.name for visit in hlo.visits(hlo.parse(text))]
    assert names == ["p", "a", "one", "more", "b", "more"]


def test_attributes_of_an_instruction_are_read():
    module = hlo.parse(LOOP)
    fusion = module.computations["body"]["f.1"]
    assert (fusion.opcode, fusion.operands, fusion.is_root) == ("fusion", ("x",), False)
    assert fusion.source == "jit(f)/while/body/add"
    assert fusion.number("estimated_cycles") == 100
    assert fusion.channel is None
    assert module.computations["condition"]["limit"].operands == ("10",)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("f32[]{:T(128)}", [("f32[]", 4, 512, True)]),
        ("bf16[3,5]{1,0:T(8,128)(2,1)}", [("bf16[3,5]", 30, 8 * 128 * 2, True)]),
        ("u8[4,8,6,3]{2,3,1,0:T(32,128)(4,1)}", [("u8[4,8,6,3]", 576, 4 * 8 * 32 * 128, True)]),
        ("f32[2048,16]{0,1:T(8,128)S(1)}", [("f32[2048,16]", 131072, 131072, False)]),
        ("s4[5]{0}", [("s4[5]", 3, 3, True)]),
        ("pred[7]", [("pred[7]", 7, 7, True)]),
        ("(f32[2]{0}, token[], s32[3]{0})", [("f32[2]", 8, 8, True), ("s32[3]", 12, 12, True)]),
    ],
)
def test_bytes_of_a_shape_with_and_without_the_padding_of_its_tiles(shape, expected):
    assert [tuple(array) for array in hlo.arrays(shape)] == expected


def test_a_text_without_a_program_is_an_error():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse(re.sub("ENTRY ", "", LOOP))
