"""Private and fragile names of the libraries below, one module each, and nothing else.

All other modules take such a name from here; tests/pipelines/compat fails when a library changes
it.
"""
