"""What a post is, and the formats that posts come in: manifests, MVSA folders, CSV files, images."""
