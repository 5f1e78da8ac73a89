"""The DAG of stages: their order, and which cached results can be reused for a stage.

The commands plan and run the stages of `pipelines.stages` with it.
"""
