from __future__ import annotations

import os
from pathlib import Path

import pytest
from webdataset.shardlists import expand_urls as expand_like_webdataset

from prunesampler.errors import ArgumentError
from prunesampler.shards.store import Shard
from prunesampler.shards.urls import absolute_path, expand_urls, file_name, find_shard, local_path

BRACES = ["a-{000..012}.tar", "{a,b}/{0..2}.tar", "a.tar::b-{0..1}.tar", "http://h/{00..02}.tar", "pipe:cat {0..1}.tar"]


@pytest.mark.parametrize("urls", BRACES)
def test_braces_are_those_of_webdataset(urls: str) -> None:
    assert expand_urls(urls) == expand_like_webdataset(urls)


def test_globs_and_lists(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar", "c[1].tar", "d{0..1}.tar"):
        (tmp_path / name).touch()
    assert expand_urls(f"{tmp_path}/[ab].tar") == [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]
    assert expand_urls([tmp_path / "b.tar", tmp_path / "a.tar"]) == [f"{tmp_path}/b.tar", f"{tmp_path}/a.tar"]
    assert expand_urls(tmp_path / "c[1].tar") == [f"{tmp_path}/c[1].tar"]
    assert expand_urls(tmp_path / "d{0..1}.tar") == [f"{tmp_path}/d{{0..1}}.tar"]
    assert expand_urls("pipe:cat a::b *.tar") == ["pipe:cat a::b *.tar"]
    assert expand_urls("s3://bucket/*.tar") == ["s3://bucket/*.tar"]


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ([], "must name at least one shard"),
        (["a.tar", "a.tar"], "must name each shard once, got 'a.tar'"),
        ("nowhere/*.tar", r"must match at least one file, got 'nowhere/\*.tar'"),
    ],
)
def test_refusals(urls: str | list[str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        expand_urls(urls)


def shards(*urls: str, size: int = -1) -> list[Shard]:
    return [Shard(url, 1, size, -1, True, "", "") for url in urls]


def find(url: str, known: list[Shard]) -> int:
    by_url = {spelled: n for n, shard in enumerate(known) for spelled in (shard.url, absolute_path(shard.url))}
    names = [file_name(shard.url) for shard in known]
    by_name = {name: names.index(name) if names.count(name) == 1 else -1 for name in names}
    return find_shard(url, by_url, by_name, known)


SPELLINGS = [
    *("d/1.tar", "./d/1.tar", "d/../d/1.tar", "{cwd}/d/1.tar", "file:{cwd}/d/1.tar", "file:///{cwd}/d/1.tar"),
    *("/elsewhere/1.tar", "http://host/1.tar?token=a/b"),
    *("pipe:curl -s 'http://host/1.tar'", "pipe:cat < d/1.tar | cat"),
]


@pytest.mark.parametrize("url", SPELLINGS)
def test_spellings_of_one_shard(url: str) -> None:
    assert find(url.format(cwd=os.getcwd()), shards("d/0.tar", "d/1.tar")) == 1


def test_what_is_another_shard(tmp_path: Path) -> None:
    known = shards("d/0.tar", "d/1.tar", "e/1.tar")
    for url in ("2.tar", "d/", "pipe:cat 0.tar 7.tar 1.tar", "pipe:true"):
        with pytest.raises(ArgumentError, match="url "):
            find(url, known)
    assert find("e/1.tar", known) == 2
    with pytest.raises(ArgumentError, match="its file name is that of several shards"):
        find("/elsewhere/1.tar", known)
    (tmp_path / "0.tar").write_bytes(b"12345")
    assert find(str(tmp_path / "0.tar"), shards("d/0.tar", size=5)) == 0
    with pytest.raises(ArgumentError, match=r"has another size than d/0.tar had"):
        find(str(tmp_path / "0.tar"), shards("d/0.tar", size=6))


def test_local_paths() -> None:
    urls = ["a.tar", "/a.tar", "file:a.tar", "file:/a.tar", "file:///a%20b.tar", "http://h/a.tar", "pipe:cat a.tar"]
    assert [local_path(url) for url in urls] == ["a.tar", "/a.tar", "a.tar", "/a.tar", "/a b.tar", None, None]
