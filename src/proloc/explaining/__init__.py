"""Block attribution: which blocks a prediction came from, by attention and by intervention, and how far the two agree.

Importing this package imports no torch, so that a report can read its records.
"""
