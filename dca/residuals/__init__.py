"""Residual kinds, registered by name; a module is imported when it is chosen.

Used by the architectures through the registry.
"""
