"""Models that read pooled vectors alone: a vector of the text and one of the image. Each file is a model."""
