import pytest

from vtalign_jax.dst.tables import Columns, is_node_table, read_csv, read_tsv
from vtalign_jax.dst.tree import build_videos
from vtalign_jax.errors import UserError

HEADER = "type\tid\tstart_ts\tend_ts\tname"
EPIC = "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,narration,all_nouns"


def _tsv(text):
    (video,), skips = read_tsv(text, "/x/P 01.tsv")
    assert skips == []
    return video


def _csv(*lines, columns=None):
    return read_csv("\n".join(lines), "/x/a.csv", columns or Columns())


def _checked(videos):
    checked = build_videos(videos)
    nodes = [n for video in checked.videos for n in video.nodes]
    return [(n.node_id, n.level, n.start, n.end, n.name, n.ancestor_ids) for n in nodes]


@pytest.mark.parametrize("ids", [("S1", "S1.1", "S1.1.a"), ("1", "1.1", "1.1.1")])
def test_tsv_ids_of_both_styles_and_types_in_either_case(ids):
    rows = zip(("STEP", "Substep", "action"), ids, strict=True)
    lines = [f"{kind}\t{node_id}\t1.5\t9\tname of {kind}" for kind, node_id in rows]
    video = _tsv("\n".join([HEADER, *lines, ""]))
    assert video.uid == "P 01"
    step, substep, action = ids
    assert _checked([video]) == [
        (step, "step", 1.5, 9.0, "name of STEP", ()),
        (substep, "substep", 1.5, 9.0, "name of Substep", (step,)),
        (action, "action", 1.5, 9.0, "name of action", (step, substep)),
    ]


def test_tsv_columns_may_stand_in_any_order_and_the_header_may_be_missing():
    rows = ["Name\tID\tType\tEnd_ts\tStart_ts\tscore\r", "do it\tS1\tstep\t2\t1\t0.5\r"]
    bare = ["step\tS1\t1\t2\tdo it"]
    for lines in (rows, bare):
        assert is_node_table(lines[0].strip())
        assert _checked([_tsv("\n".join(lines))]) == [("S1", "step", 1.0, 2.0, "do it", ())]


def test_tsv_quotes_are_part_of_the_name_and_odd_rows_cost_themselves():
    lines = [
        HEADER,
        'step\tS1\t1\t2\tpress "go',
        "step\tS2\t3",
        "step\tS3\t3\t4\tgo\ton",
        "\t\t\t\t",
    ]
    video = _tsv("\n".join([*lines, "step\tS4\t3\t4\tend"]))
    assert [name for *_, name, _ in _checked([video])] == ['press "go', "end"]
    skips = build_videos([video]).skips
    assert [(skip.reason, skip.where) for skip in skips] == [
        ("another number of cells than the header", "P 01.tsv line 3"),
        ("another number of cells than the header", "P 01.tsv line 4"),
    ]


def test_csv_rows_are_grouped_by_video_and_have_no_hierarchy():
    videos, skips = _csv(
        EPIC,
        "1,P01,P01_11,00:00:01.50,00:01:02.00,take plate,['plate']",
        "2,P01,P01_12,3.25,4,put plate,\"['plate', 'it']\"",
        "1.1,P01,P01_11,00:00:05.00,01:00:00.00,open door,['door']",
    )
    assert skips == []
    assert [video.uid for video in videos] == ["P01_11", "P01_12"]
    assert _checked(videos) == [
        ("1", "action", 1.5, 62.0, "take plate", ()),
        ("1.1", "action", 5.0, 3600.0, "open door", ()),
        ("2", "action", 3.25, 4.0, "put plate", ()),
    ]
    assert all(node.is_leaf for video in build_videos(videos).videos for node in video.nodes)


def test_csv_columns_have_names_of_their_own_and_ids_are_row_numbers():
    columns = Columns(uid="video_uid", start="start_sec", end="end_sec", text="what")
    lines = ["view;video_uid;start_sec;end_sec;what", 'ego;v;1;2;"cut; peel"', "ego;v;3;4;stir"]
    videos, _ = _csv(*lines, columns=columns)
    assert _checked(videos) == [
        ("1", "action", 1.0, 2.0, "cut; peel", ()),
        ("2", "action", 3.0, 4.0, "stir", ()),
    ]
    named, _ = _csv(*lines, columns=Columns("video_uid", "start_sec", "end_sec", "what", "view"))
    assert [node.node_id for node in named[0].nodes] == ["ego", "ego"]


def test_a_named_id_column_wins_over_narration_id():
    (video,), _ = _csv(EPIC, "1,P01,v,1,2,one,x", columns=Columns(id="participant_id"))
    assert [node.node_id for node in video.nodes] == ["P01"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_may_end_in_any_manner_and_spaces_around_a_uid_do_not_count(end):
    columns = Columns("uid", "start", "end", "text", "id")
    lines = ["uid,start,end,text,id", " v ,1,2,one,a", "v,3,4,two,b", ""]
    (video,), skips = read_csv(end.join(lines), "a.csv", columns)
    assert skips == []
    assert (video.uid, [node.node_id for node in video.nodes]) == ("v", ["a", "b"])
    rows = [HEADER, "step\tS1\t1\t2\tone", "step\tS2\t3\t4\ttwo", ""]
    assert [node.name for node in _tsv(end.join(rows)).nodes] == ["one", "two"]


@pytest.mark.parametrize(
    ("columns", "missing", "flag"),
    [
        (Columns(text="text"), "text", "--text_column"),
        (Columns(id="key"), "key", "--id_column"),
        (Columns(start=""), '""', "--start_column"),
        (Columns(uid="a", end="b"), "a, b", "--uid_column, --end_column"),
    ],
)
def test_a_missing_column_is_one_error_that_names_those_there_are(columns, missing, flag):
    with pytest.raises(UserError) as error:
        _csv(EPIC, columns=columns)
    message = str(error.value)
    assert f"/x/a.csv has no column {missing}; it has narration_id, participant_id," in message
    assert message.endswith(flag)


def test_csv_rows_that_cannot_be_taken_apart_cost_themselves():
    good = "{0},P01,v,1,2,n{0},x"
    lines = [
        EPIC,
        good.format(1),
        '2,P01,v,1,2,"never closed,x',
        good.format(3),
        '4,P01,v,1,2,"a"b,x',
        "5,P01,v,1",
        "6,P01,v,1,2," + "y" * 200_000 + ",x",
        '7,P01,v,1,2,"two\nlines",x',
        "",
        good.format(8),
    ]
    (video,), skips = _csv(*lines)
    assert [(node.node_id, node.name) for node in video.nodes] == [
        ("1", "n1"),
        ("3", "n3"),
        ("7", "two\nlines"),
        ("8", "n8"),
    ]
    assert [(skip.reason, skip.where) for skip in skips] == [
        ("another number of cells than the header", f"a.csv line {n}") for n in (3, 5, 6, 7)
    ]
    assert [node.where for node in video.nodes][-1] == "line 11"


def test_a_csv_row_without_uid_or_id_is_left_out_with_its_line():
    videos, _ = _csv(EPIC, "1,P01,,1,2,one,x", ",P01,v,1,2,two,x", "2,P01,v,1,2,two,x")
    skips = build_videos(videos).skips
    assert [(skip.reason, skip.clips) for skip in skips] == [("no uid", 1), ("no id", 1)]
    assert skips[1].where == "a.csv line 3"
