"""Residual kinds, registered by name: every module here is imported by itself."""

from dca.registry import import_all

import_all(__name__, __path__)
