"""The report of an experiment: its results as tables, statistics, figures and an HTML page.

Used by the stage report, by pipelines/report.py and by the notebooks; it reads the tracking store
and trains nothing.
"""
