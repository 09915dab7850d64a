"""Measurements and the model zoo they run on."""
