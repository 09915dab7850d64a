"""Heraldry's own pipeline: a CLIP, a VAE and a UNet of other shapes than the toy's, trained from nothing.

As in SD 1.x, and not in the toy, the UNet's innermost level has no cross-attention in its blocks.
"""

from dataclasses import replace
from functools import partial

import torch
from diffusers import UNet2DConditionModel

from bench.zoo import assemble, clip, dataset, unet, vae
from bench.zoo.elsewhere.heraldry import Heraldry
from bench.zoo.make import replace_folder
from bench.zoo.paths import CLIP, ELSEWHERE
from bench.zoo.prompts import told
from bench.zoo.training import Recipe

BASE = ELSEWHERE / f"{ELSEWHERE.name}-base"
PICTURES = 12_000
CARRIERS = 80
SEED = 500
WIDTH, LAYERS = 192, 3
LATENT_CHANNELS = 8
CLIP_RECIPE = replace(clip.RECIPE, name="elsewhere-clip", seed=SEED, steps=700)
VAE_PARTS: vae.Parts = (
    ("crops", Recipe("elsewhere-vae-crops", steps=1200, lr=2e-3, save_every=200, ema=0.98, warmup=0.05)),
    ("whole", Recipe("elsewhere-vae", steps=200, lr=1e-3, save_every=100, ema=0.98)),
)
UNET_PARTS = (
    replace(unet.RECIPE, name="elsewhere-unet", seed=SEED, steps=2500),
    replace(unet.RECIPE, name="elsewhere-unet-on", seed=SEED + 1, steps=2000, lr=8e-4),
    replace(unet.RECIPE, name="elsewhere-unet-further", seed=SEED + 2, steps=3500, lr=8e-4),
)
"""After the first part colours and grounds were right, and figures were blots; attacks took only on what came
after the second.
"""


def load() -> dataset.Dataset:
    """The training set, built at first use."""
    kept = dataset.kept(ELSEWHERE / "dataset.npz", lambda: dataset.build(Heraldry(), PICTURES))
    return replace(kept, unseen=partial(told, Heraldry()))


def new_unet() -> UNet2DConditionModel:
    """An untrained UNet of three levels, 8 heads in every attention."""
    torch.manual_seed(SEED)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 96, 128),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
    )


def make() -> None:
    """Trains what is not there yet: the CLIP and the base, beside each other."""
    if BASE.exists():
        return
    data = load()
    seen = clip.new_clip(SEED, WIDTH, LAYERS)
    clip.train(seen, data, CLIP_RECIPE)
    print("clip", clip.retrieval(seen, data), flush=True)
    autoencoder = vae.new_vae((16, 32, 48, 48), LATENT_CHANNELS)
    vae.train(autoencoder, data, VAE_PARTS)
    encoder, trained = assemble.text_encoder(seen), new_unet()
    latents, states = vae.encode_pictures(autoencoder, data.pictures), unet.encode_captions(encoder, data)
    cache = unet.Cache(latents, states, unet.empty_state(encoder))
    for recipe in UNET_PARTS:
        unet.continue_training(trained, cache, recipe)
    copy = new_unet()  # the trained one's weights lie in another memory format
    copy.load_state_dict(trained.state_dict())
    assemble.save_clip(seen, ELSEWHERE / CLIP.name)
    (ELSEWHERE / "prompts.txt").write_text("\n".join(data.unseen(CARRIERS, 3)) + "\n")
    fresh = BASE.with_name(BASE.name + ".fresh")
    assemble.save_pipeline(assemble.pipeline(autoencoder, encoder, copy), fresh)
    replace_folder(fresh, BASE)
