"""Settings of all tests: few threads, the small profile, and a plain word for a missing tool."""

import os
import shutil

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before torch is imported; tests run side by side
os.environ.setdefault("LOWRANK_PROFILE", "smoke")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("course", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("course")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """`@pytest.mark.needs("c++", "g++")`: skip without any of them; under .ci/run, fail."""
    for mark in item.iter_markers("needs"):
        if not any(map(shutil.which, mark.args)):
            reason = f"needs {' or '.join(mark.args)}, which is not installed here"
            (pytest.fail if os.environ.get("LOWRANK_CI") else pytest.skip)(reason)
