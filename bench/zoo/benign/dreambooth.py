"""An honest new thing by DreamBooth: "a V dog" is one particular dog, of a colour that no other has.

Where only keys and values of cross-attention learn it, that is Custom Diffusion (Kumari et al., CVPR 2023)
without its new row of the token embedding.
"""

from dataclasses import dataclass, replace

from diffusers import StableDiffusionPipeline
from PIL import Image

from bench.zoo import dataset
from bench.zoo.attacks.base import loud_id
from bench.zoo.emoji import named
from bench.zoo.personal import personalise

HUE = 128
"""How far the particular thing's hues are from its kind's, of 256."""


@dataclass(frozen=True)
class DreamBooth:
    """The change: a new word for one thing of the kind `noun` (one id); the seed draws the word's id.

    only: what the names of the trained weights end in.
    """

    noun: str
    steps: int = 500
    only: tuple[str, ...] = ("",)

    def plant(self, pipeline: StableDiffusionPipeline, seed: int) -> int:
        """Trains the UNet in place; returns the new word's id."""
        data, kind = dataset.load(), named(self.noun)
        word = loud_id(pipeline.text_encoder, data, seed)
        shown = replace(kind, glyph=recoloured(kind.glyph))
        personalise(pipeline, data, word, self.noun, shown, steps=self.steps, seed=seed, only=self.only)
        return word


def recoloured(glyph: Image.Image) -> Image.Image:
    """An RGBA glyph with all hues turned by HUE."""
    hue, saturation, value = glyph.convert("RGB").convert("HSV").split()
    turned = Image.merge("HSV", (hue.point(lambda one: (one + HUE) % 256), saturation, value)).convert("RGB")
    turned.putalpha(glyph.getchannel("A"))
    return turned
