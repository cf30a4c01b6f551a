"""Posts and the formats that they are read from: manifests, MVSA folders, CSV files, images."""
