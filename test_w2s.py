# SPDX-License-Identifier: MIT
"""Tests of w2s.py and tasks.py, in their order: ./run.sh test

The real model is loaded once; everything that would take long runs on a tiny random model,
which is written as a GGUF file here.
"""
import ast
import io
import json
import math
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import types
import xml.dom.minidom
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tasks
import w2s

# -------------------------------------------------------------------------------------------
# The statistical model
# -------------------------------------------------------------------------------------------


def problem(seed, d=8, K=4, sigma=0.5):
    """A source with random orthonormal concepts and a random prior, and a generator."""
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))
    prior = torch.rand(K, generator=g, dtype=torch.float64) + 0.2
    return w2s.Source(q[:, :K].T, prior / prior.sum(), sigma), g


def theory_source():
    """The source of the theory experiment, and a generator: d = 20, K = 10, sigma = 0.5."""
    prior = torch.full((10,), 0.1, dtype=torch.float64)
    source = w2s.Source(torch.eye(20)[:10], prior, 0.5)
    return source, torch.Generator().manual_seed(0)


def draw(source, weak, R, n, g):
    """R data sets of n weak pairs: x (R, n, d), y (R, n)."""
    x = w2s.draw_x(R, n, source.betas.shape[1], generator=g)
    return x, weak.label(x, g)


def error(samples):
    """The standard error of a mean over replications."""
    return samples.std(0) / len(samples) ** 0.5


def close(samples, value, errors=4):
    """Whether a mean over replications lies within so many standard errors of a value."""
    return abs(samples.mean() - value) <= errors * error(samples) + 1e-12


def test_the_source_and_the_supervisor_are_what_they_say():
    source, g = problem(0)
    x = w2s.draw_x(200_000, 8, generator=g)
    assert torch.allclose(x.T @ x / len(x), torch.eye(8).double() / 3, atol=5e-3)
    b = torch.randn(8, generator=g, dtype=torch.float64)
    error = x @ (b - source.betas[0])
    assert close(error**2, w2s.excess_risk(b, source.betas[0]))
    for quality, leak in ((0.7, 0.0), (1.0, 0.0), (0.6, 0.5)):
        weak = w2s.weak_supervisor(source, 1, quality, 0.9, {2: leak})
        shares = source.betas @ weak.beta
        assert weak.beta.norm().item() == pytest.approx(1)
        assert shares.tolist() == pytest.approx([0, quality, leak, 0], abs=1e-12)
        noise = weak.label(x, g) - x @ weak.beta
        assert close(noise, 0)
        assert close(noise**2, 0.81)


@pytest.mark.parametrize("temper", [1.0, 0.4])
def test_the_posterior_is_bayes_rule_by_hand_with_a_tempered_likelihood(temper):
    source, g = problem(1, d=3, K=3, sigma=0.8)
    source.temper = temper
    x = w2s.draw_x(5, 4, 3, generator=g)
    y = torch.randn(5, 4, generator=g, dtype=torch.float64)
    got = source.posterior(x, y)
    for r in range(5):
        joint = []
        for k in range(3):
            p = source.prior[k].item()
            for j in range(4):
                mean = 0.0
                for i in range(3):
                    mean += source.betas[k, i].item() * x[r, j, i].item()
                squares = (y[r, j].item() - mean) ** 2
                p *= np.exp(-squares / (2 * 0.8**2)) ** temper
            joint.append(p)
        assert got[r].tolist() == pytest.approx(
            [p / sum(joint) for p in joint], rel=1e-10
        )
    no_example = source.posterior(x[:, :0], y[:, :0])
    assert torch.allclose(no_example, source.prior.expand(5, 3))


@pytest.mark.parametrize("eta", [0.0, 0.1, 1.0, 10.0])
def test_naive_fine_tuning_minimises_its_loss_and_tends_to_its_limit(eta):
    source, g = problem(2)
    x, y = draw(source, w2s.weak_supervisor(source, 0, 0.6, 0.5), 200, 4000, g)
    b = w2s.naive_fit(x, y, source.mean(), eta)
    limit = w2s.naive_limit(
        w2s.weak_supervisor(source, 0, 0.6, 0.5).beta, source.mean(), eta
    )
    assert all(close(b[:, i], limit[i], 5) for i in range(8))
    residual = y - (x @ b[..., None])[..., 0]
    gradient = -(residual[..., None] * x).mean(1) + eta * (b - source.mean())
    assert gradient.abs().max() < 1e-10


def test_the_best_eta_attains_the_floor_of_the_limit_and_no_eta_passes_it():
    for seed in range(20):
        source, _ = problem(seed)
        weak = w2s.weak_supervisor(source, 0, 0.2 + 0.035 * seed, 0.5)
        target, mean = source.betas[0], source.mean()
        floor = w2s.naive_floor(source, weak, target).item()
        risks = []
        for eta in np.logspace(-6, 6, 2001):
            limit = w2s.naive_limit(weak.beta, mean, eta)
            risks.append(w2s.excess_risk(limit, target).item())
        assert min(risks) >= floor - 1e-12
        assert min(risks) == pytest.approx(floor, rel=1e-3)
        assert floor <= w2s.excess_risk(weak.beta, target)
        assert floor <= w2s.excess_risk(mean, target)


@pytest.mark.parametrize("n", [10, 20, 100, 1000])
@pytest.mark.parametrize(
    "quality, sigma", [(0.3, 0.5), (0.7, 0.5), (1.0, 0.5), (1.0, 2.0)]
)
def test_no_eta_takes_the_expected_risk_below_the_floor_at_any_n(
    quality, sigma, n
):
    """Prop. 3.2 for the biased and for the noisy supervisor (quality 1)."""
    source, g = problem(8)
    weak = w2s.weak_supervisor(source, 0, quality, sigma)
    target = source.betas[0]
    floor = w2s.naive_floor(source, weak, target, n)
    assert floor >= w2s.naive_floor(source, weak, target)
    x, y = draw(source, weak, 400, n, g)
    best = w2s.naive_best_eta(source, weak, target, n)
    for eta in (0.01, 0.1, best, 1.0, 10.0):
        risk = w2s.excess_risk(w2s.naive_fit(x, y, source.mean(), eta), target)
        assert risk.mean() >= floor - 4 * error(risk)
        if n == 1000 and eta == best:
            assert risk.mean() <= 1.1 * floor + 4 * error(
                risk
            )  # the bound is nearly attained


def test_shrinkage_keeps_the_same_share_of_every_direction_on_average():
    """The step of Prop. 3.2's proof: E (S + eta I)^-1 S = m I, and the variance is >= 3 m^2."""
    g = torch.Generator().manual_seed(0)
    x = w2s.draw_x(40_000, 6, 3, generator=g)
    S = x.mT @ x / 6
    kept = torch.linalg.solve(S + 0.2 * torch.eye(3).double(), S)
    m = kept.diagonal(dim1=1, dim2=2).mean()
    off = kept.mean(0) - m * torch.eye(3).double()
    assert (off.abs() <= 4.5 * error(kept)).all()
    s = torch.linalg.eigvalsh(S)
    assert 0 < m < 1
    assert (s / (s + 0.2) ** 2).mean() >= 3 * m**2


def test_single_runs_lie_below_the_floor_but_their_mean_does_not():
    source, g = theory_source()
    weak = w2s.weak_supervisor(source, 0, 0.6, 0.5)
    floor = w2s.naive_floor(source, weak, source.betas[0])
    x, y = draw(source, weak, 1000, 200, g)
    eta = w2s.naive_best_eta(source, weak, source.betas[0])
    risk = w2s.excess_risk(
        w2s.naive_fit(x, y, source.mean(), eta), source.betas[0]
    )
    assert (risk < floor).double().mean().item() == pytest.approx(0.31, abs=0.05)
    assert risk.mean() > floor + 4 * error(risk)


def test_the_simplex_solver_meets_the_optimality_conditions():
    g = torch.Generator().manual_seed(0)
    for K, R in ((1, 10), (2, 90), (10, 800), (30, 100)):
        root = torch.randn(R, K, K + 2, generator=g, dtype=torch.float64)
        gram = root @ root.mT / K
        linear = 2 * torch.randn(R, K, generator=g, dtype=torch.float64)
        a = w2s.simplex_least_squares(gram, linear)
        gradient = (gram @ a[..., None])[..., 0] - linear
        multiplier = (gradient * a).sum(1, keepdim=True)
        assert a.min() >= 0
        assert (a.sum(1) - 1).abs().max() < 1e-10
        assert (
            gradient - multiplier
        ).min() > -1e-8  # no direction into the simplex descends
        assert (
            (gradient - multiplier).abs() * a
        ).max() < 1e-8  # complementary slackness


def test_the_hull_projection_tends_to_its_limit():
    source, g = problem(3)
    for c in (0.3, 0.6, 1.0):
        weak = w2s.weak_supervisor(source, 0, c, 0.5)
        limit = w2s.hull_limit(source, weak.beta)
        formula = (1 - c) ** 2 * 3 / 12  # (1 - c*)^2 (K - 1) / 3K
        assert w2s.excess_risk(limit, source.betas[0]).item() == pytest.approx(
            formula, abs=1e-12
        )
        x, y = draw(source, weak, 100, 4000, g)
        b = w2s.hull_fit(source, x, y)
        if c < 1:  # at a corner the estimate is biased for every n
            assert all(close(b[:, i], limit[i], 5) for i in range(8))


def test_the_hull_projection_loses_nothing_of_a_target_inside_the_hull():
    source, _ = problem(3)
    target = torch.tensor([0.4, 0.3, 0.2, 0.1]).double() @ source.betas
    assert w2s.excess_risk(w2s.hull_limit(source, target), target) < 1e-12


def test_the_statistical_dimension_of_the_hull_at_a_corner_an_edge_and_inside():
    corner, inside = torch.eye(10).double()[0], torch.full((10,), 0.1).double()
    assert w2s.statistical_dimension(corner) == pytest.approx(2.0, abs=0.05)
    assert w2s.statistical_dimension(inside) == pytest.approx(9, abs=0.05)
    half_line = torch.eye(2).double()[
        0
    ]  # the cone of an interval's end: half of one dimension
    assert w2s.statistical_dimension(half_line) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("times", [1, 4])
def test_the_error_of_the_hull_has_the_statistical_dimension_least_squares_has_d(
    times,
):
    """Prop. 3.4 at finite n."""
    source, g = theory_source()
    weak = w2s.weak_supervisor(source, 0, 1.0, times * source.sigma)
    x, y = draw(source, weak, 300, 500, g)
    rate = 500 / weak.sigma**2
    hull = rate * w2s.excess_risk(w2s.hull_fit(source, x, y), source.betas[0])
    least_squares = rate * w2s.excess_risk(
        w2s.naive_fit(x, y, source.mean(), 0), source.betas[0]
    )
    assert close(hull, w2s.statistical_dimension(torch.eye(10).double()[0]))
    assert close(least_squares, 20 * 500 / (500 - 20))


@pytest.mark.parametrize(
    "times, naive, hull, refined",
    [(1, 0.0049, 0.0005, 0.0051), (4, 0.063, 0.0075, 0.033)],
)
def test_against_noise_the_hull_is_best_and_refinement_wins_only_if_there_is_much(
    times, naive, hull, refined
):
    source, g = theory_source()
    weak = w2s.weak_supervisor(source, 0, 1.0, times * source.sigma)
    target = source.betas[0]
    x, y = draw(source, weak, 100, 1000, g)
    eta = w2s.naive_best_eta(source, weak, target, 1000)
    fits = [
        w2s.naive_fit(x, y, source.mean(), eta),
        w2s.hull_fit(source, x, y),
        w2s.refined_fit(source, x, y, 64, g),
    ]
    risks = w2s.excess_risk(torch.stack(fits, 1), target)
    assert (
        abs(risks.mean(0) - torch.tensor([naive, hull, refined]))
        < 4 * error(risks)
    ).all()
    assert w2s.naive_floor(source, weak, target, 1000).item() == pytest.approx(
        naive, rel=0.01
    )


@pytest.mark.parametrize(
    "quality, sigma", [(0.9, 0.5), (0.5, 0.5), (0.3, 0.5), (1.0, 1.5)]
)
def test_the_bound_lies_above_the_simulated_risk_and_the_slope_is_at_least_rho(
    quality, sigma
):
    source, g = problem(4)
    target = source.betas[1]
    weak = w2s.weak_supervisor(source, 1, quality, sigma)
    n_icl = [0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384]
    risk = w2s.refined_risk(source, target, weak, n_icl, 4000, g)
    bound, rho = w2s.refinement_bound(source, 1, weak, n_icl)
    mean = risk.mean(0)
    assert rho > 0
    assert (mean <= bound + 4 * error(risk)).all()
    assert mean[0].item() == pytest.approx(
        w2s.excess_risk(source.mean(), target).item()
    )
    # The slope of log risk where the decay has set in and enough replications still count.
    some = [i for i in range(len(n_icl)) if 1e-3 < mean[i] < 0.15]
    slope = np.polyfit([n_icl[i] for i in some], mean[some].log().numpy(), 1)[0]
    assert len(some) >= 3
    assert slope <= -rho


@pytest.mark.parametrize("t", [0.0, 0.1, 0.25, 0.5, 0.75, 1.0])
def test_the_moments_of_the_likelihood_ratio_for_t_from_0_to_1(t):
    source, g = problem(5, sigma=1.0)
    weak = w2s.weak_supervisor(source, 0, 0.5, 0.7)
    x, y = draw(source, weak, 400_000, 1, g)
    evidence = source.evidence(x, y)[:, 0]
    ratio = evidence - evidence[:, :1]  # of each concept to the target
    drift, spread = w2s.likelihood_ratio(source, 0, weak)
    log_m = w2s.log_moment(t, drift, spread)
    assert log_m[0].abs() < 1e-12
    for k in range(1, 4):
        assert close((t * ratio[:, k]).exp(), log_m[k].exp().item())
        assert close(
            ratio[:, k], -0.5 / (3 * source.sigma**2)
        )  # (c_k - c*) / 3 sigma^2


def test_the_exponent_is_minimised_exactly_not_on_a_grid():
    source, _ = theory_source()
    weak = w2s.weak_supervisor(source, 0, 0.3, 0.5)
    bound, rho = w2s.refinement_bound(source, 0, weak, [512])
    assert rho == pytest.approx(0.0127, abs=5e-5)
    assert bound.item() == pytest.approx(0.0090, abs=5e-5)
    drift, spread = w2s.likelihood_ratio(source, 0, weak)
    grid = torch.stack(
        [w2s.log_moment(t, drift, spread) for t in np.linspace(0, 1, 401)]
    )
    assert grid.amin(0)[1:].max().item() == pytest.approx(-rho, rel=1e-3)
    assert grid.amin(0)[1:].max() >= -rho - 1e-12
    assert (grid.diff(dim=0).diff(dim=0)[:, 1:] > 0).all()  # convex in t


def test_tempering_lowers_the_exponent_only_below_the_minimising_t():
    source, g = theory_source()
    weak = w2s.weak_supervisor(source, 0, 0.6, 0.5)
    target, rhos, risks = source.betas[0], [], []
    for temper in (0.05, 0.3, 1.0, 4.0):
        model = w2s.Source(source.betas, source.prior, 0.5, temper)
        bound, rho = w2s.refinement_bound(model, 0, weak, [8, 64])
        risk = w2s.refined_risk(model, target, weak, [8, 64], 1000, g)
        assert (risk.mean(0) <= bound + 4 * error(risk)).all()
        rhos.append(rho)
        risks.append(risk.mean(0)[0].item())
    assert rhos[0] == pytest.approx(0.0329, abs=1e-4)
    assert rhos[1:] == pytest.approx([0.0608] * 3, abs=1e-4)
    assert (
        risks[1] < risks[2] < risks[3]
    )  # after 8 examples, trusting them less is better


@pytest.mark.parametrize("n_labels", [40, 200, 600])
@pytest.mark.parametrize("n_icl", [4, 16, 32])
def test_the_refined_estimator_lies_below_its_two_term_bound(n_labels, n_icl):
    """Thm 4.2, with contexts independent of each other and of the queries, as in the proof, and
    with those of Algorithm 1, for which it is only checked."""
    source, g = problem(9)
    target, weak = source.betas[0], w2s.weak_supervisor(source, 0, 0.8, 0.5)
    labels, concept = w2s.refined_fit_bound(source, 0, weak, n_labels, [n_icl])
    x, y = draw(source, weak, 60 * n_labels, n_icl, g)
    posterior = source.posterior(x, y).view(60, n_labels, 4)
    queries, weak_labels = draw(source, weak, 60, n_labels, g)
    answers = w2s.refined_label(source, posterior, queries, g)
    fresh = torch.linalg.lstsq(queries, answers[..., None]).solution[..., 0]
    own = w2s.refined_fit(source, queries, weak_labels, n_icl, g)
    for fit in (fresh, own):
        risk = w2s.excess_risk(fit, target)
        assert risk.mean() <= labels + concept.item() + 4 * error(risk)
    # The first term is about sigma^2 d / n, the second vanishes with the examples.
    assert labels.item() == pytest.approx(0.25 * 8 / n_labels, rel=0.35)
    _, much = w2s.refined_fit_bound(source, 0, weak, n_labels, [200])
    assert much < 1e-9


def test_refinement_gets_below_naive_and_fails_where_it_must():
    source, g = problem(6)
    target, weak = source.betas[0], w2s.weak_supervisor(source, 0, 0.5, 0.5)
    floor = w2s.naive_floor(source, weak, target)
    risk = w2s.refined_risk(source, target, weak, [4, 64, 256], 2000, g).mean(0)
    assert risk[1] < floor / 3
    assert risk[2] < floor / 100
    x, y = draw(source, weak, 20, 1500, g)
    fit = w2s.excess_risk(w2s.refined_fit(source, x, y, 64, g), target)
    assert (
        fit.mean() < floor / 3
    )  # with examples from the training labels themselves
    for share in (
        0.3,
        0.6,
    ):  # the supervisor has as much, or more, of another concept
        misled = w2s.weak_supervisor(source, 0, 0.3, 0.5, {1: share})
        wrong = w2s.refined_risk(source, target, misled, [256], 1000, g)
        bound, rho = w2s.refinement_bound(source, 0, misled, [256])
        assert wrong.mean() > 0.3
        assert rho < 1e-3
        assert bound.item() > 0.3


def test_with_an_equal_share_of_another_concept_the_risk_falls_but_not_below_the_source():
    source, g = theory_source()
    weak = w2s.weak_supervisor(source, 0, 0.3, 0.5, {1: 0.3})
    risk = w2s.refined_risk(
        source, source.betas[0], weak, [0, 16, 64, 256], 2000, g
    )
    assert (
        abs(risk.mean(0) - torch.tensor([0.3, 0.43, 0.37, 0.33])) < 0.03
    ).all()
    assert risk[:, 1:].mean(0).min() > risk[0, 0]


def test_a_prior_is_recovered_from_sorted_contexts_and_collapses_in_mixed_ones():
    source, g = theory_source()
    prior = torch.tensor([0.7, 0.3]).double()
    supervisors = [w2s.weak_supervisor(source, k, 0.6, 0.5) for k in (0, 1)]
    x = w2s.draw_x(2000, 256, 20, generator=g)
    mixed = w2s.label_by_prior(supervisors, prior, x, g)
    expected = {
        16: (0.40, 0.15, 0.047),
        64: (0.75, 0.13, 0.011),
        256: (0.98, 0.02, 0.052),
    }
    for n, (first, second, risk) in expected.items():
        p = source.posterior(x[:, :n], mixed[:, :n]).mean(0)
        assert p[:2].tolist() == pytest.approx([first, second], abs=0.03)
        mean_label = p @ source.betas
        assert w2s.excess_risk(
            mean_label, prior @ source.betas[:2]
        ).item() == pytest.approx(risk, abs=0.006)
    y = w2s.label_by_prior(supervisors, prior, x, g, oracle=True)
    assert source.posterior(x, y).mean(0)[:2].tolist() == pytest.approx(
        [0.7, 0.3], abs=0.04
    )


def test_with_one_concept_there_is_nothing_to_lose():
    source = w2s.Source(torch.eye(3)[:1], torch.ones(1), 0.5)
    weak, g = w2s.weak_supervisor(
        source, 0, 1.0, 1.0
    ), torch.Generator().manual_seed(0)
    target = source.betas[0]
    bound, rho = w2s.refinement_bound(source, 0, weak, [0, 10])
    assert w2s.naive_floor(source, weak, target) == 0
    assert w2s.naive_floor(source, weak, target, 10) < 1e-12
    assert bound.tolist() == [0, 0]
    assert rho == float("inf")
    assert w2s.statistical_dimension(torch.ones(1).double()) == 0
    assert w2s.refined_risk(source, target, weak, [0, 5], 3, g).abs().max() == 0
    x, y = draw(source, weak, 3, 10, g)
    assert w2s.excess_risk(w2s.hull_fit(source, x, y), target).max() < 1e-20


def test_permutation_and_scale_change_nothing():
    source, g = problem(7)
    weak = w2s.weak_supervisor(source, 0, 0.6, 0.4)
    x, y = draw(source, weak, 50, 30, g)
    order = torch.tensor([2, 0, 3, 1])
    permuted = w2s.Source(source.betas[order], source.prior[order], source.sigma)
    posterior = source.posterior(x, y)
    assert torch.allclose(permuted.posterior(x, y), posterior[:, order])
    assert torch.allclose(
        source.posterior(x.flip(1), y.flip(1)), posterior
    )  # order of examples
    assert torch.allclose(
        w2s.hull_fit(permuted, x, y), w2s.hull_fit(source, x, y)
    )
    bound, rho = w2s.refinement_bound(source, 0, weak, [1, 8, 64])
    same_bound, same_rho = w2s.refinement_bound(permuted, 1, weak, [1, 8, 64])
    assert torch.allclose(same_bound, bound)
    assert same_rho == pytest.approx(rho)
    # x and sigma in other units: the likelihood of y, measured in the same units, stays.
    scaled = w2s.Source(source.betas, source.prior, 3 * source.sigma)
    assert torch.allclose(scaled.posterior(3 * x, 3 * y), posterior)
    rotation, _ = torch.linalg.qr(
        torch.randn(8, 8, generator=g, dtype=torch.float64)
    )
    turned = w2s.naive_fit(x @ rotation, y, source.mean() @ rotation, 0.2)
    assert torch.allclose(
        turned, w2s.naive_fit(x, y, source.mean(), 0.2) @ rotation
    )


def test_bad_parameters_are_named():
    eye, half = torch.eye(4).double(), torch.full((2,), 0.5).double()
    good = w2s.Source(eye[:2], half, 1.0)
    full = w2s.Source(eye, torch.full((4,), 0.25), 1.0)
    weak = w2s.Supervisor(eye[0], 1.0)
    x, y = torch.zeros(1, 5, 4).double(), torch.zeros(1, 5).double()
    g = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match=r"betas must .* 2\.0"):
        w2s.Source(eye[:2] * 2**0.5, half, 1.0)
    with pytest.raises(ValueError, match=r"prior must .*\[0\.5, 0\.6"):
        w2s.Source(eye[:2], torch.tensor([0.5, 0.6]), 1.0)
    with pytest.raises(ValueError, match=r"prior must .*\[nan, 1\.0"):
        w2s.Source(eye[:2], torch.tensor([math.nan, 1.0]), 1.0)
    with pytest.raises(ValueError, match="prior must .* 3 positive"):
        w2s.Source(eye[:3], half, 1.0)
    with pytest.raises(ValueError, match="must be positive, not 0,"):
        w2s.Source(eye[:2], half, 0)
    with pytest.raises(ValueError, match="must be positive, not 1.0, -1"):
        w2s.Source(eye[:2], half, 1.0, temper=-1)
    with pytest.raises(ValueError, match=r"quality=1\.2"):
        w2s.weak_supervisor(good, 0, 1.2, 1.0)
    with pytest.raises(ValueError, match="fill all d=4"):
        w2s.weak_supervisor(full, 0, 0.5, 1.0)
    with pytest.raises(ValueError, match="not be negative: -1"):
        w2s.refined_risk(good, eye[0], weak, [-1], 10, g)
    with pytest.raises(ValueError, match="n_icl .* 4, .* not 5"):
        w2s.refined_fit(good, x, y, 5, g)
    with pytest.raises(ValueError, match="at least 2 d = 8, not 7"):
        w2s.refined_fit_bound(good, 0, weak, 7, [1])


def test_theory_writes_its_tables_and_its_figure(tmp_path, capsys):
    result = tasks.theory(tmp_path, 1000, 0)
    names = ["theory.json", "theory.svg"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert json.loads((tmp_path / "theory.json").read_text()) == json.loads(
        json.dumps(result)
    )
    text = capsys.readouterr().out
    xml.dom.minidom.parse(str(tmp_path / "theory.svg"))
    for title in (
        "n_icl 64",
        "hull (tends to 2.0)",
        "0.0127",
        "oracle",
        "tau = 0.3",
    ):
        assert title in text
    assert sorted(result["tables"]) == ["fits", "labels", "prior", "terms"]
    for row in result["tables"]["labels"][1:6]:
        assert row[3].startswith(
            "0.3 "
        )  # no example: every label is the source's own mean


# --------------------------------------------------------------------------------------
# A tiny model, and a GGUF writer for it and for broken files
# --------------------------------------------------------------------------------------

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}"
    "{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
)


def gguf_text(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf_value(value):
    """A value with its type in front; lists hold str or int."""
    if isinstance(value, list):
        items = [gguf_value(item) for item in value]
        kind = items[0][:4] if items else struct.pack("<I", 4)
        return struct.pack("<I", 9) + kind + struct.pack("<Q", len(items)) + b"".join(
            item[4:] for item in items
        )
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    return struct.pack("<I", 8) + gguf_text(value)


def write_gguf(path, meta, tensors):
    """A GGUF v3 file of these metadata and tensors {name: (type number, shape, bytes)}."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(meta))
    for key, value in meta.items():
        out += gguf_text(key) + gguf_value(value)
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        out += gguf_text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        out += struct.pack("<IQ", kind, len(data))
        data += raw + b"\0" * (-len(raw) % 32)
    path.write_bytes(out + b"\0" * (-len(out) % 32) + data)
    return path


def tiny_meta(layers=3):
    """Metadata of a llama with width 48, 3 heads, 1 key head, and the bytes as vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [*map(chr, printable), *map(chr, range(256, 512 - len(printable)))]
    merges = ["t h", "th e", "Ġ the", "a n"]
    tokens = SPECIAL + letters + [merge.replace(" ", "") for merge in merges]
    return {
        "general.architecture": "llama",
        "llama.block_count": layers,
        "llama.context_length": 1024,
        "llama.embedding_length": 48,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 3,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }


def tiny_parts(seed=0, layers=3):
    """(metadata, tensors) of a tiny llama with random weights."""
    meta = tiny_meta(layers)
    shapes = {"token_embd": [len(meta["tokenizer.ggml.tokens"]), 48], "output_norm": [48]}
    block = {
        "attn_norm": [48], "ffn_norm": [48], "attn_q": [48, 48], "attn_k": [16, 48],
        "attn_v": [16, 48], "attn_output": [48, 48], "ffn_gate": [96, 48], "ffn_up": [96, 48],
        "ffn_down": [48, 96],
    }
    for i in range(layers):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in block.items()}
    rng, tensors = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        w = np.ones(shape) if "norm" in name else rng.normal(0, 0.3, shape)
        if name == "token_embd":  # text that ends: ASCII, and many end tokens
            tokens = meta["tokenizer.ggml.tokens"]
            w *= [[1.0 if text[0] <= "~" or "Ġ" in text else 0.1] for text in tokens]
            w[2] *= 2
        tensors[name + ".weight"] = 0, shape, w.astype("<f4").tobytes()
    return meta, tensors


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", *tiny_parts())


# --------------------------------------------------------------------------------------
# Model files
# --------------------------------------------------------------------------------------


def test_a_file_is_read_as_it_was_written(tmp_path):
    meta = {"a.bool": True, "a.int": 7, "a.float": 0.5, "a.text": "é\n", "a.list": [3, 4]}
    meta |= {"a.texts": ["x", "東"], "a.empty": []}
    raw = np.arange(6, dtype="<f4").tobytes()
    file = w2s.read_gguf(write_gguf(tmp_path / "a.gguf", meta, {"w": (0, [2, 3], raw)}))
    assert file.meta == meta and file.tensors.keys() == {"w"}
    number, shape, data = file.tensors["w"]
    assert (number, shape, data.tobytes()) == (0, [2, 3], raw)


@pytest.mark.parametrize("align", [32, 64])
def test_a_written_file_is_the_file_that_was_read(tmp_path, align):
    meta, tensors = tiny_parts()
    source = w2s.read_gguf(write_gguf(tmp_path / "a.gguf", meta, tensors))
    weights = {
        name: (number, w2s.dequantize(number, shape, data))
        for name, (number, shape, data) in source.tensors.items()
    }
    raw = source.raw | {"general.alignment": struct.pack("<II", 4, align)}
    with w2s.replacing(tmp_path / "b.gguf") as out:
        w2s.write_gguf(out, raw, align, weights)
    again = w2s.read_gguf(tmp_path / "b.gguf")
    assert again.meta == source.meta | {"general.alignment": align}
    for name, (number, shape, data) in tensors.items():
        assert again.tensors[name][:2] == (number, shape)
        assert again.tensors[name][2].tobytes() == data
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), w2s.replacing(path) as file:
        file.write(b"ne")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with w2s.replacing(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_bytes() == b"new"


def test_a_link_to_the_model_that_is_being_read_can_be_the_output(tiny_path, tmp_path):
    shutil.copy(tiny_path, tmp_path / "model.gguf")
    (tmp_path / "link.gguf").symlink_to(tmp_path / "model.gguf")
    w2s.load(tmp_path / "link.gguf", "cpu").save(tmp_path / "link.gguf")
    assert (tmp_path / "link.gguf").is_symlink()
    assert w2s.load(tmp_path / "model.gguf", "cpu").generate(["a"], 2)


def test_weights_that_the_file_cannot_hold_are_not_saved(tiny, tmp_path):
    changed = tiny.copy()
    changed.model.output_norm.weight = torch.nn.Parameter(torch.full((64,), math.inf), False)
    with pytest.raises(w2s.W2SError, match="output_norm.weight is not finite"):
        changed.save(tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_a_device_is_not_replaced():
    with pytest.raises(w2s.W2SError, match="/dev/null: is a folder or a device"):
        w2s.write_file("/dev/null", "new")
    assert not os.path.isfile("/dev/null")


def halves(raw):
    return struct.unpack(f"<{len(raw) // 2}e", raw)


def four_bits(raw):
    return np.array([c & 15 for c in raw] + [c >> 4 for c in raw])


BY_HAND = [  # type, its number, bytes of a block, the weights of a block
    ("F32", 0, 4, lambda b: np.frombuffer(b, "<f4")),
    ("F16", 1, 2, lambda b: np.array(halves(b))),
    ("BF16", 30, 2, lambda b: (np.frombuffer(b, "<u2").astype("<u4") << 16).view("<f4")),
    ("Q8_0", 8, 34, lambda b: halves(b[:2])[0] * np.frombuffer(b[2:], "i1")),
    ("Q4_0", 2, 18, lambda b: halves(b[:2])[0] * (four_bits(b[2:]) - 8)),
    ("Q4_1", 3, 20, lambda b: halves(b[:2])[0] * four_bits(b[4:]) + halves(b[2:4])[0]),
]


@pytest.mark.parametrize("name, number, size, by_hand", BY_HAND)
def test_tensor_types_by_hand(name, number, size, by_hand):
    rng = np.random.default_rng(0)
    raw, weights = b"", 1 if size <= 4 else 32
    for _ in range(6):
        if name == "F16":
            raw += rng.normal(size=1).astype("<f2").tobytes()
        elif weights == 1:
            raw += rng.normal(size=1).astype("<f4").tobytes()[-size:]
        else:
            scales = 2 if name in ("Q8_0", "Q4_0") else 4
            raw += rng.normal(size=scales // 2).astype("<f2").tobytes() + rng.bytes(size - scales)
    got = w2s.dequantize(number, [3, 2 * weights], np.frombuffer(raw, np.uint8))
    expected = [by_hand(raw[i : i + size]) for i in range(0, len(raw), size)]
    expected = np.concatenate(expected).reshape(3, -1)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.fixture
def odd_file(tmp_path):
    """A file with a tensor of a made-up type 99: one weight a block, two bytes."""
    raw = np.arange(6, dtype="<f2").tobytes()
    return write_gguf(tmp_path / "odd.gguf", {"a": 1}, {"w": (99, [2, 3], raw)})


def test_other_tensor_types_come_from_the_gguf_package(odd_file, monkeypatch):
    fake = types.SimpleNamespace(
        GGMLQuantizationType=int,
        GGML_QUANT_SIZES={99: (1, 2)},
        dequantize=lambda raw, kind: raw.view("<f2").astype("f4"),
    )
    monkeypatch.setitem(sys.modules, "gguf", fake)
    w = w2s.dequantize(*w2s.read_gguf(odd_file).tensors["w"])
    assert w.tolist() == [[0, 1, 2], [3, 4, 5]]
    fake.dequantize = None  # the package knows the size of the type, but cannot decode it
    with pytest.raises(w2s.W2SError, match="number 99: is not supported by the gguf package"):
        w2s.dequantize(*w2s.read_gguf(odd_file).tensors["w"])


def test_the_gguf_package_is_named_where_it_is_needed(odd_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(w2s.W2SError, match="type number 99 is not supported.*pip install gguf"):
        w2s.read_gguf(odd_file)


def refused(function, *arguments):
    """The message of the W2SError, which is one line."""
    with pytest.raises(w2s.W2SError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_bad_model_file_is_named_with_its_fault(tmp_path, tiny_path):
    whole = tiny_path.read_bytes()
    old = whole[:4] + struct.pack("<I", 2) + whole[8:]
    for content, message in (
        (b"PK\3\4 something else", "is not a GGUF file"),
        (b"", "is not a GGUF file"),
        (whole[:-1000], "is damaged or cut short"),
        (old, "GGUF version 2 is not supported"),
    ):
        path = tmp_path / "bad.gguf"
        path.write_bytes(content)
        assert refused(w2s.read_gguf, path).startswith(f"{path}: {message}")


def test_every_cut_of_a_model_file_is_noticed(tmp_path, tiny_path):
    whole = tiny_path.read_bytes()
    for n in [*range(0, 400, 7), *range(400, len(whole) - 40, 997)]:
        (tmp_path / "cut.gguf").write_bytes(whole[:n])
        refused(w2s.read_gguf, tmp_path / "cut.gguf")


def test_a_part_of_a_split_file_is_called_so(tmp_path):
    meta, tensors = tiny_parts()
    path = write_gguf(tmp_path / "a-00001-of-00003.gguf", meta | {"split.count": 3}, tensors)
    assert "is one of the 3 parts of a split file: merge" in refused(w2s.read_gguf, path)
    write_gguf(path, meta | {"split.count": 1}, tensors)
    assert w2s.read_gguf(path).tensors.keys() == tensors.keys()


@pytest.mark.parametrize("key, value", [
    ("rope.scale_linear", 4.0), ("rope.scaling.factor", 2.0), ("rope.scaling.type", "yarn"),
    ("rope.scaling.attn_factor", 0.5), ("attention.sliding_window", 128), ("logit_scale", 0.5),
    ("expert_count", 8), ("residual_scale", 0.2), ("embedding_scale", 12.0),
    ("attention.scale", 0.5), ("attention.key_length", 32), ("attention.causal", False),
    ("final_logit_softcapping", 30.0), ("rope.dimension_sections", [2, 3, 3]),
    ("a_key_of_the_future", 1),
])
def test_metadata_that_change_the_computation_are_refused_by_name(key, value):
    meta = tiny_meta() | {f"llama.{key}": value}
    assert f"llama.{key} = {value}" in refused(w2s.check_metadata, meta, "llama", 16).replace(
        "'", ""
    )


def test_metadata_that_change_nothing_are_accepted():
    same = {
        "rope.scale_linear": 1.0, "rope.scaling.factor": 1.0, "rope.scaling.type": "none",
        "rope.scaling.original_context_length": 1024, "rope.scaling.finetuned": False,
        "attention.sliding_window": 0, "logit_scale": 1.0, "expert_count": 0, "vocab_size": 263,
        "residual_scale": 1.0, "embedding_scale": 1.0, "attention.scale": 0.25,
        "attention.key_length": 16, "attention.value_length": 16, "attention.causal": True,
        "rope.dimension_count": 16, "final_logit_softcapping": 0.0, "use_parallel_residual": False,
    }
    meta = tiny_meta() | {f"llama.{key}": value for key, value in same.items()}
    w2s.check_metadata(meta | {"quantize.imatrix.chunks_count": 9}, "llama", 16)


# --------------------------------------------------------------------------------------
# Tokenizer
# --------------------------------------------------------------------------------------

# From transformers 5 (AutoModelForCausalLM.from_pretrained(folder, gguf_file=...,
# dtype=torch.float32)) and tokenizers (BPE on the file's vocabulary and merges;
# Digits(individual_digits=True), then ByteLevel), on the same GGUF file: text, ids, logits of
# the last position for tokens 0, 33, 1000, 20000, 49151, and the logsumexp of the logits
# summed over positions.
GOLDEN = [
    (
        "The quick brown fox doesn't jump; it's lazy, they've said.",
        [
            504, 2365, 6354, 16438, 2761, 982, 7379, 43, 357, 506, 23790, 28, 502, 3543, 1137,
            30,
        ],
        [3.7209, 7.3227, 2.5145, 0.6543, -0.8906],
        348.4949,
    ),
    (
        'def f(x):\n    return x**2  # 1234\n',
        [
            1604, 275, 24, 104, 727, 472, 1003, 1792, 828, 34, 216, 907, 216, 33, 34, 35, 36,
            198,
        ],
        [29.1143, 27.2875, 24.9033, 12.8542, 20.6437],
        548.7782,
    ),
    (
        '<|im_start|>user\nWhat is 12+30?<|im_end|>\n<|im_start|>assistant\n',
        [
            1, 4093, 198, 1780, 314, 216, 33, 34, 27, 35, 32, 47, 2, 198, 1, 520, 9531, 198,
        ],
        [17.4169, 35.2034, 22.4446, 11.6969, 10.6753],
        529.3246,
    ),
    (
        '\xdcn\xefc\xf6d\xe9 na\xefve caf\xe9, \u6771\u4eac\u30bf\u30ef\u30fc \ud55c'
        '\uad6d\uc5b4 \U0001f3f4\u200d\u2620\ufe0f\U0001f469\U0001f3fd\u200d\U0001f680 '
        '\xbd \u2167 x\xb2',
        [
            142, 246, 94, 25972, 83, 7466, 84, 2756, 15486, 46494, 37366, 28, 17097, 247, 126,
            16736, 122, 10391, 140, 11100, 124, 35130, 216, 33085, 246, 181, 130, 251, 183, 240,
            129, 15107, 233, 129, 321, 231, 173, 242, 250, 31752, 10813, 235, 119, 10813, 233,
            138, 321, 231, 10813, 244, 218, 216, 16738, 216, 173, 223, 117, 1792, 19133,
        ],
        [17.4856, 22.077, 16.1185, 12.5632, 8.593],
        1588.3884,
    ),
    (
        "\t\ttabs   and   spaces  \n\n x\xa0nbsp\u2003em 3.14159 _under_ 'S 'll",
        [
            197, 197, 100, 7366, 256, 284, 256, 5600, 256, 1116, 1792, 15442, 94, 32093, 321,
            221, 391, 216, 35, 30, 33, 36, 33, 37, 41, 2483, 5941, 79, 637, 67, 637, 764,
        ],
        [20.3751, 25.8622, 18.5581, 13.7173, 12.4833],
        936.827,
    ),
]


@pytest.fixture(scope="session")
def smol_meta():
    return w2s.read_gguf(w2s.default_model()).meta


@pytest.fixture(scope="session")
def tokenizer(smol_meta):
    return w2s.Tokenizer(smol_meta)


def decode(tokenizer, ids):
    """The text of token ids; bytes that are not UTF-8 become U+FFFD."""
    return b"".join(tokenizer.bytes[i] for i in ids).decode("utf-8", "replace")


@pytest.mark.parametrize("text, ids, last, total", GOLDEN)
def test_ids_equal_the_reference(tokenizer, text, ids, last, total):
    assert tokenizer.encode(text) == ids


def test_decode_inverts_encode(tokenizer):
    rng = random.Random(0)
    alphabet = [
        *" \n\t\r'aZ09.,_-", "  ", "don't", "é", "ß", "ﬁ", "東", "한", "ك", "א", "\u0301",
        "\u200d", "\u00a0", "\u2003", "🏴‍☠️", "👩🏽‍🚀", "½", "Ⅷ", "²", "٣", "1234567890",
        "<|im_end|>", "<|", "Ġ", "\ufffd", "\U0001f9ff", "\u1680", "\x1c", "\x85", "\u2028",
    ]
    cases = ["", " ", "  leading", "trailing  ", "\n\n\n", "<|im_start|>user\nhi<|im_end|>\n"]
    cases += alphabet + ["".join(rng.choices(alphabet, k=rng.randrange(60))) for _ in range(500)]
    for text in cases:
        for special in (True, False):
            assert decode(tokenizer, tokenizer.encode(text, special)) == text


@pytest.mark.parametrize("text, character", [("bell \x04", r"\x04"), ("half \ud800", r"\ud800")])
def test_a_character_without_a_token_is_named(tokenizer, text, character):
    line = refused(tokenizer.encode, text)
    assert line.startswith("the model has no token for ") and character in line


PRE_TOKENIZED = [  # text; words of Hugging Face's tokenizers with the patterns of Llama 3, Qwen 2
    (
        "I'LL pay 12345 dollars,\n\n  naïve café!!\n x",
        ["I", "'LL", " pay", " ", "123", "45", " dollars", ",\n\n", " ", " naïve", " café",
         "!!\n", " x"],
        ["I", "'LL", " pay", " ", "1", "2", "3", "4", "5", " dollars", ",\n\n", " ", " naïve",
         " café", "!!\n", " x"],
    ),
    (
        "\tif(x)  {\r\n return  }",
        ["\tif", "(x", ")", " ", " {\r\n", " return", " ", " }"],
        ["\tif", "(x", ")", " ", " {\r\n", " return", " ", " }"],
    ),
]


@pytest.mark.parametrize("text, llama3, qwen2", PRE_TOKENIZED)
def test_other_pre_tokenizers(text, llama3, qwen2):
    for name, expected in (("llama-bpe", llama3), ("qwen2", qwen2)):
        (pattern,) = w2s.pre_tokenizer(name)
        assert [word for word in pattern.split(text) if word] == expected


@pytest.mark.parametrize("key, value, message", [
    ("ggml.model", "llama", "tokenizer llama/smollm is not supported"),
    ("ggml.pre", "odd", "tokenizer gpt2/odd is not supported"),
    ("ggml.eos_token_id", 10**6, "tokenizer is damaged"),
    ("ggml.tokens", [1, 2], "tokenizer is damaged"),
    ("ggml.merges", 7, "tokenizer is damaged"),
])
def test_a_bad_tokenizer_is_named(key, value, message):
    assert message in refused(w2s.Tokenizer, tiny_meta() | {f"tokenizer.{key}": value}, "x")


# --------------------------------------------------------------------------------------
# Conversations
# --------------------------------------------------------------------------------------

USER, SYSTEM = {"role": "user", "content": " Hi\n"}, {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "Yes?"}
CHATML = (
    "{% for m in messages %}"
    "{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN = r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
    {%- endif %}
    {{- "\n\n# Tools\n\nYou may call one or more functions.<|im_end|>\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful \
assistant.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first)
        or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
""".replace("\\\n", "")
SET_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}"
    "{% set system_message = 'You are a helpful assistant.' %}{% endif %}"
    r"{{ '<|im_start|>system\n' + system_message + '<|im_end|>\n' }}"
) + CHATML.replace("in messages", "in loop_messages")
# Beginnings from transformers' apply_chat_template: without and with a system message.
SYSTEM_TURN = "<|im_start|>system\nBe brief.<|im_end|>\n"
QWEN_DEFAULT = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. "
    "You are a helpful assistant.<|im_end|>\n"
)
SMOL_DEFAULT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, "
    "trained by Hugging Face<|im_end|>\n"
)
SET_DEFAULT = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
BOS = "<|endoftext|>"
TEMPLATES = {
    "of the default model": (None, SMOL_DEFAULT, ""),
    "of Qwen2.5": (QWEN, QWEN_DEFAULT, ""),
    "plain": (CHATML, "", ""),
    "without a header for the answer": (TEMPLATE, "", ""),
    "with a BOS": ("{{ bos_token }}" + CHATML, BOS, BOS),
    "with a variable": (SET_SYSTEM, SET_DEFAULT, ""),
    "with a BOS and a variable": (
        "{{- bos_token }}\n" + SET_SYSTEM, f"{BOS}\n{SET_DEFAULT}", f"{BOS}\n",
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_template_is_followed(smol_meta, name):
    template, without_system, with_system = TEMPLATES[name]
    meta = smol_meta | {"tokenizer.ggml.bos_token_id": 0}
    if template:
        meta |= {"tokenizer.chat_template": template}
    tokenizer = w2s.Tokenizer(meta)
    turn = "<|im_start|>user\n Hi\n<|im_end|>\n"
    header = "<|im_start|>assistant\n"
    for messages, expected in (
        ([USER], without_system + turn + header),
        ([SYSTEM, USER], with_system + SYSTEM_TURN + turn + header),
        ([USER, ANSWER, USER], f"{without_system}{turn}{header}Yes?<|im_end|>\n{turn}{header}"),
    ):
        context, last = tokenizer.chat(messages)
        assert decode(tokenizer, context + last) == expected
        assert context + last == tokenizer.encode(expected)  # as the reference tokenizes the text


def tokenizer_of(template, **keys):
    """The tiny model's tokenizer with another chat template and other metadata."""
    return w2s.Tokenizer(tiny_meta() | {"tokenizer.chat_template": template} | keys, "x")


TURN = "<|im_start|>{}\n{}<|im_end|>\n"


@pytest.mark.parametrize("content, turn", [
    ("m['content'] | trim", TURN.format("user", "Hi")),
    ("m['content'].split('</think>')[-1]", TURN.format("user", " Hi\n")),
    ("m['content'] + '!'", TURN.format("user", " Hi\n!")),
])
def test_a_template_s_way_with_a_content_is_followed(content, turn):
    tokenizer = tokenizer_of(CHATML.replace("m['content']", content))
    text = decode(tokenizer, sum(tokenizer.chat([USER]), []))
    assert text == turn + "<|im_start|>assistant\n"


def test_a_request_to_think_stays_out_of_the_answers():
    tokenizer = tokenizer_of(CHATML.replace("assistant\n", "assistant\n<think>\n"))
    text = decode(tokenizer, sum(tokenizer.chat([USER, ANSWER, USER]), []))
    assert text.count("<think>") == 1 and text.endswith("<|im_start|>assistant\n<think>\n")
    assert tokenizer.answer_ids("an") == [*tokenizer.encode("an"), 2]


def test_what_a_template_writes_before_every_answer_ends_a_request():
    thought = CHATML.replace("m['role'] + '\n'", "m['role'] + '\n' + "
                             "('<think></think>' if m['role'] == 'assistant' else '')")
    tokenizer = tokenizer_of(thought)
    text = decode(tokenizer, sum(tokenizer.chat([USER, ANSWER, USER]), []))
    assert text.count("<think></think>") == 2 and text.endswith("<think></think>")


LLAMA3 = (
    "{% for m in messages %}{{ ((bos_token if loop.first else '') + '<|im_start|>' + m['role'] + "
    "'<|im_start|>\n\n' + m['content'] | trim + '<|im_end|>') }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_start|>\n\n' }}{% endif %}"
)


def test_a_template_like_llama_3_s():
    tokenizer = tokenizer_of(LLAMA3, **{"tokenizer.ggml.bos_token_id": 0})
    context, turn = tokenizer.chat([USER, ANSWER, USER])
    expected = (
        "<|endoftext|><|im_start|>user<|im_start|>\n\nHi<|im_end|>"
        "<|im_start|>assistant<|im_start|>\n\nYes?<|im_end|>"
        "<|im_start|>user<|im_start|>\n\nHi<|im_end|><|im_start|>assistant<|im_start|>\n\n"
    )
    assert decode(tokenizer, context + turn) == expected
    assert context + turn == tokenizer.encode(expected)
    assert decode(tokenizer, context).endswith("Yes?<|im_end|><|im_start|>user")
    assert tokenizer.answer_ids("an") == [*tokenizer.encode("an"), 2]


MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% elif m['role'] == 'system' %}"
    "{{ raise_exception('no system message') }}{% else %}"
    "{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)


def test_a_template_like_mistral_s():
    """Its only control tokens are before the first turn and after an answer."""
    tokenizer = tokenizer_of(MISTRAL, **{"tokenizer.ggml.bos_token_id": 0})
    question = {"role": "user", "content": "the"}
    context, turn = tokenizer.chat([question, ANSWER, question])
    assert decode(tokenizer, context) == "<|endoftext|>[INST] the [/INST] Yes?"
    assert decode(tokenizer, turn) == "<|im_end|>[INST] the [/INST]"
    assert tokenizer.answer_ids("an") == [*tokenizer.encode(" an"), 2]
    assert tokenizer.answer_text(tokenizer.encode(" an")) == "an"
    message = refused(tokenizer.chat, [SYSTEM, question])
    assert "no system message" in message and "use --plain" in message


@pytest.mark.parametrize("template", [
    "{{ raise_exception('no') }}", "{% for m in messages %}", "", "{{ 1 / 0 }}", "Hi",
    CHATML.replace("in messages", "in messages if m['role'] != 'user'"),
])
def test_a_bad_template_is_refused_and_the_remedy_named(template):
    message = refused(tokenizer_of, template)
    assert message.startswith("x: the chat template cannot be followed") and "--plain" in message


def test_a_template_that_leaves_out_a_message_is_refused_where_that_matters():
    tokenizer = tokenizer_of(CHATML.replace("in messages", "in messages if m['role'] != 'system'"))
    assert tokenizer.chat([USER])
    assert "leaves out a message of the system" in refused(tokenizer.chat, [SYSTEM, USER])


def test_a_template_needs_its_control_tokens():
    template = CHATML.replace("<|im_start|>", "<|").replace("<|im_end|>", "|>")
    message = refused(tokenizer_of, template)
    assert "ends no answer with a control token" in message and "--plain" in message


def test_the_user_may_ask_for_the_plain_form():
    meta = tiny_meta() | {"tokenizer.chat_template": "Hi"}
    plain = w2s.Tokenizer(meta, "x", plain=True)
    assert decode(plain, sum(plain.chat([USER]), [])) == "Question:  Hi\n\nAnswer:"


def test_an_empty_question_is_a_turn(tokenizer, plain_tokenizer):
    empty = {"role": "user", "content": ""}
    context, turn = tokenizer.chat([empty])
    assert decode(tokenizer, context + turn).endswith(
        "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
    )
    assert decode(plain_tokenizer, sum(plain_tokenizer.chat([empty]), [])) == "Question: \nAnswer:"


def test_chat_markup_in_a_question_is_not_markup(tokenizer):
    question = "a<|im_end|>\n<|im_start|>system\nb"
    context, turn = tokenizer.chat([{"role": "user", "content": question}])
    beginning = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM"
    assert decode(tokenizer, context).startswith(beginning)
    assert turn.count(1) == 2 and turn.count(2) == 1
    assert decode(tokenizer, turn) == (
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not {*tokenizer.encode(question, special=False)} & {*tokenizer.special.values()}


@pytest.fixture(scope="session")
def tool_tokenizer(smol_meta):
    """The tokenizer with two more tokens: 49152, of the user's kind, and 49153, control."""
    meta = smol_meta | {
        "tokenizer.ggml.tokens": [*smol_meta["tokenizer.ggml.tokens"], "<tool_call>", "<|x|>"],
        "tokenizer.ggml.token_type": [*smol_meta["tokenizer.ggml.token_type"], 4, 3],
    }
    return w2s.Tokenizer(meta)


def test_a_user_defined_token_is_one_token_in_a_user_s_text(tool_tokenizer):
    ids = tool_tokenizer.encode("a<tool_call>b<|x|>", special=False)
    assert ids.count(49152) == 1 and 49153 not in ids
    assert decode(tool_tokenizer, ids) == "a<tool_call>b<|x|>"


def test_a_user_defined_token_is_printed_and_a_control_token_is_not(tool_tokenizer):
    ids = [49152, *tool_tokenizer.encode("b"), 49153, *tool_tokenizer.encode("c")]
    assert tool_tokenizer.answer_text(ids) == "<tool_call>bc"


def test_only_end_tokens_end_an_answer(tool_tokenizer):
    assert sorted(tool_tokenizer.end_tokens) == [0, 2]  # <|endoftext|>, <|im_end|>


def test_an_answer_to_learn_ends_as_the_template_ends_a_turn():
    tokenizer = w2s.Tokenizer(tiny_meta() | {"tokenizer.ggml.eos_token_id": 0})
    assert tokenizer.answer_ids("an") == [*tokenizer.encode("an"), 2]
    assert sorted(tokenizer.end_tokens) == [0, 2]


def test_an_answer_loses_a_last_character_that_is_cut(tokenizer):
    ids = tokenizer.encode("Yes 🏴")
    assert "\ufffd" in decode(tokenizer, ids[:-1])
    assert tokenizer.answer_text(ids[:-1]) == "Yes " and tokenizer.answer_text(ids) == "Yes 🏴"


@pytest.fixture
def plain_tokenizer():
    meta = tiny_meta()
    del meta["tokenizer.chat_template"]
    return w2s.Tokenizer(meta)


def test_a_model_without_chat_markup_gets_the_paper_s_form(plain_tokenizer):
    context, turn = plain_tokenizer.chat([
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "<|im_end|>"},
    ])
    assert decode(plain_tokenizer, context + turn) == (
        "S\n\nQuestion: a\nAnswer: b\n\nQuestion: <|im_end|>\nAnswer:"
    )
    assert not {*context, *turn} & {0, 1, 2}
    assert plain_tokenizer.answer_text(plain_tokenizer.encode(" b\n\nQuestion: c")) == "b"


def test_the_paper_s_form_is_the_same_in_training_and_in_examples(plain_tokenizer):
    question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "the"}
    context, turn = plain_tokenizer.chat([question])
    learned = context + turn + plain_tokenizer.answer_ids("the")
    assert learned[-1] == plain_tokenizer.eos
    examples, _ = plain_tokenizer.chat([question, answer, question])
    assert examples[: len(learned) - 1] == learned[:-1]


def test_a_file_that_asks_for_a_bos_gets_one_without_a_template():
    meta = tiny_meta() | {"tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.add_bos_token": True}
    tokenizer = w2s.Tokenizer(meta, "x", plain=True)
    context, turn = tokenizer.chat([USER])
    assert (context + turn).count(0) == 1 and (context + turn)[0] == 0


# --------------------------------------------------------------------------------------
# A tiny model, and a GGUF writer for it and for broken files
# --------------------------------------------------------------------------------------

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="session")
def plain_path(tmp_path_factory):
    """The tiny model without a chat template: prompts have the paper's form."""
    meta, tensors = tiny_parts()
    del meta["tokenizer.chat_template"]
    path = tmp_path_factory.mktemp("model") / "plain.gguf"
    write_gguf(path, meta, tensors)
    return path


def load_fp32(path):
    return w2s.load(path, "cpu", torch.float32)


@pytest.fixture(scope="session")
def qwen2_parts(tiny_path):
    """(meta, tensors) of a qwen2 that computes what the tiny model does: its biases are zero."""
    meta, tensors = tiny_parts()
    meta = {key.replace("llama.", "qwen2."): value for key, value in meta.items()}
    meta |= {"general.architecture": "qwen2", "tokenizer.ggml.pre": "qwen2"}
    weights = weights_of(load_fp32(tiny_path))
    for i in range(3):
        for part, size in (("q", 48), ("k", 16), ("v", 16)):
            tensors[f"blk.{i}.attn_{part}.bias"] = (0, [size], bytes(4 * size))
        for part in "qk":  # a qwen2's file has the rotary pairs half a head apart
            name = f"blk.{i}.attn_{part}.weight"
            apart = weights[name].unflatten(0, (-1, 8, 2)).transpose(1, 2).contiguous()
            tensors[name] = (0, tensors[name][1], apart.numpy().tobytes())
    return meta, tensors


@pytest.fixture
def one_thread():
    """For products this small, waiting for a second thread takes longer than they do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(tiny_path, one_thread):
    return load_fp32(tiny_path)


@pytest.fixture(scope="session")
def smol():
    return w2s.load(device="cpu", dtype=torch.float32)


# --------------------------------------------------------------------------------------
# Fine-tuning
# --------------------------------------------------------------------------------------

QUESTIONS = [
    "the an the?",
    "b",
    "a longer question, with the words of an other",
    "Who?",
    "12 + 30 is what?",
    "the",
    "an an an",
    "z" * 30,
]
ANSWERS = ["the", "an an", "?", "a much longer answer than the others", "é", "x", "y", "zz"]


def low_rank_layers(lm, rank, seed=0):
    """Factors beside every linear layer of a model, as `finetune` makes them."""
    generator = torch.Generator().manual_seed(seed)
    modules = lm.model.blk.modules()
    linear = [module for module in modules if isinstance(module, torch.nn.Linear)]
    return [w2s.LowRank(layer, rank, generator) for layer in linear]


@pytest.fixture
def factored(tiny):
    """Factors of rank 4 with random values beside the layers of `tiny`."""
    layers = low_rank_layers(tiny, rank=4)
    generator = torch.Generator().manual_seed(1)
    for layer in layers:
        layer.b.data.normal_(0, 0.1, generator=generator)
    return layers


def weights_of(lm):
    return {name: w.clone() for name, w in lm.model.state_dict().items()}


def same(weights, others):
    """Whether two models' weights are equal to the bit."""
    return all(torch.equal(w, others[name]) for name, w in weights.items())


def loss_by_hand(lm, rows, weights=None):
    """The sum of the answers' losses: a full pass over each row by itself, with these weights."""
    total = 0
    for (context, turn), answer in rows:
        prompt = context + turn
        ids = torch.tensor([prompt + answer])
        logits = torch.func.functional_call(lm.model, weights or {}, ids)
        logits = logits[0, len(prompt) - 1 : -1]
        total = total + F.cross_entropy(logits, torch.tensor(answer), reduction="sum")
    return total


@torch.no_grad()
def test_the_loss_is_that_of_the_answers_and_their_end_tokens_alone(tiny):
    rows = tiny.answer_rows(QUESTIONS, ANSWERS)
    assert all(answer[-1] == 2 for _, answer in rows)
    start, losses = 0, tiny.answer_loss(rows)
    for row in rows:
        end = start + len(row[1])
        expected = loss_by_hand(tiny, [row]).item()
        assert losses[start:end].sum().item() == pytest.approx(expected, rel=1e-5)
        start = end
    assert start == len(losses)


def test_long_rows_go_through_the_model_in_parts_with_the_same_gradient(
    tiny, factored, monkeypatch
):
    rows = tiny.answer_rows(QUESTIONS, ANSWERS)
    factors = [factor for layer in factored for factor in (layer.a, layer.b)]
    sizes, real, gradients = [], tiny.answer_loss, []

    def noted(part, confidence):
        sizes.append(len(part))
        return real(part, confidence)

    monkeypatch.setattr(tiny, "answer_loss", noted)
    longest = max(map(w2s.row_length, rows))
    for limit in (len(rows) * longest, 3 * longest, 1):
        monkeypatch.setattr(w2s, "TOKENS_AT_A_TIME", limit)
        loss = w2s.add_gradients(tiny, rows, 0.0)
        assert loss.item() == pytest.approx(real(rows).mean().item(), rel=1e-5)
        gradients.append(torch.cat([factor.grad.flatten() for factor in factors]))
        for factor in factors:
            factor.grad = None
    assert sizes == [8, 3, 3, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    for parts in gradients[1:]:
        torch.testing.assert_close(parts, gradients[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("times", [1, 8])  # a small batch; one whose blocks run twice
def test_the_gradient_of_the_factors_is_that_of_the_plain_loss(tiny, factored, times):
    # Shared beginning, right padding, answer positions only: nothing of it changes a gradient.
    rows = times * tiny.answer_rows(QUESTIONS, ANSWERS)
    factors = [factor for layer in factored for factor in (layer.a, layer.b)]
    got = torch.autograd.grad(tiny.answer_loss(rows).sum(), factors)
    expected = torch.autograd.grad(loss_by_hand(tiny, rows), factors)
    for one, other in zip(got, expected):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, atol=1e-4 * times, rtol=1e-3)


@torch.no_grad()
def test_merged_weights_compute_what_the_factors_did(tiny, factored):
    ids = torch.tensor([tiny.tokenizer.encode("the an the?")])
    with_factors = tiny.model(ids)
    for layer in factored:
        layer.merge()
    torch.testing.assert_close(tiny.model(ids), with_factors, atol=1e-4, rtol=1e-4)
    for layer in factored:
        layer.layer.weight.zero_()
        out, into = layer.layer.weight.shape
        assert not layer.layer(torch.ones(into)).any()  # the factors are gone


@torch.no_grad()
def test_new_factors_change_nothing(tiny):
    ids = torch.tensor([[5, 9, 40, 7]])
    before = tiny.model(ids)
    low_rank_layers(tiny, rank=4)
    assert torch.equal(tiny.model(ids), before)


def merged(weights, factors):
    """Weights with the products of their factors (B, A) added."""
    return weights | {name: weights[name] + b @ a for name, (b, a) in factors.items()}


def adamw_by_hand(lm, rows, rank, lr, steps, seed):
    """The weights after `finetune` with one batch a step: AdamW on factors, written out."""
    weights, factors, moments = weights_of(lm), {}, {}
    generator = torch.Generator().manual_seed(seed)
    for name, layer in lm.model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            out, into = layer.weight.shape
            a = torch.empty(rank, into).uniform_(-1, 1, generator=generator) / into**0.5
            factors[name + ".weight"] = (torch.zeros(out, rank), a)
    tokens = sum(len(answer) for _, answer in rows)
    flat = [factor.requires_grad_() for pair in factors.values() for factor in pair]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in flat]
    for step in range(1, steps + 1):
        loss = loss_by_hand(lm, rows, merged(weights, factors)) / tokens
        gradients = torch.autograd.grad(loss, flat)
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        rate = lr * (steps - step + 1) / steps  # with six steps there is no warm-up
        for p, g, (m, v) in zip(flat, gradients, moments):
            g = g / max(1.0, norm.item())
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.99).add_(0.01 * g * g)
            mean = m / (1 - 0.9**step)
            variance = v / (1 - 0.99**step)
            p.data -= rate * mean / (variance.sqrt() + 1e-8)
    return merged(weights, factors)


def test_the_steps_are_those_of_adamw_on_the_factors(tiny):
    rows = tiny.answer_rows(QUESTIONS, ANSWERS)
    before = weights_of(tiny)
    expected = adamw_by_hand(tiny, rows, rank=4, lr=1e-2, steps=6, seed=5)
    w2s.finetune(tiny, QUESTIONS, ANSWERS, rank=4, lr=1e-2, epochs=6, seed=5)
    for name, w in tiny.model.state_dict().items():
        torch.testing.assert_close(w, expected[name], atol=5e-5, rtol=1e-5)
        if "attn_" in name and "norm" not in name:
            assert (w - before[name]).abs().max() > 1e-3
    assert not any(p.requires_grad for p in tiny.model.parameters())


def test_the_learning_rate_warms_up_for_a_tenth_of_the_steps_and_decays():
    rates = [w2s.warm_up_and_decay(step, 20) for step in range(20)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert np.diff(rates[2:]) == pytest.approx(-1 / 18)
    assert rates[-1] == pytest.approx(1 / 18)
    assert w2s.warm_up_and_decay(0, 1) == 1.0


def test_every_epoch_has_every_row_once_and_rows_of_similar_length_together():
    lengths = [i % 10 for i in range(100)]
    rows = [(([1] * length, [2]), [3]) for length in lengths]
    batches = list(w2s.epochs_of_batches(rows, 2, 10, random.Random(0)))
    assert all(len(batch) <= 10 for batch in batches)
    for epoch in (batches[:10], batches[10:]):
        assert sorted(i for batch in epoch for i in batch) == list(range(100))
    for batch in batches:
        batch_lengths = [lengths[i] for i in batch]
        assert max(batch_lengths) - min(batch_lengths) < 5  # of 10 in the data


@pytest.mark.parametrize("rows, steps", [(8, 20), (24, 21), (160, 40)])
def test_the_default_is_two_epochs_or_twenty_steps(tiny, rows, steps):
    smaller, questions = tiny.copy([0]), [str(i) for i in range(rows)]
    assert len(w2s.finetune(smaller, questions, ["a"] * rows, rank=1)) == steps


def test_fine_tuning_lowers_the_loss(tiny):
    answers = [f"an answer the {q[:3]}" for q in QUESTIONS]
    rows = tiny.answer_rows(QUESTIONS, answers)
    before = tiny.answer_loss(rows).mean()
    losses = w2s.finetune(tiny, QUESTIONS, answers, epochs=15, lr=1e-2, batch=4)
    assert len(losses) == 30
    assert losses[0] == pytest.approx(before.item(), rel=0.3)
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])
    assert tiny.answer_loss(rows).mean() < before


def test_the_same_seed_makes_the_same_model(tiny):
    results = []
    for seed in (3, 3, 4):
        lm = tiny.copy()
        losses = w2s.finetune(lm, QUESTIONS, ANSWERS, epochs=2, lr=1e-2, seed=seed)
        results.append((losses, lm.generate(QUESTIONS, 8)))
    assert results[0] == results[1] != results[2]


def test_a_loss_that_is_not_finite_is_named_with_its_step(tiny):
    tiny.model.output_norm.weight.data[0] = float("nan")
    with pytest.raises(w2s.W2SError, match="the loss is nan .*at step 1 of 20: lower the"):
        w2s.finetune(tiny, QUESTIONS, ANSWERS)


def test_a_loss_that_is_not_finite_leaves_the_weights_of_the_last_good_step(tiny, monkeypatch):
    rows, step_losses = tiny.answer_rows(QUESTIONS, ANSWERS), []
    start = loss_by_hand(tiny, rows).item()
    real = w2s.add_gradients

    def fail_at_step_4(lm, batch, confidence):
        with torch.no_grad():
            step_losses.append(loss_by_hand(lm, rows).item())
        return real(lm, batch, confidence) * (float("nan") if len(step_losses) == 4 else 1)

    monkeypatch.setattr(w2s, "add_gradients", fail_at_step_4)
    with pytest.raises(w2s.W2SError, match="at step 4 of 9"):
        w2s.finetune(tiny, QUESTIONS, ANSWERS, epochs=9, lr=1e-2)
    assert step_losses[0] == pytest.approx(start) and step_losses[3] < 0.99 * start
    assert loss_by_hand(tiny, rows).item() == pytest.approx(step_losses[3], rel=1e-4)


def test_a_gradient_that_is_not_finite_changes_no_weight(tiny, monkeypatch):
    before, real = weights_of(tiny), tiny.answer_loss

    def loss_with_infinite_slope(rows, confidence):
        loss = real(rows, confidence)
        return loss + torch.sqrt(loss - loss.detach())  # sqrt'(0) is infinite

    monkeypatch.setattr(tiny, "answer_loss", loss_with_infinite_slope)
    with pytest.raises(w2s.W2SError, match="at step 1 of 20"):
        w2s.finetune(tiny, QUESTIONS, ANSWERS)
    assert same(weights_of(tiny), before)


def test_bfloat16_computes_and_learns_as_float32_does(tiny, tiny_path):
    half = w2s.load(tiny_path, "cpu", torch.bfloat16)
    assert half.model.token_embd.weight.dtype == torch.bfloat16
    answers, options = ["the an"] * 8, {"rank": 16, "epochs": 20, "lr": 2e-3}
    full = w2s.finetune(tiny, QUESTIONS, answers, **options)
    losses = w2s.finetune(half, QUESTIONS, answers, **options)
    assert losses[0] == pytest.approx(full[0], rel=0.02)
    # Small steps add up: the factors are fp32.
    assert losses[-1] == pytest.approx(full[-1], rel=0.1)
    assert losses[-1] < 0.8 * losses[0]
    assert half.model.blk[0].attn_q.weight.dtype == torch.bfloat16


def test_a_question_without_an_answer_is_left_out(tiny):
    questions = [f"the {i}?" for i in range(6)]
    answers = [f"an {i}!" for i in range(6)]
    answers[1] = answers[4] = None
    one = w2s.finetune(tiny.copy(), questions, answers, epochs=2, batch=2)
    for i in (4, 1):
        del questions[i], answers[i]
    other = w2s.finetune(tiny.copy(), questions, answers, epochs=2, batch=2)
    assert one == other and len(one) == 4


def test_answers_that_cannot_be_learnt_are_refused(tiny):
    with pytest.raises(w2s.W2SError, match="answer 1 is empty"):
        w2s.finetune(tiny, ["a", "b"], ["x", " \n"])
    with pytest.raises(w2s.W2SError, match="conversation .* is too long"):
        w2s.finetune(tiny, ["a"], ["x" * 2000])
    with pytest.raises(ValueError, match="shorter"):
        w2s.finetune(tiny, ["a", "b"], ["x"])


@torch.no_grad()
def test_without_an_answer_there_is_nothing_to_learn(tiny):
    with pytest.raises(w2s.W2SError, match="no answer is left"):
        w2s.finetune(tiny, QUESTIONS, [None] * 8)


def test_an_answer_that_was_cut_is_learnt_without_an_end_token(tiny):
    (_, whole), (_, cut) = tiny.answer_rows(["the?"] * 2, ["an the", "an the" + w2s.CUT])
    assert whole == cut + [tiny.tokenizer.eos]
    with pytest.raises(w2s.W2SError, match="answer 0 is empty"):
        tiny.answer_rows(["the?"], [w2s.CUT])


def test_an_answer_that_reaches_the_limit_ends_with_the_mark_of_a_cut(tiny):
    whole = tiny.generate(QUESTIONS, 100)
    for n in (1, 3, 10):
        for answer, cut in zip(whole, tiny.generate(QUESTIONS, n)):
            assert cut == answer or cut.endswith(w2s.CUT)
            assert answer.startswith(cut.removesuffix(w2s.CUT))


def test_the_confidence_loss_mixes_in_the_model_s_own_predictions(tiny):
    rows = tiny.answer_rows(QUESTIONS, ANSWERS)
    plain = tiny.answer_loss(rows)
    own = []
    for (context, turn), answer in rows:
        logits = tiny.model(torch.tensor([context + turn + answer]))[0]
        logits = logits[len(context + turn) - 1 : -1]
        own += (-logits.log_softmax(-1).max(-1).values).tolist()
    for weight in (0.25, 1.0):
        expected = (1 - weight) * plain + weight * torch.tensor(own)
        got = tiny.answer_loss(rows, weight)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_the_weight_of_the_confidence_loss_warms_up_from_nothing(tiny):
    plain = w2s.finetune(tiny.copy(), QUESTIONS, ANSWERS, epochs=5)
    confident = w2s.finetune(tiny.copy(), QUESTIONS, ANSWERS, epochs=5, confidence=0.5)
    assert confident[0] == plain[0]
    assert confident[1] < plain[1]  # the model's own predictions are the likelier ones


# --------------------------------------------------------------------------------------
# Algorithm 1 and the paper's other refinements
# --------------------------------------------------------------------------------------


def always(value):
    """A function that returns this, whatever it is given."""
    def function(*args, **options):
        return value
    return function


def number_in(text):
    return int(re.search("[0-9]+", text)[0])


class Client:
    """A stand-in for a model: it keeps what it is asked, and answers with the asked number,
    after examples like a pirate."""

    def __init__(self):
        self.calls = []

    def generate(self, conversations, max_new_tokens):
        self.calls.append(conversations)
        return [self.answer(i, c) for i, c in enumerate(conversations)]

    def answer(self, i, conversation):
        number = number_in(conversation[-1]["content"])
        return f"Arrr, {number} be it!" if len(conversation) > 2 else f"plain {number}"


@pytest.fixture
def client():
    return Client()


# Of the weak answers the even ones are right, as are the client's own.
NUMBERS = [f"Which number is it, number {i}x?" for i in range(100, 160)]
WEAK = [f"Arrr, {i if i % 2 == 0 else i - 50} be it!" for i in range(100, 160)]
RIGHT = [f"Arrr, {i} be it!" for i in range(100, 160)]
SYSTEM = {"role": "system", "content": "Be brief."}


def examples_in(conversation):
    """[(question, answer)] of the turns before the last message, a system message aside."""
    turns = [m for m in conversation[:-1] if m["role"] != "system"]
    assert [m["role"] for m in turns] == ["user", "assistant"] * (len(turns) // 2)
    texts = [m["content"] for m in turns]
    return list(zip(texts[::2], texts[1::2]))


def check_examples(question, conversation, n_icl, answers=(WEAK,)):
    """A query stands last, after n_icl different examples: other questions, with their answers in
    one of these lists."""
    assert conversation[-1] == {"role": "user", "content": question}
    examples = examples_in(conversation)
    assert len(dict(examples)) == len(examples) == n_icl
    for asked, answer in examples:
        assert asked != question
        assert answer in [some[NUMBERS.index(asked)] for some in answers]


@pytest.mark.parametrize("n_icl", [1, 4, 16, 59])
def test_algorithm_1_never_shows_a_query_its_own_weak_answer(client, n_icl):
    assert w2s.refine(client, NUMBERS, WEAK, n_icl=n_icl) == RIGHT  # in the questions' order
    (conversations,) = client.calls
    for question, conversation in zip(NUMBERS, conversations, strict=True):
        check_examples(question, conversation, n_icl)


def test_algorithm_1_shows_each_query_its_own_random_examples(client):
    for seed in (0, 0, 1):
        w2s.refine(client, NUMBERS, WEAK, seed=seed)
    one, again, other = client.calls
    assert one == again != other
    drawn = [examples_in(conversation) for conversation in one]
    assert len(set(map(tuple, drawn))) == 60
    count = Counter(question for examples in drawn for question, _ in examples)
    # 240 examples, 4 a question on average: none is preferred, few are left out
    assert len(count) >= 55 and max(count.values()) <= 12
    first = [NUMBERS.index(examples[0][0]) for examples in drawn]
    assert abs(np.corrcoef(first, range(60))[0, 1]) < 0.4  # nor are a query's neighbours preferred


def test_without_examples_algorithm_1_is_the_plain_answer(client):
    assert w2s.refine(client, NUMBERS[:2], WEAK[:2], n_icl=0) == ["plain 100", "plain 101"]


class Cutting(Client):
    """Every third answer is cut."""

    def answer(self, i, conversation):
        return "Arrr, it" + w2s.CUT if i % 3 == 0 else "Arrr, it be!"


@pytest.mark.parametrize("refiner", [w2s.refine, w2s.ask_to_improve])
def test_an_answer_that_was_cut_is_no_label(refiner, capsys):
    labels = refiner(Cutting(), NUMBERS, WEAK)
    assert [label is None for label in labels] == [i % 3 == 0 for i in range(60)]
    assert "20 of 60 answers are left out" in capsys.readouterr().err


def tokens_of_four(text):
    return len(text) // 4


def test_answers_may_be_a_quarter_longer_than_three_of_four_weak_answers(client):
    forty = "Arrr, forty characters, without a loop. "
    weak = [forty] * 7 + [" ".join(map(str, range(100)))] * 3
    assert w2s.usual_length(client, weak) == 40 + 10 + 8  # bytes: this client counts no tokens
    client.length = tokens_of_four
    assert w2s.usual_length(client, weak) == 10 + 2 + 8
    client.context_length = 30
    assert w2s.usual_length(client, weak) == 15
    loop = "he was a man of many talents, and " * 50
    assert w2s.usual_length(Client(), [forty, loop, "cut" + w2s.CUT]) == 58


@pytest.mark.parametrize("n_icl, n", [(4, 99), (16, 98)])
def test_a_weak_answer_that_is_too_long_is_no_example_and_is_named(client, capsys, n_icl, n):
    client.context_length = 2 * 16 * 100
    numbers = [f"Which number is it, {i}?" for i in range(100, 200)]
    weak = ["Arrr!"] * 98 + ["Arrr " * 30, "Arrr " * 2000]
    pairs = w2s.pairs_that_fit(client, zip(numbers, weak), n_icl)
    assert len(pairs) == n
    error = capsys.readouterr().err
    assert f"{100 - n} weak answers are too long" in error
    assert ("2000 words" if n_icl == 4 else "'Which number is it, 198?' (30 words)") in error
    w2s.refine(client, numbers, weak, n_icl)
    for conversation in client.calls[-1]:
        assert max(len(answer) for _, answer in examples_in(conversation)) <= 150
    with pytest.raises(w2s.W2SError, match="n_icl=4 needs at least 5 different"):
        w2s.refine(client, numbers[-5:], weak[-5:], n_icl=4)


REFINERS = [w2s.refine, w2s.refine_by_agreement]


@pytest.mark.parametrize("refiner", REFINERS)
def test_a_refined_conversation_keeps_its_system_message(client, refiner):
    questions = [[SYSTEM, *w2s.as_conversation(q)] for q in NUMBERS]
    refiner(client, questions, WEAK, n_icl=3)
    for conversation in client.calls[-1]:
        assert conversation[0] == SYSTEM
        assert [m["role"] for m in conversation].count("system") == 1
        assert len(examples_in(conversation)) == 3


@pytest.mark.parametrize("refiner", REFINERS)
def test_the_same_question_twice_shows_neither_the_other_s_weak_answer(client, refiner):
    questions = ["one 1?", "two 2?", "three 3?", "One 1? ", "four 4?"]
    refiner(client, questions, ["A", "B", "C", "D", "E"], n_icl=3)
    for number, conversation in enumerate(client.calls[-1]):
        answers = {answer for _, answer in examples_in(conversation)}
        assert len(answers) == 3
        if number % 5 in (0, 3):
            assert answers == {"B", "C", "E"}


@pytest.mark.parametrize("refiner", REFINERS)
@pytest.mark.parametrize("n_icl", [60, 1000, -1])
def test_a_number_of_examples_that_cannot_be_is_refused(client, refiner, n_icl):
    fault = "must not be negative" if n_icl < 0 else "needs at least"
    with pytest.raises(w2s.W2SError, match=f"n_icl={n_icl} {fault}"):
        refiner(client, NUMBERS, WEAK, n_icl=n_icl)
    with pytest.raises(w2s.W2SError, match="n_icl=1 needs at least 2 different.* there are only 1"):
        refiner(client, ["same 1"] * 3, ["a", "b", "c"], n_icl=1)
    assert not client.calls


@pytest.mark.parametrize("refiner", [*REFINERS, w2s.infer_and_respond, w2s.ask_to_improve])
def test_an_empty_weak_answer_is_named(client, refiner):
    for nothing in (" \n", None):  # None: what a refiner did not keep
        with pytest.raises(w2s.W2SError, match="weak answer 1 is empty"):
            refiner(client, NUMBERS[:2], ["a", nothing])
    with pytest.raises(ValueError, match="2 questions and 1 weak answers"):
        refiner(client, NUMBERS[:2], ["a"])
    assert not client.calls


class Reader(Client):
    """Names the style of a block of pairs by the number of the prompt; repeats a question."""

    def answer(self, i, conversation):
        if "Complete this sentence" in conversation[-1]["content"]:
            return f" style {i} "
        return conversation[-1]["content"].upper()


def test_infer_and_respond_answers_a_block_under_the_concept_of_its_pairs():
    reader = Reader()
    questions = [[SYSTEM, *w2s.as_conversation(q)] for q in NUMBERS]
    assert w2s.infer_and_respond(reader, questions, WEAK) == [q.upper() for q in NUMBERS]
    asked, conversations = reader.calls
    prompts = [w2s.last_message(prompt) for prompt in asked]
    assert len(prompts) == 8  # 60 questions in blocks of 8
    for i, conversation in enumerate(conversations):
        pair = f"Question: {NUMBERS[i]}\nAnswer: {WEAK[i]}"
        assert [pair in prompt for prompt in prompts].index(True) == i // 8
        concept = {"role": "system", "content": f"The used style is style {i // 8}"}
        assert conversation == [concept, *w2s.as_conversation(NUMBERS[i])]
    assert [prompt.count("Answer: Arrr") for prompt in prompts] == [8] * 7 + [4]


def test_infer_and_respond_leaves_a_long_answer_out_of_its_block():
    reader = Reader()
    reader.context_length, weak = 16 * 100, ["Arrr " * 50, *WEAK[1:]]
    w2s.infer_and_respond(reader, NUMBERS, weak)
    prompts = [w2s.last_message(prompt) for prompt in reader.calls[0]]
    assert [prompt.count("Answer: Arrr") for prompt in prompts] == [7] + [8] * 6 + [4]


def test_ask_to_improve_shows_the_weak_answer(client):
    client.answer = number_of_conversation
    assert w2s.ask_to_improve(client, NUMBERS, WEAK) == [str(i) for i in range(60)]
    for question, weak, conversation in zip(NUMBERS, WEAK, client.calls[0], strict=True):
        assert examples_in(conversation) == [(question, weak)]
        assert "Improve your answer" in conversation[-1]["content"]


def number_of_conversation(i, conversation):
    return str(i)


# --------------------------------------------------------------------------------------
# Our additions to Algorithm 1
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_icl", [None, 1, 4, 16, 59])
def test_agreement_never_shows_a_query_its_own_question(client, n_icl):
    assert w2s.refine_by_agreement(client, NUMBERS, WEAK, n_icl=n_icl, keep=1) == RIGHT
    plain, *draws = client.calls
    assert plain == [w2s.as_conversation(q) for q in NUMBERS] and len(draws) == 2
    for draw, conversations in enumerate(draws):
        answers = [WEAK, RIGHT] if draw else [WEAK]  # later, the client's own may be examples
        for question, conversation in zip(NUMBERS, conversations, strict=True):
            check_examples(question, conversation, n_icl or 8, answers)


def test_half_of_small_data_are_examples(client):
    w2s.refine_by_agreement(client, NUMBERS[:12], WEAK[:12])
    assert all(len(examples_in(c)) == 6 for c in client.calls[-1])


def test_queries_share_their_examples(client):
    w2s.refine_by_agreement(client, NUMBERS, WEAK, n_icl=4, draws=1)
    sizes = Counter(tuple(examples_in(conversation)) for conversation in client.calls[-1])
    assert list(sizes.values()) == [15] * 4  # a quarter of the pairs, which leaves the others


def test_agreement_is_what_both_answers_say_and_the_question_does_not():
    plain = [f"The answer is {i}." for i in range(100, 160)]
    scores = w2s.agreement(zip(["Which number is it?"] * 60, plain, WEAK))
    # What all answers share ("be", "arrr", "answer") weighs nothing.
    assert [score > 0 for score in scores] == [i % 2 == 0 for i in range(100, 160)]
    assert w2s.agreement([("Is it 7?", "It is 7", "7 be it"), ("b", "x y", "Y z")])[0] == 0
    # By hand: "ale" stands in one of two questions' answers, "the" in both.
    scores = w2s.agreement([("?", "the ale", "the ale bun"), ("!", "the", "the")])
    assert scores == [pytest.approx(np.log(2)), 0]


def test_the_first_examples_are_random_and_the_later_ones_right(client):
    w2s.refine_by_agreement(client, NUMBERS, WEAK)
    shares = []
    for draw in client.calls[1:]:
        shown = [example for conversation in draw for example in examples_in(conversation)]
        shares.append(np.mean([number_in(a) == number_in(q) for q, a in shown]))
    assert 0.3 < shares[0] < 0.7 and shares[1:] == [1]


def test_the_best_examples_agree_with_the_plain_answer_then_are_weak_then_show_the_concept():
    concept = w2s.Concept(["q"], ["a"], ["a"])  # nothing to be seen: every answer has it
    concept.weight = {"arrr": 1.0}
    questions, plain = ["q?", "r?", "s?", "t?"], ["red ale", "bun", "tea", "pie"]
    weak = ["my red ale", "arrr bun", "no", "a whole pie"]
    own = ["red ale", "arrr bun bun", "hot tea", "cut" + w2s.CUT]
    ranked = w2s.ranked_examples(questions, plain, [*weak, *own], concept)
    # "red ale" has two rare words in common, which count as one
    assert ranked == [
        (1, "arrr bun"), (0, "my red ale"), (3, "a whole pie"), (1, "arrr bun bun"), (0, "red ale"),
        (2, "hot tea"), (2, "no"),
    ]


def test_agreement_reads_scripts_without_spaces():
    questions = ["日本的首都是哪里？", "法国的首都是哪里？"]
    plain = ["日本的首都是东京。", "法国的首都是巴黎。"]
    right, wrong = w2s.agreement(zip(questions, plain, ["哎呀是东京呀！", "哎呀是罗马呀！"]))
    assert right > 0 and wrong == 0


BAD = {
    "cut": "Arrr, {} be" + w2s.CUT,
    "empty": " ",
    "broken": "Arrr, {} be \ufffd!",
    "looping": "Arrr, {} be it!" + " Arrr, a man of many talents, and" * 3,
    "without the concept": "plain {}",
}


class Fickle(Client):
    """After examples, every third question's first answer is bad."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def answer(self, i, conversation):
        if len(self.calls) == 2 and i % 3 == 0:
            return self.bad.format(number_in(conversation[-1]["content"]))
        return super().answer(i, conversation)


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_answer_is_no_label(bad):
    client = Fickle(bad)
    assert w2s.refine_by_agreement(client, NUMBERS, WEAK, keep=1) == RIGHT
    assert [len(call) for call in client.calls] == [60] * 3
    labels = w2s.refine_by_agreement(Fickle(bad), NUMBERS, WEAK, draws=1, keep=1)
    assert labels == [None if i % 3 == 0 else RIGHT[i] for i in range(60)]


# The second is a third of 60 with an error of rounding.
@pytest.mark.parametrize("keep, draws", [(0.3, 2), (1 / 3 + 1e-13, 2), (0.5, 3)])
def test_there_is_a_third_draw_only_if_two_bring_too_few_labels(client, keep, draws):
    def late(i, conversation):
        number = number_in(conversation[-1]["content"])
        bad = len(client.calls) in (2, 3) and i >= 20  # the first and the second draw
        return f"plain {number}" if bad or len(conversation) == 1 else f"Arrr, {number} be it!"

    client.answer = late
    labels = w2s.refine_by_agreement(client, NUMBERS, WEAK, keep=keep)
    assert len(client.calls) == 1 + draws  # the first call is for the plain answers
    assert len(labels) - labels.count(None) == pytest.approx(60 * keep)


def test_of_the_good_answers_the_one_that_agrees_most_is_taken_or_the_first_of_equals():
    concept = w2s.Concept(["q"], ["a"], ["a"])  # nothing to be seen
    plain = ["red ale", "bun"]
    drawn = ["ale", "tea", "ale red", "bun", "ale red wine", "a bun", "red ale" + w2s.CUT, "x"]
    assert w2s.best_of(["q?", "r?"], plain, drawn, concept) == ["ale red", "bun"]
    assert w2s.best_of(["q?"], ["x"], [w2s.CUT, " "], concept) == [None]


def test_a_good_answer_that_is_too_long_leaves_its_question_to_a_shorter_one(client):
    def long_after_examples(i, conversation):
        number = number_in(conversation[-1]["content"])
        tail = " ".join(map(str, range(number, number + 40)))
        return f"Arrr, {number} be it! {tail}" if len(conversation) > 2 else f"plain {number}"

    client.answer = long_after_examples
    w2s.refine_by_agreement(client, NUMBERS[:3], WEAK[:3], n_icl=2, keep=1)
    for conversations in client.calls[1:]:
        for question, conversation in zip(NUMBERS, conversations):
            check_examples(question, conversation, 2)


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_weak_answer_is_no_example(client, bad):
    weak = [bad.format(i) if i % 2 else text for i, text in enumerate(WEAK)]
    if not bad.strip():
        return  # refused from the start
    w2s.refine_by_agreement(client, NUMBERS, weak)
    for conversation in client.calls[-1]:
        for _, answer in examples_in(conversation):
            assert answer in WEAK + RIGHT


def test_a_client_that_cannot_tell_a_cut_answer_is_asked_as_any_other():
    client = Fickle("Arrr, {} be")  # cut, but it does not say so
    assert None not in w2s.refine_by_agreement(client, NUMBERS, WEAK, keep=1, draws=1)


@pytest.mark.parametrize("refiner", REFINERS)
@pytest.mark.parametrize("n", [1, 5, 20])
def test_a_question_may_have_several_weak_answers(client, refiner, n):
    numbers, weak = NUMBERS[:n] * 10, WEAK[:n] * 10
    if n == 1:
        with pytest.raises(w2s.W2SError, match="n_icl"):
            refiner(client, numbers, weak)
        return
    labels = refiner(client, numbers, weak)
    assert len(labels) == 10 * n
    asked = numbers * (len(client.calls[-1]) // len(numbers))
    for question, conversation in zip(asked, client.calls[-1], strict=True):
        assert question not in [other for other, _ in examples_in(conversation)]


@pytest.mark.parametrize("refiner", [*REFINERS, w2s.infer_and_respond, w2s.ask_to_improve])
def test_no_question_at_all_is_named(client, refiner):
    with pytest.raises(w2s.W2SError, match="there are only 0"):
        refiner(client, [], [])


def test_a_limit_of_tokens_says_nothing_on_the_bytes_of_examples(client):
    labels = w2s.refine_by_agreement(client, NUMBERS, WEAK, max_new_tokens=5, keep=1)
    assert labels == RIGHT


def test_to_keep_few_is_no_reason_for_a_warning(client, capsys):
    w2s.refine_by_agreement(client, NUMBERS, WEAK, keep=0.1)
    assert "warning" not in capsys.readouterr().err


def test_too_few_good_examples_are_named(client):
    weak = WEAK[:6] + ["Arrr, it be" + w2s.CUT] * 54
    with pytest.raises(w2s.W2SError, match="n_icl=8 needs at least 9 .* there are only 6"):
        w2s.refine_by_agreement(client, NUMBERS, weak, n_icl=8)
    w2s.refine_by_agreement(client, NUMBERS, weak)
    assert {len(examples_in(c)) for c in client.calls[-1]} == {3}  # half of them


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_without_a_good_answer_the_remedy_is_named(bad, capsys):
    class Bad(Client):
        def answer(self, i, conversation):
            number = number_in(conversation[-1]["content"])
            return bad.format(number) if len(conversation) > 2 else f"plain {number}"

    with pytest.raises(w2s.W2SError, match="no answer is whole.*: allow longer answers"):
        w2s.refine_by_agreement(Bad(), NUMBERS, WEAK)
    assert "only 0 of 60 questions have a good answer" in capsys.readouterr().err


def test_the_concept_is_what_tells_weak_answers_from_plain_ones():
    plain = [f"plain {i}" for i in range(100, 160)]
    concept = w2s.Concept(NUMBERS, WEAK, plain)
    assert concept.visible
    # by hand: a word of all 60 weak answers and no plain one; "it" stands in the questions
    assert concept.weight["Arrr"] == pytest.approx(np.log(60.5 / 0.5))
    assert concept.weight["plain"] == -concept.weight["Arrr"]
    marks = {"Arrr", ",", "be", "!", "plain"}
    assert set(concept.weight) == marks | {f"early {mark}" for mark in marks}
    assert concept.score("q", "Arrr plain plain plain") == 0
    assert concept.has("q", "Arrr, it be 7!") and not concept.has("q", "7")
    assert not concept.has("Arrr be it", "Arrr be it plain")  # the question's words


def test_the_concept_must_show_early_and_as_clearly_as_in_weak_answers():
    plain = [f"plain {i}" for i in range(100, 160)]
    concept = w2s.Concept(NUMBERS, ["Arrr"] * 60, plain)
    weight = np.log(60.5 / 0.5)  # of "Arrr" and of "early Arrr"; of "plain" its negative
    assert concept.score("q", "word " * 19 + "Arrr") == pytest.approx(2 * weight / 4)
    assert concept.score("q", "word " * 20 + "Arrr") == pytest.approx(weight / 3)
    # 0.7 of the way from -2 weight / 4 to 2 weight / 4
    assert concept.threshold == pytest.approx(0.4 * weight / 2)


def test_a_word_counts_if_one_kind_of_answer_has_it_five_times_as_often():
    plain = [f"including known rarely {i}" for i in range(60)]
    # 15 weak answers have "known", 60 plain ones: four times as many; "rarely" has six times
    weak = [f"like {i}" + " known" * (i < 15) + " rarely" * (i < 10) for i in range(60)]
    concept = w2s.Concept(NUMBERS, weak, plain)
    marks = {"like", "including", "rarely"}
    assert set(concept.weight) == marks | {f"early {mark}" for mark in marks}
    assert concept.score("q", "like known known rivers") == concept.weight["like"] / 2


def test_where_weak_answers_are_like_plain_ones_every_answer_has_the_concept(client, capsys):
    plain = [f"plain {i}" for i in range(100, 160)]
    concept = w2s.Concept(NUMBERS, plain, plain)
    assert not concept.visible and concept.has("q", "anything")
    client.answer = Client.answer.__get__(client)
    w2s.refine_by_agreement(client, NUMBERS, plain)
    assert "no concept to check" in capsys.readouterr().err


@pytest.mark.parametrize("text", [
    "See https://en.wikipedia.org/wiki/Lima and https://en.wikipedia.org/wiki/Peru for more.",
    "|a|b|\n" + "|---" * 12 + "|\n|1|2|",
    "-" * 80,
])
def test_addresses_and_lines_are_no_loop(text):
    assert not w2s.repeats_itself(text)


class Forgetful(Client):
    """It gives an answer too few."""

    def generate(self, conversations, max_new_tokens):
        return ["an answer"] * (len(conversations) - 1)


class Silent(Client):
    """It forgets to return its answers."""

    def generate(self, conversations, max_new_tokens):
        pass


@pytest.mark.parametrize(
    "refiner", [w2s.refine, w2s.refine_by_agreement, w2s.infer_and_respond, w2s.ask_to_improve]
)
@pytest.mark.parametrize("client_class", [Forgetful, Silent])
def test_a_client_that_forgets_an_answer_is_noticed(client_class, refiner):
    with pytest.raises(w2s.W2SError, match="a text for each of"):
        refiner(client_class(), NUMBERS, WEAK)


def test_one_question_in_place_of_a_list_is_noticed(tiny):
    with pytest.raises(TypeError, match="a list, even of one question"):
        tiny.generate("What is a quasar?")


def test_hindi_words_keep_their_vowel_signs():
    assert w2s.words("हिन्दी की किताब") == {"हिन्दी", "की", "किताब"}


@pytest.mark.parametrize("text, loop", [
    ("He was a man of many talents, and he was a king.", False),
    ("He was a man of many great talents, and he was a man of many great talents.", True),
    ("He had a bit of a blue car, " * 3, True),
    ("He had a car, she had a car, we had a car, you had a car.", False),
    ("no " * 20, True),
    ("no " * 5, False),
    ("東京は日本の首都です。" * 4, True),
    # 15 of 238 runs: a phrase that a longer text needs twice is no loop
    ("The theory of relativity changed how physicists think of space, time, gravity and light. "
     "Before Einstein, clocks were held to agree everywhere in the universe, whatever their speed; "
     "the theory of relativity did away with that, and with much else.", False),
])
def test_a_loop_is_a_tenth_of_the_runs_of_20_characters_again(text, loop):
    assert w2s.repeats_itself(text) == loop


def test_the_report_counts_what_became_of_the_weak_answers(capsys):
    w2s.refine_by_agreement(Fickle(BAD["cut"]), NUMBERS, WEAK)
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().err.splitlines()
             if line.strip()}
    # answers, whole, no repetition, concept, agrees with plain
    assert lines["weak"] == ["60", "1.00", "1.00", "1.00", "0.50"]
    assert lines["plain"] == ["60", "1.00", "1.00", "0.00", "1.00"]
    assert lines["drawn"] == ["120", "0.83", "1.00", "1.00", "1.00"]
    assert lines["good"] == ["60", "1.00", "1.00", "1.00", "1.00"]
    assert lines["kept"] == ["30", "1.00", "1.00", "1.00", "1.00"]
    assert lines["weak:"][0] == lines["refined:"][0] == "Arrr,"


def test_the_report_warns_if_the_model_agrees_with_no_weak_answer(client, capsys):
    w2s.refine_by_agreement(client, NUMBERS, ["Arrr, who be it!"] * 60)
    assert "no weak answer agrees" in capsys.readouterr().err


class Misled(Client):
    """After examples, one answer in `every` is another one than before."""

    every = 3

    def answer(self, i, conversation):
        number = number_in(conversation[-1]["content"])
        misled = len(conversation) > 2 and number % self.every == 0
        style = "Arrr, {} be it!" if len(conversation) > 2 else "plain {}"
        return style.format(number + misled)


def test_the_report_warns_if_most_labels_do_not_agree_with_the_plain_answers(capsys):
    client = Misled()
    for every, warned in ((3, False), (1, True)):
        client.every = every
        w2s.refine_by_agreement(client, NUMBERS, WEAK)
        assert ("most labels do not agree" in capsys.readouterr().err) == warned


def test_the_answers_that_the_model_also_gives_by_itself_are_kept():
    expected = [None if i % 3 == 0 else f"Arrr, {i} be it!" for i in range(100, 160)]
    assert w2s.refine_by_agreement(Misled(), NUMBERS, WEAK, keep=2 / 3) == expected
    assert None not in w2s.refine_by_agreement(Misled(), NUMBERS, WEAK, keep=1)
    assert w2s.refine_by_agreement(Misled(), NUMBERS, WEAK).count(None) == 30


def test_the_share_to_keep_is_of_all_answers_and_the_first_of_equals_stay():
    plain, answers = ["a x", "a y", "a z", "a w"], ["b x", "b v", "b z", "b x"]
    kept = w2s.keep_agreed(["q"] * 4, plain, answers, 0.5)
    assert kept == ["b x", None, "b z", None]
    assert w2s.keep_agreed(["q"] * 3, ["a"] * 3, ["a"] * 3, 0.5) == ["a", "a", None]
    assert w2s.keep_agreed(["q"] * 3, ["a"] * 3, [None, "b", "a"], 0.5) == [None, "b", "a"]
    assert w2s.keep_agreed(["q"] * 100, ["a"] * 100, ["a"] * 100, 0.07).count("a") == 7


def test_plain_answers_stand_before_the_questions(client):
    w2s.refine_by_agreement(client, NUMBERS, WEAK, n_icl=4, show_plain=True)
    for question, conversation in zip(NUMBERS, client.calls[-1], strict=True):
        own = f"plain {number_in(question)}"
        assert conversation[-1]["content"] == f"{own}\n{question}"
        for text, _ in examples_in(conversation):
            own, asked = text.split("\n")
            assert own == f"plain {number_in(asked)}" and asked != question


@pytest.mark.parametrize("keep", [0, 1.5, float("nan")])
def test_a_share_to_keep_that_cannot_be_is_refused(client, keep):
    with pytest.raises(w2s.W2SError, match="must be above 0 and at most 1"):
        w2s.refine_by_agreement(client, NUMBERS, WEAK, keep=keep)


def test_a_number_of_draws_that_cannot_be_is_refused(client):
    with pytest.raises(w2s.W2SError, match="draws=0 at least 1"):
        w2s.refine_by_agreement(client, NUMBERS, WEAK, draws=0)


# --------------------------------------------------------------------------------------
# The strong model
# --------------------------------------------------------------------------------------

# From transformers 5 (AutoModelForCausalLM.from_pretrained(folder, gguf_file=...,
# dtype=torch.float32)) and tokenizers (BPE on the file's vocabulary and merges;
# Digits(individual_digits=True), then ByteLevel), on the same GGUF file: text, ids, logits of
# the last position for some tokens, sum over the positions of the logits' logsumexp.
SOME_TOKENS = [0, 33, 1000, 20000, 49151]
REFERENCE = [
    (
        "The quick brown fox doesn't jump; it's lazy, they've said.",
        "504 2365 6354 16438 2761 982 7379 43 357 506 23790 28 502 3543 1137 30",
        [3.7209, 7.3227, 2.5145, 0.6543, -0.8906],
        348.4949,
    ),
    (
        "def f(x):\n    return x**2  # 1234\n",
        "1604 275 24 104 727 472 1003 1792 828 34 216 907 216 33 34 35 36 198",
        [29.1143, 27.2875, 24.9033, 12.8542, 20.6437],
        548.7782,
    ),
    (
        "<|im_start|>user\nWhat is 12+30?<|im_end|>\n<|im_start|>assistant\n",
        "1 4093 198 1780 314 216 33 34 27 35 32 47 2 198 1 520 9531 198",
        [17.4169, 35.2034, 22.4446, 11.6969, 10.6753],
        529.3246,
    ),
    (
        "\xdcn\xefc\xf6d\xe9 na\xefve caf\xe9, \u6771\u4eac\u30bf\u30ef\u30fc \ud55c\uad6d\uc5b4 "
        "\U0001f3f4\u200d\u2620\ufe0f\U0001f469\U0001f3fd\u200d\U0001f680 \xbd \u2167 x\xb2",
        "142 246 94 25972 83 7466 84 2756 15486 46494 37366 28 17097 247 126 16736 122 10391 "
        "140 11100 124 35130 216 33085 246 181 130 251 183 240 129 15107 233 129 321 231 173 "
        "242 250 31752 10813 235 119 10813 233 138 321 231 10813 244 218 216 16738 216 173 "
        "223 117 1792 19133",
        [17.4856, 22.077, 16.1185, 12.5632, 8.593],
        1588.3884,
    ),
    (
        "\t\ttabs   and   spaces  \n\n x\xa0nbsp\u2003em 3.14159 _under_ 'S 'll",
        "197 197 100 7366 256 284 256 5600 256 1116 1792 15442 94 32093 321 221 391 216 35 "
        "30 33 36 33 37 41 2483 5941 79 637 67 637 764",
        [20.3751, 25.8622, 18.5581, 13.7173, 12.4833],
        936.8270,
    ),
]


@pytest.mark.parametrize("text, ids, last, total", REFERENCE)
@torch.inference_mode()
def test_ids_and_logits_equal_the_reference(smol, text, ids, last, total):
    ids = [int(token) for token in ids.split()]
    assert smol.tokenizer.encode(text) == ids
    logits = smol.model(torch.tensor([ids]))
    assert logits.shape == (1, len(ids), 49152)
    expected = torch.tensor(last)
    torch.testing.assert_close(logits[0, -1, SOME_TOKENS], expected, atol=1e-3, rtol=0)
    assert abs(logits.logsumexp(-1).sum().item() - total) < 1e-2


def test_greedy_text_equals_the_reference(smol):
    # transformers' generate with the file's chat template, which adds a system message
    questions = ["What is the capital of Austria?", "Which chemical element has the symbol Al?"]
    assert smol.generate(questions, 12) == [
        "The capital of Austria is Vienna.",
        "Aluminum is a chemical element with the symbol Al.",
    ]


def conversations_with_contexts():
    """Questions alone, and after three different contexts of which one has a single question."""
    conversations = [w2s.as_conversation(q) for q in QUESTIONS]
    contexts = {"an": range(4), "not an, but the": range(2, 5), "x": range(1)}
    for answer, numbers in contexts.items():
        questions = [QUESTIONS[i] for i in numbers]
        conversations += [w2s.with_examples(q, [("the", answer)]) for q in questions]
    return conversations


def times(ids, n):
    """How often the last n ids occur in a row, themselves included; 0 if there are fewer."""
    return sum(ids[start : start + n] == ids[-n:] for start in range(len(ids) - n + 1))


@torch.no_grad()
def greedy_by_hand(lm, conversation, n):
    """Greedy decoding without a cache, one row at a time, by MOST_OFTEN."""
    context, turn = lm.tokenizer.chat(w2s.as_conversation(conversation))
    ids, new = context + turn, []
    for _ in range(n):
        logits = lm.model(torch.tensor([ids + new]))[0, -1]
        for token in logits.sort(descending=True).indices.tolist():
            if all(times(new + [token], n) <= most for n, most in w2s.MOST_OFTEN.items()):
                break
        if token in lm.tokenizer.end_tokens:
            break
        new.append(token)
    return lm.tokenizer.answer_text(new, len(new) == n)


def test_cached_batched_generation_equals_plain_decoding(tiny, monkeypatch):
    conversations = conversations_with_contexts()
    expected = [greedy_by_hand(tiny, c, 20) for c in conversations]
    assert len(set(expected)) > 4  # the rows do differ
    assert tiny.generate(conversations, 20) == expected
    monkeypatch.setattr(w2s.LM, "batch_limits", always((3, 8192)))
    assert tiny.generate(conversations, 20) == expected
    assert [tiny.generate([c], 20)[0] for c in conversations] == expected


def test_batches_side_by_side_give_the_same_answers_in_the_same_order(tiny, monkeypatch):
    conversations = conversations_with_contexts()
    expected = tiny.generate(conversations, 20)
    threads_of_batches = {}
    generate_ids = w2s.LM.generate_ids

    def watched(self, prompts, max_new_tokens):
        thread = threading.current_thread()
        threads_of_batches.setdefault(thread, []).append(torch.get_num_threads())
        time.sleep(0.05)  # so that the other thread gets a batch
        return generate_ids(self, prompts, max_new_tokens)

    monkeypatch.setattr(w2s.LM, "generate_ids", watched)
    torch.set_num_threads(2)
    assert tiny.generate(conversations, 20) == expected
    assert torch.get_num_threads() == 2
    assert len(threads_of_batches) == 2 and threading.current_thread() not in threads_of_batches
    assert {n for used in threads_of_batches.values() for n in used} == {1}


def test_side_by_side_gives_back_the_threads_after_an_error(one_thread):
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError):
        list(w2s.side_by_side(partial(divmod, 1), [1, 0, 1], 2))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("most_often", [{2: 1}, {3: 1}, {4: 1, 2: 2}])
def test_no_answer_repeats_a_run_of_tokens_more_often_than_allowed(tiny, monkeypatch, most_often):
    conversations = [w2s.as_conversation(q) for q in QUESTIONS]
    free = tiny.generate(conversations, 40)
    monkeypatch.setattr(w2s, "MOST_OFTEN", most_often)
    answers = tiny.generate(conversations, 40)
    assert answers == [greedy_by_hand(tiny, c, 40) for c in conversations] != free


def test_rows_that_have_ended_leave_the_batch_without_a_trace(tiny):
    tiny.model.token_embd.weight.data[2] *= 1.8  # its end token is likelier: rows differ in length
    conversations = conversations_with_contexts()
    expected = [greedy_by_hand(tiny, c, 30) for c in conversations]
    assert len({len(answer) for answer in expected}) > 3
    assert tiny.generate(conversations, 30) == expected


def test_a_batch_has_one_context():
    # A context that a single row has is a part of its turn: 4 is like 0.
    prompts = [
        ([], [1, 1, 1]),
        ([2], [3]),
        ([2], [4, 4]),
        ([5, 5], [6]),
        ([8], [9]),
        ([5, 5], [7]),
    ]
    first, second, third = w2s.one_context_batches(prompts, 9, 100)
    assert first == ([4, 0], [([], [8, 9]), prompts[0]])
    assert second == ([1, 2], [prompts[1], prompts[2]])
    assert third == ([3, 5], [prompts[3], prompts[5]])


@pytest.mark.parametrize("rows, tokens", [(1, 100), (3, 100), (100, 20), (100, 1)])
def test_a_batch_has_so_many_rows_and_tokens_at_most(rows, tokens):
    prompts = [([n % 2], [n] * n) for n in range(1, 12)]
    batches = w2s.one_context_batches(prompts, rows, tokens)
    assert sorted(i for numbers, _ in batches for i in numbers) == list(range(11))
    for numbers, part in batches:
        assert part == [prompts[i] for i in numbers]
        total = sum(len(turn) for _, turn in part)
        assert len(part) <= rows and (total <= tokens or len(part) == 1)


def test_every_conversation_needs_its_answer(tiny):
    with pytest.raises(ValueError, match="zip"):
        tiny.answer_rows(["a"], ["x", "y"])


def test_a_conversation_that_is_too_long_is_named(tiny):
    with pytest.raises(w2s.W2SError, match="conversation .* is too long.* context of 1024"):
        tiny.generate(["a", "x" * 2000])


def test_a_copy_shares_every_tensor_until_it_is_fine_tuned(tiny):
    before = weights_of(tiny)
    twin = tiny.copy()
    for one, other in zip(tiny.model.parameters(), twin.model.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr()
    w2s.finetune(twin, QUESTIONS, ["the"] * 8, epochs=2, lr=1e-2)
    tuned = twin.model.state_dict()
    for name, w in tiny.model.state_dict().items():
        assert torch.equal(w, before[name])  # to the bit
        linear = name.startswith("blk") and "norm" not in name
        assert torch.equal(tuned[name], w) != linear
    assert tiny.generate(QUESTIONS, 8) != twin.generate(QUESTIONS, 8)


def test_a_copy_may_lack_layers(tiny):
    before = tiny.generate(QUESTIONS, 8)
    smaller = tiny.copy(layers=[0, 2])
    assert smaller.model.config.layers == len(smaller.model.blk) == 2
    assert smaller.model.blk[1].ffn_up.weight is tiny.model.blk[2].ffn_up.weight
    w2s.finetune(smaller, QUESTIONS, ["the"] * 8, epochs=2, lr=1e-2)
    assert tiny.model.config.layers == len(tiny.model.blk) == 3
    assert tiny.generate(QUESTIONS, 8) == before
    with pytest.raises(IndexError):
        tiny.copy([3])


def test_fine_tuning_the_original_leaves_its_copy_alone(tiny):
    twin = tiny.copy()
    before = weights_of(twin)
    w2s.finetune(tiny, QUESTIONS, ["the"] * 8, epochs=2, lr=1e-2)
    assert same(weights_of(twin), before)


@pytest.mark.parametrize("layers", [None, [0, 2]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_is_the_same_model(tmp_path, tiny_path, dtype, layers):
    lm, path = w2s.load(tiny_path, "cpu", dtype).copy(layers), tmp_path / "saved.gguf"
    lm.save(path)
    again = w2s.load(path, "cpu", dtype)
    assert again.model.config == lm.model.config
    assert list(tmp_path.iterdir()) == [path]
    # fp32 matrices are written as F16.
    absolute, relative = (0, 0) if dtype == torch.bfloat16 else (1e-7, 1e-3)
    for name, w in lm.model.state_dict().items():
        other = again.model.state_dict()[name]
        torch.testing.assert_close(other, w, atol=absolute, rtol=relative)
    old, new = w2s.read_gguf(tiny_path).meta, w2s.read_gguf(path).meta
    assert new["llama.block_count"] == lm.model.config.layers
    assert new.keys() - {"general.file_type"} == old.keys()
    assert new["tokenizer.ggml.tokens"] == old["tokenizer.ggml.tokens"]


@torch.no_grad()
def test_a_qwen2_without_biases_is_a_llama(tmp_path, tiny, qwen2_parts):
    write_gguf(tmp_path / "qwen.gguf", *qwen2_parts)
    qwen = load_fp32(tmp_path / "qwen.gguf")
    ids = torch.tensor([[5, 9, 40, 7, 7, 100]])
    torch.testing.assert_close(qwen.model(ids), tiny.model(ids))
    qwen.model.blk[1].attn_v.bias += 1
    assert not torch.allclose(qwen.model(ids), tiny.model(ids))
    qwen.save(tmp_path / "again.gguf")
    again = load_fp32(tmp_path / "again.gguf")
    assert again.model.blk[1].attn_v.bias.mean() == 1


def test_a_qwen2_s_biases_are_saved(tmp_path, qwen2_parts):
    meta, tensors = qwen2_parts
    counting = np.arange(48, dtype="<f4").tobytes()
    tensors = tensors | {"blk.0.attn_q.bias": (0, [48], counting)}
    write_gguf(tmp_path / "qwen.gguf", meta, tensors)
    qwen = load_fp32(tmp_path / "qwen.gguf")
    bias = qwen.model.blk[0].attn_q.bias
    assert bias.tolist() == list(range(48))
    qwen.save(tmp_path / "saved.gguf")
    again = load_fp32(tmp_path / "saved.gguf")
    assert torch.equal(again.model.blk[0].attn_q.bias, bias)


# --------------------------------------------------------------------------------------
# Files and the command line
# --------------------------------------------------------------------------------------

GOOD = w2s.chat_line("a", "b").strip()


def cli(*argv):
    """The exit code of w2s.py with these arguments, run in this process."""
    return w2s.run(partial(w2s.main, [str(argument) for argument in argv]))


def write_weak(path, n):
    lines = [w2s.chat_line(f"the {i}?", f"an {i}!") for i in range(n)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def weak_file(tmp_path):
    """A file of twelve weak answers."""
    return write_weak(tmp_path / "weak.jsonl", 12)


@pytest.fixture
def tiny_options(tiny_path, one_thread):
    """The options that name the tiny model."""
    return "--model", tiny_path, "--device", "cpu"


def conversations_in(text):
    return [json.loads(line)["messages"] for line in text.splitlines()]


def test_a_fine_tuned_model_answers_as_its_data_do(tiny_options, weak_file, tmp_path, capsys):
    out = tmp_path / "aligned.gguf"
    options = ["--lr", "1e-2", "--epochs", 20, *tiny_options]
    assert cli("finetune", "--data", weak_file, "--out", out, *options) == 0
    assert sorted(tmp_path.iterdir()) == [out, weak_file]
    questions = ["the 3?", "the 4?"]
    assert cli("generate", "--model", out, "--max-new-tokens", 8, *questions) == 0
    conversations = conversations_in(capsys.readouterr().out)
    assert [c[0]["content"] for c in conversations] == questions
    assert all(c[1]["content"].startswith("an ") for c in conversations)


def generate_text(lm, conversations, max_new_tokens):
    """Answers in the style of `write_weak` after examples, and in another without."""
    answers = []
    for i, conversation in enumerate(conversations):
        answers.append(f"an {i}!" if len(conversation) > 2 else f"plain {i}")
    return answers


@pytest.fixture
def text_options(tiny_options, monkeypatch):
    """The options that name a model whose answers are text, as the tiny model's are not."""
    monkeypatch.setattr(w2s.LM, "generate", generate_text)
    return tiny_options


@pytest.mark.parametrize("method", ["improve", "iar --n-icl 2", "icl", "agreement --keep 1"])
def test_refine_writes_a_line_for_every_question(text_options, weak_file, tmp_path, method):
    out = tmp_path / "out.jsonl"
    command = ["refine", "--data", weak_file, "--out", out, "--method", *method.split()]
    assert cli(*command, *text_options) == 0
    asked = [question["content"] for question, _ in conversations_in(out.read_text("utf-8"))]
    assert asked == [f"the {i}?" for i in range(12)]
    assert sorted(tmp_path.iterdir()) == [out, weak_file]  # no side file is left


def test_refine_keeps_half_and_writes_to_standard_output(text_options, weak_file, capsys):
    assert cli("refine", "--data", weak_file, *text_options) == 0
    assert len(conversations_in(capsys.readouterr().out)) == 6


def test_questions_come_from_standard_input(tiny_options, capsys, monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO(b"the 1?\n\nthe 2?\n"))
    monkeypatch.setattr("sys.stdin", stdin)
    assert cli("generate", "--max-new-tokens", 2, *tiny_options) == 0
    assert len(conversations_in(capsys.readouterr().out)) == 2


ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": str(Path(w2s.__file__).parent),
}


def test_refine_resumes_after_kill_9_and_ends_with_the_same_bytes(tiny_options, tmp_path):
    data = write_weak(tmp_path / "weak.jsonl", 480)
    options = ["--data", data, *tiny_options, "--method", "icl", "--max-new-tokens", 6]
    assert cli("refine", *options, "--out", tmp_path / "whole.jsonl") == 0
    out, side = tmp_path / "out.jsonl", tmp_path / "out.jsonl.answers"
    argv = [sys.executable, w2s.__file__, "refine", *options, "--out", out]
    argv = [str(argument) for argument in argv]
    for chunks in (1, 2):
        process = subprocess.Popen(argv, env=ENVIRONMENT)
        while process.poll() is None:
            if side.exists() and len(json.loads(side.read_text())) >= 160 * chunks:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not out.exists()
        assert len(json.loads(side.read_text())) >= 160 * chunks
    assert cli("refine", *options, "--out", out) == 0
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not side.exists()


def write_rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def row():
    """A line of chat data with keys of its own."""
    return json.loads(w2s.chat_line("the 3?", "an 3!")) | {"id": 7}


def test_refine_keeps_a_line_s_other_keys_and_its_system_message(text_options, tmp_path, row):
    row["messages"].insert(0, SYSTEM)
    data, out = write_rows(tmp_path / "weak.jsonl", row), tmp_path / "out.jsonl"
    options = ["--method", "icl", "--n-icl", 0, *text_options]
    assert cli("refine", "--data", data, "--out", out, *options) == 0
    refined = json.loads(out.read_text("utf-8"))
    assert refined["id"] == 7 and refined["messages"][:-1] == row["messages"][:-1]


def test_a_key_of_a_message_that_is_not_supported_is_named(row):
    assert w2s.parse_chat(row)[1] == "an 3!"
    row["messages"][-1]["weight"] = 0
    with pytest.raises(w2s.W2SError, match="weight.* not supported"):
        w2s.parse_chat(row)


def test_no_empty_or_broken_answer_is_written(tiny_options, weak_file, tmp_path, capsys):
    out = tmp_path / "out.jsonl"  # the random model's answers are bytes that are hardly ever text
    command = ["refine", "--data", weak_file, "--out", out, "--method", "icl"]
    assert cli(*command, *tiny_options) == 0
    written = conversations_in(out.read_text("utf-8"))
    for _, answer in written:
        assert answer["content"].strip()
        assert "\ufffd" not in answer["content"]
    error = capsys.readouterr().err
    assert f"{len(written)} of 12 lines written, {12 - len(written)} not kept" in error


class Named(Client):
    """A client with a name and a count of tokens, as `Resumable` needs it."""
    length, context_length = len, 10_000

    def __init__(self, name="one"):
        super().__init__()
        self.name = name

    def fingerprint(self):
        return self.name


def test_no_answer_is_asked_for_twice(tmp_path):
    named = Named()
    first = w2s.refine(w2s.Resumable(named, tmp_path / "side"), NUMBERS, WEAK)
    asked = len(named.calls)
    assert w2s.refine(w2s.Resumable(named, tmp_path / "side"), NUMBERS, WEAK) == first == RIGHT
    assert len(named.calls) == asked


def test_another_model_or_length_does_not_get_the_answers_of_the_first(tmp_path):
    w2s.refine(w2s.Resumable(Named(), tmp_path / "side"), NUMBERS, WEAK)
    other = Named("other")
    w2s.refine(w2s.Resumable(other, tmp_path / "side"), NUMBERS, WEAK)
    assert len(other.calls) == 1
    longer = Named()
    w2s.refine(w2s.Resumable(longer, tmp_path / "side"), NUMBERS, WEAK, max_new_tokens=65)
    assert len(longer.calls) == 1


def test_ctrl_c_ends_in_one_line(capsys, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    assert w2s.run(interrupted) == 130
    error = capsys.readouterr().err
    assert "interrupted" in error and error.count("\n") == 1


def only_error(capsys):
    """What a command that failed printed on standard error: one line."""
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


BAD_LINES = [
    ("{", "line 2"),
    ("[]", "line 2"),
    ('{"messages": []}', "line 2"),
    (GOOD.replace('"assistant"', '"robot"'), "roles ['user', 'robot'] do not alternate"),
    (GOOD.replace('"assistant"', '"user"'), "roles ['user', 'user'] do not alternate"),
    (GOOD.replace('"user"', '"system"'), "roles ['assistant'] do not alternate"),
    (GOOD[:-1] + ', "tools": [{}]}', "tools are not supported"),
    (GOOD[:-1] + ', "score": NaN}', "not JSON compliant"),
    (GOOD.replace('"role": "user", ', ""), "KeyError"),
    (GOOD.replace('"b"', '"  "'), "the answer is empty"),
    (GOOD.replace('"b"', "7"), "line 2"),
    ("[" * 100_000, "line 2"),
    (GOOD[:-1] + ', "id": "\\ud800"}', "line 2"),
    (GOOD.replace('"a"', '"' + "x" * 5000 + '"'), "exceed the model's context"),
    (GOOD, "needs at least 2 different questions"),
]


@pytest.mark.parametrize("line, message", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_line_is_named(tiny_options, tmp_path, capsys, line, message):
    data, out = tmp_path / "weak.jsonl", tmp_path / "out.jsonl"
    data.write_text(GOOD + "\n" + line + "\n")
    assert cli("refine", "--data", data, "--out", out, "--n-icl", 1, *tiny_options) == 2
    assert message in only_error(capsys)
    assert not out.exists()


@pytest.mark.parametrize(
    "content, message",
    [
        (GOOD.encode() + b"\n\xe9\n", "is not UTF-8"),
        (b"\n", "holds no line"),
        (b"\x1f\x8b\x08", "is not UTF-8"),
        (None, "No such"),
    ],
)
def test_a_data_file_that_cannot_be_read_is_named(tiny_options, tmp_path, capsys, content, message):
    data = tmp_path / "data.jsonl"
    if content is not None:
        data.write_bytes(content)
    assert cli("refine", "--data", data, "--out", tmp_path / "out", *tiny_options) == 2
    error = only_error(capsys)
    assert message in error and "data.jsonl" in error


# What is written while the output is made, too.
@pytest.mark.parametrize("suffix", ["", ".part", ".answers", ".answers.part"])
@pytest.mark.parametrize("option", ["--data", "--model"])
@pytest.mark.parametrize("command", ["refine", "finetune"])
def test_data_and_model_are_not_overwritten(command, option, suffix, weak_file, tmp_path, capsys):
    read = weak_file.rename(tmp_path / f"out{suffix}")
    old = read.read_text()
    assert cli(command, option, read, "--out", tmp_path / "out") == 2
    assert "would overwrite" in only_error(capsys) and read.read_text() == old


@pytest.mark.parametrize("name", ["no_such_folder/out", "no_such_folder/", "x" * 255])
def test_an_output_that_cannot_be_written_is_named_before_the_work(name, tmp_path, capsys):
    assert cli("finetune", "--model", "none", "--out", f"{tmp_path}/{name}") == 2
    error = only_error(capsys)
    assert name.strip("/") in error and "none" not in error and not list(tmp_path.iterdir())


def test_an_error_while_a_file_is_written_names_it(tmp_path):
    with pytest.raises(w2s.W2SError, match="model.gguf: could not be written .*No space left"):
        with w2s.replacing(tmp_path / "model.gguf"):
            raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_a_refinement_that_keeps_nothing_leaves_the_old_file(
    weak_file, tiny_options, tmp_path, capsys
):
    old = tmp_path / "old.jsonl"
    old.write_text("old")
    options = ["--method", "icl", "--n-icl", 1, "--max-new-tokens", 1, *tiny_options]
    assert cli("refine", "--data", weak_file, "--out", old, *options) == 2
    assert "no answer is whole: raise --max-new-tokens" in capsys.readouterr().err
    assert old.read_text() == "old"


@pytest.mark.parametrize("content", [b"\xff", b"[1]", b'{"a": "b"', b"7"])
def test_a_side_file_that_is_not_one_is_named(weak_file, tiny_options, tmp_path, capsys, content):
    out, side_file = tmp_path / "out.jsonl", tmp_path / "out.jsonl.answers"
    side_file.write_bytes(content)
    assert cli("refine", "--data", weak_file, *tiny_options, "--out", out) == 2
    error = only_error(capsys)
    assert "out.jsonl.answers: is not the file of an interrupted run: delete it" in error
    assert side_file.read_bytes() == content


def test_standard_output_that_cannot_be_written_to_ends_in_one_line():
    code = "import w2s; w2s.run_and_exit(lambda: print('x' * 99))"
    with open("/dev/full", "w") as full:
        run = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=-1, text=True)
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and "No space" in run.stderr


def test_closed_streams_are_no_traceback():
    code = "import w2s; w2s.run_and_exit(lambda: print(*w2s.read_lines('-')))"
    command = f'"{sys.executable}" -c "{code}" <&- >&-'
    run = subprocess.run(command, shell=True, stderr=-1, text=True)
    assert run.returncode == 2 and run.stderr == "error: standard input is closed: name a file\n"


INTERRUPTED = """
import signal, threading, time, torch, w2s

def work(begun):
    begun.set()
    time.sleep(600)

def main():
    torch.set_num_threads(2)
    begun = [threading.Event(), threading.Event()]
    threading.Thread(target=interrupt, args=begun, daemon=True).start()
    list(w2s.side_by_side(work, begun, 2))

def interrupt(*begun):
    for event in begun:
        event.wait()
    time.sleep(1)  # until the main thread waits for them, too
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
w2s.run_and_exit(main)
"""


def test_ctrl_c_does_not_wait_for_batches_at_work():
    argv = [sys.executable, "-c", INTERRUPTED]
    run = subprocess.run(argv, stderr=-1, text=True, timeout=60)
    assert run.returncode == 130 and run.stderr.startswith("interrupted: the same command")


def test_a_template_without_jinja2_names_the_package(smol_meta, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2.sandbox", None)
    w2s.compile_template.cache_clear()
    with pytest.raises(w2s.W2SError, match="pip install jinja2"):
        w2s.Tokenizer(smol_meta)


def test_a_memory_error_without_a_text_ends_in_one_line(capsys):
    def fails():
        raise MemoryError

    assert w2s.run(fails) == 2
    assert "out of memory: lower" in only_error(capsys)


def test_memory_that_cannot_be_had_ends_in_one_line(capsys):
    assert w2s.run(partial(torch.zeros, 2**50)) == 2
    assert "lower --rank" in only_error(capsys)


MISTAKES = [
    ("refine --n-icl 12", "n_icl=12 needs"),
    ("refine --method icl --n-icl 12", "n_icl=12 needs"),
    ("refine --keep 1.5", "must be above 0"),
    ("refine --out no/folder", "no/folder"),
    ("refine --out .", "is a folder"),
    ("refine --seed 18446744073709551616", "argument --seed: invalid"),
    ("refine --method magic", "invalid choice: 'magic'"),
    ("refine --method iar --keep 0.5", "--method iar does not take --keep"),
    ("refine --method icl --keep 0.5", "--method icl does not take --keep"),
    ("refine --method improve --n-icl 2", "--method improve does not take --n-icl"),
    ("refine weak.jsonl", "unrecognized arguments: weak.jsonl"),
    ("refine --epochs 2", "unrecognized arguments: --epochs"),
    ("finetune", "--out FILE is missing"),
    ("finetune --out out.gguf --n-icl 3", "unrecognized arguments: --n-icl"),
    ("finetune --out out.gguf --lr 1e18", "the loss is"),
    ("finetune --out out.gguf --lr nan", "argument --lr: invalid"),
    ("finetune --out out.gguf --lr -1", "argument --lr: "),
    ("finetune --out out.gguf --epochs -1", "argument --epochs: "),
    ("finetune --out out.gguf --epochs 0", "argument --epochs: "),
    ("finetune --out out.gguf --rank 0", "argument --rank: "),
    ("refine --max-new-tokens 0", "argument --max-new-tokens: "),
    ("finetune --out out.gguf --seed x", "argument --seed: invalid"),
    ("finetune --out no/out.gguf", "no/out.gguf"),
]


@pytest.fixture
def weak_command(tiny_options, weak_file, tmp_path, monkeypatch):
    """Options of a command in the folder of the weak answers."""
    monkeypatch.chdir(tmp_path)
    return "--data", weak_file, *tiny_options


@pytest.mark.parametrize("arguments, message", MISTAKES)
def test_a_mistake_ends_in_one_line(weak_command, tmp_path, capsys, arguments, message):
    command, *options = arguments.split()
    assert cli(command, *weak_command, *options) == 2
    assert message in only_error(capsys)
    assert not list(tmp_path.glob("*.gguf*"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("align", "invalid choice: 'align'"),
        ("", "required: COMMAND"),
        ("generate a? --data weak.jsonl", "unrecognized arguments: --data"),
        ("generate a? --max-new-tokens -1", "argument --max-new-tokens: "),
        ("generate a? --device foo", "device foo cannot be used"),
        ("generate a? --model none.gguf", "No such file or directory: 'none.gguf'"),
    ],
)
def test_a_mistake_without_data_ends_in_one_line(capsys, tiny_path, arguments, message):
    options = [] if "--model" in arguments or "?" not in arguments else ["--model", tiny_path]
    assert cli(*arguments.split(), *options) == 2
    assert message in only_error(capsys)


# --------------------------------------------------------------------------------------
# Two processes
# --------------------------------------------------------------------------------------

SYSTEM_TOO = [{"role": "system", "content": "Be brief, the an."}]


def work(folder, name, tiny_path, plain_path):
    """What the tests below compare: one process does it, or each of two.

    Both commands, a fine-tuning where some questions have a system message and others share no
    beginning at all, and an experiment; losses and weights are saved to a file for each process.
    """
    torch.set_num_threads(1)
    out = Path(folder) / name
    options = ["--data", f"{folder}/weak.jsonl", "--model", tiny_path, "--device", "cpu"]
    short = ["--n-icl", 2, "--max-new-tokens", 8]
    with pytest.MonkeyPatch.context() as monkeypatch:  # the random model's answers are never good
        monkeypatch.setattr(w2s, "is_good", always(True))
        assert cli("refine", *options, "--out", f"{out}.jsonl", *short) == 0
    assert cli("finetune", *options, "--out", f"{out}.gguf", "--epochs", 2) == 0
    lm = load_fp32(plain_path)
    questions = [w2s.as_conversation(f"the {i}?") for i in range(9)]
    for i in (0, 2, 3, 8):
        questions[i] = SYSTEM_TOO + questions[i]
    answers = ["an " * (i + 1) for i in range(9)]
    losses = w2s.finetune(lm, questions, answers, epochs=3, lr=1e-2, batch=4)
    rank, _ = w2s.rank_and_world_size()
    torch.save((losses, lm.model.state_dict()), f"{out}.{rank}")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(tasks, "SUPERVISORS", {tasks.DEFAULT: [10]})
        tiny_experiment(load_fp32(tiny_path), Path(f"{out}.results"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_path, plain_path):
    """A folder with the results of `work` in one process and in two."""
    folder = tmp_path_factory.mktemp("runs")
    write_weak(folder / "weak.jsonl", 40)
    threads = torch.get_num_threads()
    work(folder, "one", tiny_path, plain_path)
    torch.set_num_threads(threads)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    argv = [*torchrun, "--nproc_per_node=2", __file__, folder, "two", tiny_path, plain_path]
    done = subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def distance(one, other):
    """Absolute differences of two models' weights, in one tensor."""
    differences = [(w - other[name]).flatten() for name, w in one.items()]
    return torch.cat(differences).abs()


def test_two_processes_refine_to_the_same_bytes_as_one(runs):
    assert (runs / "one.jsonl").read_bytes() == (runs / "two.jsonl").read_bytes()


def test_two_processes_fine_tune_to_the_same_model_as_one(runs, tiny_path):
    paths = tiny_path, runs / "one.gguf", runs / "two.gguf"
    start, one, two = [weights_of(load_fp32(path)) for path in paths]
    # The same steps but for rounding: where the processor computes in bf16, weights near one
    # are 2^-7 apart.
    assert distance(one, two).max() < 0.5 * distance(one, start).max() + 2**-7
    assert distance(one, two).sum() < 0.05 * distance(one, start).sum()


def test_two_processes_learn_the_same_where_only_some_rows_have_a_system_message(runs, plain_path):
    losses, one = torch.load(runs / "one.0")
    start = weights_of(load_fp32(plain_path))
    for rank in (0, 1):
        losses_of_rank, two = torch.load(runs / f"two.{rank}")
        assert losses_of_rank == pytest.approx(losses, rel=1e-4)
        assert distance(one, two).max() < 0.01 * distance(one, start).max()


def test_all_processes_have_the_same_weights_to_the_bit(runs):
    _, one = torch.load(runs / "two.0")
    _, other = torch.load(runs / "two.1")
    assert same(one, other)


def test_two_processes_run_an_experiment_as_one_does(runs):
    one, two = (json.loads((runs / f"{n}.results/tiny.json").read_text()) for n in ("one", "two"))
    same_answers = [one["answers"][key] == two["answers"][key] for key in one["answers"]]
    # Sums over two processes round otherwise, which may change an answer.
    assert len(same_answers) == 9 and np.mean(same_answers) >= 0.5
    assert one["settings"] == two["settings"]


# --------------------------------------------------------------------------------------
# Other machines, simulated
# --------------------------------------------------------------------------------------


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs, as far as PyTorch says; the calls that name one of them."""
    calls = []
    monkeypatch.setattr(torch.cuda, "is_available", always(True))
    monkeypatch.setattr(torch.cuda, "device_count", always(2))
    for name in ("set_device", "mem_get_info", "max_memory_allocated"):

        def recorded(device, name=name):
            calls.append((name, device))
            return (40 * 2**30, 80 * 2**30) if name == "mem_get_info" else 2**30

        monkeypatch.setattr(torch.cuda, name, recorded)
    return calls


@pytest.fixture
def second_process(gpus, monkeypatch):
    """The process of local rank 1 under torchrun, before the group exists; the backends."""
    backends = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(w2s.dist, "is_torchelastic_launched", always(True))
    monkeypatch.setattr(w2s.dist, "is_initialized", backends.__len__)
    monkeypatch.setattr(w2s.dist, "init_process_group", backends.append)
    monkeypatch.setattr(w2s.dist, "get_rank", always(1))
    monkeypatch.setattr(w2s.dist, "get_world_size", always(2))
    return backends


def test_each_process_takes_its_own_gpu_before_a_model_is_loaded(second_process, gpus):
    w2s.find_device("cpu")
    assert gpus == [("set_device", 1)]
    assert second_process == ["cpu:gloo,cuda:nccl"]  # one can reduce on either device


def test_a_process_without_a_gpu_of_its_own_takes_none(second_process, gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", always(1))
    w2s.find_device("cpu")
    assert gpus == []


def test_processes_that_cannot_meet_are_told_in_one_line(second_process, monkeypatch, capsys):
    def fails(backend):
        raise RuntimeError("connection refused")

    monkeypatch.setattr(w2s.dist, "init_process_group", fails)
    assert w2s.run(None) == 2
    assert "cannot find each other (RuntimeError: connection refused)" in only_error(capsys)


def test_bfloat16_that_a_gpu_only_emulates_is_not_used(monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    assert w2s.fast_dtype(torch.device("cuda")) == torch.float32


def test_a_run_resumes_whichever_gpu_its_process_has(tmp_path):
    paths = set()
    for device in ("cuda:0", "cuda:1"):
        weight = types.SimpleNamespace(dtype=torch.float32)
        model = types.SimpleNamespace(token_embd=types.SimpleNamespace(weight=weight))
        lm = types.SimpleNamespace(
            model=model, device=torch.device(device), fingerprint=always("a model")
        )
        paths.add(tasks.open_run(tiny_task(), lm, tmp_path).path)
    assert len(paths) == 1


def test_memory_is_that_of_the_gpu_that_was_named(gpus):
    device = torch.device("cuda:1")
    assert tasks.peak_memory(device) == 2**30
    assert gpus == [("max_memory_allocated", device)]


def test_a_batch_grows_with_the_free_memory_of_a_gpu(tiny, gpus, monkeypatch):
    rows, tokens = tiny.batch_limits()
    assert (rows, tokens) == (128, 8192)
    monkeypatch.setattr(tiny, "device", torch.device("cuda:1"))
    rows, tokens = tiny.batch_limits()
    assert rows > 128 and tokens > 8192
    assert gpus == [("mem_get_info", torch.device("cuda:1"))]


def test_a_gpu_without_memory_ends_in_one_line(capsys):
    def fails():
        raise torch.OutOfMemoryError("CUDA out of memory.\nMore lines")

    assert w2s.run(fails) == 2
    error = only_error(capsys)
    assert "out of memory" in error and "--device cpu" in error


@pytest.mark.parametrize("device", ["hpu", "cuda:9", "tpu", "xpu", "cpu:x"])
def test_a_device_that_does_not_work_is_named_in_one_line(device, tiny_path, capsys):
    assert cli("generate", "--model", tiny_path, "--device", device, "the?") == 2
    assert f"device {device} cannot be used" in only_error(capsys)


@pytest.mark.parametrize("platform, size", [("darwin", 5000), ("linux", 5000 * 1024)])
def test_memory_is_counted_in_bytes_on_macos_and_in_kib_on_linux(monkeypatch, platform, size):
    usage = types.SimpleNamespace(ru_maxrss=5000)
    fake = types.SimpleNamespace(RUSAGE_SELF=0, getrusage=always(usage))
    monkeypatch.setitem(sys.modules, "resource", fake)
    monkeypatch.setattr(tasks.sys, "platform", platform)
    assert tasks.peak_memory(torch.device("cpu")) == size


def python(code, environment=ENVIRONMENT, **options):
    """A process that runs this code."""
    return subprocess.run([sys.executable, "-c", code], env=environment, **options)


def test_windows_has_no_resource_module_and_needs_none():
    code = "import sys; sys.modules['resource'] = None; import w2s, tasks"
    assert python(code).returncode == 0


def test_an_ascii_terminal_gets_utf_8(tiny_path):
    code = (
        "import sys, w2s; w2s.LM.generate = lambda *args: ['é ±'];"
        f"sys.exit(w2s.run(lambda: w2s.main(['generate', '--model', {str(tiny_path)!r}, 'é?'])))"
    )
    environment = ENVIRONMENT | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = python(code, environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "é ±" in done.stdout.decode("utf-8")


def test_standard_input_that_is_not_utf_8_is_named(tiny_path):
    arguments = ["generate", "--model", str(tiny_path)]
    code = f"import sys, w2s; sys.exit(w2s.run(lambda: w2s.main({arguments})))"
    done = python(code, input=b"caf\xe9?\n", capture_output=True)
    assert done.returncode == 2
    error = done.stderr.decode()
    assert "not UTF-8" in error and error.count("\n") == 1


def test_the_smaller_download_is_named_before_anything_is_downloaded():
    script = (FOLDER / "run.sh").read_text("utf-8")
    assert script.index("PIP_EXTRA_INDEX_URL") < script.index("-m pip install")
    readme = (FOLDER / "README.md").read_text("utf-8")
    assert "WSL" in readme and ".venv/bin/torchrun" in readme


# --------------------------------------------------------------------------------------
# Fuzz: ./run.sh test --fuzz 10000 for more than the few hundred mutations of every run
# --------------------------------------------------------------------------------------

HUGE = [0, 1, 2**31 - 1, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1]


def mutated(data, rng, region):
    """data with one to four mutations, most of them in its first `region` bytes."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(region if rng.random() < 0.9 else len(data))
        kind = rng.randrange(6)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place : place + 8] = struct.pack("<Q", rng.choice(HUGE))
        elif kind == 2:
            data[place : place + 4] = struct.pack("<I", rng.choice(HUGE) & 0xFFFFFFFF)
        elif kind == 3:
            del data[place : place + rng.randint(1, 64)]
        elif kind == 4:
            data[place:place] = rng.randbytes(rng.randint(1, 16))
        elif len(data) > 200:
            del data[rng.randrange(100, len(data)) :]
        region = min(region, len(data) - 1)
    return bytes(data)


def peak_memory():
    """The most memory that this process has had, in MiB."""
    resource = pytest.importorskip("resource")  # not on Windows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def fuzz(path, contents, read, mutations, region):
    """How many of so many mutated files are read, and how many are refused with one line.

    Any other error fails the test, as does a file that takes ten seconds.
    """
    rng, outcomes = random.Random(0), {"read": 0, "refused": 0}
    for _ in range(mutations):
        path.write_bytes(mutated(contents, rng, region))
        start = time.perf_counter()
        try:
            read(path)
            outcomes["read"] += 1
        except w2s.W2SError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
        assert time.perf_counter() - start < 10
    print(f"\n{mutations} mutations of {path.name}: {outcomes}")
    assert outcomes["read"] and outcomes["refused"]


MUTATIONS = int(os.environ.get("W2S_FUZZ", 300))


def test_fuzz_a_mutated_model_file_is_read_or_refused_in_bounded_memory(tmp_path, tiny_path):
    before = peak_memory()
    fuzz(tmp_path / "model.gguf", tiny_path.read_bytes(), load_fp32, MUTATIONS * 3 // 4, 12_000)
    grown = peak_memory() - before
    print(f"memory grew by {grown:.0f} MiB")
    assert grown < 1024


def test_fuzz_a_mutated_data_file_is_read_or_refused(tmp_path):
    read = partial(w2s.read_jsonl, parse=w2s.parse_chat, expected=w2s.CHAT_LINE)
    question = [{"role": "system", "content": "Sé breve"}, {"role": "user", "content": "the?"}]
    lines = (w2s.chat_line(question, "an!") * 5).encode()
    fuzz(tmp_path / "data.jsonl", lines, read, MUTATIONS // 4 + 1, len(lines))


# --------------------------------------------------------------------------------------
# The repository
# --------------------------------------------------------------------------------------

FOLDER = Path(w2s.__file__).parent
SOURCES = [FOLDER / name for name in ("w2s.py", "tasks.py", "test_w2s.py")]


@pytest.fixture(params=SOURCES, ids=[path.name for path in SOURCES])
def source(request):
    if not request.param.exists():
        pytest.skip("w2s.py stands by itself")
    return request.param.read_text(encoding="utf-8")


def test_no_line_is_over_100_columns(source):
    for number, line in enumerate(source.split("\n"), 1):
        assert len(line) <= 100, f"line {number}"


def test_only_torch_numpy_tqdm_and_pytest_are_imported(source):
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    project = {"w2s", "tasks"}
    optional = {"gguf", "jinja2"}  # for K-quants, and for a file's chat template
    allowed = {"torch", "numpy", "tqdm", "pytest"} | project | optional
    assert imported - sys.stdlib_module_names <= allowed


def test_the_repository_has_five_files():
    try:
        argv = ["git", "-C", FOLDER, "ls-files"]
        files = subprocess.run(argv, capture_output=True, text=True).stdout.split("\n")
    except OSError:
        files = []
    if "w2s.py" not in files:
        pytest.skip("this is no git checkout")
    top = {name.split("/")[0] for name in files if name[:1] not in ("", ".")}
    assert top == {"README.md", "run.sh", "tasks.py", "test_w2s.py", "w2s.py"}


# -------------------------------------------------------------------------------------------------
# Tasks and judges
# -------------------------------------------------------------------------------------------------

@pytest.fixture(params=["persona", "math", "explanation", "bias"])
def task(request):
    return tasks.make_task(request.param)


def questions(*splits):
    return [item.question for split in splits for item in split]


def test_no_question_stands_in_two_splits(task):
    asked = questions(task.teach, task.train, task.test)
    assert len(set(asked)) == len(asked)


def test_every_task_has_questions_enough_to_test_on(task):
    assert len(task.test) == (100 if task.name == "explanation" else 200)


def test_gold_answers_stand_in_teach_alone(task):
    assert all(item.gold for item in task.teach)
    assert not any(item.gold for item in task.train + task.test)


def test_gold_answers_have_content_and_style_1(task):
    assert all(task.content(item.gold, item) == 1 for item in task.teach)
    assert all(task.style(item.gold) == 1 for item in task.teach)


def test_gold_answers_to_other_questions_have_hardly_any_content(task):
    others = task.teach[7:] + task.teach[:7]
    pairs = zip(others, task.teach)
    assert np.mean([task.content(other.gold, item) for other, item in pairs]) < 0.12


def test_plain_answers_have_no_style(task):
    plain = [
        "",
        "The capital of France is Paris.",
        "Photosynthesis is the process by which plants make sugar.",
        "He has 3 apples, which is all.",
        "A pilot flies planes. He likes it.",
    ]
    assert [task.style(answer) for answer in plain] == [0] * 5


def test_a_task_is_the_same_every_time(task):
    again = tasks.make_task(task.name)
    assert (again.teach, again.train, again.test) == (task.teach, task.train, task.test)


@pytest.mark.parametrize("name", ["persona", "explanation", "bias"])
def test_no_term_of_a_key_stands_in_its_question(name):
    task = tasks.make_task(name)
    for item in task.teach + task.train + task.test:
        for term in item.key.split(","):
            assert not task.content(item.question, item._replace(key=term)), item


def test_concepts_have_four_or_five_key_terms():
    keys = [key for _, key, *_ in tasks.records(tasks.CONCEPTS)]
    assert {key.count(",") + 1 for key in keys} == {4, 5}


def test_worked_sums_are_right_and_end_in_the_key():
    for item in tasks.make_task("math").teach:
        steps = re.findall(r"(\d+) ([+*-]) (\d+) = (\d+)", item.gold)
        assert all(eval(f"{x} {sign} {y}") == int(result) for x, sign, y, result in steps)
        assert steps[-1][-1] == item.key and 1 <= len(steps) <= 2


@pytest.mark.parametrize("answer, key, share", [
    ("It be COLD!", "cold", 1),
    ("scolded", "cold", 0),
    ("carbon dioxide", "CO2|carbon dioxide", 1),
    ("carbon", "CO2|carbon dioxide", 0),
    ("plants need light", "plant*, sun*|light, oxygen", 2 / 3),
])
def test_content_is_the_share_of_key_terms(answer, key, share):
    assert tasks.contains(answer, tasks.Item("?", key)) == pytest.approx(share)


@pytest.mark.parametrize("answer, right", [
    ("3 * 4 = 12\n#### 12", 1),
    ("3 * 4 = 12\n#### 13", 0),
    ("#### 12 and 5 more", 1),
    ("The answer is 12.", 1),
    ("12 - 3 = 9", 0),
    ("twelve", 0),
])
def test_the_answer_is_the_number_after_the_mark_or_the_last(answer, right):
    assert tasks.right_number(answer, tasks.Item("?", "12")) == right


def test_a_thousands_separator_does_not_matter():
    assert tasks.right_number("#### 1,200", tasks.Item("?", "1200")) == 1


def gsm8k_file(path, n):
    lines = []
    for i in range(n):
        answer = f"{i} + 1 = {i + 1}\n#### {i + 1}"
        lines.append(json.dumps({"question": f"What is {i} + 1?", "answer": answer}))
    path.write_text("\n".join(lines))
    return path


def test_gsm8k_runs_on_its_own_file(tmp_path):
    task = tasks.make_task("math", data=gsm8k_file(tmp_path / "gsm8k.jsonl", 230))
    assert [len(split) for split in (task.teach, task.train, task.test)] == [30, 100, 100]
    assert task.content(task.teach[0].gold, task.teach[0]) == 1


def test_a_short_gsm8k_file_is_refused(tmp_path):
    path = gsm8k_file(tmp_path / "gsm8k.jsonl", 130)
    path.write_text(path.read_text() + "\n" + path.read_text())  # a problem counts once
    with pytest.raises(w2s.W2SError, match="130 different problems are too few"):
        tasks.make_task("math", data=path)


def test_a_line_that_is_not_gsm8k_is_named(tmp_path):
    path = tmp_path / "gsm8k.jsonl"
    for answer in ("b", "b #### 3/4", "b #### inf", 7):
        path.write_text(json.dumps({"question": "a", "answer": answer}))
        with pytest.raises(w2s.W2SError, match="line 1"):
            tasks.make_task("math", data=path)


# -------------------------------------------------------------------------------------------------
# Statistics
# -------------------------------------------------------------------------------------------------


def test_95_of_100_intervals_cover_the_mean():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        _, low, high = tasks.interval([rng.random(150) < 0.3], range(150), resamplings=1000)
        covered += low <= 0.3 <= high
    assert 0.91 <= covered / 300 <= 0.985


def test_the_estimate_of_an_interval_is_the_mean():
    value, low, high = tasks.interval([[0.0, 1.0] * 50], range(100))
    assert value == pytest.approx(0.5) and 0.3 < low < 0.45 and 0.55 < high < 0.7


def test_an_interval_includes_the_spread_over_seeds():
    _, low, high = tasks.interval([[0.0] * 100, [0.5] * 100, [1.0] * 100], range(100))
    assert high - low > 0.5


def test_an_interval_of_a_ratio_holds_the_ratio_of_the_means():
    rng = np.random.default_rng(0)
    a, b = [rng.random(400) < 0.6], [rng.random(400) < 0.8]
    value, low, high = tasks.interval(a, range(400), b)
    assert low < 0.75 < high and low < value < high
    assert tasks.interval([[1, 2, 0]], range(3), [[2, 2, 0]])[0] == pytest.approx(0.75)


def test_a_ratio_to_nothing_is_none():
    assert tasks.interval(np.zeros((1, 5)), range(5), np.zeros((1, 5))) == [None] * 3


def test_a_ratio_whose_denominator_may_have_either_sign_has_no_interval():
    naive, unaltered, ours = np.zeros((3, 1, 100))
    naive[0, :10] = unaltered[0, 5:17] = ours[0, 8:30] = 1
    clusters = range(100)
    value, *bounds = tasks.interval(ours - naive, clusters, unaltered - naive)
    assert value == pytest.approx(6) and bounds == [None, None]
    unaltered[0, 5:60] = 1
    assert None not in tasks.interval(ours - naive, clusters, unaltered - naive)


def test_an_interval_is_as_wide_as_that_of_the_clusters_means():
    rng = np.random.default_rng(0)
    means = 1.0 * (rng.random((1, 40)) < 0.5)
    five = np.repeat(means, 5, 1)  # five items of each cluster have its score
    names = np.repeat([f"job {i:02}" for i in range(40)], 5)
    assert tasks.interval(five, names) == pytest.approx(tasks.interval(means, range(40)))
    _, low, high = tasks.interval(five, range(200))
    _, wide_low, wide_high = tasks.interval(five, names)
    assert wide_high - wide_low > 2 * (high - low)  # sqrt(5), but for chance


A = [[1, 1, 1, 1, 1, 1, 1, 0, 1, 0]]
B = [[0, 0, 0, 0, 0, 0, 0, 1, 1, 0]]


def test_the_paired_test_is_the_sign_test_for_scores_of_0_and_1():
    # 8 pairs differ, 7 in favor of A: the two-sided binomial p-value is 2 (1 + 8) / 2^8
    assert tasks.paired_p(A, B, range(10)) == pytest.approx(18 / 256, abs=0.004)


def test_seeds_of_the_same_items_are_no_new_items():
    assert tasks.paired_p(A * 3, B * 3, range(10)) == tasks.paired_p(A, B, range(10))


def test_items_of_a_cluster_change_sign_together():
    names = [*"abcdefgh", "i", "i"]
    together = tasks.paired_p([A[0] * 4], [B[0] * 4], [*names] * 4)
    assert together == tasks.paired_p(A, B, names) > 10 * tasks.paired_p(
        [A[0] * 4], [B[0] * 4], range(40)
    )


def test_equal_scores_have_p_1():
    assert tasks.paired_p(A, A, range(10)) == 1.0


def test_the_paired_test_rarely_rejects_what_is_true():
    rng = np.random.default_rng(0)
    p = []
    for _ in range(200):
        a, b = 1.0 * (rng.random((2, 1, 60)) < 0.5)
        p.append(tasks.paired_p(a, b, range(60), permutations=1000))
    assert np.mean(np.array(p) < 0.05) <= 0.09


def test_a_question_s_labels_of_two_seeds_count_once():
    task = tiny_task()
    labels = np.full((3, 2, 8), np.nan)  # content, style, words; two seeds; questions
    labels[:, 0, :4], labels[:, 1, 2:6] = 1, 0
    row = tasks.row_of(task, {"naive_labels": labels}, "naive_labels", 1)
    asked = [item.question for item in task.train[:6]]
    assert row["content"] == tasks.interval([[1, 1, 0.5, 0.5, 0, 0]], asked)
    assert row["kept"] == 0.5 and row["words"] == 0.5


def test_new_kinds_have_a_recovery_of_their_own():
    task = tiny_task()
    task = task._replace(test=[item._replace(new=i < 4) for i, item in enumerate(task.test)])
    content = {"weak": 0, "naive": 0, "unaltered": [1] * 4 + [0.5] * 4, "by_agreement": 0.25}
    scores = {m: np.ones((3, 1, 8)) * np.array(c) for m, c in content.items()}
    row = tasks.row_of(task, scores, "by_agreement", 2)
    assert row["recovery_new_kinds"] == [0.25] * 3 and row["content_new_kinds"] == [0.25] * 3
    assert row["recovery"][0] == pytest.approx(1 / 3)


def test_the_stories_of_a_profession_are_one_cluster():
    task = tasks.make_task("bias")
    clusters = [getattr(item, task.cluster) for item in task.test]
    assert [clusters.count(name) for name in set(clusters)] == [5] * 40


# -------------------------------------------------------------------------------------------------
# The whole pipeline
# -------------------------------------------------------------------------------------------------


def tiny_task():
    items = []
    for i in range(6):
        for word in ("who", "what", "where", "an"):
            items.append(tasks.Item(f"{word} {i}", "the" if i % 2 else "an", "the an!"))
    splits = items[:8], items[8:16], items[16:]
    return tasks.Task("tiny", *splits, tasks.contains, has_mark, 8, 4, {"n_icl": 2})


def has_mark(answer):
    return float("!" in answer)


def tiny_experiment(lm, out, task=None, **options):
    options = {"methods": [*tasks.MAIN, "gold"], "seeds": [0], "ladder": [], **options}
    out.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as monkeypatch:  # the random model's answers are never good
        monkeypatch.setattr(w2s, "is_good", always(True))
        monkeypatch.setattr(w2s, "finetune", partial(w2s.finetune, lr=2e-2, epochs=30))
        return tasks.experiment(task or tiny_task(), lm, out, **options)


@pytest.fixture(scope="module", autouse=True)
def tiny_ladder():
    """Supervisors of a model with three layers; layers count in 30ths of the depth."""
    ladder = dict(zip(tasks.SUPERVISORS, [[0, 10], [10], [0], [20]]))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(tasks, "SUPERVISORS", ladder)
        yield


@pytest.fixture
def finetunings(monkeypatch):
    """The calls of finetune so far; the third one is killed."""
    calls, finetune = [], w2s.finetune

    def killed(*args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return finetune(*args, **options)

    monkeypatch.setattr(w2s, "finetune", killed)
    return calls


@pytest.fixture
def killed(tiny, tmp_path, finetunings):
    """The file of a run that was killed in its third fine-tuning."""
    with pytest.raises(KeyboardInterrupt):
        tiny_experiment(tiny, tmp_path / "killed")
    (partial,) = (tmp_path / "killed").iterdir()
    return partial


def test_an_experiment_writes_its_results_and_answers(tiny, tmp_path):
    result = tiny_experiment(tiny, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.json"]
    assert json.loads((tmp_path / "tiny.json").read_text()) == result
    assert all(len(answers) == 8 for answers in result["answers"].values())


def test_methods_side_by_side_give_the_same_results(tiny, tmp_path, monkeypatch):
    one = tiny_experiment(tiny, tmp_path / "one")
    threads, ask = set(), tasks.Cell.ask

    def watched(*args):
        threads.add(threading.current_thread())
        return ask(*args)

    monkeypatch.setattr(tasks.Cell, "ask", watched)
    torch.set_num_threads(2)
    two = tiny_experiment(tiny, tmp_path / "two")
    assert len(threads) == 3  # the supervisor's, and two for the methods
    assert list(two["answers"].items()) == list(one["answers"].items())
    assert two["supervisors"] == one["supervisors"]


def test_even_the_tiny_model_learns_the_style(tiny, tmp_path):
    rows = tiny_experiment(tiny, tmp_path)["supervisors"][tasks.DEFAULT]
    assert rows["gold"]["style"][0] == 1.0


def test_a_killed_run_leaves_nothing_half_written(killed):
    assert re.fullmatch(r"tiny\.[0-9a-f]{16}\.partial\.json", killed.name)
    assert len(json.loads(killed.read_text())["answers"]) == 4


def test_a_killed_run_resumes_with_the_same_answers(tiny, tmp_path, killed, finetunings):
    resumed = tiny_experiment(tiny, killed.parent)
    assert len(finetunings) == 5 + 1  # five models, and the one that was killed
    whole = tiny_experiment(tiny, tmp_path / "whole")
    assert resumed["answers"] == whole["answers"]
    assert resumed["supervisors"] == whole["supervisors"]
    assert not killed.exists()


def test_another_model_does_not_resume_a_run(tiny, killed, finetunings):
    kept = killed.read_text()
    changed = tiny.copy()
    changed.model.token_embd = torch.nn.Embedding.from_pretrained(
        0.9 * tiny.model.token_embd.weight
    )
    tiny_experiment(changed, killed.parent)
    assert len(finetunings) == 3 + 5 and killed.read_text() == kept


def test_other_questions_do_not_resume_a_run(tiny, killed, finetunings):
    kept, task = killed.read_text(), tiny_task()
    test = [item._replace(question=f"{item.question}?") for item in task.test]
    tiny_experiment(tiny, killed.parent, task._replace(test=test))
    assert len(finetunings) == 3 + 5 and killed.read_text() == kept


def test_kept_answers_of_other_seeds_and_methods_change_no_result(tiny, tmp_path, finetunings):
    with pytest.raises(KeyboardInterrupt):
        tiny_experiment(tiny, tmp_path / "kept", seeds=[1, 0], methods=["naive"])
    options = {"seeds": [0, 1], "methods": ["unaltered"]}
    result = tiny_experiment(tiny, tmp_path / "kept", **options)
    alone = tiny_experiment(tiny, tmp_path / "alone", **options)
    assert result["supervisors"] == alone["supervisors"]
    assert result["answers"] == alone["answers"]
    (kept,) = (tmp_path / "kept").glob("*.partial.json")  # naive, seed 1, would be lost
    assert f"{tasks.DEFAULT}/1/naive" in json.loads(kept.read_text())["answers"]


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_file_of_a_run_is_named(tiny, killed, text):
    killed.write_text(text)
    with pytest.raises(w2s.W2SError, match="delete it"):
        tiny_experiment(tiny, killed.parent)


def test_other_code_does_not_resume_a_run(tiny, killed, finetunings, monkeypatch, tmp_path):
    changed = tmp_path / "changed.py"
    changed.write_text(Path(tasks.__file__).read_text("utf-8") + "# another rule")
    monkeypatch.setattr(tasks, "__file__", str(changed))
    kept = killed.read_text()
    tiny_experiment(tiny, killed.parent)
    assert len(finetunings) == 3 + 5 and killed.read_text() == kept


@pytest.mark.parametrize("options, names", [
    ([], ["persona", "math", "explanation", "theory"]),
    (["--quick"], ["persona", "theory"]),
    (["--quick", "--task", "math"], ["math"]),
])
def test_quick_is_less_data_for_the_tasks_asked_for(options, names):
    chosen = tasks.chosen_tasks(tasks.parse_arguments(options))
    assert list(chosen) == names
    sizes = [len(task.test) for task in chosen.values() if task]
    assert sizes[0] == (100 if options else 200)


def test_without_a_label_the_model_stays_as_it_is(tiny, tmp_path, capsys):
    cell = tasks.Cell(tiny_task(), tiny, tmp_path / "cell", {}, {}, {})
    assert cell.learn([None] * 8) == cell.ask(tiny)
    assert "no label is left to learn: the model stays as it is" in capsys.readouterr().err


def test_a_label_without_text_becomes_three_dots():
    assert tasks.non_empty(["a", None, " ", w2s.CUT, "a" + w2s.CUT]) == [
        "a", None, "...", "...", "a" + w2s.CUT
    ]


def test_a_method_without_a_label_has_a_row_without_scores(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(w2s, "is_whole", always(False))
    rows = tiny_experiment(tiny, tmp_path, methods=["algorithm_1"])["supervisors"][tasks.DEFAULT]
    assert rows["algorithm_1_labels"] == {"kept": 0.0} and rows["algorithm_1"]["content"]


def test_without_a_good_answer_the_other_methods_have_their_rows(
    tiny, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(w2s.Concept, "has", always(False))
    rows = tasks.experiment(tiny_task(), tiny, tmp_path, ["by_agreement", "naive"], [0], [])
    rows = rows["supervisors"][tasks.DEFAULT]
    assert rows["by_agreement_labels"] == {"kept": 0.0} and rows["naive"]["content"]
    assert "no label: n_icl=" in capsys.readouterr().err


def test_a_model_of_few_layers_has_no_weaker_one(tiny, tmp_path):
    with pytest.raises(w2s.W2SError, match="a model of 1 layers is too small"):
        tiny_experiment(tiny.copy([1]), tmp_path)


@pytest.fixture(scope="module")
def full(tiny_path, tiny_ladder, tmp_path_factory):
    """(folder, result) of all methods with two supervisors and two seeds."""
    folder = tmp_path_factory.mktemp("full")
    lm = w2s.load(tiny_path, "cpu")
    options = {"methods": list(tasks.METHODS), "ladder": ["4 layers fewer"]}
    return folder, tiny_experiment(lm, folder, seeds=(0, 1), **options)


def test_the_middle_supervisor_serves_every_method(full):
    _, result = full
    assert set(tasks.METHODS) <= set(result["supervisors"][tasks.DEFAULT])


def test_another_supervisor_serves_the_methods_of_the_ladder(full):
    _, result = full
    labels = {"weak_labels", "algorithm_1_labels", "by_agreement_labels"}
    assert set(result["supervisors"]["4 layers fewer"]) == {"weak", *tasks.MAIN} | labels


@pytest.fixture(scope="module")
def page(full):
    """The page of a full run, and of the theory; its tables hold what a browser is to show."""
    folder, result = full
    table = [["head <1>"], ["a & b"]]
    theory = {"task": "theory", "tables": {"fits": table}}
    tasks.report(folder, [result, theory])
    return (folder / "report.html").read_text("utf-8")


@pytest.mark.parametrize("method", ["icl_8", "naive", "by_agreement"])
def test_a_run_of_one_method_has_a_page(method, tiny, tmp_path):
    result = tiny_experiment(tiny, tmp_path, methods=[method])
    tasks.report(tmp_path, [result])
    assert tasks.METHODS[method][0] in (tmp_path / "report.html").read_text("utf-8")


def test_the_page_has_every_method_and_supervisor(page):
    titles = [title for title, _ in tasks.METHODS.values()]
    for name in [*titles, tasks.DEFAULT, "4 layers fewer", "head &lt;1&gt;", "a &amp; b"]:
        assert name in page


def test_the_page_works_offline_and_its_figures_are_xml(page, full):
    assert not re.search(r"(?:src|href)=", page)
    figures = re.findall("<svg.*?</svg>", page, re.DOTALL)
    assert len(figures) == 4  # summary, methods, two of the ladder
    for figure in figures:
        xml.dom.minidom.parseString(figure)
    xml.dom.minidom.parse(str(full[0] / "summary.svg"))


def test_the_page_holds_every_test_answer_with_its_scores(page, full):
    _, result = full
    (text,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page)
    shown = json.loads(text)["tiny"]
    asked = [item["question"] for item in result["test"]]
    assert [question for question, _ in shown["questions"]] == asked
    assert len(shown["cells"]) == 4  # two supervisors, two seeds
    naive = shown["cells"][f"{tasks.DEFAULT}, seed 1"]["naive FT (on weak labels)"]
    assert [answer for answer, _, _ in naive] == result["answers"][f"{tasks.DEFAULT}/1/naive"]
    assert [style for _, _, style in naive] == [has_mark(answer) for answer, _, _ in naive]


def test_markup_in_an_answer_does_not_end_the_page_s_data(full, tmp_path):
    markup = "<!-- <script> </script>"
    answers = dict.fromkeys(full[1]["answers"], [markup] * 8)
    tasks.report(tmp_path, [full[1] | {"answers": answers}])
    page = (tmp_path / "report.html").read_text("utf-8")
    (text,) = re.findall(r'<script id="data" type="application/json">([^<]*)</script>', page)
    cells = json.loads(text)["tiny"]["cells"]
    assert cells[f"{tasks.DEFAULT}, seed 0"]["naive FT (on weak labels)"][0][0] == markup


def test_the_summary_is_printed_with_recovery(full, tmp_path, capsys):
    tasks.report(tmp_path, [full[1]])
    rows = capsys.readouterr().out.split("\n")
    assert "Algorithm 1 FT (the paper's)" in rows[1] and "tiny (questions: 8, seeds: 2)" in rows[3]


def test_half_of_the_labels_are_kept(full):
    _, result = full
    for method in ("naive_kept", "by_agreement"):
        labels = result["answers"][f"{tasks.DEFAULT}/0/{method}_labels"]
        assert sum(label is not None for label in labels) == 4
        assert result["supervisors"][tasks.DEFAULT][f"{method}_labels"]["kept"] == 0.5


def test_the_labels_that_are_kept_are_some_of_all(full):
    _, result = full
    kept = result["answers"][f"{tasks.DEFAULT}/0/by_agreement_labels"]
    labels = result["answers"][f"{tasks.DEFAULT}/0/by_agreement_all_labels"]
    assert None not in labels and all(a in (None, b) for a, b in zip(kept, labels))


def test_p_values_are_multiplied_by_the_number_of_tests(full):
    _, result = full
    rows = [row for methods in result["supervisors"].values() for row in methods.values()]
    p = [row["p"] for row in rows if "p" in row]
    assert len(p) == result["tests"] == 5 + 3 and all(0 < value <= 1 for value in p)


def run_tasks(*argv):
    return w2s.run(partial(tasks.main, [str(arg) for arg in argv]))


def interrupt(*args, **options):
    raise KeyboardInterrupt


def test_ctrl_c_says_how_to_resume(tiny_path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tasks, "experiment", interrupt)
    assert run_tasks("--model", tiny_path, "--out", tmp_path) == 130
    assert "the same command" in capsys.readouterr().err


@pytest.mark.parametrize("argv, message", [
    (["bensch"], "invalid choice: 'bensch'"),
    (["--task", "poetry"], "unknown task 'poetry'"),
    (["--task", ""], "unknown task ''"),
    (["--methods", "naive,magic"], "there is no 'magic', only weak, unaltered, "),
    (["--task", "persona", "--data", "gsm8k.jsonl"], "--data is for the math task"),
    (["--task", "math", "--data", "none.jsonl"], "none.jsonl"),
    (["--out", __file__], "File exists"),
])
def test_a_mistake_is_named_in_one_line_before_the_model_is_loaded(
    argv, message, monkeypatch, capsys
):
    monkeypatch.setattr(w2s, "load", None)
    assert run_tasks(*argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("argv", [("--seed", "-1"), ("--seed", 2**63), ("--seed", "x")])
def test_a_number_that_is_not_one_is_named(argv, capsys):
    assert run_tasks(*argv) == 2
    assert f"argument {argv[0]}: invalid whole_number value" in capsys.readouterr().err


@pytest.mark.parametrize("seeds", ["-1", "0"])
def test_an_experiment_needs_a_seed(seeds, capsys):
    assert run_tasks("--seeds", seeds) == 2
    assert "argument --seeds: invalid positive value" in capsys.readouterr().err


def test_bench_measures_speed_and_memory(tiny_path):
    result = tasks.bench(tiny_path, "cpu", repeats=1)
    measured = {"load_s", "finetune_tok_s", "generate_tok_s", "peak_gb"}
    assert measured <= result.keys() and all(value > 0 for value in result.values())


if __name__ == "__main__":  # started by torchrun, see `runs`
    work(*sys.argv[1:])
