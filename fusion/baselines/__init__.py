"""The ten models that the paper's Table 2 compares with, on frozen features; docs/baselines.md says what is known."""
