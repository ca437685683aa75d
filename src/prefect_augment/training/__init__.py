"""What models that are trained share."""
