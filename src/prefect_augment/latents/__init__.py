"""Uses of a trained model's latents."""
