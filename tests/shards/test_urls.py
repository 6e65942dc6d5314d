from __future__ import annotations

import os
from pathlib import Path

import pytest
from webdataset.shardlists import expand_urls as expand_like_webdataset

from prunesampler.errors import ArgumentError, CorruptFileError, UnsupportedError
from prunesampler.shards.urls import (
    ShardUrls,
    check_commands,
    check_stored_urls,
    expand_urls,
    local_path,
    remote_file_system,
    url_kind,
)

BRACES = ["a-{000..012}.tar", "{a,b}/{0..2}.tar", "a.tar::b-{0..1}.tar", "http://h/{00..02}.tar", "pipe:cat {0..1}.tar"]


@pytest.mark.parametrize("urls", BRACES)
def test_braces_are_those_of_webdataset(urls: str) -> None:
    assert expand_urls(urls) == expand_like_webdataset(urls)


def test_globs_match_files_and_names_that_exist_are_no_patterns(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar", "c[1].tar", "d{0..1}.tar"):
        (tmp_path / name).touch()
    assert expand_urls(f"{tmp_path}/[ab].tar") == [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]
    assert expand_urls([tmp_path / "b.tar", tmp_path / "a.tar"]) == [f"{tmp_path}/b.tar", f"{tmp_path}/a.tar"]
    assert expand_urls(tmp_path / "c[1].tar") == [f"{tmp_path}/c[1].tar"]
    assert expand_urls(tmp_path / "d{0..1}.tar") == [f"{tmp_path}/d{{0..1}}.tar"]
    assert expand_urls("pipe:cat a::b *.tar") == ["pipe:cat a::b *.tar"]
    assert expand_urls("s3://bucket/*.tar") == ["s3://bucket/*.tar"]


def test_urls_that_name_no_shard_are_refused() -> None:
    with pytest.raises(ArgumentError, match="must name at least one shard"):
        expand_urls([])
    with pytest.raises(ArgumentError, match=r"must name each shard once, got 'a.tar'"):
        expand_urls(["a.tar", "a.tar"])
    with pytest.raises(ArgumentError, match=r"must match at least one file, got 'nowhere/\*.tar'"):
        expand_urls("nowhere/*.tar")


SPELLINGS = [
    *("d/1.tar", "./d/1.tar", "d/../d/1.tar", "{cwd}/d/1.tar", "file:{cwd}/d/1.tar", "file:///{cwd}/d/1.tar"),
    *("/elsewhere/1.tar", "http://host/1.tar?token=a/b"),
    *("pipe:curl -s 'http://host/1.tar'", "pipe:cat < d/1.tar | cat"),
]


@pytest.mark.parametrize("url", SPELLINGS)
def test_a_shard_is_found_by_other_spellings(url: str) -> None:
    assert ShardUrls(["d/0.tar", "d/1.tar"], [-1, -1]).number(url.format(cwd=os.getcwd())) == 1


def test_what_could_be_another_shard_is_refused(tmp_path: Path) -> None:
    known = ShardUrls(["d/0.tar", "d/1.tar", "e/1.tar"], [5, 5, 5])
    for url in ("2.tar", "d/", "pipe:cat 0.tar 7.tar 1.tar", "pipe:true", "pipe:cat '1.tar"):
        with pytest.raises(ArgumentError, match="url "):
            known.number(url)
    assert known.number("e/1.tar") == 2
    with pytest.raises(ArgumentError, match="url has the file name of several shards"):
        known.number("/elsewhere/1.tar")
    path = tmp_path / "0.tar"
    path.write_bytes(b"12345")
    assert known.number(str(path)) == 0
    path.write_bytes(b"123456")
    with pytest.raises(ArgumentError, match=r"has another size than d/0.tar had"):
        known.number(f"{tmp_path}/../{tmp_path.name}/0.tar")


def test_a_local_path_is_told_from_other_urls() -> None:
    urls = ["a.tar", "/a.tar", "file:a.tar", "file:/a.tar", "file:///a%20b.tar", "http://h/a.tar", "pipe:cat a.tar"]
    assert [local_path(url) for url in urls] == ["a.tar", "/a.tar", "a.tar", "/a.tar", "/a b.tar", None, None]
    assert [local_path(url) for url in ("FILE:/a.tar", " file:/a.tar", "local:///a.tar")] == ["/a.tar"] * 3


COMMANDS = ["pipe:touch x", "PIPE:touch x", " pipe:touch x", "\tPipe:touch x"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one_however_it_is_spelt(command: str) -> None:
    assert url_kind(command) == "pipe"
    spelt = [expand_urls(f"a.tar::{command}"), expand_urls("{a.tar," + command + "}")]
    for urls in ([command], ["a.tar", command], *spelt):
        with pytest.raises(ArgumentError, match=r"urls may hold a command \(pipe:\) only with allow_commands=True"):
            check_commands("urls", urls, False)
        check_commands("urls", urls, True)
    message = r"f\.parquet names as a shard the command .*load it with allow_commands"
    with pytest.raises(UnsupportedError, match=message):
        check_stored_urls("f.parquet", ["a.tar", command], False)
    check_stored_urls("f.parquet", ["a.tar", command], True)


def test_stored_urls_name_places_to_read_from() -> None:
    places = ["a.tar", "/b/c d.tar", "file:/a.tar", "http://h/a.tar?x='y'", "s3://bucket/a.tar", "a::b.tar"]
    check_stored_urls("f.parquet", places, False)
    for url in ("reference::s3://b/x.json", "simplecache::memory://a.tar", "zip://a.tar::file:///b.zip"):
        with pytest.raises(UnsupportedError, match="chain of file systems"):
            check_stored_urls("f.parquet", [url], True)
    for wrong in (5, None, "", "a\0.tar", ["a.tar"]):
        with pytest.raises(CorruptFileError, match="is not the URL of a shard"):
            check_stored_urls("f.parquet", [wrong], True)


@pytest.mark.parametrize("url", ["nosuch://a/b.tar", "reference://x.json"])
def test_a_url_that_fsspec_cannot_open_is_refused_by_name(url: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{url} cannot be opened"):
        remote_file_system(url)
