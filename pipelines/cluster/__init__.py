"""Ray: the cluster that trials and fits run on, what fits it, and training in several processes.

The commands connect and check the capacity; `pipelines.search` and `pipelines.stages` train on it.
"""
