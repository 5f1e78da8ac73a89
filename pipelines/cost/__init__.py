"""The cost of a sweep before it runs: parameters, FLOPs, memory and time, with a range.

The dry run of the command sweep.py prints it.
"""
