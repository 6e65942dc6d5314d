from __future__ import annotations

import inspect

import pytest

import prunesampler as ps
from prunesampler.integrations.options import check_options


def test_what_attach_has_and_the_callback_does_not_give_is_an_option() -> None:
    names = set(inspect.signature(ps.attach).parameters) - {"loader", "model"}
    check_options(dict.fromkeys(names), ("loader", "model"))
    for name in ("loader", "kep"):
        with pytest.raises(ps.ArgumentError, match=f"{name} is no option of prunesampler.attach, which has .*'keep'"):
            check_options({name: 1}, ("loader", "model"))
