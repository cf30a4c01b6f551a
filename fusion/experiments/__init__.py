"""Many trainings: sweeps, the paper's tables, folds."""
