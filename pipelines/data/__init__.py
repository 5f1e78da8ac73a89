"""Corpora: where a text comes from, its fingerprint, its three splits in storage and the batches
drawn from them.

Used by the training for its batches and by the corpus and evaluate stages for the splits.
"""
