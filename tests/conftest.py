"""For all tests: importing `quantkit` tells the kernels where compiled code is kept."""

import signal

import quantkit  # noqa: F401


def pytest_configure() -> None:
    """Let commands that tests start be ended by signals, though these tests run in the background or behind `nohup`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
