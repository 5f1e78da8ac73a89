"""Private and fragile names of the libraries below, one module each, and nothing else.

Whoever relies on such a name takes it from here; tests/pipelines/compat fails when a library
changes it.
"""
