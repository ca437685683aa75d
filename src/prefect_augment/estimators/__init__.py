"""scikit-learn estimators for generative models and published recipes."""
