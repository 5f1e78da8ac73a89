"""Residual kinds, registered by name; every module here is imported with dca.

Used by the architectures through the registry.
"""

from dca.registry import import_all

import_all(__name__, __path__)
