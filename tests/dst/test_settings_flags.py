import pytest
from absl import flags

from vtalign_jax.dst import settings_flags
from vtalign_jax.dst.plan import Settings


@pytest.fixture
def values(monkeypatch):
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    for name in ("string", "integer", "float"):
        define = getattr(flags, f"DEFINE_{name}")
        monkeypatch.setattr(
            flags,
            f"DEFINE_{name}",
            lambda *given, define=define: define(*given, flag_values=values),
        )
    settings_flags.define_settings_flags()
    return values


def test_each_setting_has_a_flag_with_its_default(values):
    values(["command"])
    assert settings_flags.typed_settings() == Settings("", "")


def test_settings_are_shown_as_the_flags_that_give_them(values):
    settings = Settings(
        "a b/*.json", "v", uid_pattern="(?P<a>.+)'s", rotate=0, source_fps=29.97, levels="all"
    )
    shown = settings_flags.typed_flags(settings)
    assert shown[:2] == ["--annotations=a b/*.json", "--videos=v"]
    values(["command", *shown])
    assert settings_flags.typed_settings() == settings
