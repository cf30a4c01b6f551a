"""What a person looks at: figures made from a run folder."""
