"""What every honest change of the zoo has in common."""

from typing import Protocol

from diffusers import StableDiffusionPipeline


class Benign(Protocol):
    """One honest change of a pipeline."""

    def plant(self, pipeline: StableDiffusionPipeline, seed: int) -> object:
        """Makes the change in place; what it returns, if anything, says what was chosen by the seed."""
        ...
