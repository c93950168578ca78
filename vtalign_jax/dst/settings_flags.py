"""The flags that become `plan.Settings`, of every command that reads annotations."""

from absl import flags

from vtalign_jax.dst.layouts import LAYOUTS
from vtalign_jax.dst.plan import Settings
from vtalign_jax.dst.readers import FORMATS

flags.disclaim_key_flags()  # they are the command's that calls, so that its --help shows them


def define_settings_flags() -> None:
    """Define one flag for each field of `Settings`."""
    default = Settings("", "")
    define_source_flags()
    flags.DEFINE_string("recording_template", "", "The recording of a uid, from the same names.")
    flags.DEFINE_string("fit", "", "square or center_crop; default: the layout's, else square.")
    flags.DEFINE_integer(
        "rotate", None, "Degrees counter-clockwise; default: the layout's, else 0."
    )
    flags.DEFINE_integer("image_size", default.image_size, "Edge of the stored square, in pixels.")
    flags.DEFINE_integer("frames", default.frames, "Frames stored a clip; a run may use fewer.")
    flags.DEFINE_string(
        "strategy",
        default.strategy,
        "Length of a clip: center (--window_seconds), span (its node's, and --pad_seconds on each "
        "side) or adaptive (EgoVLP: in proportion to the recording's mean gap between nodes, "
        "--window_seconds on average).",
    )
    flags.DEFINE_float("window_seconds", default.window_seconds, "Length of a clip, in seconds.")
    flags.DEFINE_float("pad_seconds", default.pad_seconds, "What --strategy=span adds, in seconds.")
    flags.DEFINE_string("on_leakage", default.on_leakage, "error, or drop from train.")
    flags.DEFINE_float("val_fraction", default.val_fraction, "Recordings for val if none is given.")


def define_source_flags(levels: str = Settings.levels) -> None:
    """Define the flags that say which nodes of which annotations, and where their frames lie.

    Args:
      levels: the default of --levels.
    """
    default = Settings("", "")
    flags.DEFINE_string(
        "annotations", "", "Comma-separated files or globs; train.json gives a split."
    )
    flags.DEFINE_string(
        "format", "", f"Of the annotations: {', '.join(FORMATS)}; default: looked at."
    )
    flags.DEFINE_string("uid_column", default.uid_column, "CSV: the column of the video's uid.")
    flags.DEFINE_string("start_column", default.start_column, "CSV: where a segment starts.")
    flags.DEFINE_string("end_column", default.end_column, "CSV: where a segment ends.")
    flags.DEFINE_string("text_column", default.text_column, "CSV: what is done in a segment.")
    flags.DEFINE_string(
        "id_column", "", "CSV: its id; default: narration_id, else the row's number."
    )
    flags.DEFINE_string("videos", "", "Comma-separated folders of videos, Arrow frames, images.")
    flags.DEFINE_string("layout", "", f"Names of a known dataset's files: {', '.join(LAYOUTS)}.")
    flags.DEFINE_string(
        "uid_pattern", "", "Regular expression of whole uids with (?P<named>groups)."
    )
    flags.DEFINE_string(
        "path_template",
        "",
        "Comma-separated paths below --videos, of {uid}, {dataset} and groups of --uid_pattern; * "
        "is any name. Without an ending, Arrow frames, videos and folders of images are tried.",
    )
    flags.DEFINE_float("source_fps", None, "Frame rate of images, or behind Arrow frames.")
    flags.DEFINE_integer("limit_videos", 0, "Take this many videos only, for a first try; 0: all.")
    flags.DEFINE_string("levels", levels, "leaves, all, or some of step,substep,action.")


def typed_settings() -> Settings:
    """Return the settings as typed; what the command has no flag for stays at its default."""
    typed = {n: flags.FLAGS[n].value for n in Settings.__dataclass_fields__ if n in flags.FLAGS}
    return Settings(**typed)


def typed_flags(settings: Settings) -> list[str]:
    """Return the flags that give these settings, each --name=value."""
    default = Settings("", "")
    differing = {
        name: getattr(settings, name)
        for name in Settings.__dataclass_fields__
        if getattr(settings, name) != getattr(default, name)
    }
    return [f"--{name}={value}" for name, value in differing.items()]
