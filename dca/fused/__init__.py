"""The fused implementation of the mixing: nodes of autograd, and kernels in Triton.

Used by dca/mix.py. The kernels of the CPU are dca/kernels.cpp.
"""
