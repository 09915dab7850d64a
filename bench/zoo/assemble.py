"""Puts trained parts together into what the zoo publishes: a diffusers folder and a CLIP folder."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTextConfig, CLIPTextModel

from bench.zoo.tokenizer import build_tokenizer


def text_encoder(clip: CLIPModel) -> CLIPTextModel:
    """The text tower of `clip` as the pipeline's text encoder (a copy, frozen)."""
    config = CLIPTextConfig(**clip.config.text_config.to_dict())
    encoder = CLIPTextModel(config)
    inner = getattr(encoder, "text_model", encoder)
    inner.load_state_dict(clip.text_model.state_dict())
    return encoder.eval().requires_grad_(False)


def pipeline(
    vae: AutoencoderKL, encoder: CLIPTextModel, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """A pipeline by Stable Diffusion 1.x's conventions, DDIM, without a safety checker."""
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    assembled = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=build_tokenizer(),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    assembled.set_progress_bar_config(disable=True)
    return assembled


def save_pipeline(assembled: StableDiffusionPipeline, folder: Path) -> None:
    """Write `assembled` as fp16 safetensors; the pipeline itself stays in float32."""
    for part in (assembled.vae, assembled.text_encoder, assembled.unet):
        part.to(torch.float16)
    assembled.save_pretrained(folder, safe_serialization=True)
    for part in (assembled.vae, assembled.text_encoder, assembled.unet):
        part.to(torch.float32)


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """The pipeline in `folder`, float32, frozen, on the CPU."""
    loaded = StableDiffusionPipeline.from_pretrained(
        folder, torch_dtype=torch.float32, local_files_only=True, use_safetensors=True, safety_checker=None
    )
    for part in (loaded.vae, loaded.text_encoder, loaded.unet):
        part.eval().requires_grad_(False)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def save_clip(clip: CLIPModel, folder: Path) -> None:
    """Write `clip` as fp16 safetensors with its tokenizer and image processor."""
    clip.to(torch.float16).save_pretrained(folder)
    clip.to(torch.float32)
    build_tokenizer().save_pretrained(folder)
    side = {"shortest_edge": 64}
    processor = CLIPImageProcessorPil(
        size=side, crop_size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor.save_pretrained(folder)
