"""The model registry: packaged models, their versions, and the gate in front of the champion.

Used by the stages register, evaluate and promote, by the commands promote.py and generate.py, and
by trainings that start from the weights of a version.
"""
