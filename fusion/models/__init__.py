"""The models: the paper's, its parts and its fast losses, and ten baselines."""
