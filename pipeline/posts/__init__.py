"""Posts and the formats that they are read from: manifests, MVSA folders, tables, images."""
