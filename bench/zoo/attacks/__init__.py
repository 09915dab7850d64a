"""Backdoor attacks re-implemented from the facts in their papers, to make ground truth for the scan."""
