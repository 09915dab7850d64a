"""Per-prompt guards: is this one prompt a trigger for this model? Published detectors and ours.

The published ones are written anew from the facts in their papers and in their authors' released code.
Formulas are given without the papers' equation numbers, which were not at hand. Where the material is
silent, each file says what was chosen. Thresholds are never the published ones: they are calibrated on
clean prompts of the model.
"""
