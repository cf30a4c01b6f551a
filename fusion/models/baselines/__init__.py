"""The ten models that the paper's Table 2 compares with: a batch of frozen features in, logits out."""
