"""Comparisons: arms of a study over paired seeds, and two models block by block on one text.

Used by the stage compare, the report and the gate. Pure numbers: it reads no store, no model and
no configuration.
"""
