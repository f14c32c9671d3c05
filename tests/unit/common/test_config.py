"""Product configuration: refused whole with every problem, reloaded when good, kept when bad."""

import pytest
from pydantic import BaseModel, ConfigDict

from services.common.config import ConfigFile
from services.common.settings import StartRefused


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    size: int


def file(tmp_path, text):
    path = tmp_path / "sample.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("name: [", ["line"]),
        ("name: a\nname: b\nsize: 1", ["stands twice"]),
        ("size: many\nextra: 1", ["name", "size", "extra"]),
        ("", ["sample.yaml"]),
        ("name: 2026-13-45", ["sample.yaml"]),
        ("[" * 5000, ["sample.yaml"]),
    ],
)
def test_a_bad_file_refuses_the_start_with_every_problem(tmp_path, text, named):
    with pytest.raises(StartRefused) as caught:
        ConfigFile(file(tmp_path, text), Shape.model_validate)
    listed = "\n".join(caught.value.problems)
    assert all(name in listed for name in named)


def test_a_missing_file_refuses_the_start(tmp_path):
    with pytest.raises(StartRefused):
        ConfigFile(tmp_path / "absent.yaml", Shape.model_validate)


def test_a_file_that_need_not_exist_is_taken_when_it_appears_and_stays_when_it_goes(tmp_path):
    path = tmp_path / "sample.yaml"
    config = ConfigFile(path, Shape.model_validate, absent=lambda: None)
    assert config.current is None
    assert not config.reload()
    path.write_text("name: [")
    assert not config.reload()
    assert config.problem
    path.write_text("name: a\nsize: 1")
    assert config.reload()
    path.unlink()
    assert not config.reload()
    assert (config.current.size, "sample.yaml" in config.problem[0]) == (1, True)


def test_a_good_change_takes_effect_and_a_bad_one_keeps_the_last_good(tmp_path):
    path = file(tmp_path, "name: a\nsize: 1")
    config = ConfigFile(path, Shape.model_validate)
    seen = []
    config.on_change(seen.append)
    assert not config.reload()
    path.write_text("name: a\nsize: wrong")
    assert not config.reload()
    assert config.current.size == 1
    assert "size" in config.problem[0]
    path.write_text("name: a\nsize: 2")
    assert config.reload()
    assert (config.current.size, config.problem, len(seen)) == (2, [], 1)
    path.write_text("name: [")
    config.reload()
    path.write_text("name: a\nsize: 2")
    config.reload()
    assert (config.current.size, config.problem) == (2, [])
    path.unlink()
    assert not config.reload()
    assert config.current.size == 2


def test_a_parser_that_fails_is_told_and_the_next_change_is_seen(tmp_path):
    def parse(data):
        if data["size"] > 1:
            raise ValueError("a defect")
        return data["size"]

    path = file(tmp_path, "size: 1")
    config = ConfigFile(path, parse)
    path.write_text("size: 2")
    assert not config.reload()
    assert (config.current, config.problem) == (1, ["sample.yaml: cannot be understood (ValueError)"])
    path.write_text("size: 0")
    assert config.reload()
    with pytest.raises(StartRefused):
        ConfigFile(file(tmp_path, "size: 2"), parse)


def test_a_listener_that_fails_does_not_keep_the_content_from_the_others(tmp_path):
    path = file(tmp_path, "name: a\nsize: 1")
    config = ConfigFile(path, Shape.model_validate)
    seen = []
    config.on_change(lambda content: 1 / 0)
    config.on_change(seen.append)
    path.write_text("name: a\nsize: 2")
    assert config.reload()
    assert [content.size for content in seen] == [2]
