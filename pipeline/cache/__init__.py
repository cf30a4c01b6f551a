"""The cache of features: its HDF5 files, reading and merging them."""
