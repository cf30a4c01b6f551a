"""The cache of features: HDF5 files, what reads them, and what merges them."""
