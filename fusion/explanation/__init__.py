"""What a prediction rests on: patches and words with weights, and how faithful they are."""
