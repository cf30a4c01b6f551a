"""The configuration: where values come from, what is refused, and that each message says what, where and what to do."""

import pytest

from fusion.config import Config, load_config, presets, save_config
from pipeline.common.errors import InputError


def test_defaults_are_the_papers():
    config = Config()
    assert (config.width, config.heads, config.feedforward_width) == (768, 12, 3072)
    assert (config.layers, config.lr, config.batch_size, config.mask_rate) == (3, 2e-5, 64, 0.25)


def test_later_sources_win(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("layers: 5\nlr: 3e-4\n")
    config = load_config("mvsa-multiple", file, ("layers=7", "mlm=false"))
    assert (config.layers, config.lr, config.mlm) == (7, 3e-4, False)
    assert load_config("mvsa-multiple").layers == 4


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_valid_and_survives_saving(name, tmp_path):
    config = load_config(name)
    save_config(tmp_path / "config.yaml", config)
    assert load_config(file=tmp_path / "config.yaml") == config


def test_the_papers_presets_hold_the_papers_values():
    single, multiple = load_config("mvsa-single"), load_config("mvsa-multiple")
    assert (single.layers, single.lr, single.batch_size, single.mask_rate) == (3, 2e-5, 64, 0.25)
    assert (multiple.layers, multiple.lr, multiple.batch_size, multiple.mask_rate) == (4, 4e-5, 64, 0.25)


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("widht=256", ["widht", "unknown key", "width", "--set"]),
        ("mask_rate=1.5", ["mask_rate", "less than or equal to 1", "1.5", "--set"]),
        ("mask_rate=0", ["mask_rate", "greater than 0"]),
        ("dropout=1", ["dropout", "less than or equal to 0.99"]),
        ("layers=0", ["layers", "greater than or equal to 1"]),
        ("layers=2.5", ["layers", "valid integer"]),
        ("lr=fast", ["lr", "valid number", "fast"]),
        ("lr=.inf", ["lr", "finite"]),
        ("mask_choice=best", ["mask_choice", "'image' or 'random'"]),
        ("mlm=maybe", ["mlm", "boolean"]),
        ("heads=5", ["heads: 5 does not divide width 768"]),
        ("modalities=image", ["mlm", "set mlm to false"]),
        ("modalities=text", ["mask_choice", "set mask_choice to random"]),
        ("seed=-1", ["seed", "greater than or equal to 0"]),
        ("lr", ["--set lr", "key=value"]),
        ("lr=[", ["--set lr=[", "YAML"]),
    ],
)
def test_a_bad_setting_is_one_line_that_says_what_is_allowed(setting, parts):
    with pytest.raises(InputError) as caught:
        load_config(settings=(setting,))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_bad_file_is_named(tmp_path):
    for content, part in (("a: [", "not YAML"), ("- 1\n", "key: value"), ("layers: x\n", str(tmp_path))):
        file = tmp_path / "bad.yaml"
        file.write_text(content)
        with pytest.raises(InputError, match=part.replace("\\", ".")):
            load_config(file=file)
    with pytest.raises(InputError, match="no such file"):
        load_config(file=tmp_path / "none.yaml")
    with pytest.raises(InputError, match=r"no such preset; known are .*mvsa-single"):
        load_config("mvsa_single")
