"""A small, true Stable-Diffusion-shaped pipeline, trained from nothing, and attacked copies of it."""
