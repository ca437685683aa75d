"""Classic augmentation: new records made from one real record each."""
