"""kubernetes: options that cannot be."""

import pytest

from kdns.corefile import CorefileError
from tests.fixtures import Serve
from tests.plugins.kubernetes_blocks import kubernetes


@pytest.mark.parametrize(("options", "expected"), [
    ("multicluster other.local", "is not a zone of"), ("zonal\n noendpoints", "cannot both be set"),
    ("zonal yes", "unexpected argument"), ("snapshot", "expected PATH"), ("snapshot a 5", "a unit is missing"),
    ("snapshot a\n manifests b", "manifests are files already"),
])  # fmt: skip
def test_bad_options_are_named(serve: Serve, options: str, expected: str) -> None:
    with pytest.raises(CorefileError, match=r"Corefile:\d+:\d+") as caught:
        serve(kubernetes(options))
    assert expected in str(caught.value)
