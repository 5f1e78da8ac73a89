"""The report as one HTML page that needs no network: its content, its sections and its files.

Used by the stage report and by pipelines/report.py.
"""
