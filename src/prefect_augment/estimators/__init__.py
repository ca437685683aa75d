"""scikit-learn estimators around models and published recipes."""
