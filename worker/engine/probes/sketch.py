"""Attention sketch: what each candidate does to the noise prediction, without running the UNet for it.

Text reaches the UNet only through the keys and values of cross-attention. At a view (carrier, timestep)
the UNet runs once; every attn2 layer's queries Q_l and output O_l are kept, and for R random probes r the
gradients G_lr = d<r, eps>/dO_l, all that follows downstream included. For a candidate v only its text
states and the layers' K_l(v), V_l(v) are computed; then, to first order,

    <r, eps(v) - eps>  ~  s_r(v) = sum_l <G_lr, softmax(Q_l K_l(v)^T / sqrt(d)) V_l(v) - O_l>

Each probe lives on one cell of the latent, so |s_r|^2 summed over a cell's probes sketches the energy of
the change there (Johnson-Lindenstrauss). It ranks candidates; `onestep` measures those that it ranks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from worker.engine.encoder import Layout, Prefix, TextTower
from worker.engine.hooks import tap
from worker.engine.probes.views import View
from worker.engine.sampling import encode
from worker.engine.seeds import noise
from worker.engine.types import Cost, OnProgress, Progress, Trigger, silent

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from diffusers.models.attention_processor import Attention

GRID = 4
PROBES_PER_CELL = 2
TAIL = 4
BATCH, BATCH_CPU = 512, 64
"""Candidates at once. On a CPU so few that what a layer makes of them stays in its cache."""


@dataclass(frozen=True)
class Site:
    """One attn2 layer at one view: query (T,H,L,d), grad (T,H,d*L,R), offset (T,R) = <G, O>."""

    module: Attention
    query: Tensor
    grad: Tensor
    offset: Tensor


@dataclass(frozen=True)
class Sketch:
    """values (N,K,T,R); eos and own (N,K,D): text states at the end marker and at the candidate's last id.

    R = GRID * GRID * PROBES_PER_CELL, cell-major.
    """

    values: Tensor
    eos: Tensor
    own: Tensor
    cost: Cost

    def energy(self) -> Tensor:
        """(N,) mean squared sketch: proportional to |eps(v) - eps|^2 to first order."""
        return self.values.square().mean(dim=(1, 2, 3))


def cell_probes(shape: tuple[int, int, int], seed: int) -> Tensor:
    """(R, C, h, w) random directions, each zero outside one of GRID x GRID cells of the latent."""
    channels, height, width = shape
    masks = torch.stack([_cell(height, width) == index for index in range(GRID * GRID)])
    masks = masks.repeat_interleave(PROBES_PER_CELL, 0)
    return noise((len(masks), channels, height, width), seed, "probes") * masks[:, None]


def probes_at(places: Tensor) -> Tensor:
    """(R,) bool: the directions of `cell_probes` whose cell holds one of `places` (h,w), 0 or 1."""
    cells = torch.zeros(GRID * GRID, dtype=torch.bool)
    cells[_cell(*places.shape)[places > 0]] = True
    return cells.repeat_interleave(PROBES_PER_CELL)


def _cell(height: int, width: int) -> Tensor:
    """(h,w) the number of the cell that each place is in."""
    return (torch.arange(height) * GRID // height)[:, None] * GRID + torch.arange(width) * GRID // width


def sites_at(pipeline: StableDiffusionPipeline, view: View, probes: Tensor) -> list[Site]:
    """Every attn2 layer's site at `view`: the UNet runs once a timestep and R times backwards."""
    unet, device = pipeline.unet, pipeline.unet.device
    cond = encode(pipeline, [view.carrier.ids]).clone()
    records: list[list[tuple[Attention, Tensor, Tensor, Tensor]]] = []
    for timestep, latents in zip(view.timesteps, view.latents, strict=True):
        with tap(unet, nudge=True) as taps, torch.enable_grad():
            eps = unet(latents[None].clone().to(device), timestep, cond).sample
            nudges = [site.nudge for site in taps.values() if site.nudge is not None]
            grads = [
                torch.autograd.grad(eps, nudges, probe[None], retain_graph=True)
                for probe in probes.to(device, eps.dtype)
            ]
        records.append(
            [
                (site.module, site.query[0], torch.stack([g[n][0] for g in grads]), site.output[0])
                for n, site in enumerate(taps.values())
            ]
        )
    return [site_of(list(per_time)) for per_time in zip(*records, strict=True)]


def site_of(per_time: list[tuple[Attention, Tensor, Tensor, Tensor]]) -> Site:
    module = per_time[0][0]
    grad = torch.stack([rearrange(g, "r l (h d) -> h (d l) r", h=module.heads) for _, _, g, _ in per_time])
    output = torch.stack([rearrange(o, "l (h d) -> h (d l)", h=module.heads) for *_, o in per_time])
    offset = torch.einsum("t h n r, t h n -> t r", grad, output)
    return Site(module, torch.stack([q for _, q, _, _ in per_time]), grad, offset)


class Sketcher:
    """Holds a view's sites and the shared prefix; turns batches of candidates into sketches."""

    def __init__(self, tower: TextTower, view: View, sites: list[Site], tail: int | None) -> None:
        self.tower, self.view, self.tail = tower, view, tail
        self.sites = sites
        shared = (tower.bos,) if view.position == "start" else (tower.bos, *view.carrier.ids)
        self.prefix: Prefix = tower.prefix(torch.tensor(shared))

    @torch.inference_mode()
    def __call__(self, triggers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Trigger ids (B, n) -> sketch (B,T,R), end-marker states (B,D), own states (B,D)."""
        content = self.view.insert(triggers)
        marked = content.shape[1] + 2
        layout = Layout.of(marked, self.tail)
        states = self.tower.states(self.tower.frame(content, layout), layout, self.prefix)
        own = states[:, triggers.shape[1] - 1]
        eos = states[:, marked - 1 - len(self.prefix)]
        return self._contract(states, layout), eos, own

    def _contract(self, states: Tensor, layout: Layout) -> Tensor:
        bias = layout.log_multiplicity.to(states.device, states.dtype)
        return torch.stack([self._at(site, states, bias) for site in self.sites]).sum(0)

    def _at(self, site: Site, states: Tensor, log_multiplicity: Tensor) -> Tensor:
        """One layer's share of the sketch, (B,T,R)."""
        key, value = (
            self._project(p, site.module.heads, states) for p in (site.module.to_k, site.module.to_v)
        )
        shares = []
        for query, grad, offset in zip(site.query, site.grad, site.offset, strict=True):
            mixed = attend(query * site.module.scale, key, value, log_multiplicity)
            shares.append(torch.einsum("h b n, h n r -> b r", mixed.flatten(2), grad) - offset)
        return torch.stack(shares, dim=1)

    def _project(self, weight: Callable[[Tensor], Tensor], heads: int, states: Tensor) -> Tensor:
        """Keys or values (H, B, S, d): the prefix's computed once and shared."""
        shared = weight(self.prefix.states)[None].expand(len(states), -1, -1)
        return rearrange(torch.cat([shared, weight(states)], dim=1), "b s (h d) -> h b s d", h=heads)


def attend(query: Tensor, key: Tensor, value: Tensor, log_multiplicity: Tensor) -> Tensor:
    """Attention outputs (H,B,d,L) of one query (H,L,d) to B sets of keys and values (H,B,S,d).

    One matrix product for all candidates, and places L in the last dimension: with a dozen keys and heads of
    8 this is 7 times faster on a CPU than the fused kernel, which is made for long sequences.
    """
    logits = rearrange(key, "h b s d -> h (b s) d") @ query.mT
    logits = logits.view(*key.shape[:3], -1) + log_multiplicity[:, None]
    weight = (logits - logits.amax(2, keepdim=True)).exp_()
    return value.mT @ weight / weight.sum(2)[:, :, None]


def sketch(
    pipeline: StableDiffusionPipeline,
    tower: TextTower,
    views: Sequence[View],
    candidates: Sequence[Trigger],
    seed: int,
    *,
    tail: int | None = TAIL,
    on_progress: OnProgress = silent,
) -> Sketch:
    """Sketches every candidate at every view. Costs T * (1 + 2R) U a view, and 0 U a candidate."""
    began = time.perf_counter()
    config = pipeline.unet.config
    probes = cell_probes((config.in_channels, config.sample_size, config.sample_size), seed)
    width, steps = pipeline.text_encoder.config.hidden_size, len(views[0].timesteps)
    values = torch.empty(len(candidates), len(views), steps, len(probes))
    eos, own = (torch.empty(len(candidates), len(views), width) for _ in range(2))
    size = BATCH_CPU if tower.device.type == "cpu" else BATCH
    done, total, flops = 0, len(views) * len(candidates), 0.0
    for place, view in enumerate(views):
        sketcher = Sketcher(tower, view, sites_at(pipeline, view, probes), tail)
        counted: dict[int, float] = {}
        for rows, ids in batches(candidates, size):
            if ids.shape[1] not in counted:
                counted[ids.shape[1]] = _flops(sketcher, ids) / len(ids)
            found = sketcher(ids)
            flops += counted[ids.shape[1]] * len(ids)
            values[rows, place], eos[rows, place], own[rows, place] = (part.float().cpu() for part in found)
            done += len(rows)
            on_progress(Progress("sketch", done, total))
    forwards = len(views) * steps * (1 + 2 * len(probes))
    cost = Cost(forwards, time.perf_counter() - began, flops, len(candidates))
    return Sketch(values, eos, own, cost)


def _flops(sketcher: Sketcher, ids: Tensor) -> float:
    """Of one batch: all of the same length cost the same, and counting slows a small batch down."""
    with FlopCounterMode(display=False) as counter:
        sketcher(ids)
    return float(counter.get_total_flops())


def batches(candidates: Sequence[Trigger], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows, ids) of up to `size` candidates that have the same number of ids."""
    lengths = torch.tensor([len(candidate.token_ids) for candidate in candidates])
    for length in lengths.unique().tolist():
        for rows in (lengths == length).nonzero()[:, 0].split(size):
            yield rows, torch.tensor([candidates[row].token_ids for row in rows.tolist()])
