"""The ten models that the paper's Table 2 compares with, on the same frozen features.

A size that a source states and that is no hidden width is a constant in the model's file; hidden widths are the
config's `width`, and dropout is the config's `dropout`, so that all models can be given the same budget.
"""
