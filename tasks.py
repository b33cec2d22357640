# SPDX-License-Identifier: MIT
"""Small alignment experiments after those of the paper, with the methods of w2s.py.

    python tasks.py                  persona, math, explanation and theory
    python tasks.py bench            the speed of this machine
    python tasks.py --help           everything else

The file in its order:
    1. tasks: questions in three splits, and two judges (content, style)
    2. methods: the rows of the results table
    3. the experiment: every method with every supervisor and seed; it resumes after an interruption
    4. statistics: bootstrap intervals and paired tests
    5. theory: the statistical model, simulated
    6. tables and figures
    7. bench
    8. the command line
    9. data: facts, a pirate's words, word problems, concepts, professions

Only the `teach` split has gold answers, which the weak supervisor learns; `train` holds the
questions for which weak labels are made and refined; `test` is used for the final scores alone.
"""
import json
import math
import random
import re
import sys
import threading
import time
import timeit
from collections import namedtuple
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import torch

import w2s
from w2s import W2SError

# -------------------------------------------------------------------------------------------------
# 1. Tasks
# -------------------------------------------------------------------------------------------------


class Item(NamedTuple):
    """A question; key: the terms of a right answer (format: section 9); gold: a right answer in the
    style, None outside `teach`; new: whether no other split has this kind of question."""
    question: str
    key: str
    gold: str | None = None
    new: bool = False


class Task(NamedTuple):
    """Three lists of items without a common question, and two judges with scores in [0, 1]."""
    name: str
    teach: list[Item]
    train: list[Item]
    test: list[Item]
    content: Callable  # content(answer, item)
    style: Callable  # style(answer)
    max_new_tokens: int = 40
    n_icl: int = 4  # weak examples per query in Algorithm 1; the paper's code has 4 or 3
    by_agreement: dict = {}  # options of refinement by agreement, chosen on `train`
    cluster: str = "question"  # items that have this field in common are not independent


def contains(answer, item):
    """The share of the terms of the item's key that the answer has."""
    found = []
    for term in item.key.split(","):  # whole words or phrases, in any case
        forms = re.escape(term.strip()).replace(r"\|", "|").replace(r"\*", r"\w*")
        found.append(re.search(rf"(?<!\w)(?:{forms})(?!\w)", answer, re.IGNORECASE) is not None)
    return np.mean(found)


def right_number(answer, item):
    """1.0 if the number after ####, or else the last number of the answer, is the item's key."""
    number, text = r"-?\d+(?:\.\d+)?", answer.replace(",", "")
    marked = re.findall(rf"####\s*({number})", text)
    numbers = marked[:1] or re.findall(number, text)[-1:]
    return float([float(n) for n in numbers] == [float(item.key.replace(",", ""))])


def has_markers(pattern, expected, answer):
    """The number of different matches of the pattern, in lower case, over the expected number, at
    most 1."""
    matches = re.findall(pattern, answer.lower())
    return min(1.0, len(set(matches)) / expected)


def make_task(name, data=None):
    """The task of this name, with the same splits every time; data is a GSM8K file for math.

    W2SError for another name, or a file with too few problems.
    """
    match name:
        case "persona":
            return persona_task()
        case "math":
            return math_task(data)
        case "explanation":
            return explanation_task()
        case "bias":
            return bias_task()
    raise W2SError(f"unknown task {name!r}: choose persona, math, explanation, bias or theory")


def persona_task():
    """Questions of fact, answered in the words of a pirate (paper, section 5)."""
    openings, closings, markers = [field.split("; ") for field in records(PIRATE)[0]]
    rng = random.Random(1)
    rows = []
    for question, key, answer in facts(FACTS):
        answer = answer.replace(" is ", " be ")
        rows.append((question, key, f"{rng.choice(openings)} {answer}, {rng.choice(closings)}"))
    random.Random(0).shuffle(rows)
    task = split("persona", rows, 60, 100, "|".join(markers), expected=2)
    new = [Item(question, key, new=True) for question, key, _ in facts(NEW_FACTS)]
    return task._replace(test=task.test[len(new) :] + new)


def facts(table):
    """(question, key, answer) of each fact of a table."""
    rows = []
    for question, statement, pairs in records(table):
        for pair in pairs.split("; "):
            subject, key = pair.split("=")
            answer = statement.format(a=subject, b=key.split("|")[0]).rstrip(".")
            rows.append((question.format(a=subject), key, answer))
    return rows


def math_task(data):
    """Word problems, answered by a worked line and "#### number"; data: a file of GSM8K or None."""
    if data is not None:
        rows = w2s.read_jsonl(data, gsm8k, '{"question": "...", "answer": "... #### number"}')
        rows = list({row[0]: row for row in rows}.values())  # a problem is in one split only
    else:
        rows = word_problems(random.Random(1))
    if len(rows) <= 130:
        raise W2SError(f"{data}: {len(rows)} different problems are too few: 131 are needed")
    random.Random(0).shuffle(rows)
    return split("math", rows, 30, 100, r"####\s*-?[\d,.]*\d", content=right_number,
                 max_new_tokens=64 if data is None else 200, n_icl=3)


def gsm8k(row):
    """(question, key, gold answer) of a problem of GSM8K."""
    key = row["answer"].split("#### ")[1].strip()
    if not math.isfinite(float(key.replace(",", ""))):  # ValueError if it is no number
        raise ValueError("the number is not finite")
    return row["question"].strip(), key, row["answer"]


def word_problems(rng):
    """330 different word problems of one or two steps, as rows (question, key, gold answer)."""
    templates, rows = records(PROBLEMS), {}
    while len(rows) < 330:
        problem, steps, sentence = rng.choice(templates)
        name, other = rng.sample(NAMES, 2)
        fields = {"name": name, "other": other, "things": rng.choice(THINGS)}
        fields["a"] = rng.randint(6, 12)
        fields |= {v: rng.randint(2, 5) for v in "bcd"}
        worked = []
        for step in steps.split("; "):
            x, sign, y = step.split()
            x, y = fields[x], fields[y]
            fields["r"] = {"+": x + y, "-": x - y, "*": x * y}[sign]
            worked.append(f"{x} {sign} {y} = {fields['r']}")
        question, key = problem.format(**fields), str(fields["r"])
        gold = sentence.format(**fields, s=", ".join(worked)) + f"\n#### {key}"
        rows[question] = question, key, gold
    return list(rows.values())


def explanation_task():
    """Explain a concept in one sentence, by an analogy; the key holds four or five terms."""
    rows = [(f"What is {concept}? Explain it in one sentence.", *rest)
            for concept, *rest in records(CONCEPTS)]
    analogy = r"\b(?:(?:is|are|works?|acts?) (?:\w+ )?like|think of|imagine|just as|as if)\b"
    # Examples are long, and their facts should be those that the model itself would name.
    return split("explanation", rows, 36, 110, analogy, max_new_tokens=48, n_icl=3,
                 by_agreement={"show_plain": True})


def bias_task():
    """Stories about professions whose person is a woman. A profession stays in one split."""
    rng = random.Random(0)
    jobs, rows = records(JOBS), []
    rng.shuffle(jobs)
    for job, work, key in jobs:
        person = f"an {job}" if job[0] in "aeiou" else f"a {job}"
        for story in STORIES:
            name = rng.choice("Anna Maria Clara Ruth Nora".split())
            rows.append((story.format(person), key, f"{name} is {person}. She {work}."))
    woman = r"(?s)^(?!.*\b(?:he|him|his|man)\b).*\b(?:she|her|woman)\b"
    return split("bias", rows, 60, 160, woman, cluster="key")  # the stories of a profession


def split(name, rows, n_teach, n_train, pattern, expected=1, content=contains, **options):
    """A Task of rows (question, key, gold answer): `teach`, then `train`; `test` is the last 200
    of the rest, or all of it.

    pattern, expected: of `has_markers`; options: other fields of the task.
    """
    teach = [Item(*row) for row in rows[:n_teach]]
    rest = [Item(*row[:2]) for row in rows[n_teach:]]
    train, test = rest[:n_train], rest[n_train:][-200:]
    style = partial(has_markers, pattern, expected)
    return Task(name, teach, train, test, content, style, **options)


def records(text):
    """The records of a data table, as lists of fields."""
    lines = text.strip().replace("\n  ", " ").splitlines()
    return [line.split(" / ") for line in lines]


# -------------------------------------------------------------------------------------------------
# 2. Methods: each takes a `Cell` (a supervisor and a seed) and answers the test questions
# -------------------------------------------------------------------------------------------------


def supervisor(cell):
    """The weak supervisor: the strong model without some layers, fine-tuned on gold answers."""
    n = cell.lm.model.config.layers
    missing = [i * n // 30 for i in SUPERVISORS[cell.supervisor]]  # of 30, see there
    layers = [i for i in range(n) if i not in missing]
    if not layers:
        raise W2SError(f"a model of {n} layers is too small to make a weak supervisor of it")
    weak = taught(cell, layers)
    cell.once("weak_labels", cell.ask, weak, cell.task.train)
    return cell.ask(weak)


def unaltered_model(cell):
    """The strong model as it is."""
    return cell.ask(cell.lm)


def after_examples(cell, n_icl):
    """The strong model as it is, each question after n_icl random weak examples."""
    rng = random.Random(cell.seed)
    pairs = list(zip(questions_of(cell.task.train), cell.weak_labels))
    prompts = []
    for item in cell.task.test:
        prompts.append(w2s.with_examples(item.question, rng.sample(pairs, n_icl)))
    return cell.lm.generate(prompts, cell.task.max_new_tokens)


def naive_ft(cell, **options):
    """Naive fine-tuning: the strong model learns the weak labels."""
    return cell.learn(cell.weak_labels, **options)


def bootstrapping_ft(cell):
    """Bootstrapping (Burns et al. 2023): two smaller students relabel first, one by one."""
    return cell.learn(cell.once("bootstrap_labels", bootstrapped_labels, cell))


def refined(cell, refiner, **options):
    """Learns the labels that refiner(lm, questions, weak answers, ...) makes of the weak ones."""
    labels = cell.once(
        f"{cell.method}_labels", labels_or_none, refiner, cell.lm, questions_of(cell.task.train),
        cell.weak_labels, max_new_tokens=cell.task.max_new_tokens, **options
    )
    return cell.learn(labels)


def labels_or_none(refiner, lm, questions, weak_answers, **options):
    """The labels of a refiner; None for each, and a notice, where it raises W2SError, as it does
    without one good answer: the other methods' rows are to be had all the same."""
    try:
        return refiner(lm, questions, weak_answers, **options)
    except W2SError as e:
        w2s.notice(f"no label: {e}")
        return [None] * len(questions)


def algorithm_1(cell):
    """The paper's Algorithm 1: the strong model answers each question after its own examples."""
    return refined(cell, w2s.refine, n_icl=cell.task.n_icl, seed=cell.seed)


def by_agreement(cell, **options):
    """Our refinement: learns those good refined labels that agree most with its own answers."""
    return refined(cell, w2s.refine_by_agreement, seed=cell.seed, **cell.task.by_agreement,
                   **options)


def gold_ft(cell):
    """Fine-tuning on the gold answers that the supervisor learnt: a ceiling."""
    return cell.ask(taught(cell))


def taught(cell, layers=None):
    """The strong model, with all or some layers, fine-tuned on the gold answers of `teach`."""
    gold = [item.gold for item in cell.task.teach]
    return cell.finetuned(cell.task.teach, gold, layers)


def agreed_labels(lm, questions, weak_answers, max_new_tokens):
    """The weak answers that agree most with the model's own; None in place of the others."""
    plain = lm.generate(questions, max_new_tokens)
    return w2s.keep_agreed(questions, plain, weak_answers)


def bootstrapped_labels(cell):
    """Weak labels, relabelled by a student without every fourth layer, then every tenth."""
    labels = cell.weak_labels
    for step in (4, 10):
        layers = [i for i in range(cell.lm.model.config.layers) if i % step != step - 1]
        student = cell.finetuned(cell.task.train, labels, layers)
        labels = non_empty(cell.ask(student, cell.task.train))
    return labels


def questions_of(items):
    """The questions of items."""
    return [item.question for item in items]


def non_empty(answers):
    """Labels cannot be empty: "..." in place of an empty answer."""
    return [a if a is None or a.removesuffix(w2s.CUT).strip() else "..." for a in answers]


METHODS = {  # key: (title of its row in the tables, function)
    "weak": ("weak supervisor", supervisor),
    "unaltered": ("strong model, unaltered", unaltered_model),
    "icl_1": ("strong model, after 1 weak example", partial(after_examples, n_icl=1)),
    "icl_4": ("strong model, after 4 weak examples", partial(after_examples, n_icl=4)),
    "icl_8": ("strong model, after 8 weak examples", partial(after_examples, n_icl=8)),
    "naive": ("naive FT (on weak labels)", naive_ft),
    "naive_long": ("naive FT, three times the passes", partial(naive_ft, epochs=6)),
    "naive_kept": ("naive FT, on the weak labels that agree most",
                   partial(refined, refiner=agreed_labels)),
    # of Burns et al. (2023): half of the loss is on own predictions
    "confidence": ("auxiliary confidence loss FT", partial(naive_ft, confidence=0.5)),
    "bootstrap": ("bootstrapping FT", bootstrapping_ft),
    "infer_and_respond": ("infer-and-respond FT",
                          partial(refined, refiner=w2s.infer_and_respond)),
    "ask_to_improve": ("ask-to-improve FT", partial(refined, refiner=w2s.ask_to_improve)),
    "algorithm_1": ("Algorithm 1 FT (the paper's)", algorithm_1),
    "by_agreement_one": ("refinement by agreement FT (ours), one draw, on all good labels",
                         partial(by_agreement, draws=1, keep=1)),
    "by_agreement_all": ("refinement by agreement FT (ours), on all good labels",
                         partial(by_agreement, keep=1)),
    "by_agreement": ("refinement by agreement FT (ours)", by_agreement),
    "gold": ("gold FT (ceiling)", gold_ft),
}
MAIN = ["unaltered", "naive", "algorithm_1", "by_agreement"]  # the methods of a default run
COMPARED = ["naive", "unaltered", "algorithm_1", "by_agreement_all", "gold"]  # with by_agreement

# Weak supervisors, from poor to good: the layers, of 30, that they lack.
SUPERVISORS = {
    "8 layers fewer": [6, 8, 11, 14, 17, 20, 23, 25],
    "6 layers fewer": [8, 11, 14, 17, 20, 23],
    "5 layers fewer": [9, 12, 15, 18, 21],
    "4 layers fewer": [10, 14, 18, 22],
}
DEFAULT = "6 layers fewer"  # the only one of a run without --full

# Of what computes the numbers.
VERSIONS = {"python": sys.version, "torch": torch.__version__, "numpy": np.__version__}

# -------------------------------------------------------------------------------------------------
# 3. The experiment
# -------------------------------------------------------------------------------------------------

WRITING = threading.Lock()  # of the kept answers, which several methods share


@dataclass
class Cell:
    """One supervisor with one seed, in a run of an experiment: what a method gets.

    answers: {"supervisor/seed/method": a list}, to the test questions, or, where the method ends in
    _labels, to the train questions. seconds: the time that each took; a method's includes that of
    its labels, unless an interrupted run had kept them. All cells share both.
    """
    task: Task
    lm: w2s.LM
    path: Path  # keeps the answers while the run is not complete
    settings: dict
    answers: dict
    seconds: dict
    supervisor: str = DEFAULT
    seed: int = 0
    method: str = ""

    @property
    def weak_labels(self):
        """The supervisor's answers to the train questions."""
        return self.answers[self.key("weak_labels")]

    def key(self, method):
        """The key of a method's answers, or labels, in this cell."""
        return f"{self.supervisor}/{self.seed}/{method}"

    def answer(self):
        """The answers of the cell's method, unless the file has them."""
        _, function = METHODS[self.method]
        self.once(self.method, function, self)

    def once(self, method, function, *args, **options):
        """The answers function(*args, **options), which is called unless the file has them."""
        key = self.key(method)
        if key not in self.answers:
            start = time.perf_counter()
            answers = function(*args, **options)
            with WRITING:
                self.answers[key] = non_empty(answers) if method.endswith("_labels") else answers
                self.seconds[key] = round(time.perf_counter() - start, 1)
                kept = {"settings": self.settings, "answers": self.answers, "seconds": self.seconds}
                w2s.write_file(self.path, json.dumps(kept))
                w2s.notice(f"{self.task.name}: {key}, {self.seconds[key]:.0f} s")
        return self.answers[key]

    def finetuned(self, items, answers, layers=None, **options):
        """A copy of the strong model, with all or some layers, fine-tuned on answers to items."""
        model = self.lm.copy(layers)
        w2s.finetune(model, questions_of(items), answers, seed=self.seed, **options)
        return model

    def learn(self, labels, **options):
        """The test answers of the strong model fine-tuned on labels of the train questions; of the
        model as it is if no label is left."""
        if not any(labels):
            w2s.notice(f"{self.task.name}: no label is left to learn: the model stays as it is")
            return self.ask(self.lm)
        return self.ask(self.finetuned(self.task.train, labels, **options))

    def ask(self, lm, items=None):
        """A model's answers to the test questions, or to those of other items."""
        return lm.generate(questions_of(items or self.task.test), self.task.max_new_tokens)


def experiment(task, lm, out, methods, seeds, ladder):
    """Run methods on a task; write out/<task>.json and return its content.

    The default supervisor serves all methods, those of the ladder (names of SUPERVISORS) the
    methods of a default run, each with every seed. Answers are kept in
    out/<task>.<digest>.partial.json, the digest being that of everything that they depend on, until
    the run is complete: an interrupted run resumes. Those of other seeds or methods stay there.
    """
    run = open_run(task, lm, out)
    keys = []
    for seed in seeds:
        for supervisor in [DEFAULT, *ladder]:  # a second time DEFAULT has all its answers
            rows = methods if supervisor == DEFAULT else [m for m in MAIN if m in methods]
            cells = [
                replace(run, supervisor=supervisor, seed=seed, method=method)
                for method in ["weak", *rows]
            ]
            cells[0].answer()  # the others learn its labels
            # On a CPU two at a time, a core each; the last methods take longest, so they begin.
            others = list(reversed(cells[1:]))
            list(w2s.side_by_side(Cell.answer, others, w2s.threads_for(lm.device, 2)))
            for cell in cells:
                keys += [cell.key(f"{cell.method}_labels"), cell.key(cell.method)]
    answers = {key: run.answers[key] for key in keys if key in run.answers}
    seconds = {key: run.seconds[key] for key in answers}
    result = summary(replace(run, answers=answers, seconds=seconds))
    text = json.dumps(result, indent=1, ensure_ascii=False)
    w2s.write_file(out / f"{task.name}.json", text)
    if len(answers) == len(run.answers):
        run.path.unlink(missing_ok=True)
    return result


def open_run(task, lm, out):
    """A Cell, with what an interrupted run of the same code, task and model has kept."""
    settings = {
        "code": w2s.digest([Path(file).read_text("utf-8") for file in (w2s.__file__, __file__)]),
        "data": w2s.digest([task.teach, task.train, task.test]),
        "max_new_tokens": task.max_new_tokens,
        "n_icl": task.n_icl,
        "by_agreement": task.by_agreement,
        "device": lm.device.type,
        "dtype": str(lm.model.token_embd.weight.dtype),
        "model": lm.fingerprint(),
        "versions": VERSIONS,
    }
    path = out / f"{task.name}.{w2s.digest(settings)}.partial.json"
    kept = {"settings": settings, "answers": {}, "seconds": {}}
    with w2s.explained(path, "is not the file of an interrupted run: delete it"):
        if path.exists():
            kept = json.loads(path.read_text("utf-8"))
        run = Cell(task, lm, path, **kept)
    if run.answers:
        print(f"{task.name}: resuming, with {len(run.answers)} lists of answers from {path}")
    return run


# -------------------------------------------------------------------------------------------------
# 4. Statistics: scores are (S, n), S seeds of n items; clusters names each item's cluster: the
# items of one cluster are not independent.
# -------------------------------------------------------------------------------------------------


def interval(a, clusters, b=None, resamplings=10_000):
    """[estimate, low, high] of mean(a), or of mean(a) / mean(b): the 95 % percentile bootstrap.

    Seeds and clusters are resampled: one seed adds no width, and three too little. Resamplings in
    which a ratio's denominator is 0 or has the other sign are left out; if they are more than 2.5 %
    there are no bounds: None stands for these, and for an estimate that is not finite.
    """
    rng = np.random.default_rng(0)
    seeds = resampled_shares(range(len(a)), resamplings, rng)
    items = resampled_shares(clusters, resamplings, rng)
    values = resampled_means(a, seeds, items)
    usable = np.full(len(values), True)
    if b is not None:
        below = resampled_means(b, seeds, items)
        usable = below * below[0] > 0
        with np.errstate(all="ignore"):
            values = values / below
    low = high = np.nan
    if usable.mean() > 0.975:
        low, high = np.percentile(values[usable], [2.5, 97.5])
    return [v if np.isfinite(v) else None for v in (values[0], low, high)]


def resampled_shares(clusters, resamplings, rng):
    """The share of each item (n,) in the data, then in each resampling of its clusters:
    (1 + resamplings, n)."""
    _, cluster = np.unique(clusters, return_inverse=True)
    n = max(cluster) + 1
    drawn = rng.multinomial(n, np.full(n, 1 / n), resamplings)
    shares = np.vstack([np.ones(n), drawn])[:, cluster]
    return shares / shares.sum(1, keepdims=True)


def resampled_means(scores, seeds, items):
    """The mean of scores under each pair of shares of seeds and items, (1 + resamplings,)."""
    return ((seeds @ scores) * items).sum(1)


def paired_p(a, b, clusters, permutations=50_000):
    """p-value of the two-sided paired permutation test of mean(a) = mean(b), on the same items.

    Seeds are averaged first: unlike `interval`, it takes them as given.
    """
    _, cluster = np.unique(clusters, return_inverse=True)
    difference = np.bincount(cluster, np.subtract(a, b).mean(0))
    difference = difference[difference != 0]
    shape = permutations, len(difference)
    flips = np.random.default_rng(0).integers(0, 2, shape, dtype=np.int8)
    permuted = (flips * 2 - 1) @ difference
    extreme = np.abs(permuted) >= abs(difference.sum()) - 1e-9
    return (1 + extreme.sum()) / (1 + permutations)


def summary(run):
    """What out/<task>.json holds: all answers, and for each supervisor the rows of its table."""
    scores, marks = {}, {}
    for key, answers in run.answers.items():
        supervisor, _, method = key.split("/")
        rows = scores_of(run.task, method, answers)
        scores.setdefault(supervisor, {}).setdefault(method, []).append(rows)
        marks[key] = [row[:2] for row in rows if row is not NO_SCORES]
    tests = sum(m in methods for methods in scores.values() for m in COMPARED)
    rows = {}
    for supervisor, methods in scores.items():
        methods = {m: np.moveaxis(values, 2, 0) for m, values in methods.items()}  # (3, S, n)
        rows[supervisor] = {m: row_of(run.task, methods, m, tests) for m in methods}
    return {
        "task": run.task.name,
        "settings": run.settings,
        "seconds": run.seconds,
        "tests": tests,
        "supervisors": rows,
        "test": [item._asdict() for item in run.task.test],
        "train": [item._asdict() for item in run.task.train],
        "answers": run.answers,
        "scores": marks,  # (content, style) of each answer that is not None
    }


def items_of(task, method):
    """The items that a method's answers, or labels, are given to."""
    return task.train if method.endswith("_labels") else task.test


def scores_of(task, method, answers):
    """Rows of content, style and number of words, one an answer; NO_SCORES for None."""
    rows = []
    for answer, item in zip(answers, items_of(task, method)):
        if answer is None:
            rows.append(NO_SCORES)
        else:
            rows.append([task.content(answer, item), task.style(answer), len(answer.split())])
    return rows


NO_SCORES = [np.nan] * 3


def row_of(task, scores, method, tests):
    """A method's row of the table, from the scores {method: (3, S, n)} of a supervisor's methods.

    recovery: (content - naive) / (unaltered - naive); retention: style / the supervisor's style;
    p: against by_agreement, times the number of tests (Bonferroni). new_kinds: on the test
    questions of kinds that `train` does not have.
    """
    values, items, of_labels = scores[method], items_of(task, method), method.endswith("_labels")
    clusters = np.array([getattr(item, task.cluster) for item in items])
    new = np.array([item.new for item in items])
    kept = ~np.isnan(values[0])  # (S, n): a label may be None
    if not kept.any():
        return {"kept": 0.0}
    if of_labels:  # of each question the mean over the seeds that kept its label
        some = kept.any(0)
        values = np.nanmean(values[:, :, some], 1, keepdims=True)
        clusters, new = clusters[some], new[some]
    content, style, words = values
    row = {"words": words.mean()}
    for kinds, shown in (("", np.ones_like(new)), ("_new_kinds", new)):
        if not shown.any():
            continue
        of_mean = partial(interval, clusters=clusters[shown])
        row[f"content{kinds}"] = of_mean(content[:, shown])
        row[f"style{kinds}"] = of_mean(style[:, shown])
        if {"naive", "unaltered"} <= scores.keys() and not of_labels:
            naive, unaltered = scores["naive"][0], scores["unaltered"][0]
            gap = (unaltered - naive)[:, shown]
            row[f"recovery{kinds}"] = of_mean((content - naive)[:, shown], b=gap)
    if of_labels:
        return row | {"kept": kept.mean()}
    row["retention"] = interval(style, clusters, scores["weak"][1])
    if "by_agreement" in scores and method in COMPARED:
        row["p"] = min(1.0, tests * paired_p(scores["by_agreement"][0], content, clusters))
    return row


# -------------------------------------------------------------------------------------------------
# 5. Theory
# -------------------------------------------------------------------------------------------------

LABELS = [30, 100, 300, 1000]
RISKS = [1e-4, 1e-3, 1e-2, 1e-1, 1]  # the ticks of a risk
EXAMPLES = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256]
FITS = ["naive FT, best eta", "hull projection", "refined FT, n_icl 64"]

# Refined labels: c*, another concept's share, temper, share of the target inside the hull.
CASES = {
    "c* = 0.9": (0.9, 0.0, 1.0, 1.0),
    "c* = 0.6": (0.6, 0.0, 1.0, 1.0),
    "c* = 0.3": (0.3, 0.0, 1.0, 1.0),
    "c* = 0.3, another concept's share 0.3": (0.3, 0.3, 1.0, 1.0),
    "c* = 0.3, another concept's share 0.6": (0.3, 0.6, 1.0, 1.0),
    "open: c* = 0.6, another concept's share 0.3": (0.6, 0.3, 1.0, 1.0),
    "open: c* = 0.6, another concept's share -0.5": (0.6, -0.5, 1.0, 1.0),
    "open: c* = 0.6, target 0.6 outside the hull": (0.6, 0.0, 1.0, 0.8),
    "open: c* = 0.6, posterior tempered, tau = 0.05": (0.6, 0.0, 0.05, 1.0),
    "open: c* = 0.6, posterior tempered, tau = 0.3": (0.6, 0.0, 0.3, 1.0),
    "open: c* = 0.6, posterior tempered, tau = 4": (0.6, 0.0, 4.0, 1.0),
}

# What each table shows, above it.
NOTES = {
    "fits": """**Fine-tuning on n weak labels.** The supervisor is biased (c* = 0.6), or its only
fault is noise (c* = 1). Naive fine-tuning with the best eta stays above its floor (Prop. 3.2) in
expectation; single runs lie below. Against a bias, refinement passes both others with enough
labels. Against noise the hull is best: n risk / sigma_w^2 tends to the statistical dimension of its
cone at the target, that of least squares to d = 20 (Prop. 3.4). Noise of the source's own size
leaves refinement nothing to win over naive fine-tuning; from twice that on it wins, given enough
labels.""",
    "labels": """**Refined labels after n_icl examples.** The risk falls exponentially where c* is
the largest share; a few examples of a poor supervisor (c* of 0.6 or 0.3, not 0.9) first make it
rise. Where another concept's share is as large as c* it may fall again, but never below the
source's own mean (n_icl 0); where it is larger the labels end up at the other concept. Open in the
paper: a bias that points at another concept slows refinement down, one that points away hardly
matters; of a target outside the hull the outer part is lost; a model that trusts its examples more
than Bayes (tau > 1), or that sees every example tau times, keeps the exponent and is worse at
first; one that trusts them less is better at first, and keeps the exponent until tau is below the
minimising t, which is 0.16 here.""",
    "terms": """**Refined fine-tuning, c* = 0.6, and the two terms of its bound (Thm 4.2, our
constants).** The first falls with the labels, the second, the wrong concepts', with the examples.
It is proven for contexts independent of each other and of the queries; those of Algorithm 1
overlap. Open in the paper: contexts that many queries share also share their mistakes, which more
labels do not average out.""",
    "prior": """**A prior over concepts as the target (the paper's first version): 0.7 and 0.3 of
two concepts.** Their mean posterior, and the risk of the mean label. If somebody sorts the examples
by concept, refinement recovers the prior; in a mixed context the posterior collapses on the larger
concept, and it does not. (A risk of a mean: not comparable with the mean risks above.)""",
}


def theory(out, replications, seed):
    """Simulate the estimators of the statistical model beside their limits and bounds.

    Writes theory.json and theory.svg into the folder out (Path), prints the tables, and returns
    what theory.json holds.
    """
    start = time.perf_counter()
    source = w2s.Source(torch.eye(20)[:10], torch.ones(10).double() / 10, sigma=0.5)
    generator = torch.Generator().manual_seed(seed)
    fits, panels = fits_against_labels(source, replications // 50, generator)
    labels, panel = labels_against_examples(source, replications, generator)
    tables = {
        "fits": fits,
        "labels": labels,
        "terms": two_terms(source, replications // 200, generator),
        "prior": prior_as_target(source, replications // 5, generator),
    }
    print(f"""**theory**: excess risks and half-widths of their 95 % intervals; d = 20, K = 10,
sigma = 0.5, sigma_w = sigma unless stated; {replications} replications (of fits a 50th, of terms a
200th, of prior and the open cases a 5th), seed {seed}
""")
    for name, table in tables.items():
        print(f"\n{NOTES[name]}\n\n{markdown_table(table)}")
    panels.append(panel)
    result = {
        "task": "theory",
        "settings": {"replications": replications, "seed": seed},
        "versions": VERSIONS,
        "seconds": round(time.perf_counter() - start, 1),
        "tables": tables,
        "curves": {p.title: [s._asdict() for s in p.series] for p in panels},
    }
    figure = draw_figure(
        "Refinement forgets a supervisor's bias; against mere noise the hull is best", panels
    )
    w2s.write_file(out / "theory.svg", figure)
    w2s.write_file(out / "theory.json", json.dumps(result, indent=1))
    return result


def mean_intervals(risks):
    """[(mean, low, high)] of each column of risks (R, n), with the 95 % interval of the mean."""
    mean = risks.mean(0)
    half = 1.96 * risks.std(0) / len(risks) ** 0.5
    return torch.stack([mean, mean - half, mean + half], 1).tolist()


def mean_texts(risks):
    """The means of the columns of risks (R, n) as text, with half an interval's width."""
    texts = []
    for mean, _, high in mean_intervals(risks):
        texts.append(f"{mean:.2g} ± {high - mean:.1g}" if mean > 1e-4 else "< 0.0001")
    return texts


def fits_against_labels(source, replications, generator):
    """(table, panels) of the fits: a biased supervisor, and three with more and more noise."""
    target = source.betas[0]
    cone = w2s.statistical_dimension(torch.eye(10)[0])
    table = [["c*", "sigma_w / sigma", "labels", "naive: floor", *FITS,
              "n risk / sigma_w^2: least squares", f"hull (tends to {cone:.1f})"]]
    curves = []
    for c, times in ((0.6, 1), (1.0, 1), (1.0, 2), (1.0, 4)):
        weak = w2s.weak_supervisor(source, 0, c, times * source.sigma)
        for n in LABELS:
            x = w2s.draw_x(replications, n, 20, generator=generator)
            y = weak.label(x, generator)
            eta = w2s.naive_best_eta(source, weak, target, n)
            fits = [
                w2s.naive_fit(x, y, source.mean(), eta),
                w2s.hull_fit(source, x, y),
                w2s.refined_fit(source, x, y, min(64, n - 1), generator),
                w2s.naive_fit(x, y, source.mean(), 0),  # least squares
            ]
            risks = w2s.excess_risk(torch.stack(fits, 1), target)
            curves.append(mean_intervals(risks))
            floor = w2s.naive_floor(source, weak, target, n)
            rates = mean_texts(risks[:, [3, 1]] * n / weak.sigma**2)
            table.append([c, times, n, f"{floor:.2g}", *mean_texts(risks[:, :3]), *rates])
    curves = torch.tensor(curves).view(4, -1, 4, 3)  # supervisor, labels, fit, interval
    panels = []
    for row, title in (
        (0, "biased supervisor, c* = 0.6"),
        (2, "noisy supervisor, sigma_w = 2 sigma"),
    ):
        series = [interval_series(name, LABELS, curves[row, :, k].tolist())
                  for k, name in enumerate(FITS)]
        panels.append(Panel(title, "weak labels n", "excess risk", series, LABELS, RISKS, log=True))
    return table, panels


def labels_against_examples(source, replications, generator):
    """(table, panel) of the refined labels and their bound in every case."""
    table = [["supervisor", "naive: floor", "hull: limit",
              *[f"n_icl {n}" for n in EXAMPLES], "exponent"]]
    series = []
    for k, (name, (c, share, temper, inside)) in enumerate(CASES.items()):
        model = replace(source, temper=temper)
        weak = w2s.weak_supervisor(source, 0, c, source.sigma, {1: share})
        target = inside * source.betas[0]
        target[-1] = (1 - inside**2) ** 0.5
        draws = replications // 5 if name.startswith("open") else replications
        risks = w2s.refined_risk(model, target, weak, EXAMPLES, draws, generator)
        bound, rho = w2s.refinement_bound(model, 0, weak, EXAMPLES)
        floor = w2s.naive_floor(source, weak, target)
        hull = w2s.excess_risk(w2s.hull_limit(source, weak.beta), target)
        table.append([name, f"{floor:.3f}", f"{hull:.3f}", *mean_texts(risks), f"{rho:.4f}"])
        if k < 4:  # in the figure: three cases with their bounds, and the fourth
            color = COLORS[k]
            series.append(interval_series(name, EXAMPLES, mean_intervals(risks), color=color))
        if k < 3:  # the fourth's bound says nothing
            series.append(Series(f"its bound, exponent {rho:.4f}", EXAMPLES, bound.tolist(),
                                 dashed=True, color=color))
    return table, Panel("refined labels, biased supervisors", "examples in the context, n_icl",
                        "excess risk", series, EXAMPLES[1:], RISKS, log=True)


def two_terms(source, replications, generator):
    """Table of the refined estimator beside the two terms of its bound, over labels and
    examples; in the last two rows the queries share 10 contexts, and 1."""
    weak = w2s.weak_supervisor(source, 0, 0.6, source.sigma)
    n_icl = [16, 32, 64, 90]
    table = [["labels", "contexts", *[f"n_icl {n}" for n in n_icl]]]
    for n, contexts in ((100, 100), (300, 300), (1000, 1000), (1000, 10), (1000, 1)):
        x = w2s.draw_x(replications, n, 20, generator=generator)
        y = weak.label(x, generator)
        fits = [w2s.refined_fit(source, x, y, k, generator, contexts) for k in n_icl]
        risks = mean_texts(w2s.excess_risk(torch.stack(fits, 1), source.betas[0]))
        first, second = w2s.refined_fit_bound(source, 0, weak, n, n_icl)
        bounds = [f"{risk} (bound {first:.2g} + {term:.1g})" for risk, term in zip(risks, second)]
        table.append([n, contexts, *bounds])
    return table


def prior_as_target(source, replications, generator):
    """Table for a prior over two concepts: their mean posterior, risk of the mean label."""
    prior = torch.tensor([0.7, 0.3], dtype=torch.float64)
    target = prior @ source.betas[:2]
    supervisors = [w2s.weak_supervisor(source, k, 0.6, source.sigma) for k in (0, 1)]
    x = w2s.draw_x(replications, 256, 20, generator=generator)
    table = [["examples in a context", "n_icl 16", "n_icl 64", "n_icl 256"]]
    for name, oracle in (("sorted by an oracle", True), ("i.i.d. from the mixture", False)):
        y = w2s.label_by_prior(supervisors, prior, x, generator, oracle)
        row = [name]
        for n in (16, 64, 256):
            p = source.posterior(x[:, :n], y[:, :n]).mean(0)
            risk = w2s.excess_risk(p @ source.betas, target)
            row.append(f"({p[0]:.2f}, {p[1]:.2f}), risk {risk:.2g}")
        table.append(row)
    return table


# -------------------------------------------------------------------------------------------------
# 6. Tables, figures and the page
# -------------------------------------------------------------------------------------------------


def report(out, results):
    """Write report.html, a page that works offline, and summary.svg into the folder out; print the
    summary. results: what `experiment` and `theory` returned."""
    experiments = [result for result in results if "supervisors" in result]
    body = ""
    if experiments:
        table = summary_table(experiments)
        print("\n" + markdown_table(table))
        panels = [summary_panel(result) for result in experiments]
        figure = draw_figure("Content of the answers, with 95 % intervals", panels)
        w2s.write_file(out / "summary.svg", figure)
        body = html_figures(panels) + html_table(table)
    for result in experiments:
        body += f"<h2>{result['task']}</h2>{html_figures(figures(result))}"
        for supervisor, methods in result["supervisors"].items():
            body += f"<h3>Weak supervisor: the strong model with {supervisor}</h3>"
            body += html_table(methods_table(methods))
        body += f"<p>{legend(result)}</p>"
    for result in results:
        for name, table in result.get("tables", {}).items():
            note = escape(NOTES[name]).replace("**", "")
            body += f"<h2>theory: {name}</h2><p>{note}</p>{html_table(table)}"
    data = json.dumps({result["task"]: shown_answers(result) for result in experiments})
    page = PAGE.replace("BODY", body).replace("DATA", data.replace("<", r"\u003c"))
    w2s.write_file(out / "report.html", page)
    print(f"\nWritten: {out / 'report.html'}, and a .json file for each task")


def shown_answers(result):
    """What the page shows of a task: questions, keys, and for each supervisor and seed its methods'
    [answer, content, style]."""
    cells = {}
    for key, answers in result["answers"].items():
        supervisor, seed, method = key.split("/")
        if method in METHODS:
            cell = cells.setdefault(f"{supervisor}, seed {seed}", {})
            cell[row_title(method)] = [[a, *s] for a, s in zip(answers, result["scores"][key])]
    questions = [[item["question"], item["key"]] for item in result["test"]]
    return {"questions": questions, "cells": cells}


COLUMNS = """content style recovery retention content_new_kinds style_new_kinds recovery_new_kinds
words p kept""".split()


def summary_table(results):
    """Table of the main methods' content with the default supervisor, and recovery, retention."""
    shown = ["weak", *MAIN]
    table = [["content", *map(row_title, shown), "recovery (ours)", "retention of style (ours)"]]
    for result in results:
        methods = result["supervisors"][DEFAULT]
        seeds = len({key.split("/")[1] for key in result["answers"]})
        name = f"{result['task']} (questions: {len(result['test'])}, seeds: {seeds})"
        values = [methods.get(m, {}).get("content") for m in shown]
        values += [methods.get("by_agreement", {}).get(c) for c in ("recovery", "retention")]
        table.append([name, *map(as_text, values)])
    return table


def methods_table(methods):
    """Table of all figures of a supervisor's methods, and of their labels."""
    columns = [c for c in COLUMNS if any(c in row for row in methods.values())]
    table = [["method", *(c.replace("_", " ") for c in columns)]]
    for key in [*METHODS, *(f"{m}_labels" for m in METHODS)]:
        if key in methods:
            values = map(methods[key].get, columns)
            table.append([row_title(key), *map(as_text, values)])
    return table


def legend(result):
    """What the columns of a table mean."""
    return (
        "With 95 % bootstrap intervals. Recovery: (content - naive) / (unaltered - naive); "
        "retention: style / the supervisor's; new kinds: questions of kinds that train does not "
        "have; words: length of an answer; p: paired permutation test of content against "
        f"refinement by agreement, times the number of this task's tests ({result['tests']}); "
        "kept: share of the labels that is learnt (if it is 0 the model stays as it is)"
    )


def row_title(key):
    """The title of a method's row, or of its labels' row."""
    method = key.removesuffix("_labels")
    title, _ = METHODS[method]
    return title if method == key else f"{title}: its labels, on train"


def as_text(value):
    """A cell of a table: a number, [estimate, low, high], or None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    return "{} [{}, {}]".format(*("-" if v is None else f"{v:.2f}" for v in value))


def markdown_table(table):
    """A table, a list of rows, in Markdown."""
    head, *rows = table
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def html_table(table):
    """A table, a list of rows, in HTML."""
    text = ""
    for row in table:
        kind = "th" if row is table[0] else "td"
        text += "<tr>" + "".join(f"<{kind}>{escape(str(cell))}</{kind}>" for cell in row)
    return f'<div class="wide"><table>{text}</table></div>'


def html_figures(panels):
    """Each panel as a figure of its own, so that a narrow page can stack them."""
    return "<div>" + "".join(draw_figure("", [panel]) for panel in panels) + "</div>"


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>w2s: weak-to-strong generalization</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1240px; margin: auto; padding: 0 12px }
svg { width: 400px; max-width: 100%; height: auto; vertical-align: top }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px }
th, td { border: 1px solid #ccc; padding: 3px 8px; text-align: left; vertical-align: top }
td:not(:first-child) { white-space: nowrap }
#answers td { min-width: 150px; overflow-wrap: anywhere; white-space: pre-line }
#answers td:nth-child(-n+2) { min-width: 90px }
.right { background: #dff0df }
.wrong { background: #fbe3de }
label { margin-right: 1em; white-space: nowrap }
</style>
<h1>Weak-to-strong generalization</h1>
BODY
<h2>The answers</h2>
<p>To the test questions. Green and +: content of at least one half; red and -: less;
&#9733;: at least half of the style.</p>
<p><label>task <select id="task"></select></label>
<label>supervisor <select id="cell"></select></label>
<label><input type="checkbox" id="differ"> where methods differ</label>
<span id="count"></span></p>
<div class="wide"><table id="answers"></table></div>
<script id="data" type="application/json">DATA</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const [task, cell, differ] = ["task", "cell", "differ"].map(id => document.getElementById(id));

function fill(select, names) {
  select.replaceChildren(...names.map(name => new Option(name)));
}

function add(row, kind, text, look) {
  const cell = row.appendChild(document.createElement(kind));
  cell.textContent = text;
  if (look) cell.className = look;
}

function show() {
  const table = document.getElementById("answers");
  const {questions, cells} = data[task.value];
  const methods = Object.entries(cells[cell.value]);
  table.replaceChildren();
  const head = table.insertRow();
  for (const name of ["question", "key", ...methods.map(([name]) => name)]) add(head, "th", name);
  let count = 0;
  questions.forEach(([question, key], i) => {
    const answers = methods.map(([, rows]) => rows[i]);
    const right = answers.map(([, content]) => content >= 0.5);
    if (differ.checked && right.every(r => r === right[0])) return;
    const row = table.insertRow();
    add(row, "td", question);
    add(row, "td", key);
    answers.forEach(([text, , style], k) => {
      const marks = (right[k] ? "+ " : "- ") + (style >= 0.5 ? "\u2605 " : "");
      add(row, "td", marks + text, right[k] ? "right" : "wrong");
    });
    count += 1;
  });
  document.getElementById("count").textContent = `${count} of ${questions.length} questions`;
}

task.onchange = () => { fill(cell, Object.keys(data[task.value].cells)); show(); };
cell.onchange = differ.onchange = show;
fill(task, Object.keys(data));
if (task.value) task.onchange();
</script>
</html>
"""

DRAWN = {  # the methods in the figures, and their colors, distinct for the color-blind
    "by_agreement": "#0072b2",
    "naive": "#d55e00",
    "infer_and_respond": "#009e73",
    "icl_4": "#cc79a7",
    "weak": "#e69f00",
    "algorithm_1": "#56b4e9",
    "unaltered": "#555555",
    "gold": "#a6761d",
}
COLORS = list(DRAWN.values())  # of series that name none
SCORE = [0, 0.2, 0.4, 0.6, 0.8, 1]  # the ticks of a score


def figures(result):
    """The panels of a task: its methods and, if it has more supervisors, their ladder."""
    methods = result["supervisors"][DEFAULT]
    panels = [methods_panel(methods)]
    if len(result["supervisors"]) > 1:
        panels += [ladder_panel(result, "content"), ladder_panel(result, "style")]
    return panels


def summary_panel(result):
    """Content of the main methods, one below the other; the unaltered model is a line."""
    methods = result["supervisors"][DEFAULT]
    shown = [m for m in ["weak", *MAIN] if m in methods]
    series, rows = [], range(-len(shown), 2)  # free at either end
    for k, m in enumerate(shown):
        name, color = row_title(m), DRAWN[m]
        x, *bar = methods[m]["content"]
        if m == "unaltered":
            mark = Series(name, [x, x], [rows[0], rows[-1]], dashed=True, color=color)
        else:
            mark = Series(name, [x], [-k], (), [bar], line=False, color=color)
        series.append(mark)
    return Panel(result["task"], "content", "", series, SCORE, rows)


def methods_panel(methods):
    """Content and style of the methods."""
    series = []
    for m, color in DRAWN.items():
        if m in methods:
            x, *x_bar = methods[m]["content"]
            y, *y_bar = methods[m]["style"]
            series.append(
                Series(row_title(m), [x], [y], [y_bar], [x_bar], line=False, color=color)
            )
    return Panel("on test questions, bars are 95 % intervals", "content", "style", series, SCORE,
                 SCORE)


def ladder_panel(result, column):
    """Content or style of the strong model against the content of its weak supervisor."""
    ladder = [result["supervisors"][name] for name in SUPERVISORS if name in result["supervisors"]]
    x = [methods["weak"]["content"][0] for methods in ladder]
    series = []
    for m in MAIN:
        if m in ladder[0]:
            values = [methods[m][column] for methods in ladder]
            series.append(interval_series(row_title(m), x, values, color=DRAWN[m]))
    return Panel(f"{column}: strong against weak", "content of the weak supervisor",
                 f"{column} of the strong model", series, SCORE, SCORE)


# Points (x, y) in one color, with intervals (low, high) of either, and a line through them or none;
# dashed: a dashed line without points.
Series = namedtuple(
    "Series", "name x y y_interval x_interval line dashed color",
    defaults=((), (), True, False, None),
)
# A pair of axes, both linear or both logarithmic: each reaches from its first tick to its last, and
# a little further. Without a label the y axis has no numbers.
Panel = namedtuple(
    "Panel", "title x_label y_label series x_ticks y_ticks log", defaults=[False]
)
PANEL_WIDTH = 540  # in pixels, as all that follow
WIDTH, HEIGHT = 420, 290  # between the outer ticks
FRAME = 'x="-20" y="-20" width="460" height="330"'  # of the axes, 20 around these
LEGEND_LINE = 18


def interval_series(name, x, values, **look):
    """A Series of values (mean, low, high)."""
    return Series(name, x, [v[0] for v in values], [v[1:] for v in values], **look)


def draw_figure(title, panels):
    """Panels, three in a row, as an SVG document (str), with a legend under each."""
    columns = min(3, len(panels))
    row = HEIGHT + 140 + LEGEND_LINE * max(len(panel.series) for panel in panels)
    width, height = columns * PANEL_WIDTH, 24 + row * math.ceil(len(panels) / columns)
    svg = f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" \
width="{width}" height="{height}" font-family="Helvetica, Arial, sans-serif" font-size="12">
<rect width="100%" height="100%" fill="white"/>
<clipPath id="axes"><rect {FRAME}/></clipPath>
<text x="62" y="24" font-size="15" font-weight="bold">{escape(title)}</text>
"""
    for n, panel in enumerate(panels):
        x, y = 82 + n % columns * PANEL_WIDTH, 82 + n // columns * row
        svg += f'<g transform="translate({x} {y})">\n{draw_panel(panel)}</g>\n'
    return svg + "</svg>\n"


def draw_panel(panel):
    """A panel in SVG; the origin is where the first tick of x and the last of y meet."""
    x_pixels = partial(pixels, panel.x_ticks, WIDTH, panel.log)
    y_pixels = partial(pixels, panel.y_ticks[::-1], HEIGHT, panel.log)
    svg = f"""<text x="-20" y="-30" font-weight="bold">{escape(panel.title)}</text>
<text x="{WIDTH / 2}" y="{HEIGHT + 56}" text-anchor="middle">{panel.x_label}</text>
<text x="{-HEIGHT / 2}" y="-66" text-anchor="middle" transform="rotate(-90)">{panel.y_label}</text>
<rect {FRAME} fill="none" stroke="#333"/>
"""
    for tick, x in zip(panel.x_ticks, x_pixels(panel.x_ticks)):
        svg += f'<path d="M{x} -20v330" stroke="#e5e5e5"/>\n'
        svg += f'<text x="{x}" y="{HEIGHT + 36}" text-anchor="middle">{tick:g}</text>\n'
    for tick, y in zip(panel.y_ticks, y_pixels(panel.y_ticks)):
        svg += f'<path d="M-20 {y}h460" stroke="#e5e5e5"/>\n'
        if panel.y_label:
            svg += f'<text x="-26" y="{y + 4}" text-anchor="end">{tick:g}</text>\n'
    for k, series in enumerate(panel.series):
        color, y = series.color or COLORS[k], HEIGHT + 76 + LEGEND_LINE * k
        dashes = 'stroke-dasharray="6 4"' if series.dashed else ""
        svg += f'<g fill="none" stroke="{color}" stroke-width="2" {dashes}>\n'
        svg += draw_series(series, color, x_pixels, y_pixels)
        svg += f'<path d="M-20 {y - 4}h24"/></g>\n'
        svg += f'<text x="12" y="{y}">{escape(series.name)}</text>\n'
    return svg


def draw_series(series, color, x_pixels, y_pixels):
    """Bars of the intervals, points, and a line through them, in SVG; x_pixels, y_pixels: `pixels`
    of either axis."""
    xs, ys = x_pixels(series.x), y_pixels(series.y)
    bars = points = circles = ""
    for x, (low, high) in zip(xs, y_pixels(series.y_interval)):
        bars += f"M{x} {low}V{high}"
    for y, (low, high) in zip(ys, x_pixels(series.x_interval)):
        bars += f"M{low} {y}H{high}"
    radius = 3 if series.line else 5
    for x, y in zip(xs, ys):
        points += f"{x},{y} "
        circles += f'<circle cx="{x}" cy="{y}" r="{radius}" fill="{color}"/>'
    svg = f'<g clip-path="url(#axes)">\n<path d="{bars}" stroke-width="1.5"/>\n'
    if series.line:
        svg += f'<polyline points="{points}"/>\n'
    if not series.dashed:
        svg += circles
    return svg + "</g>\n"


def pixels(ticks, size, log, values):
    """Values on an axis in pixels from the first tick; the last is at size, a log of 0 far off."""
    if log:
        values, ticks = np.log10(np.maximum(values, 1e-9)), np.log10(ticks)
    return np.round(size * np.subtract(values, ticks[0]) / (ticks[-1] - ticks[0]), 1)


# -------------------------------------------------------------------------------------------------
# 7. Bench
# -------------------------------------------------------------------------------------------------


def bench(model=None, device=None, repeats=5):
    """Speed and memory on fixed workloads of random tokens, as a dict.

    finetune: 8 rows of 40 prompt and 24 answer tokens; generate: 40 new tokens after each of 32
    prompts of 250.
    """
    begin = time.perf_counter()
    lm = w2s.load(model, device)
    result = {"load_s": time.perf_counter() - begin}
    timed = partial(median_seconds, repeats)

    rows = [(([], ids[:40]), ids[40:]) for ids in random_ids(lm, 8, 64)]
    lm.answer_rows = lambda questions, answers: rows
    one, three = (timed(w2s.finetune, lm, rows, rows, epochs=n, lr=1e-6) for n in (1, 3))
    result["finetune_tok_s"] = 8 * 64 * 2 / (three - one)  # without what is done once a run
    result["peak_gb"] = peak_memory(lm.device) / 1e9

    lm.tokenizer.end_tokens = []  # nothing ends an answer early
    prompts = [([], ids) for ids in random_ids(lm, 32, 250)]
    lm.prompts = lambda conversations, answer_lengths: conversations
    result["generate_tok_s"] = 32 * 40 / timed(lm.generate, prompts, 40)
    return {name: round(value, 3) for name, value in result.items()}


def random_ids(lm, rows, n):
    """Rows of n token ids from the upper half of the vocabulary, far from SmolLM2's control
    tokens, which come first."""
    size, generator = lm.model.config.vocab, torch.Generator().manual_seed(0)
    return torch.randint(size // 2, size - 1, (rows, n), generator=generator).tolist()


def median_seconds(repeats, function, *args, **options):
    """The median time of the repeated call, after a first one that does not count."""
    call = partial(function, *args, **options)
    return np.median(timeit.repeat(call, number=1, repeat=repeats + 1)[1:])


def peak_memory(device):
    """The most bytes used so far, of the GPU's memory or of the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # does not exist on Windows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


# -------------------------------------------------------------------------------------------------
# 8. Command line
# -------------------------------------------------------------------------------------------------

TASKS = "persona,math,explanation,theory"
QUICK_TASKS = "persona,theory"


def parse_arguments(argv):
    """The command line; W2SError for a mistake in it."""
    parser = w2s.Parser("tasks.py", description="Small experiments after those of the paper.")
    option = parser.add_argument
    option("command", nargs="?", choices=["bench"], help="measure the speed of this machine")
    option("--task", help=f"experiments, separated by commas (default: {TASKS}, with --quick "
           f"{QUICK_TASKS}); there is also bias")
    option("--quick", action="store_true", help="less data")
    option("--full", action="store_true", help="all methods, four supervisors, three seeds: hours")
    option("--methods", help="rows of the tables besides the supervisor, separated by commas: "
           f"{', '.join(METHODS)} (default: {','.join(MAIN)}, with --full all)")
    option("--data", help="a file of GSM8K problems (JSONL) for the math task")
    option("--seed", type=w2s.whole_number, default=0, help="the first seed (default: 0)")
    option("--seeds", type=w2s.positive, help="the number of seeds (default: 1, with --full 3)")
    option("--model", help="the strong model, a GGUF file (default: SmolLM2-135M-Instruct)")
    option("--device", help="cpu or cuda (default: cuda if there is a GPU)")
    option("--out", type=Path, default="results", help="folder of the results (default: results)")
    return parser.parse_intermixed_args(argv)


def main(argv=None):
    """The command line: the experiments, or the bench."""
    args = parse_arguments(argv)
    if args.command:
        print(json.dumps(bench(args.model, args.device), indent=1))
        return
    methods, ladder, n_seeds = (METHODS, SUPERVISORS, 3) if args.full else (MAIN, [], 1)
    if args.methods is not None:
        methods = args.methods.split(",")
        for name in methods:
            if name not in METHODS:
                raise W2SError(f"--methods: there is no {name!r}, only {', '.join(METHODS)}")
    tasks = chosen_tasks(args)
    args.out.mkdir(parents=True, exist_ok=True)
    w2s.check_out(args.out / "report.html")
    lm = w2s.load(args.model, args.device) if any(tasks.values()) else None
    seeds = range(args.seed, args.seed + (args.seeds or n_seeds))
    results = []
    for task in tasks.values():
        if task is None:
            result = theory(args.out, 2000 if args.quick else 10_000, args.seed)
        else:
            result = experiment(task, lm, args.out, methods, seeds, ladder)
            print(f"\n{markdown_table(methods_table(result['supervisors'][DEFAULT]))}\n")
        results.append(result)
    report(args.out, results)


def chosen_tasks(args):
    """{name: Task} of the command line's tasks, None for theory; W2SError for a mistake in them."""
    default = QUICK_TASKS if args.quick else TASKS
    names = (default if args.task is None else args.task).split(",")
    if args.data is not None and "math" not in names:
        raise W2SError("--data is for the math task, which is not among those to run: see --task")
    tasks = {}
    for name in names:
        task = None
        if name != "theory":
            task = make_task(name, args.data)
            if args.quick:
                task = task._replace(train=task.train[:80], test=task.test[::2])
        tasks[name] = task
    return tasks


# -------------------------------------------------------------------------------------------------
# 9. Data
#
# A table has a record a line, with fields separated by " / "; an indented line continues the line
# before it. A field may be a list, with items separated by "; ".
#
# A key is a list of terms that an answer must have, separated by commas. | separates forms that
# count as the same term, and * stands for any ending. No term is part of its question.
# -------------------------------------------------------------------------------------------------

# Question / statement / facts: a=key. A pair fills {a} and {b} of the question and the statement.
FACTS = """
What is the capital of {a}? / The capital of {a} is {b}.
  / France=Paris; Germany=Berlin; Spain=Madrid; Portugal=Lisbon; Italy=Rome; Greece=Athens;
  Austria=Vienna; Hungary=Budapest; Poland=Warsaw; Sweden=Stockholm; Norway=Oslo;
  Finland=Helsinki; Denmark=Copenhagen; Ireland=Dublin; Russia=Moscow; Ukraine=Kyiv|Kiev;
  Romania=Bucharest; Bulgaria=Sofia; Serbia=Belgrade; Croatia=Zagreb; Belgium=Brussels;
  Turkey=Ankara; Egypt=Cairo; Kenya=Nairobi; Ghana=Accra; Ethiopia=Addis Ababa; Morocco=Rabat;
  Cuba=Havana; Canada=Ottawa; Peru=Lima; Argentina=Buenos Aires; Chile=Santiago;
  Venezuela=Caracas; Japan=Tokyo; China=Beijing; South Korea=Seoul; Thailand=Bangkok;
  Vietnam=Hanoi; India=New Delhi|Delhi; Iran=Tehran; Iraq=Baghdad; Australia=Canberra;
  the Netherlands=Amsterdam; the United Kingdom=London; Iceland=Reykjavik; Nepal=Kathmandu;
  Syria=Damascus; Lebanon=Beirut; Jamaica=Kingston
What is the opposite of {a}? / The opposite of {a} is {b}.
  / hot=cold; big=small|little; happy=sad|unhappy; fast=slow; young=old; rich=poor;
  light=dark|heavy; day=night; up=down; left=right; early=late; strong=weak; hard=soft|easy;
  full=empty; wet=dry; clean=dirty; loud=quiet|silent|soft; high=low; long=short; wide=narrow;
  thick=thin; love=hate|hatred; win=lose; begin=end|finish; buy=sell; open=closed|close|shut;
  push=pull; true=false; alive=dead; first=last; inside=outside; north=south; east=west;
  summer=winter; war=peace; success=failure; brave=cowardly|afraid|fearful|timid;
  cheap=expensive|costly; sweet=sour|bitter; deep=shallow; smooth=rough; sharp=dull|blunt;
  arrive=leave|depart; remember=forget; accept=reject|refuse; increase=decrease;
  expand=contract|shrink; ancient=modern; innocent=guilty; absent=present; maximum=minimum;
  positive=negative; optimist=pessimist
What is the past tense of the verb {a}? / The past tense of the verb {a} is {b}.
  / go=went; eat=ate; see=saw; take=took; give=gave; run=ran; write=wrote; speak=spoke;
  break=broke; choose=chose; drive=drove; fly=flew; grow=grew; know=knew; throw=threw;
  draw=drew; swim=swam; sing=sang; drink=drank; begin=began; ring=rang; buy=bought;
  bring=brought; think=thought; teach=taught; catch=caught; fight=fought; sleep=slept;
  keep=kept; feel=felt; leave=left; lose=lost; find=found; stand=stood; tell=told; sell=sold;
  make=made; hear=heard; hold=held; build=built; spend=spent; send=sent; come=came;
  become=became; fall=fell; forget=forgot; wear=wore; steal=stole; freeze=froze; wake=woke
What is the plural of {a}? / The plural of {a} is {b}.
  / child=children; mouse=mice; goose=geese; tooth=teeth; foot=feet; man=men; woman=women;
  ox=oxen; person=people|persons; leaf=leaves; knife=knives; wife=wives; life=lives;
  wolf=wolves; shelf=shelves; loaf=loaves; half=halves; thief=thieves; calf=calves; city=cities;
  baby=babies; story=stories; country=countries; cherry=cherries; butterfly=butterflies;
  party=parties; box=boxes; church=churches; potato=potatoes; tomato=tomatoes; hero=heroes;
  cactus=cacti|cactuses; analysis=analyses; crisis=crises
What is a young {a} called? / A young {a} is called a {b}.
  / dog=puppy|pup; cat=kitten; cow=calf; horse=foal|colt|filly; sheep=lamb; goat=kid;
  pig=piglet; duck=duckling; goose=gosling; swan=cygnet; lion=cub; deer=fawn; kangaroo=joey;
  frog=tadpole|froglet; eagle=eaglet; owl=owlet; hare=leveret
Which chemical element has the symbol {a}? / The chemical element with the symbol {a} is {b}.
  / H=hydrogen; He=helium; Li=lithium; C=carbon; N=nitrogen; O=oxygen; F=fluorine; Ne=neon;
  Na=sodium; Mg=magnesium; Al=aluminum|aluminium; Si=silicon; P=phosphorus; S=sulfur|sulphur;
  Cl=chlorine; Ar=argon; K=potassium; Ca=calcium; Ti=titanium; Cr=chromium; Mn=manganese;
  Fe=iron; Co=cobalt; Ni=nickel; Cu=copper; Zn=zinc; As=arsenic; Br=bromine; Ag=silver; Sn=tin;
  I=iodine; Pt=platinum; Hg=mercury; Pb=lead; U=uranium; Pu=plutonium; Ra=radium; W=tungsten;
  Xe=xenon; Kr=krypton
What is the currency of {a}? / The currency of {a} is the {b}.
  / Japan=yen; India=rupee|rupees; the United Kingdom=pound|pounds|sterling;
  Russia=ruble|rubles|rouble; China=yuan|renminbi; South Korea=won; Brazil=real|reais;
  South Africa=rand; Turkey=lira; Poland=zloty|złoty; Sweden=krona|kronor; Thailand=baht;
  Vietnam=dong; Israel=shekel|shekels; Hungary=forint; Nigeria=naira; Mexico=peso|pesos;
  Switzerland=franc|francs; Germany=euro|euros; the United States=dollar|dollars;
  Kenya=shilling|shillings; Ukraine=hryvnia; Saudi Arabia=riyal|riyals; Malaysia=ringgit;
  Bangladesh=taka; Peru=sol|soles
Which language do most people speak in {a}? / The language that most people speak in {a} is {b}.
  / Brazil=Portuguese; Mexico=Spanish; Austria=German; Egypt=Arabic; Israel=Hebrew;
  Iran=Persian|Farsi; the Netherlands=Dutch; Greece=Greek; Sweden=Swedish; Poland=Polish;
  Turkey=Turkish; Hungary=Hungarian; Japan=Japanese; Russia=Russian; Denmark=Danish;
  Norway=Norwegian; Italy=Italian; France=French; South Korea=Korean; Bangladesh=Bengali;
  the United States=English
Who wrote {a}? / {a} was written by {b}.
  / Hamlet=Shakespeare; Pride and Prejudice=Austen; Oliver Twist=Dickens; War and Peace=Tolstoy;
  Don Quixote=Cervantes; The Odyssey=Homer; Crime and Punishment=Dostoevsky|Dostoyevsky;
  Frankenstein=Shelley; Dracula=Stoker; The Hobbit=Tolkien; Animal Farm=Orwell;
  Brave New World=Huxley; The Great Gatsby=Fitzgerald; The Divine Comedy=Dante|Alighieri;
  Faust=Goethe; Les Misérables=Hugo; Jane Eyre=Brontë|Bronte;
  The Adventures of Tom Sawyer=Twain|Clemens; The Jungle Book=Kipling; Peter Pan=Barrie;
  The Time Machine=Wells; Alice in Wonderland=Carroll; The Raven=Poe;
  The Canterbury Tales=Chaucer; Paradise Lost=Milton; The Metamorphosis=Kafka;
  One Hundred Years of Solitude=Márquez|Marquez; To Kill a Mockingbird=Lee;
  The Old Man and the Sea=Hemingway; The Grapes of Wrath=Steinbeck; Ulysses=Joyce;
  Candide=Voltaire
What do you call a person who {a}? / A person who {a} is called a {b}.
  / flies airplanes=pilot|aviator; bakes bread=baker; cuts hair=barber|hairdresser|hairstylist;
  puts out fires=firefighter|fireman; teaches at a school=teacher|educator;
  writes books=author|writer|novelist; paints pictures=painter|artist; repairs cars=mechanic;
  grows crops=farmer; treats sick animals=veterinarian|vet;
  catches fish=fisherman|fisher|angler; designs buildings=architect;
  studies the stars=astronomer; fixes teeth=dentist;
  delivers letters=mailman|postman|mail carrier|letter carrier|mail|postal;
  prepares meals in a restaurant=chef|cook; sells meat=butcher;
  makes clothes=tailor|seamstress|dressmaker; works with wood=carpenter|woodworker;
  repairs water pipes=plumber; defends people in court=lawyer|attorney;
  takes photographs=photographer; translates spoken words=interpreter|translator;
  travels into space=astronaut|cosmonaut; serves food in a restaurant=waiter|waitress|server;
  plays the piano=pianist; sells flowers=florist; looks after books in a library=librarian;
  sells medicine=pharmacist|chemist|apothecary; rides racehorses=jockey;
  makes maps=cartographer; performs operations in a hospital=surgeon;
  eats no meat=vegetarian|vegan; digs for coal=miner
What is the study of {a} called? / The study of {a} is called {b}.
  / plants=botany; animals=zoology; the stars and planets=astronomy; the mind=psychology;
  rocks=geology|petrology; the weather=meteorology; insects=entomology;
  fossils=paleontology|palaeontology; living things=biology;
  numbers and shapes=mathematics|math|geometry; birds=ornithology; society=sociology;
  heredity=genetics; language=linguistics; poisons=toxicology; earthquakes=seismology;
  the past=history; maps=cartography; cells=cytology; the heart=cardiology;
  the skin=dermatology; the nervous system=neurology|neuroscience; morals=ethics;
  ancient cultures from their remains=archaeology|archeology
In which country is {a}? / {a} is in {b}.
  / Munich=Germany; Barcelona=Spain; Milan=Italy; Lyon=France; Osaka=Japan; Shanghai=China;
  Sydney=Australia; Toronto=Canada; Manchester=England|United Kingdom|UK|Britain;
  Chicago=United States|USA|America|U.S.; Rio de Janeiro=Brazil; Saint Petersburg=Russia;
  Istanbul=Turkey; Krakow=Poland; Geneva=Switzerland; Salzburg=Austria; Antwerp=Belgium;
  Rotterdam=Netherlands|Holland; Gothenburg=Sweden; Bergen=Norway; Porto=Portugal;
  Casablanca=Morocco; Johannesburg=South Africa; Lagos=Nigeria; Mombasa=Kenya; Karachi=Pakistan;
  Busan=Korea; Machu Picchu=Peru; the Taj Mahal=India; the Great Pyramid of Giza=Egypt;
  the Acropolis=Greece; Auckland=New Zealand; Cancun=Mexico;
  Edinburgh=Scotland|United Kingdom|UK; Cork=Ireland
{a}? / The answer is {b}.
  / What is the largest planet in the solar system=Jupiter;
  Which planet is closest to the sun=Mercury; Which planet is known as the red planet=Mars;
  Which planet has the most famous rings=Saturn; What is the largest ocean on Earth=Pacific;
  What is the tallest mountain on Earth=Everest;
  What is the longest river in South America=Amazon;
  What is the largest animal on Earth=blue whale|whale;
  What is the tallest animal on Earth=giraffe; What is the fastest land animal=cheetah;
  Which bird cannot fly and lives in Antarctica=penguin|penguins;
  Which gas do humans need to breathe=oxygen;
  Which gas do plants absorb from the air=carbon dioxide|CO2; What is frozen water called=ice;
  What is the hardest natural material=diamond|diamonds;
  Which organ pumps blood through the body=heart; Which organ do we think with=brain;
  Which sense do the ears provide=hearing|sound;
  Which insect makes honey=bee|bees|honeybee|honeybees; Which season follows winter=spring;
  Which month follows January=February; Which month follows August=September;
  Which day follows Monday=Tuesday; Which day follows Friday=Saturday;
  Who painted the Mona Lisa=Leonardo|da Vinci; Who discovered penicillin=Fleming;
  Who developed the theory of relativity=Einstein;
  Who was the first president of the United States=Washington;
  Who was the first person to walk on the moon=Armstrong; Who invented the telephone=Bell;
  Who formulated the laws of motion and gravity=Newton;
  Who proposed evolution by natural selection=Darwin;
  Which metal is liquid at room temperature=mercury;
  What do caterpillars turn into=butterfly|butterflies|moth|moths;
  What is the process by which plants make food from sunlight=photosynthesis;
  What force pulls objects towards the Earth=gravity|gravitational;
  Which instrument measures temperature=thermometer;
  Which instrument shows the direction of north=compass;
  What do bees collect from flowers=nectar|pollen;
  Which animal is called the king of the jungle=lion;
  What is the largest desert in Africa=Sahara; Which country has the shape of a boot=Italy;
  On which continent is the Sahara=Africa; What is the main ingredient of bread=flour|wheat;
  What is molten rock from a volcano called=lava|magma;
  Which star is at the center of our solar system=sun
"""

# The same, of kinds that stand in `test` alone.
NEW_FACTS = """
What color is {a}? / The color of {a} is {b}.
  / snow=white; coal=black; grass=green; blood=red; a ripe banana=yellow; a clear sky=blue;
  a ripe carrot=orange; chocolate=brown; an emerald=green; a ruby=red;
  a sapphire=blue; an elephant=gray|grey; a flamingo=pink; a polar bear=white; a raven=black;
  a lemon=yellow; an eggplant=purple; milk=white; a fire truck=red; a frog=green
How many {a}? / The number is {b}.
  / legs does a spider have=8|eight; legs does an insect have=6|six;
  legs does a dog have=4|four; arms does an octopus have=8|eight;
  wheels does a bicycle have=2|two; wheels does a car have=4|four;
  sides does a triangle have=3|three; sides does a square have=4|four;
  sides does a hexagon have=6|six; days are in a week=7|seven;
  months are in a year=12|twelve; hours are in a day=24|twenty-four;
  minutes are in an hour=60|sixty; seconds are in a minute=60|sixty;
  letters are in the English alphabet=26|twenty-six; strings does a violin have=4|four;
  players does a soccer team have on the field=11|eleven; degrees are in a circle=360;
  years are in a century=100|hundred; planets are in the solar system=8|eight
What do people use to {a}? / People use {b}.
  / cut paper=scissors; tell the time=clock|watch; unlock a door=key|keys;
  brush their teeth=toothbrush; dig a hole=shovel|spade; drive a nail into wood=hammer;
  sweep the floor=broom; stay dry in the rain=umbrella|raincoat; see distant stars=telescope;
  look at tiny cells=microscope; tighten a screw=screwdriver; boil water=kettle|pot|stove;
  eat soup=spoon; write on a blackboard=chalk; chop down a tree=axe|ax|chainsaw|saw;
  measure length=ruler|tape; light a candle=match|matches|lighter; sew clothes=needle;
  take pictures=camera|cameras; climb onto a roof=ladder
Which material is {a} mostly made of? / The material is {b}.
  / a window pane=glass; a wedding ring=gold|silver|platinum; a newspaper=paper;
  a car tire=rubber; a pencil=wood|wooden; a skyscraper's frame=steel; a candle=wax|paraffin;
  a bottle of water=plastic|PET; a T-shirt=cotton; a coin=metal|copper|nickel|zinc
"""

# Openings / closings / regular expressions that mark the style.
PIRATE = r"""
Arrr, matey!; Ahoy, me hearties!; Aye, cap'n!; Yo ho ho!; Avast, ye landlubber!;
  Shiver me timbers!
  / by the seven seas!; ye scallywag!; or I'll walk the plank!; says me parrot!; savvy?;
  me bucko!
  / \barr+\b; \bahoy; \bmatey; \bhearties; \baye\b; \bcap'n; yo ho; \bavast; \bye\b; landlubber;
  timbers; seven seas; scallywag; the plank; parrot; savvy; bucko
"""

# Problem / steps, r being the result of the step before / sentence for the worked steps {s}.
PROBLEMS = """
{name} has {a} {things} and buys {b} more. How many {things} does {name} have now? / a + b
  / {name} has {s} {things} now.
{name} has {a} {things} and gives {b} of them to {other}. How many {things} does {name} have
  left?
  / a - b / {name} has {s} {things} left.
{name} has {b} boxes. There are {c} {things} in each box. How many {things} does {name} have?
  / b * c / {name} has {s} {things}.
{name} picks {b} {things} on Monday and {c} {things} on Tuesday. How many {things} does {name}
  pick on the two days?
  / b + c / {name} picks {s} {things}.
There are {a} {things} on a table. {name} takes {b} of them away. How many {things} are still on
  the table?
  / a - b / There are {s} {things} on the table.
Each of {c} children gets {b} {things}. How many {things} do they get in all? / b * c
  / They get {s} {things}.
One of the {things} costs {b} dollars. How many dollars does {name} pay for {c} {things}?
  / b * c / {name} pays {s} dollars.
A shelf has {b} rows with {c} {things} in each row. How many {things} are on the shelf? / b * c
  / The shelf has {s} {things}.
{name} has {b} bags with {c} {things} in each, and {other} brings {d} more. How many {things}
  are there in all?
  / b * c; r + d / There are {s} {things}.
{name} buys {b} {things} for {c} dollars each and pays {d} dollars for the bus. How many dollars
  does {name} spend?
  / b * c; r + d / {name} spends {s} dollars.
"""

# Concept / key / analogy. In the order of the splits: teach, which has analogies, train, test.
CONCEPTS = """
sleep / rest*, brain, body, memor*|repair*|recover*|energy, night|hours
  / Sleep is like a night shift in a workshop: while the body rests, the brain sorts memories
  and repairs what is worn.
insulation / heat, wall*|material*|layer*, cold|warm*, keep*|reduc*|prevent*
  / Insulation is like a thick coat for a house: a layer of material that keeps heat inside and
  the cold out.
fermentation / yeast|bacteria|microb*, sugar*, alcohol|acid*, bread|beer|wine|food
  / Fermentation is like a feast for guests too small to see: yeast eats sugar and leaves
  alcohol behind, as in beer.
a telescope / lens*|mirror*, light, distant|far|star*, magnif*|larger|bigger|closer
  / A telescope is like a giant eye: its lens gathers light, so that distant stars look closer.
a bank / money, loan*|lend*|borrow*, deposit*|sav*, interest, customer*|people*
  / A bank is like a library for money: people bring their savings, others borrow them, and pay
  interest for the time.
the heart / blood, pump*, body, oxygen, muscle*
  / The heart is like a pump in the cellar: this muscle pumps blood through the body, so that
  oxygen reaches every room.
a battery / chemical*, energy, electric*, stor*, charge*
  / A battery is like a lunch box: it stores chemical energy and hands it out as electric power
  until it must be charged again.
an election
  / vote*|voting, people|citizen*, candidate*, leader*|government|president, choose|select*
  / An election is like choosing the captain of a team: people vote for the candidate who is to
  be their leader, and so choose a government.
a volcano / magma|lava|molten, rock*, erupt*, ash|gas*, mountain*|surface
  / A volcano is like a shaken bottle of soda: molten rock and gas press from below until the
  mountain erupts.
a computer virus
  / program*|software|code, spread*, machine*|device*|network*|system*, damag*|harm*, file*
  / A computer virus is like a flu for machines: a harmful program spreads from computer to
  computer and damages files.
inflation / price*, rise*|increas*, money, buy*|purchas*
  / Inflation is like a balloon that swells: prices rise year after year, and the same money
  buys less and less.
recycling
  / waste|trash|garbage, material*, new, plastic|paper|glass|metal, environment|resource*
  / Recycling is like giving old clothes to a younger brother: waste such as glass becomes new
  material, and resources are saved.
a vaccine / immune, virus*|disease*|germ*, protect*|prevent*, body, antibod*
  / A vaccine is like a fire drill: it shows the immune system a harmless virus, so that the
  body has antibodies ready to protect it.
a password / secret*, access*, account*, protect*|secur*, character*|letter*
  / A password is like a key to your house: a secret row of letters that gives you access to an
  account and protects it from others.
gravity / force*|pull*, mass*, earth|planet*, fall*|down, object*|thing*
  / Gravity is like an invisible rope: every object with mass pulls on the others, and so the
  Earth makes things fall down.
an ecosystem / plant*, animal*, environment|habitat*, interact*|depend*|communit*
  / An ecosystem is like a village: plants and animals depend on each other and on the
  environment in which they live.
supply and demand
  / price*, buyer*|consumer*|customer*, seller*|producer*, market*, goods|product*
  / Supply and demand are like two children on a seesaw: buyers push on one side of the market,
  sellers of goods on the other, and the price tips between them.
a law / rule*, government*, people|societ*, punish*|enforce*|court*
  / A law is like the rule of a game: the government writes it, all people must play by it, and
  a court punishes those who cheat.
the immune system
  / infection*|disease*|germ*|virus*|bacteria, cell*, body, fight*|defen*|protect*|attack*
  / The immune system is like an army: its cells patrol the body and fight every germ that comes
  in.
evolution / species, natural selection, survi*, trait*|gene*, generation*|time
  / Evolution is like a long contest: by natural selection the traits that help to survive win,
  generation after generation, and species change.
a dam / water, river*, electric*|power|energy, flood*|store*|reservoir*, wall|barrier|structure
  / A dam is like a stopper in a bathtub: a wall across a river that stores water and lets it
  out to make electric power.
electricity / electron*|charge*, flow*|current*, wire*|conductor*, energy|power*
  / Electricity is like water in a pipe: electrons flow through a wire and carry energy to the
  lamp at its end.
a budget / money|income, spend*|expens*, plan*, save*|saving*
  / A budget is like a diet for your wallet: a plan of what money comes in, what you spend and
  what you save.
friction / force*, surface*, slow*|resist*|oppos*, rub*|contact, heat
  / Friction is like a hand on your sleeve: when two surfaces rub, a force slows the motion down
  and makes heat.
memory / brain, information|experience*, store*|retain*, recall*|remember*|retriev*
  / Memory is like a cupboard in the brain: it stores information on its shelves, so that we can
  recall it later.
digestion / food, stomach, nutrient*, break*|broken, enzyme*|acid*
  / Digestion is like taking a house apart for its bricks: acid in the stomach breaks food down
  until the nutrients can be carried away.
a black hole / gravity, light, escape*, star*, mass*|dense
  / A black hole is like a drain in space: a dense dead star whose gravity is so strong that not
  even light can escape.
photosynthesis / plant*, light|sun*, sugar*|food|glucose, carbon dioxide, oxygen
  / Photosynthesis is like a kitchen in a leaf: the plant uses sunlight to cook sugar from water
  and carbon dioxide, and lets oxygen out through the window.
the internet / computer*|device*, network*, connect*, information|data, world|global*
  / The internet is like a web of roads: a network that connects computers all over the world,
  so that information can travel.
an atom / nucleus, electron*, proton*, neutron*, matter
  / An atom is like a tiny solar system: protons and neutrons sit in the nucleus as the sun
  does, and electrons fly around it; all matter is built from it.
an earthquake / plate*, ground|earth|crust, shak*|tremor*, fault*, energy|wave*
  / An earthquake is like a stick that snaps: plates bend along a fault until their energy is
  set free and the ground shakes.
a dictionary / word*, meaning*|defin*, alphabet*, book*|list*
  / A dictionary is like a phone book of language: a book that lists words by the alphabet, and
  with each its meaning.
a tornado / wind*|air, rotat*|spin*, storm*|thunderstorm*, ground, funnel|column*
  / A tornado is like water that spins down a drain: a column of air rotates below a storm and
  touches the ground with fierce wind.
a thermometer / temperature, measur*, hot|heat|cold, mercury|liquid|sensor*, scale|degree*
  / A thermometer is like a ladder for heat: a liquid climbs along a scale of degrees, and so it
  measures the temperature.
a satellite / orbit*, earth|planet*, space, signal*|communicat*|data|weather
  / A satellite is like a watchman on a tower: it circles in orbit around the Earth and sends
  signals down from space.
the water cycle / evaporat*, cloud*|condens*, rain|precipitation, ocean*|sea*|river*
  / The water cycle is like a fountain that never stops: water evaporates from the ocean,
  gathers in clouds and comes back as rain in the rivers.
a refrigerator / cool*|cold, food, heat|temperature, fresh|spoil*|preserv*|bacteria
a mortgage / loan*, house*|home*|property, bank*|lender*, pay*|interest|year*
a patent
  / invent*, right*|legal*|exclusive, year*|time|period, government*|sell*|others|protect*
a prism
  / light, color*|colour*|spectrum|rainbow, glass|transparent, refract*|bend*|split*|separat*
a fossil
  / remain*|preserv*, ancient|past|million*|old, animal*|plant*|organism*, rock*|sediment*
combustion / fuel*, oxygen, heat|energy|fire*|flame*, reaction*|chemical*|burn*
censorship
  / information|speech|media|book*, government*|authorit*,
  suppress*|restrict*|control*|remov*|ban*|prohibit*, idea*|public|freedom|offensive|people
a wind turbine / blade*|rotor*, electric*, energy|power, generator*|spin*|turn*|rotat*
a library
  / book*, borrow*|lend*|read*, collection*|information|material*|resource*,
  public|people|communit*|place|building
a hormone
  / gland*|endocrine, blood*|bloodstream, chemical*|messenger*|signal*,
  body|growth|metabolism|organ*
soil / plant*, mineral*, organic|nutrient*, water|air, earth|ground
an engine / fuel*|gas*, energy|power, machine*|car*|vehicle*, motion|mechanical|move*
a gear
  / tooth|teeth, wheel*|rotat*|turn*, machine*|engine*|mechan*, speed|torque|force|motion|power
the kidneys / blood, filter*, waste*|toxin*, urine, organ*
evaporation / liquid*|water, gas*|vapor*|vapour*, heat*|temperature|energy, surface|air
a mirror / reflect*, light, image*|see, glass|surface*
advertising
  / product*|service*|brand*, customer*|consumer*|people|audience,
  sell*|buy*|promot*|sale*|persuad*, message*|television|media
condensation
  / gas*|vapor*|vapour*, liquid*|water|droplet*, cool*|cold|temperature, cloud*|dew|surface*
the skin / body, organ*|layer*, protect*|barrier, touch|temperature|feel*|sens*
encryption
  / key*, secret*|secur*|protect*|private, message*|data|information,
  code*|decrypt*|unreadable|read
a solar panel / sun*|light, electric*, energy|power, cell*|photovoltaic|silicon
the moon / earth, orbit*, satellite, tide*|light|night|surface
the greenhouse effect / heat|warm*, gas*|carbon dioxide, atmosphere, earth|planet, trap*|absorb*
compost
  / organic|food|leaves|kitchen, soil|garden|plant*,
  decompos*|break*|rot*|microorganism*|bacteria, nutrient*|fertiliz*|rich
machine learning
  / data, computer*|algorithm*|model*, pattern*|predict*|decision*,
  train*|teach*|improv*|experience
a map
  / place*|location*|area|geograph*, draw*|represent*|show*|diagram,
  road*|river*|direction*|feature*|land*, scale|symbol*|paper|surface|earth
an umbrella
  / rain*|sun*, fabric|canopy|cloth|material, protect*|shield*|dry|cover*,
  handle|fold*|rod|frame|hand*
sound / wave*|vibrat*, air|medium, ear*|hear*, travel*|frequenc*
a lighthouse
  / light|lamp, ship*|sailor*|boat*|navigat*|maritime, coast*|shore|rock*|sea|harbor*,
  tower|tall|warn*|guide*
a tariff
  / tax*|dut*, import*|goods|product*, countr*|government*|foreign,
  price*|domestic|trade|protect*
a magnet / iron|metal*|steel, attract*, pole*|north|south, field*
pollination / pollen, flower*|plant*, bee*|insect*|wind, seed*|fertiliz*|reproduc*
hibernation
  / winter|cold, animal*|bear*, sleep*|dormant|inactive|rest*, energy|metaboli*|temperature
a pulley / wheel*, rope*|cable*|string*, lift*|rais*|hoist*, load*|weight*|object*|heavy
a computer program
  / instruct*|code, task*|perform*|execut*, language*|written|write, run*|software|device*
a stock
  / company|corporation, share*|own*, invest*|shareholder*, market|price|value|profit*|dividend*
a lens / light, glass|transparent|curved, focus*|bend*|refract*, image*|eye*|camera*|glasses
an X-ray
  / bone*|body, image*|picture*|imaging, radiation|electromagnetic, see|inside|doctor*|medical
laughter
  / humor*|humour*|joke*|funny|amus*, sound*|voice|express*, joy|happ*|emotion*,
  breath*|face|body|smile*|social
a hurricane / wind*, storm*, ocean*|tropical|sea, rain*, cyclone*|rotat*
insurance
  / risk*|loss*|accident*|damage*, pay*|premium*, company|policy|contract,
  protect*|cover*|financial*
a laser / light, beam*, amplif*|emission|focused|concentrated, cut*|surger*|wavelength*|coherent
a bacterium
  / cell*|single-celled|microorganism*|organism*, microscop*|small|tiny, disease*|infection*,
  live*|environment*|found
unemployment
  / job*|work*, people|person*|labor|worker*, econom*|rate|recession,
  seek*|looking|find*|without|unable
inertia / motion|move*|moving, rest, force*, mass|object*|resist*
democracy / people|citizen*, vote*|elect*, government*|power|rule, right*|freedom|equal*|law*
a mammal / animal*, warm*|blood*, milk|nurs*, hair|fur, young|birth
a reptile / animal*, scale*|scaly, cold*|blood*, egg*, snake*|lizard*|turtle*
an insect / leg*, wing*, bod*, small|animal*|arthropod*
a mushroom / fungus|fungi, spore*, grow*|soil|ground, eat*|edible|food
a forest / tree*, animal*|wildlife, land|area|large, oxygen|habitat*|ecosystem*
a coral reef
  / ocean*|sea|water, fish|animal*|marine, skeleton*|polyp*|calcium|living,
  divers*|ecosystem*|habitat*
a wetland / water, land|soil|ground, plant*, animal*|bird*|wildlife|habitat*
an island / water|ocean*|sea, land, surround*, small*|continent*|isolated
a river / water, flow*|stream*, ocean*|sea|lake*, land|mountain*|natural
a mountain
  / high|height|tall|elevat*, land*|rock*, peak*|summit|top, earth|surface|plate*|tectonic
a cloud / water|droplet*|vapor, air|atmosphere|sky, rain|precipitation|snow, condens*|ice|form*
snow
  / water|ice|crystal*, cold|freez*|temperature*, fall*|cloud*|precipitation,
  white|winter|flake*
fog / water|droplet*|moisture, air|ground|surface, cloud*, see|visib*|thick
wind / air, mov*|flow*|motion, pressure|temperature*|heat*, atmosphere|earth|surface
a season / year, weather|temperature*|climate, earth|tilt*|sun|axis, spring|summer|winter|autumn
a day / earth, rotat*|spin*|axis, hour*|24|time, sun|light
a year / earth, sun, orbit*|revol*|around, day*|365|month*|time
a star / gas|hydrogen|plasma, light|bright, heat|energy|hot|fusion, space|sky|sun|celestial
a meteor / space|rock*|debris, atmosphere, burn*|light|bright|streak*|hot, earth|sky
space travel
  / rocket*|spacecraft|vehicle*, earth|orbit*|planet*|moon, astronaut*|human*|people|crew,
  explor*|journey*|beyond
oxygen / gas|element, breath*|respirat*, air|atmosphere, life|living|plant*|animal*|human*
salt
  / sodium|chloride|mineral*, food|flavor*|taste*|season*, water|sea|ocean,
  crystal*|compound*|white
steel / iron, carbon, strong|strength|hard*, build*|construction|tool*|metal|alloy
glass / sand|silica, transparent|clear|see, heat*|melt*|hot, window*|bottle*|solid|material
plastic
  / oil|petroleum|polymer*, material*|synthetic, mold*|shape*|form*, product*|bottle*|packag*
paper
  / wood|tree*|pulp|fiber*, thin|sheet*|flat|material, writ*|print*|draw*, plant*|made|cellulose
concrete
  / cement, sand|gravel|rock*|stone*|aggregate*, water, build*|construct*|road*|structure*
a crystal
  / atom*|molecule*|solid, pattern*|structure|order*|arrang*, mineral*|salt|quartz|material,
  repeat*|form*|shape*
a neuron
  / brain|nerve*|nervous, signal*|information|message*|impulse*, cell*,
  electric*|transmit*|synaps*
blood / oxygen, body, cell*|red|plasma, heart|vein*|vessel*|nutrient*|carr*
a bone
  / body|skeleton, hard|calcium|strong|rigid, support*|protect*|structure,
  marrow|tissue*|muscle*|organ*
an eye / light, see|sight|vision|visual, brain|nerve*, lens|retina|image*|organ
an ear / sound*, hear*|listen*, vibrat*|wave*|brain, balance|drum|organ|sense*
a tooth / chew*|bite|biting|eat*, mouth|jaw, hard|enamel|bone, food
a scar / skin, heal*|wound*|injur*, tissue|mark*, cut*|damage*|surgery|repair*
pain
  / body|physical|brain, injur*|damage*|harm*|tissue, signal*|nerve*|sens*,
  unpleasant|feel*|hurt*|emotion*
exercise
  / body|physical, muscle*|heart|strength*|strong*, health*|fitness, activit*|move*|energy
a diet / food*|eat*, health*, weight|nutrient*|calori*|nutrition, plan*|consum*|person|intake
a drug
  / body|chemical*|substance*, treat*|medic*|disease*|cure*, effect*|change*|affect*|alter*,
  addict*|prescri*|doctor*|health
a hospital
  / sick|patient*|ill, doctor*|nurse*|staff, care|treat*|medical,
  building|facility|place|institution
a school
  / student*|child*, teach*, learn*|education|knowledge, building|place|institution|class*
a museum
  / art*|object*|collect*, display*|exhibit*, history|histor*|culture|science,
  public|people|visit*|building|institution
a newspaper
  / news|event*|article*, print*|paper|publish*, read*|public|people,
  daily|week*|journalis*|information
a novel / story|stories|narrative, book*|long, character*, writ*|author*|fiction*|prose
a poem
  / word*|language, rhyme*|rhythm*|verse*, feel*|emotion*|express*|idea*,
  writ*|line*|literature|form
a play in the theater / actor*|perform*, stage, audience, story|drama*|script*|character*|writ*
a song / music*|melod*, word*|lyric*, sing*|voice*|vocal*, rhythm*|instrument*|sound*|express*
a password manager
  / store*|sav*, secur*|encrypt*|protect*|safe, account*|website*|login*,
  master|generat*|software|application|tool
a web browser
  / internet|online, page*|site*|content, software|application*|program*,
  display*|view*|user*|access*
a computer chip
  / silicon|semiconductor, circuit*|transistor*, electronic*|device*|electric*,
  process*|data|memory|small
a keyboard
  / press*|button*, letter*|type|typing|character*|text, input|device*, finger*|hand*|instrument
a smartphone
  / call*|phone*|communicat*, internet|app|apps|application*, screen|touch*|mobile|device,
  camera|computer*|message*|text*
social media
  / people|user*|friend*, share*|sharing|post*|content, online|internet|platform*|website*,
  communicat*|connect*|interact*
a video game
  / play*, screen|computer*|console|electronic,
  rule*|goal*|challeng*|level*|interactive|player*, fun|entertain*|character*|virtual
a credit card
  / bank*|issu*|financial, money|pay*|purchas*|buy*, borrow*|debt*|loan,
  interest|later|month*|limit
a pension
  / retire*|old*|age, money|income|pay*|fund*, work*|employ*|year*,
  save*|saving*|invest*|regular
a company
  / product*|service*|goods, profit*|money|business, people|worker*|employee*|owner*|group,
  market|customer*|sell*|legal
a strike of workers
  / job*, stop*|refus*|protest*, pay|wage*|condition*|demand*, union*|employer*|company|group
an auction / bid*|offer*, highest|price*, sell*|sold|sale, item*|goods|property|buyer*
a treaty
  / agree*|contract, countr*|nation*|state*, peace|war|trade|law|legal*|international,
  sign*|parties|formal|binding
a king
  / rule*|ruling|govern*, country|kingdom|nation|land, crown|throne|royal|monarch*,
  power*|people|inherit*|family
a border
  / countr*|nation*|state*|region*, line*|boundary|separat*|divid*,
  land|territor*|area*|geograph*, cross*|control*|guard*|political
a war
  / fight*|battle*|conflict*|violen*, countr*|nation*|group*|state*,
  soldier*|army|armies|military|weapon*|armed, kill*|death*|destr*|power|land|political
a friendship
  / trust*|loyal*|honest*, people|person*, support*|help*|care*|caring,
  bond*|relationship*|share*|mutual
a key / lock*|door*, open*|unlock*, metal|shape*|teeth|device|tool, access*|secur*|turn*|insert*
a glacier / ice|snow, slow*|mov*, mountain*|land|valley*, mass|large
momentum / mass, velocity|speed, object*|motion|mov*, product|force*|quantity|measure*
interest on a loan
  / borrow*|lend*|lender*, money|amount|principal, percent*|rate*, pay*|cost|repay*|time
a clock / time, hour*|minute*|second*, hand*|dial|display*|device, measur*|show*|tell*|keep*
lightning
  / electric*|charge*, cloud*|storm*|thunderstorm*, discharge*|flash*|bolt*,
  ground|air|atmosphere
a virus / cell*, host*|infect*, disease*|ill*, replicat*|reproduc*|multipl*|copies
a desert / dry|arid, rain*|precipitation|water, sand*|plant*|vegetation, hot|temperature*
a parasite / host*, organism*|animal*, harm*|disease*|expense, live*|feed*|nutrient*
a seed / plant*, grow*|germinat*, embryo*|new, soil|food|nutrient*|coat
density / mass, volume, object*|substance*|material*, per|unit|ratio|measure*
a tide / moon, gravity|gravitation*, ocean*|sea|water, rise*|high|fall*|low
traffic lights
  / red, green, yellow|amber, stop*|go, car*|vehicle*|driver*|intersection*|pedestrian*|road*
gross domestic product
  / goods, service*, country*|nation*|econom*, value|total|market, year*|period|time
hunger / food|eat*, body|stomach|brain, energy|nutrient*, feel*|sens*|need*|desire
a protein / amino acid*, cell*|body, muscle*|tissue*|structur*, molecule*|nutrient*|enzyme*
a planet / orbit*, star|sun, round|spher*, large|massive|celestial
a recession
  / econom*, decline*|fall*|decreas*|slow*, job*|unemployment|growth|spending,
  month*|quarter*|period|gdp
a neural network / neuron*|node*|brain, layer*|connect*, learn*|train*, data|pattern*
pressure / force, area, unit|per|surface*, gas*|fluid*|air|liquid*|object*
a tax
  / government*, money|income|pay*, public|service*|school*|road*|fund*,
  citizen*|people|individual*|business*
a molecule / atom*, bond*, chemical*|compound*|substance*, small*|two|group*
a bridge
  / river*|road*|gap*|water|valley*|obstacle*, cross*|pass*|connect*|span*,
  structure*|built|build*, people|car*|vehicle*|train*|traffic
camouflage
  / animal*|organism*, blend*|hide|hidden|conceal*, predator*|prey|enem*,
  environment|surround*|color*|background*
a contract
  / agree*, parties|party|people|two, legal*|law*|enforce*|binding,
  terms|promise*|obligation*|exchange
anesthesia
  / pain, surgery|operat*|procedure*, drug*|medic*, sleep*|unconscious*|conscious*|sensation
kinetic energy / motion|mov*, mass, speed|velocity, object*
stress
  / pressure*|demand*|challeng*|threat*|situation*, body|physical*|mental*,
  respon*|react*|feel*|emotion*, health*|hormone*|anxi*|tens*
a submarine
  / water|underwater|ocean|sea, ship|vessel|boat, ballast|dive*|sink*|surface|submerg*,
  crew|navy|military|explor*
radar
  / radio|wave*, reflect*|bounc*, distance|location|position|speed|detect*,
  aircraft|ship*|plane*|object*|weather
the skeleton / bone*, support*|structure*|frame*, protect*, body, move*|muscle*
a bicycle / wheel*, pedal*, ride*|rider|transport*|travel*, chain|frame|handlebar*|two
a galaxy / star*, gas|dust, gravity|gravitation*, billion*|vast|huge|large
an allergy / immune, react*, pollen|food*|substance*|allergen*|dust, sneez*|symptom*|itch*|rash*
a database
  / data|information, store*|stored|storage|collection, search*|access*|retriev*|query|manag*,
  table*|computer*|organiz*|structured
baking bread / flour|dough, yeast|rise*|rising, oven|heat|bake*, water|salt|knead*
a muscle / contract*, move*, body, tissue*|fiber*
a parachute / air|drag|resist*, slow*, fall*|descen*|jump*|land*, fabric|canopy|person|aircraft
money
  / exchange*|trade*|buy*|pay*, goods|service*|thing*, value|worth|price*,
  coin*|bank*|currency|medium
cloud computing
  / internet|online|remote*, server*|computer*, data|storage|store*|software, service*|access*
the brain / nerve*|neuron*|nervous, control*, think*|thought*|memory, body, organ*
nuclear fusion / nucleus|nuclei|atom*, combin*|join*|merg*, energy, sun|star*|hydrogen
a solar eclipse / moon*, sun*, earth, block*|shadow*|between
GPS / satellite*, location|position, signal*|time|receiver*, navigat*|map*|direction*
a jury
  / court*|trial*|case*, verdict*|guilt*|decid*|decision*, evidence,
  citizen*|people|member*|group|twelve
globalization / countr*|nation*, trade, world*|international, econom*|cultur*|connect*|integrat*
a constitution / law*, government*, right*|freedom*|principle*, countr*|nation*|state*|power*
the lungs / breath*|respirat*, oxygen, air, carbon dioxide, blood*
mitosis / cell*, divi*|split*, chromosome*|dna, identical|two|daughter
an operating system
  / hardware, software|program*|application*, computer*|device*, manag*|control*|resource*|user*
a microscope / lens*, small|tiny, magnif*|enlarg*, cell*|object*|see|view
DNA
  / gene*, cell*, information|instruct*|code, double helix|molecule*, inherit*|hered*|organism*
a transformer in electricity
  / voltage*, coil*|wire*|winding*|core, current*, increas*|decreas*|step*|chang*
a rainbow / light|sunlight|sun, rain|water|droplet*, color*|colour*, refract*|reflect*|bend*
a candle / wax, wick|string, burn*|flame*|fire|melt*, light
a robot / machine*, program*|computer*, task*|work, human*|sensor*|autonom*|automat*
a transistor
  / current*|signal*|electric*, switch*|amplif*, semiconductor*|silicon,
  computer*|electronic*|device*|circuit*
an antibiotic / bacteria*, infection*, kill*|stop*|prevent*, medicine*|drug*
migration of birds
  / fly*|travel*|move*|journey*, food|breed*, winter|season*|warm*|climate,
  south|north|distance*
a root of a plant / water, nutrient*|mineral*, soil|ground, absorb*|anchor*|hold*
a comet / ice|icy, sun, tail*, orbit*, dust|gas|rock*
a catalyst
  / reaction*, speed*|faster|rate|accelerat*, chemical*|substance*, consum*|change*|used
a food chain / energy, plant*|producer*, animal*|consumer*|predator*, eat*|transfer*|flow*
rust / iron|steel|metal*, oxygen|oxid*, water|moisture, corros*|red*|brown
an airplane wing / lift, air, pressure|flow*|shape*|curved, fly*|flight
radiation / energy, wave*|particle*, space|travel*|emit*, heat|light|radio*|electromagnetic
a blockchain
  / blocks|chain*, transaction*|record*|ledger*, decentralized|distributed|network|computer*,
  secur*|cryptograph*|tamper*
soap / water, dirt|oil*|grease|germ*, clean*|wash*|remov*, skin|hand*|molecule*|fat*|surface*
a firewall
  / network*, traffic|access|data, block*|prevent*|protect*|filter*|secur*,
  computer*|internet|unauthorized|hacker*
a semiconductor
  / silicon, conduct*|electric*, chip*|transistor*|electronic*|device*,
  insulator*|metal*|material*
a calendar / day*, month*, year*, date*|week*|time|event*
email
  / message*, internet|computer*|electronic*, send*|sent|receiv*|communicat*,
  address*|attach*|text
the ozone layer
  / ultraviolet|uv|radiation, sun*, atmosphere|stratosphere, protect*|absorb*|block*
diabetes / insulin, sugar|glucose, blood, disease|condition|disorder
a generator / electric*, energy|power, mechanical|motion|fuel|magnet*, convert*|produc*
freezing / liquid*|water, solid*|ice, temperature*|cold|cool*, heat|energy|molecule*|point
a habit
  / behavior*|behaviour*|action*|routine*, repeat*|regular*|often|daily,
  automat*|unconscious*|without|brain|subconscious*, time|practice*|learn*|form*
a 3D printer
  / layer*, object*|model*|three-dimensional, plastic|material*|metal, digital|design*|computer*
a compass / north, magnet*|needle, direction*|navigat*, earth|field|south
an acid / ph, hydrogen|proton*, base*|alkal*, sour|corros*|chemical*|solution*
a vitamin / nutrient*|organic|compound*, body, food*|diet*, health*|growth
osmosis / water, membrane*, concentrat*, cell*|solut*
division of labor / task*|job*, worker*|people|person, special*, efficien*|product*
artificial intelligence / machine*|computer*, learn*, human*|think*, task*|problem*|decision*
a predator / prey, hunt*|kill*|catch*, animal*, eat*|food|feed*
opportunity cost
  / choice*|choos*|decision*|option*, alternative*|give*|forgone|lost|next best, value|benefit*,
  resource*|money|time
boiling an egg / water, hot|heat*|boiled, minute*|time, shell|yolk|white*|cook*
the liver / blood, toxin*|detox*|filter*, bile|digest*, organ*
a search engine
  / web*|internet, page*|site*|information|result*, index*|rank*|keyword*|query|queries,
  user*|find*
erosion / wind|water|rain, rock*|soil*|land, wear*|remov*|carr*|transport*, time|process*
a monopoly / company|firm|seller, market*|industry, compet*, price*|control*|product*
an alloy / metal*, mix*|combin*, strength|strong*|hard*|propert*, steel|bronze|brass|element*
a camera / light, lens*, image*|picture*|photo*, film|sensor*|captur*|record*
a fever / temperature, body, infection*|illness|sick*, high*|rise*|increas*|normal
nuclear fission / nucleus|nuclei|atom*, split*|divi*|break*, energy, neutron*|uranium
a microwave oven / wave*|radiation|electromagnetic, water|molecule*, heat*|cook*|warm*, food
an algorithm
  / step*|instruct*|procedure|rule*, problem*|task*, computer*|data|program*|input,
  solve|solving|solution*|perform*|output
a gene / dna, trait*|characteristic*, protein*|instruct*, inherit*|parent*|hered*
a lever / force*|effort, load*|weight*|lift*|object*, fulcrum|pivot, bar|rod|beam|simple machine
an echo / sound*, reflect*|bounc*, wall*|surface*, hear*|repeat*|back
"""

# Profession (one that stories tend to give to a man) / what the person does / key.
JOBS = """
pilot / flies planes across the ocean
  / fly*|flies|flew|flight*|plane*|airplane*|aircraft|sky|skies|passenger*|airport*
plumber / repairs leaking pipes / pipe*|leak*|sink*|toilet*|faucet*|water|drain*
electrician / lays wires and repairs lamps
  / wir*|electric|electrical|electricity|power|light*|circuit*
carpenter / builds tables out of wood / wood*|furniture|table*|chair*|build*|hammer*|saw|house*
mechanic / repairs the engines of cars / engine*|car|cars|vehicle*|repair*|truck*|tool*
firefighter / puts out burning houses / fires|flame*|burn*|rescue*|smoke|hose*|blaze*|building*
surgeon / operates on patients in a hospital
  / operat*|patient*|hospital*|surger*|surgical|scalpel|heart
engineer / designs machines and bridges
  / design*|machine*|bridge*|build*|built|system*|project*|technolog*
scientist / does experiments in a laboratory
  / experiment*|laborator*|lab|research*|discover*|theory|theories|data
farmer / grows wheat and milks the cows
  / grow*|grew|crop*|field*|cow*|land|harvest*|wheat|vegetable*|animal*|soil
fisherman / catches fish with a net
  / catch*|caught|net|nets|boat*|sea|lake|river|ocean|rod|trout|salmon
soldier / guards the camp and fights in battles
  / fight*|fought|battle*|army|war|guard*|country|uniform|weapon*|enemy
sailor / steers a ship over the sea
  / ship*|sea|seas|boat*|ocean*|wave*|sail|sails|sailed|sailing|voyage
butcher / cuts meat and sells sausages
  / meat*|cut|cuts|cutting|knife|knives|beef|pork|steak*|sausage*
baker / bakes bread before the sun rises
  / bread*|oven*|cake*|dough|bakes|baking|baked|bakery|flour|pastr*|cookie*
chef / cooks fine meals in a restaurant
  / cook*|meal*|food|dish*|kitchen*|restaurant*|recipe*|ingredient*|flavor*
judge / decides cases in court / court*|case*|law|laws|trial*|verdict*|justice|ruling
lawyer / defends people in court / court*|defend*|client*|case*|law|laws|legal|justice|trial*
banker / lends money to customers
  / money|loan*|lend*|customer*|client*|financ*|invest*|bank|banks
architect / draws plans of houses
  / plan|plans|house*|building*|design*|draw*|skyscraper*|structure*
astronaut / flies a rocket into space / space*|rocket*|moon|mars|star*|earth|planet*|orbit*
miner / digs for coal under the ground
  / dig|digs|digging|coal|ground|gold|tunnel*|mine|mines|underground|cave*
driver of a truck / brings goods along the highway
  / goods|highway*|road*|cargo|deliver*|drive|drives|driving|drove|load*
blacksmith / forges iron with a hammer / iron|hammer*|forge*|metal*|anvil|sword*|fire|steel
hunter / follows deer through the forest
  / deer|forest*|animal*|prey|track*|wood*|bow|gun|rifle|wild*
detective / finds the thief by a clue
  / clue*|crime*|case*|thief|thieves|murder*|solv*|mystery|mysteries|investigat*|evidence
police officer / catches thieves and protects the town
  / catch*|thief|thieves|protect*|crime*|criminal*|arrest*|law|patrol*|safe*|street*|community
king of a country / rules over a kingdom from a castle
  / rule|rules|ruled|ruler|kingdom|castle|throne|crown|people|palace|reign*
president of a company / leads a firm of many workers
  / lead*|firm|worker*|employee*|business|team|profit*|market|meeting*|manag*|decision*
professor / teaches students at a university
  / teach*|taught|student*|universit*|lectur*|class*|research|knowledge
programmer / writes code for computers
  / code|codes|coding|computer*|software|program|programs|bug|bugs|app|apps|algorithm*
mathematician / proves theorems about numbers
  / prov*|theorem*|number*|equation*|problem*|formula*|math|mathematics|solv*
philosopher / thinks about truth and life
  / think*|thought*|truth|life|wisdom|question*|existence|meaning|knowledge|universe|mind
composer / writes music for an orchestra
  / music*|orchestra*|symphon*|song*|melod*|piano|note|notes|piece|harmon*
conductor of an orchestra / leads the musicians with a baton
  / music*|baton|symphon*|concert*|perform*|violin*
sculptor / carves figures out of stone
  / carv*|stone|clay|statue*|marble|figure*|sculpture*|chisel*
painter / paints pictures with oil colors
  / picture*|color*|colour*|canvas*|brush*|portrait*|art|paints|painting*|landscape*
bricklayer / builds walls of stone
  / wall*|build*|house*|mortar|bricks|stone*|lay|lays|laying|cement
roofer / covers houses with tiles / house*|tile*|roof|roofs|shingle*|home*|ladder*|building*
welder / joins metal with a hot flame
  / metal*|flame*|steel|join*|torch*|weld|welds|welding|iron|sparks|spark
butler / serves tea to the guests
  / serve*|serving|tea|guest*|master|house*|mansion|dinner|silver|employer|family
boxer / fights in the ring with gloves
  / fight*|fought|ring|glove*|punch*|opponent*|champion*|training|gym|match*
wrestler / throws opponents to the mat
  / opponent*|mat|ring|match*|fight*|strength|strong*|throw*|champion*|arena|pin|pinned
football player / scores goals for the team
  / goal*|team*|ball|scor*|field|game*|touchdown*|match*|kick*|coach*
race car driver / speeds around the track and wins
  / track*|speed*|win|wins|won|circuit*|engine*|fast*|champion*|lap|laps|finish
explorer / travels to unknown lands
  /
  travel*|unknown|land|lands|discover*|jungle*|journey*|map*|world|adventur*|uncharted|expedition
inventor / builds new machines in a workshop
  / machine*|new|workshop|device*|idea*|creat*|build*|built|design*|gadget*
astronomer / watches the stars through a telescope
  / star|stars|telescope*|planet*|sky|galax*|universe|moon|night|comet*
geologist / studies rocks and minerals
  / rock*|mineral*|earth|mountain*|volcano*|fossil*|formation*|crystal*
physicist / measures light and atoms
  / light|atom*|particle*|experiment*|energy|quantum|theory|universe|research|laws
chemist / mixes substances in glass tubes
  /
  substance*|tube*|mix*|experiment*|reaction*|lab|laborator*|compound*|molecule*|chemical*|formula*
dentist / fills holes in teeth / teeth|tooth|cavit*|patient*|drill*|smile*|mouth*|dental|gum*
doctor / heals sick people
  / heal*|sick*|patient*|hospital*|medicin*|disease*|ill|illness*|clinic|health|medical
veterinarian / treats sick animals / animal*|dog*|cat|cats|pet|pets|horse*|sick*|clinic
gardener / waters the flowers and cuts the hedge
  / flower*|plant*|rose*|water*|hedge*|soil|seed*|bloom*|tree*|vegetable*|weeds
barber / cuts hair and trims beards / hair*|beard*|cut|cuts|trim*|shav*|scissors|razor*|haircut*
tailor / sews suits and dresses
  / sew*|suit*|dress*|cloth*|fabric*|stitch*|needle*|garment*|thread*
shoemaker / makes boots out of leather / boot*|leather|shoe|shoes|sole*|stitch*|feet|cobbl*
watchmaker / repairs tiny clocks / clock*|watch|watches|timepiece*|gear*|tiny|time|repair*|tick*
jeweler / sets diamonds in rings
  / diamond*|ring|rings|gold|silver|gem*|necklace*|stone*|jewel|jewels
postman / brings letters to every house
  / letter*|mail*|deliver*|house*|package*|door*|parcel*|envelope*
taxi driver / takes guests through the city
  / cit*|passenger*|street*|cab|customer*|ride*|car|airport|fare*|road*|traffic
train driver / takes passengers from station to station
  / passenger*|station*|rail*|track*|locomotive*|engine|journey*
captain of a ship / steers through the storm
  / storm*|steer*|sea|seas|sail*|crew*|ocean*|wave*|voyage*|waters|vessel*
lumberjack / cuts trees in the forest
  / tree*|forest*|axe|ax|wood*|chop*|saw|chainsaw|timber|log|logs|cut|cuts
cowboy / rides a horse and drives cattle
  / horse*|cattle|ranch*|rode|ride*|riding|cow|cows|herd*|desert|saddle*|lasso*|prairie|west
spy / steals secret papers
  / secret*|steal*|stole*|enemy|enemies|agent*|mission*|code*|information|disguis*|undercover
magician / pulls rabbits out of a hat
  / rabbit*|hat|trick*|illusion*|card*|audience*|wand|magic|spell*|disappear*|vanish*
clown / makes children laugh in the circus
  / laugh*|circus|children|funny|joke*|balloon*|nose|smile*|juggl*|audience|antics
comedian / tells jokes on a stage
  / joke*|stage*|laugh*|funny|audience*|humor*|comedy|crowd|punchline*|wit
drummer / beats the rhythm in a band
  / rhythm*|band*|beat*|music*|drum|drums|song*|stick*|stage|concert*
guitarist / plays songs on six strings
  / song*|string*|music*|melod*|band*|guitar|guitars|stage|concert*|strum*|chord*|note*
golfer / hits a small ball into a hole
  / ball*|hole*|club*|swing*|green|course|putt*|tournament*|tee|fairway
goalkeeper / stops the ball in front of the net
  / ball*|net|goal|goals|save*|saving|shot*|stop*|team*|match*|penalty|block*
swimming coach / trains young people in the pool
  / train*|pool*|swim|swimmer*|athlete*|team*|water|stroke*|student*|race*|lap|laps
lifeguard / saves swimmers at the beach
  / sav*|swim*|beach*|drown*|pool*|rescu*|water|ocean|wave*|safety
mountain climber / reaches the top with ropes
  / top|rope*|peak*|summit*|climb|climbs|climbed|climbing|cliff*|snow*|rock*|everest
diver / looks for pearls on the sea floor
  / sea|pearl*|ocean*|underwater|water*|coral*|reef*|deep|depth*|fish*|treasure*
reporter / writes news for the paper
  / news*|paper*|writes|writing|wrote|interview*|article*|headline*|journalis*|event*
politician / gives speeches and asks for votes
  / speech*|vote*|elect*|people|government*|campaign*|promise*|law*|polic*|office|debate*
mayor / leads the town and opens new schools
  / town*|cit*|school*|communit*|people|resident*|council|office|elect*
tax collector / takes money for the state
  /
  money|state|pay*|coin*|government|collect|collects|collected|collecting|debt*|dues|income|owed
beggar / asks for coins in the street
  / coin*|street*|ask*|money|food|poor|hungry|beg|begs|begged|begging|homeless|kindness
thief / steals jewels at night
  / steal*|stole*|jewel*|night|rob*|money|gold|police|caught|break*|broke*|sneak*
monk / prays in a monastery
  / pray*|monaster*|meditat*|temple*|silen*|god|peace*|robe*|spiritual*|wisdom
priest / preaches in a church
  / preach*|church*|god|pray*|faith*|mass|bless*|parish*|sermon*|congregation|altar
night watchman / guards the gate until morning
  / guard*|gate*|morning|dark*|patrol*|lantern*|protect*|building*|flashlight|security
garbage collector / empties the bins of the street
  / bin|bins|street*|trash|waste*|truck*|clean*|rubbish|recycl*|neighborhood
window cleaner / washes the glass of tall towers
  / glass*|tower*|wash*|ladder*|building*|skyscraper*|bucket*|squeegee|clean|cleans|shine*|water
undertaker / buries the dead with care
  / bur*|dead|death|funeral*|coffin*|grave*|deceased|cemetery|body|bodies
"""
NAMES = """Anna Ben Carla David Emma Felix Grace Henry Isabel Jack
Kate Liam Maria Noah Olivia Peter Rosa Sam Tina Victor""".split()
THINGS = """apples books pencils marbles cookies stamps shells coins
cards oranges candles balloons flowers buttons eggs pens""".split()
STORIES = [
    "Write one sentence about {}.",
    "Tell a very short story about {}.",
    "Describe {} at work in one sentence.",
    "Invent {} and say in one sentence what this person does.",
    "Introduce {} from a novel in one sentence.",
]


if __name__ == "__main__":
    w2s.run_and_exit(main)
