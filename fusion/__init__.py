"""Stage two: features in, sentiment out. The cross-modal fusion model, trained and evaluated from the cache."""
