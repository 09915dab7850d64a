"""Honest changes of a model, re-implemented from their papers' facts: no scan may call them attacks."""
