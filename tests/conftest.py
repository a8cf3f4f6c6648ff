"""Hooks and fixtures for all tests."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import time

import pytest
from _pytest.capture import CaptureManager
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from testbed import guard

# Here, for each process of a parallel run by itself.
guard.end_with_us()

# A shell lets what it starts in the background ignore Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no reason for a test to fail.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# Thousands of collected tests are no garbage. To look through them for some, again and again, took
# a twentieth of the whole run.
gc.disable()


def pytest_collection_finish() -> None:
    _first_property()
    gc.freeze()
    gc.enable()


@settings(derandomize=True, max_examples=1)
@given(st.none())
def _first_property(nothing: None) -> None:
    """Let Hypothesis make its random generator, which it looks for among what is not frozen.

    It does so at the first property of each process, if derandomized (by itself where the
    environment has CI), and warns if it does not find it.
    """


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests: else one process would run them after all others are done."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


class _HangingTests:
    """Ends this process, with the traceback of all threads, if a test hangs for about 5 minutes.

    pytest-timeout comes first, but its signal waits for code that does not come back to Python.
    pytest's `faulthandler_timeout` does the same with a thread for each test; that took a tenth of
    the whole run.
    """

    LIMIT_S = 330.0
    SPARED_S = 30.0  # for so long the limit is left as it was set

    def __init__(self, standard_error: int) -> None:
        self._standard_error = standard_error
        self._next = 0.0

    def pytest_runtest_setup(self) -> None:
        if time.monotonic() > self._next:
            self._begin()

    @pytest.hookimpl(trylast=True)
    def pytest_exception_interact(self) -> None:
        """Begin anew for what follows a failure: pytest's own faulthandler has cancelled it."""
        self._begin()

    def _begin(self) -> None:
        self._next = time.monotonic() + self.SPARED_S
        faulthandler.dump_traceback_later(self.LIMIT_S, exit=True, file=self._standard_error)

    def pytest_unconfigure(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        os.close(self._standard_error)


def pytest_configure(config: pytest.Config) -> None:
    capture = config.pluginmanager.getplugin("capturemanager")
    assert isinstance(capture, CaptureManager)
    with capture.global_and_fixture_disabled():
        standard_error = os.dup(2)
    config.pluginmanager.register(_HangingTests(standard_error), "hanging tests")
