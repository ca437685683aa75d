"""What is done with the latents of a trained model."""
