"""For all tests: importing `quantkit` tells the kernels where compiled code is kept."""

import quantkit  # noqa: F401
