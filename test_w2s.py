# SPDX-License-Identifier: MIT
"""Tests of w2s.py and tasks.py: ./run.sh test

The real model is loaded once; everything that would take long runs on a tiny random model, written as a GGUF file here.
"""
import io
import json
import os
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import time
import types
import xml.dom.minidom

import numpy as np
import pytest
import torch

import tasks
import w2s

# ----------------------------------------------------------------------------------------------------------------------
# The statistical model
# ----------------------------------------------------------------------------------------------------------------------


def problem(seed, d=8, K=4, sigma=0.5):
    """A source with random orthonormal concepts and a random prior, and a generator."""
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))
    prior = torch.rand(K, generator=g, dtype=torch.float64) + 0.2
    return w2s.Source(q[:, :K].T, prior / prior.sum(), sigma), g


def close(samples, value, errors=4):
    """Whether a mean over replications lies within so many standard errors of a value."""
    return abs(samples.mean() - value) <= errors * samples.std() / len(samples) ** 0.5 + 1e-12


def test_the_source_and_the_supervisor_are_what_they_say():
    source, g = problem(0)
    x = w2s.draw_x(200_000, 8, generator=g)
    assert torch.allclose(x.T @ x / len(x), torch.eye(8, dtype=torch.float64) / 3, atol=5e-3)
    b = torch.randn(8, generator=g, dtype=torch.float64)
    assert close((x @ (b - source.betas[0])) ** 2, w2s.excess_risk(b, source.betas[0]))
    for quality, leak in ((0.7, None), (1.0, None), (0.6, {2: 0.5})):
        weak = w2s.weak_supervisor(source, 1, quality, 0.9, leak)
        shares = source.betas @ weak.beta
        assert weak.beta.norm().item() == pytest.approx(1) and shares[1].item() == pytest.approx(quality)
        assert shares[[0, 2, 3]].tolist() == pytest.approx([0, (leak or {}).get(2, 0), 0], abs=1e-12)
        noise = weak.label(x, g) - x @ weak.beta
        assert close(noise, 0) and close(noise**2, 0.81)


def test_the_posterior_is_bayes_rule_by_hand():
    source, g = problem(1, d=3, K=3, sigma=0.8)
    x, y = w2s.draw_x(5, 4, 3, generator=g), torch.randn(5, 4, generator=g, dtype=torch.float64)
    got = source.posterior(x, y)
    for r in range(5):
        joint = []
        for k in range(3):
            p = source.prior[k].item()
            for j in range(4):
                mu = sum(source.betas[k, i].item() * x[r, j, i].item() for i in range(3))
                p *= np.exp(-((y[r, j].item() - mu) ** 2) / (2 * 0.8**2)) / (0.8 * np.sqrt(2 * np.pi))
            joint.append(p)
        assert got[r].tolist() == pytest.approx([p / sum(joint) for p in joint], rel=1e-10)
    assert torch.allclose(source.posterior(x[:, :0], y[:, :0]), source.prior.expand(5, 3))  # no demonstration: the prior


@pytest.mark.parametrize("eta", [0.0, 0.1, 1.0, 10.0])
def test_naive_fine_tuning_tends_to_its_limit(eta):
    source, g = problem(2)
    weak = w2s.weak_supervisor(source, 0, 0.6, 0.5)
    x = w2s.draw_x(200, 4000, 8, generator=g)
    b = w2s.naive_fit(x, weak.label(x, g), source.mean(), eta)
    limit = w2s.naive_limit(weak.beta, source.mean(), eta)
    assert all(close(b[:, i], limit[i], 5) for i in range(8))
    # argmin, not just any estimate: no small step lowers the penalised squares
    y = weak.label(x, g)
    b = w2s.naive_fit(x, y, source.mean(), eta)
    cost = lambda b: (y - (x @ b[..., None]).squeeze(-1)).square().mean(-1) + eta * (b - source.mean()).square().sum(-1)
    assert all((cost(b + 1e-3 * torch.randn(8, generator=g, dtype=torch.float64)) > cost(b)).all() for _ in range(5))


def test_naive_fine_tuning_never_gets_below_its_floor():
    for seed in range(20):
        source, g = problem(seed)
        weak = w2s.weak_supervisor(source, 0, 0.2 + 0.035 * seed, 0.5)
        target, mean = source.betas[0], source.mean()
        floor = w2s.naive_floor(weak.beta, mean, target)
        limits = [w2s.excess_risk(w2s.naive_limit(weak.beta, mean, eta), target) for eta in np.logspace(-6, 6, 2001)]
        assert min(limits) >= floor - 1e-12 and min(limits) == pytest.approx(floor.item(), rel=1e-3)
        assert floor <= min(w2s.excess_risk(weak.beta, target), w2s.excess_risk(mean, target))
        x = w2s.draw_x(4, 100_000, 8, generator=g)
        y = weak.label(x, g)
        for eta in (0.0, 0.03, 0.3, w2s.naive_best_eta(weak.beta, mean, target), 3.0):
            risk = w2s.excess_risk(w2s.naive_fit(x, y, mean, eta), target)
            assert risk.mean() >= floor - 4 * risk.std() / 2


def test_the_simplex_solver_meets_the_optimality_conditions():
    g = torch.Generator().manual_seed(0)
    for K, R in ((1, 10), (2, 90), (10, 800), (30, 100)):
        root = torch.randn(R, K, K + 2, generator=g, dtype=torch.float64)
        gram, linear = root @ root.mT / K, 2 * torch.randn(R, K, generator=g, dtype=torch.float64)
        a = w2s.simplex_least_squares(gram, linear)
        gradient = (gram @ a[..., None]).squeeze(-1) - linear
        level = (gradient * a).sum(1, keepdim=True)
        assert a.min() >= 0 and (a.sum(1) - 1).abs().max() < 1e-10
        assert (gradient - level).min() > -1e-8  # no direction into the simplex descends
        assert ((gradient - level).abs() * a).max() < 1e-8  # complementary slackness


def test_the_hull_projection_tends_to_its_limit():
    source, g = problem(3)
    for c in (0.3, 0.6, 1.0):
        weak = w2s.weak_supervisor(source, 0, c, 0.5)
        limit = w2s.hull_limit(source, weak.beta)
        assert w2s.excess_risk(limit, source.betas[0]).item() == pytest.approx((1 - c) ** 2 * 3 / 12, abs=1e-12)  # (1-c*)^2 (K-1)/3K, K = 4
        x = w2s.draw_x(100, 4000, 8, generator=g)
        b = w2s.hull_fit(source, x, weak.label(x, g))
        if c < 1:  # at a corner the estimate is biased for every n
            assert all(close(b[:, i], limit[i], 5) for i in range(8))
    # For a target that is another prior over the concepts: inside of the hull nothing is lost.
    to = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64) @ source.betas
    assert w2s.excess_risk(w2s.hull_limit(source, to), to) < 1e-20


@pytest.mark.parametrize("quality, sigma", [(0.9, 0.5), (0.5, 0.5), (0.3, 0.5), (1.0, 1.5)])
def test_the_bound_lies_above_the_simulated_risk_and_the_slope_is_at_least_rho(quality, sigma):
    source, g = problem(4)
    weak = w2s.weak_supervisor(source, 1, quality, sigma)
    n_icl = [0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384]
    risk = w2s.refined_risk(source, source.betas[1], weak, n_icl, 4000, g)
    bound, rho = w2s.refinement_bound(source, 1, weak, n_icl)
    assert rho > 0 and (risk.mean(0) <= bound + 4 * risk.std(0) / 4000**0.5).all()
    assert risk[:, 0].mean().item() == pytest.approx(w2s.excess_risk(source.mean(), source.betas[1]).item())
    # The slope of log risk where the decay has set in and is still seen by enough replications.
    seen = [i for i in range(len(n_icl)) if 1e-3 < risk[:, i].mean() < 0.15]
    slope = np.polyfit([n_icl[i] for i in seen], risk.mean(0)[seen].log().numpy(), 1)[0]
    assert len(seen) >= 3 and slope <= -rho


def test_the_moments_of_the_likelihood_ratio():
    source, g = problem(5)
    weak = w2s.weak_supervisor(source, 0, 0.5, 0.7)
    x = w2s.draw_x(400_000, 8, generator=g)
    one = source.log_likelihood(x, weak.label(x, g))
    ratio = one - one[:, :1]  # of each concept to the target
    t, log_m = w2s.chernoff(source, 0, weak)
    for i in (0, 5, 10):
        for k in range(1, 4):
            assert close((t[i] * ratio[:, k]).exp(), log_m[i, k].exp().item())
    for k in range(1, 4):
        assert close(ratio[:, k], -0.5 / (3 * source.sigma**2))  # E of the log ratio: (c_k - c*) / 3 sigma^2
        # alpha_k <= min(1, ratio of the odds) <= its t-th power
    assert log_m[0].abs().max() < 1e-12


def test_refinement_gets_below_naive_and_fails_where_it_must():
    source, g = problem(6)
    weak = w2s.weak_supervisor(source, 0, 0.5, 0.5)
    floor = w2s.naive_floor(weak.beta, source.mean(), source.betas[0])
    risk = w2s.refined_risk(source, source.betas[0], weak, [4, 64, 256], 2000, g)
    assert risk[:, 1].mean() < floor / 3 and risk[:, 2].mean() < floor / 100
    x = w2s.draw_x(20, 1500, 8, generator=g)
    fit = w2s.excess_risk(w2s.refined_fit(source, x, weak.label(x, g), 64, g), source.betas[0])
    assert fit.mean() < floor / 3  # with the demonstrations drawn from the training labels themselves
    for share in (0.3, 0.6):  # the supervisor has as much, or more, of another concept
        misled = w2s.weak_supervisor(source, 0, 0.3, 0.5, {1: share})
        wrong = w2s.refined_risk(source, source.betas[0], misled, [256], 1000, g)
        bound, rho = w2s.refinement_bound(source, 0, misled, [256])
        assert wrong.mean() > 0.3 and rho < 1e-3 and bound.item() > 0.3


def test_permutation_and_scale_change_nothing():
    source, g = problem(7)
    weak = w2s.weak_supervisor(source, 0, 0.6, 0.4)
    x = w2s.draw_x(50, 30, 8, generator=g)
    y = weak.label(x, g)
    order = torch.tensor([2, 0, 3, 1])
    permuted = w2s.Source(source.betas[order], source.prior[order], source.sigma)
    assert torch.allclose(permuted.posterior(x, y), source.posterior(x, y)[:, order])
    assert torch.allclose(source.posterior(x.flip(1), y.flip(1)), source.posterior(x, y))  # order of the demonstrations
    assert torch.allclose(w2s.hull_fit(permuted, x, y), w2s.hull_fit(source, x, y))
    for a, b in zip(w2s.refinement_bound(permuted, 1, weak, [1, 8, 64]), w2s.refinement_bound(source, 0, weak, [1, 8, 64])):
        assert torch.allclose(torch.as_tensor(a), torch.as_tensor(b))
    # x and sigma in other units: the likelihood of y, measured in the same units, stays
    scaled = w2s.Source(source.betas, source.prior, 3 * source.sigma)
    assert torch.allclose(scaled.posterior(3 * x, 3 * y), source.posterior(x, y))
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=g, dtype=torch.float64))[0]
    turned = w2s.Source(source.betas @ rotation, source.prior, source.sigma)
    assert torch.allclose(w2s.naive_fit(x @ rotation, y, turned.mean(), 0.2), w2s.naive_fit(x, y, source.mean(), 0.2) @ rotation)


def test_bad_parameters_are_named():
    eye, prior = torch.eye(4, dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64)
    good = w2s.Source(eye[:2], prior, 1.0)
    g = torch.Generator().manual_seed(0)
    for message, run in {
        r"betas must .* 2\.0": lambda: w2s.Source(eye[:2] * 2**0.5, prior, 1.0),
        r"prior must .*\[0\.5, 0\.6": lambda: w2s.Source(eye[:2], torch.tensor([0.5, 0.6]), 1.0),
        r"prior must .* 3 positive": lambda: w2s.Source(eye[:3], prior, 1.0),
        r"sigma must be positive, not 0": lambda: w2s.Source(eye[:2], prior, 0),
        r"quality=1\.2": lambda: w2s.weak_supervisor(good, 0, 1.2, 1.0),
        r"fill all d=4": lambda: w2s.weak_supervisor(w2s.Source(eye, torch.full((4,), 0.25), 1.0), 0, 0.5, 1.0),
        r"n_icl must not be negative: -1": lambda: w2s.refined_risk(good, eye[0], w2s.Supervisor(eye[0], 1.0), [-1], 10, g),
        r"n_icl must lie .* 4 pairs, not be 5": lambda: w2s.refined_fit(good, torch.zeros(1, 5, 4).double(), torch.zeros(1, 5).double(), 5, g),
    }.items():
        with pytest.raises(ValueError, match=message):
            run()


def test_theory_writes_its_table_and_figure(tmp_path, capsys):
    result = w2s.theory(tmp_path, replications=200)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["theory.json", "theory.md", "theory.svg"]
    assert json.loads((tmp_path / "theory.json").read_text()) == result
    assert (tmp_path / "theory.md").read_text() in capsys.readouterr().out
    xml.dom.minidom.parse(str(tmp_path / "theory.svg"))
    for curve in result["curves"].values():
        assert np.allclose(curve["risk"][0], (0.1 * 9 * 0.1 + 0.9**2) / 3)  # nothing is shown: every label is the source's own mean
        assert all(low <= mean <= high for mean, low, high in curve["risk"]) and len(curve["risk"]) == len(curve["bound"])
    floor, limit = (result["fits"][name]["risk"][0] for name in ("floor of naive FT, any eta and n", "limit of the hull projection"))
    assert np.allclose(limit, 0.4**2 * 9 / 30) and floor > limit  # (1 - c*)^2 (K - 1) / 3K


# ----------------------------------------------------------------------------------------------------------------------
# A tiny model, and a GGUF writer for it and for broken files
# ----------------------------------------------------------------------------------------------------------------------

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"


def write_gguf(path, meta, tensors):
    """A GGUF v3 file; meta holds int, float, str, or lists of int or str; tensors[name] = (type number, shape, bytes)."""
    text = lambda s: struct.pack("<Q", len(s.encode())) + s.encode()
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(meta))
    for key, v in meta.items():
        if isinstance(v, list):
            kind, pack = (8, text) if isinstance(v[0], str) else (5, lambda i: struct.pack("<i", i))
            out += text(key) + struct.pack("<IIQ", 9, kind, len(v)) + b"".join(map(pack, v))
        else:
            kind, value = {str: (8, text), int: (4, lambda i: struct.pack("<I", i)), float: (6, lambda f: struct.pack("<f", f))}[type(v)]
            out += text(key) + struct.pack("<I", kind) + value(v)
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        out += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", s) for s in shape[::-1])
        out += struct.pack("<IQ", kind, len(data))
        data += raw + b"\0" * (-len(raw) % 32)
    path.write_bytes(out + b"\0" * (-len(out) % 32) + data)


def tiny_parts(seed=0, layers=3):
    """(meta, tensors) of a random llama with 3 heads, 1 key head, width 48 and the 256 bytes as its vocabulary."""
    bytes_as_letters = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in bytes_as_letters] + [chr(256 + i) for i in range(256 - len(bytes_as_letters))]
    merges = ["t h", "th e", "Ġ the", "a n"]
    tokens = SPECIAL + letters + [m.replace(" ", "") for m in merges]
    meta = {"general.architecture": "llama", "llama.block_count": layers, "llama.context_length": 1024, "llama.embedding_length": 48,
            "llama.feed_forward_length": 96, "llama.attention.head_count": 3, "llama.attention.head_count_kv": 1,
            "llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
            "tokenizer.ggml.merges": merges, "tokenizer.ggml.eos_token_id": 2, "tokenizer.chat_template": TEMPLATE}
    shapes = {"token_embd.weight": [len(tokens), 48], "output_norm.weight": [48]}
    for i in range(layers):
        shapes |= {f"blk.{i}.{n}.weight": s for n, s in {
            "attn_norm": [48], "ffn_norm": [48], "attn_q": [48, 48], "attn_k": [16, 48], "attn_v": [16, 48], "attn_output": [48, 48],
            "ffn_gate": [96, 48], "ffn_up": [96, 48], "ffn_down": [48, 96]}.items()}
    rng = np.random.default_rng(seed)
    weights = {n: (np.ones(s) if "norm" in n else rng.normal(0, 0.3, s)).astype("<f4") for n, s in shapes.items()}
    return meta, {n: (0, list(w.shape), w.tobytes()) for n, w in weights.items()}


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_gguf(path, *tiny_parts())
    return path


@pytest.fixture
def tiny(tiny_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for products this small, waiting for a second thread takes longer than they do
    yield w2s.load(tiny_path, "cpu", torch.float32)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def smol():
    return w2s.load(device="cpu", dtype=torch.float32)


# ----------------------------------------------------------------------------------------------------------------------
# The strong model against the reference
# ----------------------------------------------------------------------------------------------------------------------

# From transformers 5 (AutoModelForCausalLM.from_pretrained(folder, gguf_file=..., dtype=torch.float32)) and tokenizers (BPE on the
# file's vocabulary and merges; Digits(individual_digits=True), then ByteLevel), on the same GGUF file:
# text, ids, logits of the last position for tokens 0, 33, 1000, 20000, 49151, and the logsumexp of the logits summed over positions.
GOLDEN = [
    ("The quick brown fox doesn't jump; it's lazy, they've said.",
     [504, 2365, 6354, 16438, 2761, 982, 7379, 43, 357, 506, 23790, 28, 502, 3543, 1137, 30],
     [3.7209, 7.3227, 2.5145, 0.6543, -0.8906], 348.4949),
    ('def f(x):\n    return x**2  # 1234\n',
     [1604, 275, 24, 104, 727, 472, 1003, 1792, 828, 34, 216, 907, 216, 33, 34, 35, 36, 198],
     [29.1143, 27.2875, 24.9033, 12.8542, 20.6437], 548.7782),
    ('<|im_start|>user\nWhat is 12+30?<|im_end|>\n<|im_start|>assistant\n',
     [1, 4093, 198, 1780, 314, 216, 33, 34, 27, 35, 32, 47, 2, 198, 1, 520, 9531, 198],
     [17.4169, 35.2034, 22.4446, 11.6969, 10.6753], 529.3246),
    ('\xdcn\xefc\xf6d\xe9 na\xefve caf\xe9, \u6771\u4eac\u30bf\u30ef\u30fc \ud55c\uad6d\uc5b4 \U0001f3f4\u200d\u2620\ufe0f\U0001f469\U0001f3fd'
     '\u200d\U0001f680 \xbd \u2167 x\xb2',
     [142, 246, 94, 25972, 83, 7466, 84, 2756, 15486, 46494, 37366, 28, 17097, 247, 126, 16736, 122, 10391, 140, 11100, 124, 35130, 216,
      33085, 246, 181, 130, 251, 183, 240, 129, 15107, 233, 129, 321, 231, 173, 242, 250, 31752, 10813, 235, 119, 10813, 233, 138, 321,
      231, 10813, 244, 218, 216, 16738, 216, 173, 223, 117, 1792, 19133],
     [17.4856, 22.077, 16.1185, 12.5632, 8.593], 1588.3884),
    ("\t\ttabs   and   spaces  \n\n x\xa0nbsp\u2003em 3.14159 _under_ 'S 'll",
     [197, 197, 100, 7366, 256, 284, 256, 5600, 256, 1116, 1792, 15442, 94, 32093, 321, 221, 391, 216, 35, 30, 33, 36, 33, 37, 41, 2483,
      5941, 79, 637, 67, 637, 764],
     [20.3751, 25.8622, 18.5581, 13.7173, 12.4833], 936.8270),
]


@pytest.mark.parametrize("text, ids, last, total", GOLDEN)
def test_ids_and_logits_equal_the_reference(smol, text, ids, last, total):
    assert smol.tokenizer.encode(text) == ids
    with torch.inference_mode():
        logits = smol.model(torch.tensor([ids]))
    assert logits.shape == (1, len(ids), 49152)
    torch.testing.assert_close(logits[0, -1, [0, 33, 1000, 20000, 49151]], torch.tensor(last), atol=1e-3, rtol=0)
    assert abs(logits.logsumexp(-1).sum().item() - total) < 1e-2


def test_greedy_text_equals_the_reference(smol):
    # transformers' generate with the file's chat template, which adds the default system message
    answer = smol.generate(["What is the capital of Austria?", "Which chemical element has the symbol Al?"], 12)
    assert answer == ["The capital of Austria is Vienna.", "Aluminum is a chemical element with the symbol Al."]


def test_decode_inverts_encode(smol):
    rng = random.Random(0)
    alphabet = [*" \n\t\r'aZ09.,_-", "  ", "don't", "é", "ß", "ﬁ", "東", "한", "ك", "א", "\u0301", "\u200d", "\u00a0", "\u2003", "🏴‍☠️", "👩🏽‍🚀",
                "½", "Ⅷ", "²", "٣", "1234567890", "<|im_end|>", "<|", "Ġ", "\ufffd", "\U0001f9ff", "\u1680", "\x1c", "\x85", "\u2028"]
    cases = ["", " ", "  leading", "trailing  ", "\n\n\n", "<|im_start|>user\nhi<|im_end|>\n", *alphabet]
    cases += ["".join(rng.choices(alphabet, k=rng.randrange(60))) for _ in range(500)]
    for text in cases:
        for special in (True, False):
            ids = smol.tokenizer.encode(text, special)
            assert smol.tokenizer.decode(ids) == text
    assert not set(smol.tokenizer.encode("<|im_start|>user", special=False)) & set(smol.tokenizer.special.values())


def test_text_that_has_no_tokens_is_refused(smol):
    for text in ("bell \x04", "half \ud800 pair"):
        with pytest.raises(w2s.W2SError):
            smol.tokenizer.encode(text)


def test_chat_markup_in_a_question_is_not_markup(smol):
    context, turn = smol.tokenizer.chat([{"role": "user", "content": "a<|im_end|>\n<|im_start|>system\nb"}])
    assert smol.tokenizer.decode(context).startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert turn.count(1) == 2 and turn.count(2) == 1
    assert smol.tokenizer.decode(turn) == "<|im_start|>user\na<|im_end|>\n<|im_start|>system\nb<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("kind, size, by_hand", [
    ("F32", 4, lambda b: np.frombuffer(b, "<f4")),
    ("F16", 2, lambda b: np.frombuffer(b, "<f2").astype("f4")),
    ("BF16", 2, lambda b: (np.frombuffer(b, "<u2").astype("<u4") << 16).view("<f4")),
    ("Q8_0", 34, lambda b: [struct.unpack("<e", b[:2])[0] * q for q in struct.unpack("<32b", b[2:])]),
    ("Q4_0", 18, lambda b: [struct.unpack("<e", b[:2])[0] * (q - 8) for q in [c & 15 for c in b[2:]] + [c >> 4 for c in b[2:]]]),
    ("Q4_1", 20, lambda b: [struct.unpack("<e", b[:2])[0] * q + struct.unpack("<e", b[2:4])[0]
                            for q in [c & 15 for c in b[4:]] + [c >> 4 for c in b[4:]]]),
])
def test_tensor_types_by_hand(kind, size, by_hand):
    rng = np.random.default_rng(0)
    values = 1 if size <= 4 else 32
    raw = b""
    for _ in range(6):
        if kind in ("F32", "F16", "BF16"):
            x = np.float32(rng.normal())
            raw += {"F32": x.astype("<f4").tobytes(), "F16": x.astype("<f2").tobytes(), "BF16": x.tobytes()[2:]}[kind]
        else:
            scales = size - (32 if kind == "Q8_0" else 16)
            raw += rng.normal(size=scales // 2).astype("<f2").tobytes() + rng.integers(0, 256, size - scales, dtype=np.uint8).tobytes()
    got = w2s.dequantize(kind, [3, 2 * values], np.frombuffer(raw, np.uint8))
    want = np.concatenate([np.atleast_1d(by_hand(raw[i : i + size])) for i in range(0, len(raw), size)]).reshape(3, -1)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-6, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------------------
# Generation and likelihood
# ----------------------------------------------------------------------------------------------------------------------

QUESTIONS = ["the an the?", "b", "a longer question, with the words of an other", "Who?", "12 + 30 is what?", "the", "an an an", "z" * 30]


AFTER_EXAMPLES = [[{"role": "user", "content": "the"}, {"role": "assistant", "content": answer}, *w2s.as_conversation(q)]
                  for answer, questions in (("an", QUESTIONS[:4]), ("not an, but the", QUESTIONS[2:5]), ("x", QUESTIONS[:1])) for q in questions]


def greedy_by_hand(lm, conversation, n):
    """Greedy decoding without a cache, one row at a time."""
    context, turn = lm.tokenizer.chat(w2s.as_conversation(conversation))
    ids = context + turn
    start = len(ids)
    for _ in range(n):
        new = lm.model(torch.tensor([ids]))[0, -1].argmax().item()
        if new in lm.tokenizer.special.values():
            break
        ids.append(new)
    return lm.tokenizer.decode(ids[start:])


@pytest.mark.parametrize("rows", [(1,), (15,), (16,), (3, 11), (129,)])
@pytest.mark.parametrize("bias", [None, torch.randn(40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_of_few_rows_turned_around_is_the_product(rows, bias, dtype):
    x, w, bias = torch.randn(*rows, 24).to(dtype), torch.randn(40, 24).to(dtype), None if bias is None else bias.to(dtype)
    with torch.no_grad():
        got = w2s.linear(x, w, bias)
    assert got.shape == (*rows, 40) and got.dtype == dtype
    assert torch.allclose(got.float(), torch.nn.functional.linear(x, w, bias).float(), atol=1e-5 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("vocab", [7, 384])
@pytest.mark.parametrize("turned", [False, True])
def test_argmax_is_the_first_of_the_largest(vocab, turned):
    logits = torch.randint(0, 4, (50, vocab), generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)  # many ties
    want = [row.index(max(row)) for row in logits.tolist()]
    assert w2s.argmax(logits.T.contiguous().T if turned else logits).tolist() == want


@torch.no_grad()
def test_cached_batched_generation_equals_plain_decoding(tiny):
    conversations = [w2s.as_conversation(q) for q in QUESTIONS] + AFTER_EXAMPLES
    want = [greedy_by_hand(tiny, c, 20) for c in conversations]
    assert tiny.generate(conversations, 20) == want
    assert tiny.generate(conversations, 20, batch=3) == want
    assert [tiny.generate([c], 20)[0] for c in conversations] == want
    assert len(set(want)) > 4  # the rows do differ


def test_finished_rows_leave_without_a_trace(tiny):
    # A model that prefers its end token: rows end at different steps.
    tiny.model.token_embd.weight.data[2] *= 1.8
    want = [greedy_by_hand(tiny, q, 30) for q in QUESTIONS + AFTER_EXAMPLES]
    assert len({len(w) for w in want}) > 3
    assert tiny.generate(QUESTIONS + AFTER_EXAMPLES, 30) == want


def test_batches_have_several_contexts_but_rows_without_one_stay_apart():
    prompts = [([], [1] * 5), ([2], [3]), ([2], [4, 4]), ([5, 5], [6]), ([5, 5], [7]), ([8], [9])]
    rows = lambda **more: [rows for rows, _ in w2s.LM._batches(prompts, **more)]
    assert rows(batch=9) == [[5, 0], [1, 2, 3, 4]]  # a context of a single row is a part of its turn
    assert rows(batch=9, one_context=True) == [[5, 0], [1, 2], [3, 4]]
    assert rows(batch=3) == [[5, 0], [1, 2, 3], [4]]
    assert rows(batch=9, most_tokens=7) == [[5, 0], [1, 2, 3], [4]]


def test_sampling_follows_the_seed_and_not_the_batch(tiny):
    one = tiny.generate(QUESTIONS, 12, temperature=1.0, seed=1)
    assert one == tiny.generate(QUESTIONS, 12, temperature=1.0, seed=1, batch=2)
    assert one != tiny.generate(QUESTIONS, 12, temperature=1.0, seed=2)


def test_sampling_has_the_model_s_distribution(tiny):
    context, turn = tiny.tokenizer.chat(w2s.as_conversation("the"))
    tiny.model.token_embd.weight.data *= 0.3  # flatter, so that several tokens are likely
    with torch.no_grad():
        p = tiny.model(torch.tensor([context + turn]))[0, -1].div(0.7).softmax(-1).numpy()
    n = 4000
    drawn = tiny._generate([(context, turn)] * n, 1, 0.7, torch.rand(n, 1, generator=torch.Generator().manual_seed(0)))
    ends = sum(not d for d in drawn)
    counts = np.bincount([d[0] for d in drawn if d], minlength=len(p))
    special = [0, 1, 2]
    assert abs(ends / n - p[special].sum()) < 4 * (p[special].sum() / n) ** 0.5 + 1e-3
    for i in np.argsort(-p)[:8]:
        if i not in special:
            assert abs(counts[i] / n - p[i]) < 4 * (p[i] * (1 - p[i]) / n) ** 0.5


def test_logprob_is_the_sum_over_answer_and_end_token(tiny):
    answers = ["the", "an an", "?", "a much longer answer than the others", "é", "x", "y", "zz"]
    got = tiny.logprob(QUESTIONS, answers, batch=3)
    for q, a, value in zip(QUESTIONS, answers, got):
        context, turn = tiny.tokenizer.chat(w2s.as_conversation(q))
        prompt, answer = context + turn, tiny.tokenizer.encode(a) + [2]
        with torch.no_grad():
            logp = tiny.model(torch.tensor([prompt + answer]))[0].log_softmax(-1)
        want = sum(logp[len(prompt) + j - 1, t].item() for j, t in enumerate(answer))
        assert value.item() == pytest.approx(want, abs=1e-3)


def test_a_copy_is_independent_and_may_lack_layers(tiny):
    before = tiny.generate(QUESTIONS, 8)
    weak = tiny.copy(layers=[0, 2])
    assert weak.model.config.layers == 2 and len(weak.model.blk) == 2 and tiny.model.config.layers == 3
    w2s.finetune(weak, QUESTIONS, ["the"] * 8, epochs=2, lr=1e-2)
    full = tiny.copy()
    w2s.finetune(full, QUESTIONS, ["the"] * 8, epochs=2, lr=1e-2)
    assert tiny.generate(QUESTIONS, 8) == before != full.generate(QUESTIONS, 8)
    for layers in ([], [3], [-1]):
        with pytest.raises(ValueError, match="layers"):
            tiny.copy(layers)


# ----------------------------------------------------------------------------------------------------------------------
# Weak to strong
# ----------------------------------------------------------------------------------------------------------------------


def test_finetune_lowers_the_loss_on_answers_alone(tiny):
    answers = [f"an answer the {q[:3]}" for q in QUESTIONS]
    rows = tiny.answer_rows(QUESTIONS, answers)
    with torch.no_grad():  # the loss is that of logprob: every answer token, the end token, nothing else
        loss, row = tiny.answer_loss(rows)
    assert len(loss) == sum(len(a) for _, a in rows)
    assert loss.sum().item() == pytest.approx(-tiny.logprob(QUESTIONS, answers).sum().item(), rel=1e-5)
    losses = w2s.finetune(tiny, QUESTIONS, answers, epochs=15, lr=3e-3, batch=4)
    assert len(losses) == 30 and losses[0] == pytest.approx(loss.mean().item(), rel=0.3)
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])
    assert tiny.logprob(QUESTIONS, answers).mean() > -loss.sum() / 8


def test_the_gradient_is_that_of_the_plain_loss(tiny):
    # Shared beginning, right padding, answer positions only: the same gradient as a full pass over each row by itself.
    rows = tiny.answer_rows(QUESTIONS, ["the", "an an", "?", "longer than the others", "é", "x", "y", "zz"])
    tiny.answer_loss(rows)[0].sum().backward()
    got = {n: p.grad.clone() for n, p in tiny.model.named_parameters()}
    tiny.model.zero_grad()
    for prompt, answer in rows:
        ids = torch.tensor([prompt + answer])
        logits = tiny.model(ids)[0, len(prompt) - 1 : -1]
        torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :], reduction="sum").backward()
    for n, p in tiny.model.named_parameters():
        torch.testing.assert_close(got[n], p.grad, atol=1e-4, rtol=1e-3)


def test_steps_in_the_backward_pass_are_those_of_plain_adamw(tiny):
    plain, answers, steps = tiny.copy(), ["the"] * 8, 6  # one batch an epoch
    rows = plain.answer_rows(QUESTIONS, answers)
    optimizer = torch.optim.AdamW(plain.model.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / steps)  # a tenth of six steps is no step of warm-up
        loss, _ = plain.answer_loss(rows)
        loss.mean().backward()
        for p in plain.model.parameters():
            p.grad /= p.grad.norm()
        optimizer.step()
        optimizer.zero_grad()
    w2s.finetune(tiny, QUESTIONS, answers, epochs=steps, lr=1e-3)
    for want, got in zip(plain.model.parameters(), tiny.model.parameters()):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
        assert got.grad is None


def test_finetune_is_reproducible_and_stops_at_a_loss_that_is_not_finite(tiny):
    runs = []
    for _ in range(2):
        lm = tiny.copy()
        runs.append((w2s.finetune(lm, QUESTIONS, ["the"] * 8, epochs=2, lr=1e-3, seed=3), lm.generate(QUESTIONS, 8)))
    assert runs[0] == runs[1]
    tiny.model.output_norm.weight.data[0] = float("nan")
    with pytest.raises(w2s.W2SError, match="step 1 of"):
        w2s.finetune(tiny, QUESTIONS, ["the"] * 8)


def test_bfloat16_computes_and_learns_as_float32_does(tiny, tiny_path):
    half = w2s.load(tiny_path, "cpu", torch.bfloat16)
    assert half.model.token_embd.weight.dtype == torch.bfloat16
    rows = tiny.answer_rows(QUESTIONS, ["the an"] * 8)
    with torch.no_grad():
        full_loss, half_loss = (lm.answer_loss(rows)[0].mean().item() for lm in (tiny, half))
    assert half_loss == pytest.approx(full_loss, rel=0.02)
    # Small steps add up: the weights' fp32 masters keep what bf16 would round away.
    losses = [w2s.finetune(lm, QUESTIONS, ["the an"] * 8, epochs=40, lr=3e-4) for lm in (tiny, half)]
    assert losses[1][-1] == pytest.approx(losses[0][-1], rel=0.1) and losses[1][-1] < 0.8 * losses[1][0]


def test_answers_that_cannot_be_learnt_are_refused(tiny):
    with pytest.raises(w2s.W2SError, match="answer 1 is empty"):
        w2s.finetune(tiny, ["a", "b"], ["x", " \n"])
    with pytest.raises(w2s.W2SError, match="conversation 0 is too long"):
        w2s.finetune(tiny, ["a"], ["x" * 2000])
    with pytest.raises(w2s.W2SError, match="conversation 0 is too long.* context of 1024"):
        tiny.generate(["x" * 2000])
    with pytest.raises(ValueError, match="1 conversations and 2 answers"):
        tiny.logprob(["a"], ["x", "y"])


class Client:
    """A stand-in for any model: remembers what it is asked; its plain answers are right, as the even weak answers are."""

    def __init__(self):
        self.calls = []

    def generate(self, conversations, max_new_tokens, temperature=0.0, seed=0):
        self.calls.append(conversations)
        return [f"plain {re.search(r'[0-9]+', c[-1]['content'])[0]}" for c in conversations]


NUMBERS = [f"Which number is it, number {i}x?" for i in range(100, 160)]
WEAK = [f"Arrr, {i} be it!" if i % 2 == 0 else f"Arrr, {i - 50} be it!" for i in range(100, 160)]


@pytest.mark.parametrize("select", ["agreement", "random"])
@pytest.mark.parametrize("n_icl", [None, 0, 1, 4, 16, 59])
def test_refine_never_shows_a_query_its_own_weak_answer(select, n_icl):
    client = Client()
    refined = w2s.refine(client, NUMBERS, WEAK, n_icl=n_icl, select=select, keep=1)
    assert refined == [f"plain {i}" for i in range(100, 160)]  # in the order of the questions
    assert len(client.calls[-1]) == 3 * 60  # three draws
    for q, conversation in zip(NUMBERS * 3, client.calls[-1]):
        assert len(conversation) == 2 * (16 if n_icl is None else n_icl) + 1
        assert conversation[-1] == {"role": "user", "content": q}
        shown = list(zip(conversation[0:-1:2], conversation[1:-1:2]))
        assert all(u["role"] == "user" and a["role"] == "assistant" for u, a in shown)
        assert all(WEAK[NUMBERS.index(u["content"])] == a["content"] and u["content"] != q for u, a in shown)
        assert len({u["content"] for u, _ in shown}) == len(shown)


def test_agreement_finds_the_weak_answers_that_are_right():
    plain = [f"The answer is {i}." for i in range(100, 160)]
    questions = ["Which number is it?" for _ in plain]
    score = w2s.agreement(questions, plain, WEAK)
    assert [s > 0 for s in score] == [i % 2 == 0 for i in range(100, 160)]  # "be", "it", "arrr" and "answer" count nothing
    client = Client()
    client.generate = lambda conversations, *_, calls=client.calls, **__: calls.append(conversations) or plain * (len(conversations) // 60)
    w2s.refine(client, NUMBERS, WEAK, n_icl=8)
    shown = {m["content"] for c in client.calls[-1] for m in c if m["role"] == "assistant"}
    assert shown <= {w for w, s in zip(WEAK, score) if s > 0}


def test_examples_that_say_the_same_come_last():
    questions = [f"Who is it, the {q}?" for q in "abcdef"]
    plain = ["a baker of bread", "a baker of bread", "a baker of bread", "a smith", "a clown", "a judge in court"]
    weak = ["She bakes bread", "She eats bread", "She likes bread as a baker", "She is a smith", "She is nothing", "She sits in court"]
    score = w2s.agreement(questions, plain, weak)
    assert score[2] > score[0] == score[1] > 0 and score[4] == 0
    order = w2s.most_agreed(questions, plain, weak, [5, 4, 3, 2, 1, 0])
    assert set(order[:3]) == {2, 3, 5}  # the one baker that says most; the two others say nothing that it does not say
    assert order[3:] == [4, 1, 0]  # ties keep their order


def test_agreement_has_a_choice_in_small_data():
    client = Client()
    client.generate = lambda conversations, *_, calls=client.calls, **__: calls.append(conversations) or [
        f"The answer is {re.search('[0-9]+', c[-1]['content'])[0]}." for c in conversations]
    w2s.refine(client, NUMBERS[:24], WEAK[:24])  # 8 examples from 12 right and 12 wrong pairs
    shown = [NUMBERS.index(q["content"]) % 2 == 0 for c in client.calls[-1] for q in c[:-1] if q["role"] == "user"]
    assert np.mean(shown) > 0.8


def test_of_several_draws_the_one_that_agrees_is_returned():
    class Fickle(Client):
        def generate(self, conversations, *_, **__):
            self.calls.append(conversations)
            right = [f"plain {re.search('[0-9]+', c[-1]['content'])[0]}" for c in conversations]
            return [r if len(self.calls) == 1 or i // 60 != i % 3 else f"odd {i}" for i, r in enumerate(right)]  # one draw in three is off

    assert w2s.refine(Fickle(), NUMBERS, WEAK, keep=1) == [f"plain {i}" for i in range(100, 160)]
    assert w2s.refine(Fickle(), NUMBERS, WEAK, draws=1, keep=1) != [f"plain {i}" for i in range(100, 160)]


def test_the_answers_that_the_model_would_also_give_by_itself_are_kept():
    class Misled(Client):
        def generate(self, conversations, *_, **__):
            self.calls.append(conversations)
            numbers = [int(re.search("[0-9]+", c[-1]["content"])[0]) for c in conversations]
            return [f"plain {i + (len(c) > 1 and i % 3 == 0)}" for i, c in zip(numbers, conversations)]  # after examples every third is wrong

    want = [None if i % 3 == 0 else f"plain {i}" for i in range(100, 160)]
    assert w2s.refine(Misled(), NUMBERS, WEAK, keep=2 / 3) == w2s.refine(Misled(), NUMBERS, WEAK, keep=2 / 3, select="random") == want
    assert None not in w2s.refine(Misled(), NUMBERS, WEAK, keep=1)
    assert sum(a is not None for a in w2s.refine(Misled(), NUMBERS, WEAK)) == 36
    assert w2s.keep_agreed(["q"] * 4, ["a x", "a y", "a z", "a w"], ["b x", "b v", "b z", "b x"], 0.5) == ["b x", None, "b z", None]
    assert w2s.keep_agreed(["q"] * 3, ["a"] * 3, ["a"] * 3, 0.5) == ["a", "a", None]  # no word tells them apart: the first ones


def test_fine_tuning_leaves_out_a_question_without_an_answer(tiny):
    questions, answers = [f"the {i}?" for i in range(6)], [f"an {i}!" for i in range(6)]
    some, all_but = tiny.copy(), tiny.copy()
    losses = w2s.finetune(some, questions, [None if i in (1, 4) else a for i, a in enumerate(answers)], epochs=2, batch=2)
    assert losses == w2s.finetune(all_but, *([row[i] for i in (0, 2, 3, 5)] for row in (questions, answers)), epochs=2, batch=2) and len(losses) == 4
    with pytest.raises(ValueError, match="shorter"):
        w2s.finetune(tiny, questions, answers[:5])


def test_refine_keeps_system_messages_and_hides_twins():
    system = {"role": "system", "content": "Be brief."}
    questions = [[system, {"role": "user", "content": q}] for q in ["one 1?", "two 2?", "three 3?", "one 1? ", "four 4?"]]
    client = Client()
    w2s.refine(client, questions, ["A", "B", "C", "D", "E"], n_icl=3, select="random")
    for c in client.calls[-1]:
        assert c[0] == system and [m["role"] for m in c].count("system") == 1
    for i in (0, 3):  # the same question twice: neither sees the other's weak answer
        assert not {"A", "D"} & {m["content"] for m in client.calls[-1][i] if m["role"] == "assistant"}


def test_refine_refuses_what_cannot_be():
    for n_icl in (60, 1000, -1):
        with pytest.raises(w2s.W2SError, match=f"n_icl={n_icl}"):
            w2s.refine(Client(), NUMBERS, WEAK, n_icl=n_icl)
    with pytest.raises(w2s.W2SError, match="n_icl=1 needs at least 2 different questions, there are 1"):
        w2s.refine(Client(), ["same 1"] * 3, ["a", "b", "c"], n_icl=1)
    with pytest.raises(w2s.W2SError, match="weak answer 1 is empty"):
        w2s.refine(Client(), NUMBERS[:2], ["a", ""])
    for keep in (0, 1.5, float("nan")):
        with pytest.raises(w2s.W2SError, match="is no share"):
            w2s.refine(Client(), NUMBERS, WEAK, keep=keep)
    with pytest.raises(ValueError, match="draws"):
        w2s.refine(Client(), NUMBERS, WEAK, draws=0)
    with pytest.raises(ValueError, match="select"):
        w2s.refine(Client(), NUMBERS, WEAK, select="best")


# ----------------------------------------------------------------------------------------------------------------------
# Tasks, judges, statistics
# ----------------------------------------------------------------------------------------------------------------------


TASKS = [("persona", "pirate"), ("persona", "cowboy"), ("math", ""), ("explanation", ""), ("bias", "")]


@pytest.mark.parametrize("name, persona", TASKS)
def test_splits_and_judges(name, persona):
    task = tasks.make_task(name, persona or "pirate")
    splits = [[i.question for i in part] for part in (task.teach, task.train, task.test)]
    assert len(set(sum(splits, []))) == sum(map(len, splits)) and len(task.test) >= (100 if name == "explanation" else 200)
    assert all(i.gold for i in task.teach) and not any(i.gold for i in task.train + task.test)
    items = task.teach + task.train + task.test
    if name != "math":  # no term of a key stands in its question
        for i in items:
            for term in i.key.split(","):
                assert task.content(i.question, tasks.Item(i.question, term)) == 0, (i.question, term)
    assert all(task.content(i.gold, i) == 1 and task.style(i.gold) == 1 for i in task.teach)  # gold scores 1
    shuffled = [j.gold for j in task.teach[7:] + task.teach[:7]]
    assert np.mean([task.content(a, i) for a, i in zip(shuffled, task.teach)]) < 0.12  # another question's answer is wrong
    for plain in ("The capital of France is Paris.", "Photosynthesis is the process by which plants make sugar.", "He has 3 apples, which is all.",
                  "A pilot flies planes. He likes it.", ""):
        assert task.style(plain) == 0  # plain text has no style
    assert tasks.make_task(name, persona or "pirate")[:4] == task[:4]  # the same task every time


def test_the_tables():
    facts, _ = tasks.persona_rows("pirate", random.Random(0))
    assert len(facts) >= 400 and len({q for q, _, _ in facts}) == len(facts)
    pirate, cowboy = (tasks.persona_rows(p, random.Random(0)) for p in ("pirate", "cowboy"))
    assert max(pirate[1](gold) for _, _, gold in cowboy[0]) == 0 == max(cowboy[1](gold) for _, _, gold in pirate[0])
    concepts = [line.split(": ", 1) for line in tasks.CONCEPTS.strip().split("\n")]
    assert len(concepts) >= 150 and all(4 <= key.split(" = ")[0].count(",") + 1 <= 6 for _, key in concepts)
    problems = tasks.math_rows(random.Random(0))
    assert len(tasks.PROBLEMS.strip().split("\n")) >= 6
    for _, key, gold in problems:
        sums = re.findall(r"(\d+) ([+*-]) (\d+) = (\d+)", gold)
        assert sums[-1][3] == key and all(eval(f"{a}{sign}{b}") == int(c) >= 0 for a, sign, b, c in sums)
    assert {gold.count("=") for _, _, gold in problems} == {1, 2}


def test_key_checks():
    item = lambda key: tasks.Item("?", key)
    assert tasks.contains("It be COLD!", item("cold")) and not tasks.contains("scolded", item("cold"))
    assert tasks.contains("carbon dioxide", item("CO2|carbon dioxide")) and not tasks.contains("carbon", item("CO2|carbon dioxide"))
    assert tasks.contains("plants need light", item("plant*, sun*|light, oxygen")) == pytest.approx(2 / 3)
    for answer, right in (("3 * 4 = 12\n#### 12", 1), ("3 * 4 = 12\n#### 13", 0), ("The answer is 12.", 1), ("12 - 3 = 9", 0), ("#### 12 and 5 more", 1), ("twelve", 0)):
        assert tasks.right_number(answer, item("12")) == right, answer
    assert tasks.right_number("#### 1,200", item("1200"))


def test_gsm8k_runs_on_its_own_file(tmp_path):
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("".join(json.dumps({"question": f"What is {i} + 1?", "answer": f"{i} + 1 = {i + 1}\n#### {i + 1}"}) + "\n" for i in range(230)))
    task = tasks.make_task("math", data=path)
    assert (len(task.teach), len(task.train), len(task.test)) == (30, 100, 100) and task.content(task.teach[0].gold, task.teach[0]) == 1
    path.write_text('{"question": "a", "answer": "b"}\n')
    with pytest.raises(w2s.W2SError, match="line 1"):
        tasks.make_task("math", data=path)
    with pytest.raises(w2s.W2SError, match="no persona"):
        tasks.make_task("persona", "elf")
    with pytest.raises(w2s.W2SError, match="no task"):
        tasks.make_task("poetry")


def test_intervals_cover():
    rng = np.random.default_rng(1)
    covered = sum(low <= 0.3 <= high for low, high in (tasks.interval([rng.random(150) < 0.3], draws=1000)[1:] for _ in range(300)))
    assert 0.91 <= covered / 300 <= 0.985
    one = tasks.interval([[0.0, 1.0] * 50])
    far = tasks.interval([[0.0] * 100, [0.5] * 100, [1.0] * 100])  # no spread over items, but over seeds
    assert one[0] == pytest.approx(0.5) and 0.3 < one[1] < 0.45 and far[2] - far[1] > 0.5


def test_paired_test_against_the_exact_one():
    a, b = [[1, 1, 1, 1, 1, 1, 1, 0, 1, 0]], [[0, 0, 0, 0, 0, 0, 0, 1, 1, 0]]
    # 8 pairs differ, 7 for a: two-sided binomial 2 (1 + 8) / 2^8
    assert tasks.paired_p(a, b) == pytest.approx(18 / 256, abs=0.004) == tasks.paired_p(a * 3, b * 3)  # seeds of the same items are no new items
    assert tasks.paired_p(a, a) == 1.0
    rng = np.random.default_rng(0)
    null = [tasks.paired_p([rng.random(60) < 0.5], [rng.random(60) < 0.5], draws=1000) for _ in range(200)]
    assert np.mean(np.array(null) < 0.05) <= 0.09


def test_ratios_of_means():
    assert tasks.interval([[1, 2, 0]], [[2, 2, 0]])[0] == pytest.approx(0.75)
    assert tasks.interval(np.zeros((1, 5)), np.zeros((1, 5))) == [None] * 3  # nothing was lost: no recovery to speak of
    rng = np.random.default_rng(0)
    value, low, high = tasks.interval([rng.random(400) < 0.6], [rng.random(400) < 0.8])
    assert low < 0.75 < high and low < value < high


# ----------------------------------------------------------------------------------------------------------------------
# The whole pipeline
# ----------------------------------------------------------------------------------------------------------------------


def tiny_task(name="tiny"):
    items = [tasks.Item(f"{q} {i}", "the", "the an!") for i in range(6) for q in ("who", "what", "where", "an")]
    return tasks.Task(name, items[:8], items[8:16], items[16:], content=tasks.contains, style=lambda a: float("!" in a), max_new_tokens=8)


@pytest.fixture
def tiny_ladder(monkeypatch):
    """Supervisors of a model with three layers: 30ths of the depth."""
    monkeypatch.setattr(tasks, "SUPERVISORS", dict(zip(tasks.SUPERVISORS, [(0, 10), (10,), (0,), (20,)])))


def tiny_experiment(lm, out, **options):
    options = dict(methods=[*tasks.MAIN, "gold"], lr=1e-2, n_icl=2, teach_epochs=30, teach_lr=1e-2, log=lambda line: None) | options
    return tasks.experiment(tiny_task(), lm, out, **options)


def test_the_pipeline_end_to_end_and_after_an_interruption(tiny, tiny_ladder, tmp_path, monkeypatch):
    whole = tiny_experiment(tiny, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.json", "tiny.md", "tiny.svg"]
    assert json.loads((tmp_path / "tiny.json").read_text()) == whole
    assert set(whole["methods"]) == {*tasks.MAIN, "gold", "weak", "weak_labels", "refined_labels"} <= set(tasks.METHODS)
    for scores in whole["methods"].values():
        assert all(low <= value <= high for value, low, high in (scores["content"], scores["style"], scores["content_20_words"]))
    assert all(len(given) == 8 for given in whole["answers"].values())
    xml.dom.minidom.parse(str(tmp_path / "tiny.svg"))
    assert whole["methods"]["gold"]["style"][0] == 1.0  # even this model learns the style

    # Killed in the middle of the third fine-tuning: nothing half-written, and the next run ends with the same answers.
    calls, real = [], tasks.finetune

    def killed(*args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(tasks, "finetune", killed)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(KeyboardInterrupt):
        tiny_experiment(tiny, other)
    partial, = other.iterdir()
    assert re.fullmatch(r"tiny\.[0-9a-f]{16}\.partial\.json", partial.name)
    kept = partial.read_text()
    resumed = tiny_experiment(tiny, other)
    assert resumed["answers"] == whole["answers"] and resumed["methods"] == whole["methods"]
    assert len(calls) == 4 + 1  # four models, and the one that was killed

    assert not partial.exists()

    # Another model or other questions do not go on from the first one's answers, and leave them as they are.
    partial.write_text(kept)
    changed = tiny.copy()
    changed.model.token_embd.weight.data *= 0.9
    assert tiny_experiment(changed, other)["answers"] != whole["answers"] and len(calls) == 5 + 4

    task = tiny_task()
    asked = task._replace(test=[i._replace(question=i.question + "?") for i in task.test])
    monkeypatch.setattr(sys.modules[__name__], "tiny_task", lambda: asked)
    assert tiny_experiment(tiny, other)["answers"] != whole["answers"] and len(calls) == 9 + 4
    monkeypatch.setattr(sys.modules[__name__], "tiny_task", lambda: task)
    assert partial.read_text() == kept

    for broken in ("{", "[]", "{}"):
        partial.write_text(broken)
        with pytest.raises(w2s.W2SError, match="delete it"):
            tiny_experiment(tiny, other)
    with pytest.raises(w2s.W2SError, match="n_icl=8 must lie between 0 and 7"):
        tiny_experiment(tiny, other, n_icl=8)
    with pytest.raises(w2s.W2SError, match="--seeds must be at least 1"):
        tiny_experiment(tiny, other, seeds=range(0))


def test_all_methods_along_a_ladder_with_two_seeds(tiny, tiny_ladder, tmp_path):
    tasks_run = tiny_experiment(tiny, tmp_path, methods=tasks.FULL, seeds=(0, 1), ladder=list(tasks.SUPERVISORS))
    assert set(tasks_run["supervisors"]) == set(tasks.SUPERVISORS) and tasks_run["seeds"] == 2
    assert set(tasks.METHODS) <= set(tasks_run["methods"])  # every row of the table
    assert tasks_run["supervisors"]["4 layers fewer"]["methods"].keys() == {"weak", "weak_labels", *tasks.LADDER, "refined_labels", "refined_icl_labels"}
    labels = {m: tasks_run["answers"][f"6 layers fewer/0/{m}_labels"] for m in ("naive_kept", "refined_all", "refined")}
    assert {m: sum(a is not None for a in given) for m, given in labels.items()} == {"naive_kept": 5, "refined_all": 8, "refined": 5}
    assert all(a in (None, b) for a, b in zip(labels["refined"], labels["refined_all"]))
    # Where all of them are there, the kept labels are taken from them; without, `refine` makes the same.
    (tmp_path / "alone").mkdir()
    alone = tiny_experiment(tiny, tmp_path / "alone", methods=tasks.MAIN)
    assert alone["answers"]["6 layers fewer/0/refined_labels"] == labels["refined"]
    assert set(tasks_run["odds"]) == set(tasks.SUPERVISORS) and len(tasks_run["odds"]["4 layers fewer"]["style"]) == len(tasks.N_ICL)
    p = [p for c in tasks_run["supervisors"].values() for p in c["p_refined_vs"].values()]
    assert len(p) == tasks_run["tests"] == 14 and all(0 < v <= 1 for v in p)
    text = (tmp_path / "tiny.md").read_text()
    assert all(name in text for name in [*tasks.METHODS.values(), *tasks.SUPERVISORS])
    xml.dom.minidom.parse(str(tmp_path / "tiny.svg"))


def test_ctrl_c_says_how_to_go_on(tiny_path, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt
    monkeypatch.setattr(tasks, "experiment", interrupted)
    assert run_tasks("--model", tiny_path, "--out", tmp_path) == 130
    assert "the same command goes on" in capsys.readouterr().err
    for argv, message in ((["bensch"], "the command is bench or none"), (["--task", "poetry"], "no task is called 'poetry'"), (["--persona", "elf"], "no persona"),
                          (["--task", "persona", "--data", "gsm8k.jsonl"], "--data holds problems for the math task")):
        assert run_tasks(*argv) == 2 and message in capsys.readouterr().err


def run_tasks(*argv):
    return w2s.run(lambda: tasks.main(list(map(str, argv))))


def broken_files():
    meta, tensors = tiny_parts()
    a = next(iter(tensors))
    yield "cut short", "cut short", meta, tensors
    yield "not a model", "not a GGUF", None, None
    yield "empty", "cannot be read", None, None
    yield "architecture", "architecture bert is not supported", meta | {"general.architecture": "bert"}, tensors
    yield "tokenizer", "tokenizer llama/smollm is not supported", meta | {"tokenizer.ggml.model": "llama"}, tensors
    yield "pre-tokenizer", "tokenizer gpt2/odd is not supported", meta | {"tokenizer.ggml.pre": "odd"}, tensors
    yield "type", "type number 12 is not supported", meta, tensors | {a: (12, *tensors[a][1:])}
    yield "missing", "tensor output_norm.weight is missing", meta, {k: v for k, v in tensors.items() if k != "output_norm.weight"}
    yield "extra", "tensor rope_freqs.weight is not part", meta, tensors | {"rope_freqs.weight": (0, [8], b"\0" * 32)}
    yield "shape", "has shape", meta, tensors | {a: (0, [48, 263], tensors[a][2])}
    yield "sizes", "sizes", meta | {"llama.attention.head_count": 0}, tensors
    yield "no sizes", "sizes", {k: v for k, v in meta.items() if k != "llama.block_count"}, tensors
    yield "layers", "sizes", meta | {"llama.block_count": 2**31}, tensors
    yield "eos", "tokenizer is damaged", meta | {"tokenizer.ggml.eos_token_id": 10**6}, tensors
    yield "tokens", "tokenizer is damaged", meta | {"tokenizer.ggml.tokens": [1, 2]}, tensors


@pytest.mark.parametrize("name, message, meta, tensors", list(broken_files()), ids=lambda v: v if isinstance(v, str) else "")
def test_a_bad_model_file_ends_in_one_line(tmp_path, capsys, name, message, meta, tensors):
    path, out = tmp_path / "bad.gguf", tmp_path / "results"
    if meta:
        write_gguf(path, meta, tensors)
        if name == "cut short":
            path.write_bytes(path.read_bytes()[:-1000])
    else:
        path.write_bytes(b"PK\3\4 something else" if name == "not a model" else b"")
    assert run_tasks("--model", path, "--out", out) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith(f"error: {path}") and message in error, error
    assert not out.exists()


def test_every_cut_of_a_model_file_is_noticed(tmp_path, tiny_path):
    whole = tiny_path.read_bytes()
    path = tmp_path / "cut.gguf"
    for n in [*range(0, 400, 7), *range(400, len(whole) - 40, 997)]:
        path.write_bytes(whole[:n])
        with pytest.raises(w2s.W2SError):
            w2s.load(path, "cpu")


def test_a_model_that_is_not_there_and_a_folder_that_cannot_be_written(tmp_path, capsys, tiny_path):
    assert run_tasks("--model", tmp_path / "none.gguf") == 2
    (tmp_path / "file").write_text("")
    assert run_tasks("--model", tiny_path, "--out", tmp_path / "file") == 2
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["error", "error"]


# ----------------------------------------------------------------------------------------------------------------------
# For real use: the other refinements, export, the command line
# ----------------------------------------------------------------------------------------------------------------------


def test_infer_and_respond_chooses_the_sentence_that_explains_held_out_answers():
    class Reader(Client):
        def generate(self, conversations, max_new_tokens, temperature=0.0, seed=0):
            self.calls.append(conversations)
            if len(self.calls) == 1:
                return [f" sentence {i}" for i in range(len(conversations))]
            return [c[-1]["content"].upper() for c in conversations]

        def logprob(self, conversations, responses):
            assert all(WEAK[NUMBERS.index(c[-1]["content"])] == r for c, r in zip(conversations, responses))
            return torch.full((len(responses),), -1.0 if "sentence 5" in conversations[0][0]["content"] else -2.0)

    client = Reader()
    assert w2s.infer_and_respond(client, NUMBERS, WEAK) == [q.upper() for q in NUMBERS]
    asked, answered = client.calls
    assert len(asked) == 8 and all(sum(f"Question: {q}\nAnswer: {a}" in c for q, a in zip(NUMBERS, WEAK)) == 8 for c in asked)
    assert all(c[0] == {"role": "system", "content": "The used style is sentence 5"} and c[1:] == w2s.as_conversation(q) for c, q in zip(answered, NUMBERS))


def test_ask_to_improve_shows_the_weak_answer():
    client = Client()
    assert w2s.ask_to_improve(type("C", (), {"generate": lambda self, c, n, **_: client.calls.append(c) or ["x"] * len(c)})(), NUMBERS, WEAK) == ["x"] * 60
    for c, q, a in zip(client.calls[0], NUMBERS, WEAK):
        assert [m["content"] for m in c[:2]] == [q, a] and c[2]["role"] == "user" and "mprove" in c[2]["content"]


def test_own_answers_stand_before_the_questions():
    client = Client()
    w2s.refine(client, NUMBERS, WEAK, n_icl=4, known=True)
    for q, c in zip(NUMBERS, client.calls[-1]):
        assert c[-1]["content"] == f"plain {q[-5:-2]}\n{q}"
        for user, weak in zip(c[0:-1:2], c[1:-1:2]):
            plain, asked = user["content"].split("\n")
            assert plain == f"plain {asked[-5:-2]}" and WEAK[NUMBERS.index(asked)] == weak["content"] and asked != q


def test_the_confidence_loss_mixes_in_the_model_s_own_predictions(tiny):
    rows = tiny.answer_rows(QUESTIONS, ["the", "an an", "?", "longer", "é", "x", "y", "zz"])
    with torch.no_grad():
        plain, _ = tiny.answer_loss(rows)
        own = []
        for prompt, answer in rows:
            logits = tiny.model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
            own += (-logits.log_softmax(-1).max(-1).values).tolist()
        for share in (0.25, 1.0):
            torch.testing.assert_close(tiny.answer_loss(rows, share)[0], (1 - share) * plain + share * torch.tensor(own), atol=1e-4, rtol=1e-4)
    losses = [w2s.finetune(tiny.copy(), QUESTIONS, ["the"] * 8, epochs=5, confidence=c) for c in (0.0, 0.5)]
    assert losses[0][0] == losses[1][0] and losses[1][1] < losses[0][1]  # warmed up from nothing; own predictions are the likelier ones


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_is_the_same_model(tmp_path, tiny_path, dtype):
    lm = w2s.load(tiny_path, "cpu", dtype)
    for model in (lm, lm.copy([0, 2])):
        model.save(tmp_path / "saved.gguf")
        again = w2s.load(tmp_path / "saved.gguf", "cpu", dtype)
        assert again.model.config == model.model.config and not (tmp_path / "saved.gguf.part").exists()
        for name, w in model.model.state_dict().items():
            torch.testing.assert_close(again.model.state_dict()[name], w, atol=0 if dtype == torch.bfloat16 else 1e-7, rtol=0 if dtype == torch.bfloat16 else 1e-3)
        old, new = (w2s.read_gguf(p)[0] for p in (tiny_path, tmp_path / "saved.gguf"))
        assert {k: v for k, v in new.items() if "block_count" not in k}.keys() == {k: v for k, v in old.items() if "block_count" not in k}.keys()
        assert new["tokenizer.ggml.tokens"] == old["tokenizer.ggml.tokens"] and new["llama.block_count"] == model.model.config.layers


def test_qwen2_has_biases_and_rotary_pairs_half_a_head_apart(tmp_path, tiny_path):
    meta, tensors = tiny_parts()
    zeros = {f"blk.{i}.attn_{n}.bias": (0, [s], b"\0" * 4 * s) for i in range(3) for n, s in (("q", 48), ("k", 16), ("v", 16))}
    meta = {k.replace("llama.", "qwen2."): v for k, v in meta.items()} | {"general.architecture": "qwen2", "tokenizer.ggml.pre": "qwen2"}
    llama = w2s.load(tiny_path, "cpu", torch.float32)
    # llama's queries and keys, put half a head apart as qwen2 files have them: without biases the same model
    for name in [n for n in tensors if "attn_q" in n or "attn_k" in n]:
        w = llama.model.state_dict()[name]
        apart = w.unflatten(0, (-1, 8, 2)).transpose(1, 2)  # (heads, 2, head_dim/2, dim)
        tensors[name] = (0, list(w.shape), apart.contiguous().numpy().tobytes())
    write_gguf(tmp_path / "biased.gguf", meta, tensors | zeros | {"blk.0.attn_q.bias": (0, [48], np.arange(48, dtype="f4").tobytes())})
    biased = w2s.load(tmp_path / "biased.gguf", "cpu", torch.float32)
    assert biased.model.blk[0].attn_q.bias[:5].tolist() == [0, 8, 1, 9, 2] and biased.model.blk[0].attn_q.bias[16] == 16
    biased.save(tmp_path / "saved.gguf")
    assert torch.equal(w2s.load(tmp_path / "saved.gguf", "cpu", torch.float32).model.blk[0].attn_q.bias, biased.model.blk[0].attn_q.bias)
    write_gguf(tmp_path / "qwen.gguf", meta, tensors | zeros)
    qwen = w2s.load(tmp_path / "qwen.gguf", "cpu", torch.float32)
    ids = torch.tensor([[5, 9, 40, 7, 7, 100]])
    with torch.no_grad():
        torch.testing.assert_close(qwen.model(ids), llama.model(ids))
        qwen.model.blk[1].attn_v.bias += 1
        assert not torch.allclose(qwen.model(ids), llama.model(ids))
    qwen.save(tmp_path / "again.gguf")
    assert w2s.load(tmp_path / "again.gguf", "cpu", torch.float32).model.blk[1].attn_v.bias.mean() == 1


def test_other_tensor_types_come_from_the_gguf_package(tmp_path, tiny_path, monkeypatch):
    meta, tensors = tiny_parts()
    name = "blk.0.ffn_up.weight"
    raw = np.frombuffer(tensors[name][2], "<f4").astype("<f2").tobytes()  # a made-up type 99: one weight a block, two bytes
    write_gguf(tmp_path / "odd.gguf", meta, tensors | {name: (99, tensors[name][1], raw)})
    fake = types.SimpleNamespace(GGMLQuantizationType=lambda kind: ("type", kind), GGML_QUANT_SIZES={99: (1, 2)},
                                 dequantize=lambda raw, kind: raw.view("<f2").astype("f4"))
    monkeypatch.setitem(sys.modules, "gguf", fake)
    w = w2s.load(tmp_path / "odd.gguf", "cpu", torch.float32).model.blk[0].ffn_up.weight
    torch.testing.assert_close(w, w2s.load(tiny_path, "cpu", torch.float32).model.blk[0].ffn_up.weight, atol=1e-3, rtol=1e-3, check_dtype=True)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(w2s.W2SError, match="pip install gguf"):
        w2s.load(tmp_path / "odd.gguf", "cpu")


def test_a_model_without_chat_markup_gets_the_paper_s_form(tmp_path):
    meta, tensors = tiny_parts()
    write_gguf(tmp_path / "base.gguf", {k: v for k, v in meta.items() if "template" not in k}, tensors)
    lm = w2s.load(tmp_path / "base.gguf", "cpu")
    context, turn = lm.tokenizer.chat([{"role": "system", "content": "S"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                                       {"role": "user", "content": "<|im_end|>"}])
    assert lm.tokenizer.decode(context + turn) == "S\n\nQuestion: a\nAnswer: b\n\nQuestion: <|im_end|>\nAnswer:"
    assert not set(context + turn) & {0, 1, 2} and lm.tokenizer.answer(lm.tokenizer.encode(" b\n\nQuestion: c")) == "b"


PRE_TOKENIZED = [  # text; the words of Hugging Face's tokenizers with the patterns of Llama 3 and of Qwen 2
    ("I'LL pay 12345 dollars,\n\n  naïve café!!\n x", ["I", "'LL", " pay", " ", "123", "45", " dollars", ",\n\n", " ", " naïve", " café", "!!\n", " x"],
     ["I", "'LL", " pay", " ", "1", "2", "3", "4", "5", " dollars", ",\n\n", " ", " naïve", " café", "!!\n", " x"]),
    ("\tif(x)  {\r\n return  }", ["\tif", "(x", ")", " ", " {\r\n", " return", " ", " }"], ["\tif", "(x", ")", " ", " {\r\n", " return", " ", " }"]),
]


@pytest.mark.parametrize("text, llama3, qwen2", PRE_TOKENIZED)
def test_other_pre_tokenizers(text, llama3, qwen2):
    for name, want in (("llama-bpe", llama3), ("qwen2", qwen2)):
        (pattern,) = w2s.pre_tokenizer(name)
        assert [w for w in pattern.split(text) if w] == want


def weak_file(path, n=12):
    path.write_text("".join(w2s.chat_line(f"the {i}?", f"an {i}!") for i in range(n)), encoding="utf-8")
    return path


def cli(*argv):
    return w2s.run(lambda: w2s.main(list(map(str, argv))))


def test_refine_finetune_and_generate_from_the_command_line(tiny_path, tmp_path, capsys):
    model, weak, refined, aligned = ("--model", tiny_path, "--device", "cpu"), weak_file(tmp_path / "weak.jsonl"), tmp_path / "refined.jsonl", tmp_path / "aligned.gguf"
    for options in (("improve",), ("iar", "--n-icl", 2), ("icl", "--keep", 1)):
        assert cli("refine", "--data", weak, "--out", refined, "--max-new-tokens", 8, "--method", *options, *model) == 0
        lines = [json.loads(line)["messages"] for line in refined.read_text().splitlines()]
        assert [m["content"] for m, _ in lines] == [f"the {i}?" for i in range(12)]
    capsys.readouterr()
    assert cli("refine", "--data", weak, "--max-new-tokens", 8, *model) == 0 and capsys.readouterr().out.count("assistant") == 8  # 60 % of 12, to standard output
    assert cli("finetune", "--data", weak, "--out", aligned, "--lr", 1e-2, "--epochs", 30, *model) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["aligned.gguf", "refined.jsonl", "weak.jsonl"]  # no side file is left
    assert cli("generate", "--model", aligned, "--max-new-tokens", 8, "the 3?", "the 4?") == 0
    answers = [json.loads(line)["messages"][1]["content"] for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 2 and all(a.startswith("an ") for a in answers)


def test_refine_goes_on_after_kill_9_and_ends_with_the_same_bytes(tiny_path, tmp_path):
    weak = weak_file(tmp_path / "weak.jsonl", 300)
    command = lambda out: [sys.executable, "w2s.py", "refine", "--data", weak, "--out", out, "--model", tiny_path, "--device", "cpu", "--max-new-tokens", "16"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command(tmp_path / "whole.jsonl"), check=True, env=environment, cwd=os.path.dirname(w2s.__file__))
    out, side = tmp_path / "out.jsonl", tmp_path / "out.jsonl.answers"
    for lines in (2, 5, 9):
        process = subprocess.Popen(command(out), env=environment, cwd=os.path.dirname(w2s.__file__))
        while process.poll() is None and not (side.exists() and side.read_text().count("\n") >= lines):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not out.exists()
        side.write_text(side.read_text()[:-20])  # torn, as a kill in the middle of a write leaves it
    subprocess.run(command(out), check=True, env=environment, cwd=os.path.dirname(w2s.__file__))
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes() and not side.exists()


def test_two_processes_do_what_one_does(tiny_path, tmp_path):
    weak, environment = weak_file(tmp_path / "weak.jsonl", 90), os.environ | {"OMP_NUM_THREADS": "1"}
    for n in (1, 2):
        launch = [sys.executable, *(["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"] if n == 2 else []), "w2s.py"]
        common = ["--model", tiny_path, "--device", "cpu"]
        for command in (["refine", "--data", weak, "--out", tmp_path / f"refined{n}.jsonl", "--max-new-tokens", "12"],
                        ["finetune", "--data", weak, "--out", tmp_path / f"aligned{n}.gguf", "--lr", "1e-3", "--epochs", "2"]):
            subprocess.run([*launch, *command, *common], check=True, env=environment, cwd=os.path.dirname(w2s.__file__), capture_output=True)
    assert (tmp_path / "refined1.jsonl").read_bytes() == (tmp_path / "refined2.jsonl").read_bytes()
    one, two = (w2s.load(tmp_path / f"aligned{n}.gguf", "cpu", torch.float32).model.state_dict() for n in (1, 2))
    start = w2s.load(tiny_path, "cpu", torch.float32).model.state_dict()
    apart = lambda a, b: torch.cat([(a[k] - b[k]).abs().flatten() for k in one])
    # The same steps, but for rounding: where the processor computes in bf16, a weight near one has neighbours 2^-7 away.
    assert apart(one, two).max() < 0.5 * apart(one, start).max() + 2**-7 and apart(one, two).sum() < 0.05 * apart(one, start).sum()


def test_no_answer_is_asked_for_twice(tmp_path):
    client = Client()
    client.checksum = lambda: 1
    first = w2s.refine(w2s.Remembered(client, tmp_path / "side"), NUMBERS, WEAK)
    asked = len(client.calls)
    assert w2s.refine(w2s.Remembered(client, tmp_path / "side"), NUMBERS, WEAK) == first and len(client.calls) == asked


GOOD = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})


@pytest.mark.parametrize("line, message", [
    ("{", "line 2"), ("[]", "line 2"), ('{"messages": []}', "line 2"), (GOOD.replace('"assistant"', '"robot"'), "role 'robot'"),
    (GOOD.replace('"role": "user", ', ""), "KeyError"), (GOOD.replace('"b"', '"  "'), "no question with an answer"), (GOOD.replace('"b"', "7"), "line 2"),
    ("[" * 100_000, "line 2"), (GOOD.replace('"a"', '"%s"' % ("x" * 5000)), "exceed the model's context"), (GOOD, "needs at least 2 different questions")])
def test_a_bad_line_is_named(tiny_path, tmp_path, capsys, line, message):
    path = tmp_path / "weak.jsonl"
    path.write_text(GOOD + "\n" + line + "\n")
    assert cli("refine", "--data", path, "--out", tmp_path / "out.jsonl", "--n-icl", 1, "--model", tiny_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error and not (tmp_path / "out.jsonl").exists()


def test_other_mistakes_on_the_command_line(tiny_path, tmp_path, capsys, monkeypatch):
    weak, model = weak_file(tmp_path / "weak.jsonl"), ("--model", tiny_path, "--device", "cpu")
    (tmp_path / "latin1.jsonl").write_bytes(GOOD.encode() + b"\n\xe9\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    one = weak_file(tmp_path / "one.jsonl", 1)
    for message, argv in {
        "is not UTF-8": ("refine", "--data", tmp_path / "latin1.jsonl", "--out", tmp_path / "o", *model),
        "holds no line": ("refine", "--data", tmp_path / "empty.jsonl", "--out", tmp_path / "o", *model),
        "No such file": ("refine", "--data", tmp_path / "none.jsonl", "--out", tmp_path / "o", *model),
        "n_icl=12 needs": ("refine", "--data", weak, "--out", tmp_path / "o", "--n-icl", 12, *model),
        "n_icl=1 needs": ("refine", "--data", one, "--out", tmp_path / "o", "--n-icl", 1, *model),
        "needs --out": ("finetune", "--data", weak, *model),
        "the command is": ("align",), "--method is one of": ("refine", "--method", "magic", "--data", weak),
        "--keep is no option of --method iar": ("refine", "--method", "iar", "--keep", 0.5, "--data", weak),
        "--n-icl is no option of --method improve": ("refine", "--method", "improve", "--n-icl", 2, "--data", weak),
        "No such file or directory": ("refine", "--data", weak, "--out", tmp_path / "no" / "o", *model),
        "device foo cannot be used": ("generate", "a?", "--model", tiny_path, "--device", "foo"),
        "the loss is": ("finetune", "--data", weak, "--out", tmp_path / "o.gguf", "--lr", "1e30", *model)}.items():
        assert cli(*argv) == 2, message
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    for wrong in (("--lr", "nan"), ("--lr", "-1"), ("--max-new-tokens", "-1"), ("--seed", "x")):
        with pytest.raises(SystemExit, match="2"):
            cli("finetune", "--data", weak, "--out", tmp_path / "o.gguf", *wrong, *model)
        assert f"argument {wrong[0]}: invalid number value: '{wrong[1]}'" in capsys.readouterr().err
    assert not (tmp_path / "o.gguf").exists()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the 1?\n\nthe 2?\n")))
    assert cli("generate", "--max-new-tokens", 2, *model) == 0 and capsys.readouterr().out.count('"role": "assistant"') == 2


def test_bench_prints_what_it_promises(tiny_path, tiny):
    result = tasks.bench(tiny_path, "cpu", repeats=1)
    assert {"load_s", "finetune_tok_s", "generate_tok_s", "refine_q_s", "peak_gb"} <= result.keys() and all(v > 0 for v in result.values())


# ----------------------------------------------------------------------------------------------------------------------
# Fuzz: ./run.sh test --fuzz 10000 for more than the few hundred mutations of every run
# ----------------------------------------------------------------------------------------------------------------------

HUGE = [0, 1, 2**31 - 1, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1]


def mutated(data, rng, region):
    """data with one to four mutations, most of them in its first `region` bytes."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(region if rng.random() < 0.9 else len(data))
        kind = rng.randrange(6)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + 8] = struct.pack("<Q", rng.choice(HUGE))
        elif kind == 2:
            data[at : at + 4] = struct.pack("<I", rng.choice(HUGE) & 0xFFFFFFFF)
        elif kind == 3:
            del data[at : at + rng.randint(1, 64)]
        elif kind == 4:
            data[at:at] = rng.randbytes(rng.randint(1, 16))
        elif len(data) > 200:
            del data[rng.randrange(100, len(data)) :]
        region = min(region, len(data) - 1)
    return bytes(data)


def test_fuzz(tmp_path, tiny_path):
    """Every mutation of a GGUF or JSONL file is read as it is or refused with the one error type, in bounded memory and time."""
    n, rng, outcomes = int(os.environ.get("W2S_FUZZ", 300)), random.Random(0), {"loads": 0, "errors": 0}
    model = tiny_path.read_bytes()
    lines = "".join(w2s.chat_line([{"role": "system", "content": "Sé breve"}, {"role": "user", "content": f"the {i}?"}], "an!") for i in range(5)).encode()
    before, slowest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0
    for i in range(n):
        path, start = tmp_path / "fuzz", time.perf_counter()
        path.write_bytes(mutated(model, rng, 12_000) if i % 4 else mutated(lines, rng, len(lines)))
        try:
            w2s.load(path, "cpu", torch.float32) if i % 4 else w2s.read_jsonl(path, w2s.chat)
            outcomes["loads"] += 1
        except w2s.W2SError as e:
            assert "\n" not in str(e)
            outcomes["errors"] += 1
        slowest = max(slowest, time.perf_counter() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"\n{n} mutations: {outcomes}, slowest {slowest:.2f} s, memory grown by {grown:.0f} MiB")
    assert outcomes["loads"] and outcomes["errors"] and grown < 1024 and slowest < 10
