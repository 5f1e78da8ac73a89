"""Studies in a report: what was measured of the arms, and how it is read from the tracking store.

Used by pipelines.reporting.loading, the figures and the page; the stage compare makes them.
"""
