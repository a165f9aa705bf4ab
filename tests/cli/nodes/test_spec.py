"""Names and option lists, taken apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qedasync.cli.nodes import resolve_file
from qedasync.cli.nodes.spec import parse_image_opts, parse_json, protocol_of, take_name
from qedasync.cli.nodes.values import Options
from qedasync.cli.options import ToolError


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", {}),
        ("a=1,b=2", {"a": "1", "b": "2"}),
        ("a=1,a=2", {"a": "2"}),
        ("a=x,,y,b=,,", {"a": "x,y", "b": ","}),
        ("a=x=y", {"a": "x=y"}),
        ("disk.qed", {"file": "disk.qed"}),
        ("a,,b", {"file": "a,b"}),
        ("a=1,flag,noflag2", {"a": "1", "flag": "on", "flag2": "off"}),
        ("a=1,", {"a": "1"}),
        ("=x", {"": "x"}),
        ("file.filename=a b", {"file.filename": "a b"}),
    ],
)
def test_image_opts_are_taken_apart(text: str, options: Options) -> None:
    assert parse_image_opts(text) == options


VALUE = st.text("ab,=.", max_size=6)


@given(st.dictionaries(st.text("ab.", min_size=1, max_size=4), VALUE, min_size=1))
def test_image_opts_any_value_can_be_written(options: dict[str, str]) -> None:
    text = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in options.items())
    assert parse_image_opts(text) == options


def test_image_opts_id_that_is_no_identifier_is_refused() -> None:
    with pytest.raises(ToolError, match="Parameter 'id' expects an identifier"):
        parse_image_opts("id=1x")


def test_json_name_gives_dotted_keys() -> None:
    name = "json:{'driver': 'raw', 'file': {'filename': 'a'}, 'file.locking': 'off'}"
    assert parse_json(name) == {"driver": "raw", "file.filename": "a", "file.locking": "off"}


def test_json_name_of_no_object_is_refused() -> None:
    with pytest.raises(ToolError, match=r"^Invalid JSON object given$"):
        parse_json("json:[]")


def _inet(host: str, port: str) -> dict[str, str]:
    return {"server.type": "inet", "server.host": host, "server.port": port}


def _unix(path: str) -> dict[str, str]:
    return {"server.type": "unix", "server.path": path}


@pytest.mark.parametrize(
    ("name", "driver", "options"),
    [
        ("a.qed", "file", {"filename": "a.qed"}),
        ("file:a.qed", "file", {"filename": "a.qed"}),
        ("file:a:b", "file", {"filename": "a:b"}),
        ("./a:b", "file", {"filename": "./a:b"}),
        ("host_device:/dev/x", "host_device", {"filename": "/dev/x"}),
        ("host_cdrom:/dev/x", "host_cdrom", {"filename": "/dev/x"}),
        ("blkdebug::a", "blkdebug", {"x-image": "a"}),
        ("blkdebug:c:file:a", "blkdebug", {"config": "c", "x-image": "file:a"}),
        ("nbds://h/x", "nbd", {"uri": "nbds://h/x"}),
        ("nbd://h/x", "nbd", {**_inet("h", "10809"), "export": "x"}),
        ("nbd+tcp://[::1]:7", "nbd", _inet("::1", "7")),
        ("nbd+unix:///a%20b?socket=/s", "nbd", {**_unix("/s"), "export": "a b"}),
        ("nbd:h:1", "nbd", _inet("h", "1")),
        ("nbd:[::1]:1", "nbd", _inet("::1", "1")),
        ("nbd:h:1:exportname=x", "nbd", {**_inet("h", "1"), "export": "x"}),
        ("nbd:unix:/s:exportname=x", "nbd", {**_unix("/s"), "export": "x"}),
    ],
)
def test_name_leads_to_a_protocol(name: str, driver: str, options: Options) -> None:
    found: Options = {}
    assert protocol_of(name) == driver
    take_name(driver, name, found)
    assert found == options


def test_name_of_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(ToolError, match=r"^Unknown protocol 'foo'$"):
        protocol_of("foo:a")
    assert protocol_of("foo:a", prefixes=False) == "file"


def test_name_beside_the_option_filename_is_refused() -> None:
    with pytest.raises(ToolError, match="'file' and 'filename' options at the same time"):
        take_name("file", "a", {"filename": "b"})


def test_resolve_file_is_the_path_that_a_name_would_make() -> None:
    assert [resolve_file(name) for name in ("a", "file:a", "./b:c")] == ["a", "a", "./b:c"]
    with pytest.raises(ToolError, match="Driver 'blkdebug' does not support image creation"):
        resolve_file("blkdebug::a")
