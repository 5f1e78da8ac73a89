"""The DAG of stages: their order, and which results of earlier commands stand for a stage.

The commands plan and run the stages of `pipelines.stages` with it.
"""
