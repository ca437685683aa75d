"""From a recipe to a version of the dataset."""
