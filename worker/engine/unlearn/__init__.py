"""Ways to take a trigger out of a model's weights: one file a method, one Protocol."""
