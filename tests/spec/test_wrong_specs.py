"""Every mistake in a spec gets a line of its own, `file:line: path: what; how`, and never a traceback."""

# ruff: noqa: E501  (a case is a line)

import json
import re
from pathlib import Path

import pytest

from rlhf_data.cli import run_command

# Lines matter here: a case says in which line its mistake is.
BASE = """version: 1
name: demo
about: x
sources:
  a: {path: raw/r.jsonl}
clean:
  - {op: filter, where: turns = 1}
rate: {by: rating, scale: [1, 5]}
split: {test: 0.2}
shape: {to: paired, pairing: all}
weigh: {weight: {row: margin}}
expect: {rows: [1, null]}
publish: {to: snapshots/demo}
"""
SCORE, TRAIN = "score: {model: model}\n", "train: {rule: dpo, model: model}\n"
SCORED = BASE.replace("expect:", SCORE + "expect:") + TRAIN  # score in line 12, train in line 15


def case(name, old, new, line, message, base=BASE):
    assert base.count(old) == 1, (name, old)
    return pytest.param(base.replace(old, new), line, message, id=name)


def source(name, new, message, line=5):
    return case(name, "{path: raw/r.jsonl}", new, line, f"sources.a{message}")


def clean(name, new, message):
    return case(f"clean: {name}", "{op: filter, where: turns = 1}", new, 7, f"clean[0]{message}")


def where(name, expression, message):
    return case(f"where: {name}", "turns = 1", json.dumps(expression), 7, f"clean[0].where: {message}")


def row(name, expression, message):
    return case(f"row: {name}", "row: margin", f"row: {json.dumps(expression)}", 11, f"weigh.weight.row: {message}")


def score(name, new, message):
    return case(f"score: {name}", SCORE, f"score: {new}\n", 12, f"score{message}", SCORED)


def train(name, new, message, line=15):
    return case(f"train: {name}", TRAIN, f"train: {new}\n", line, message, SCORED)


def blend(name, new, message):
    return train(f"blend: {name}", f"{{rule: dpo, model: model, blend: [{new}]}}", f"train.blend[0]{message}")


def moving(name, new, message):
    return train(f"reference: {name}", f"{{rule: dpo, model: model, reference: {new}}}", f"train.reference: {message}")


UNPAIRED = "to: unpaired"

WRONG = [
    # keys
    case("unknown section", "about: x", "abuot: x", 3, "abuot: unknown key; did you mean 'about'?"),
    source("unknown key of a source", "{pth: raw/r.jsonl}", ".pth: unknown key; did you mean 'path'?"),
    case("unknown key of clean", "op: filter,", "op: filter, were: x,", 7, "clean[0].were: unknown key; did you mean 'where'?"),
    case("unknown key of rate", "scale: [1", "scal: [1", 8, "rate.scal: unknown key; did you mean 'scale'?"),
    case("unknown key of split", "test:", "tets:", 9, "split.tets: unknown key; did you mean 'test'?"),
    case("unknown key of shape", "pairing:", "paring:", 10, "shape.paring: unknown key; did you mean 'pairing'?"),
    case("unknown key of weight", "row: margin", "row: margin, clipp: 3", 11, "weigh.weight.clipp: unknown key; did you mean 'clip'?"),
    case("unknown key of expect", "rows:", "row:", 12, "expect.row: unknown key; did you mean 'rows'?"),
    case("unknown key of publish", "to: snap", "too: snap", 13, "publish.too: unknown key; did you mean 'to'?"),
    score("unknown key", "{model: model, max_lenght: 3}", ".max_lenght: unknown key; did you mean 'max_length'?"),
    score("unknown key of a model", "{model: {path: model, revison: x}}", ".model: unknown key 'revison'; did you mean 'revision'?"),
    train("unknown key", "{rule: dpo, model: model, learning_rat: 1e-4}", "train.learning_rat: neither a key of train nor a parameter of dpo; did you mean 'learning_rate'?"),
    case("a number for a key", "about: x", "3: x", 3, "a key must be text"),
    case("a list for a key", "about: x", "? [a, b]\n: x", 1, "a key must be text"),
    # types
    case("a number for a name", "name: demo", "name: 7", 2, "name: must be text (in quotes, if it looks like something else), not 7"),
    case("a title for a name", "name: demo", "name: My Spec", 2, "name: must be made of lower-case letters"),
    case("another version", "version: 1", "version: 2", 1, "version: must be 1, not 2"),
    case("a list of sources", "  a: {path", "  - {path", 4, "sources: must be a mapping"),
    source("a path for a source", "raw/r.jsonl", ": must be a mapping, as in {KEY: VALUE}, not 'raw/r.jsonl'"),
    source("nothing for a source", "", ": must be a mapping"),
    source("a number for a path", "{path: 3}", ".path: must be a path or a glob"),
    source("a number for a data set", "{hf: 3}", ".hf: must be text"),
    case("no sources", "  a: {path: raw/r.jsonl}", "  {}", 4, "sources: must hold 1 or more"),
    case("a mapping for clean", "clean:\n  - {", "clean:\n    {", 6, "clean: must be a list"),
    case("a number for where", "where: turns = 1", "where: 1", 7, "clean[0].where: must be text"),
    case("one number for a scale", "[1, 5]", "[5]", 8, "rate.scale: must hold 2 or more"),
    case("a text for a scale", "[1, 5]", "1-5", 8, "rate.scale: must be a list"),
    case("not a number in a scale", "[1, 5]", "[.nan, 5]", 8, "rate.scale[0]: must be a finite number"),
    case("a share in percent", "test: 0.2", "test: 20%", 9, "split.test: must be a number, not '20%'"),
    case("a share over one", "test: 0.2", "test: 20", 9, "split.test: must be less than or equal to 1, not 20"),
    case("a share under nothing", "test: 0.2", "test: -0.2", 9, "split.test: must be greater than or equal to 0"),
    case("a negative weight", "row: margin", "category: {x: -1}", 11, "weigh.weight.category.x: must be greater than or equal to 0"),
    case("a number for a category", "row: margin", "category: {1: 1}", 11, "must be text"),
    case("a word for a number of rows", "[1, null]", "[many, null]", 12, "expect.rows[0]: must be a whole number, not 'many'"),
    case("a path for publish", "{to: snapshots/demo}", "snapshots/demo", 13, "publish: must be a mapping"),
    score("no token", "{model: model, max_length: 0}", ".max_length: must be greater than or equal to 1"),
    train("a word for a rate", "{rule: dpo, model: model, learning_rate: fast}", "train.learning_rate: must be a number, not 'fast'"),
    train("a rule that is a list", "{rule: [dpo], model: model}", "train.rule: must be a rule's name, module:function, formulas, or a sum"),
    # sections
    case("no name", "name: demo\n", "", 1, "name: missing; add it"),
    case("no shape", "shape: {to: paired, pairing: all}\n", "", 1, "shape: missing; add it (a section that says to: paired or to: unpaired)"),
    case("no table", "to: paired, ", "", 10, "shape.to: missing"),
    score("no model", "{max_length: 8}", ".model: missing; add it"),
    case("version after name", "version: 1\nname: demo", "name: demo\nversion: 1", 2, "the section version belongs above name"),
    case("sections in another order", "split: {test: 0.2}\nshape: {to: paired, pairing: all}", "shape: {to: paired, pairing: all}\nsplit: {test: 0.2}", 10, "the section split belongs above shape"),
    # YAML
    case("a key twice", "about: x", "name: two", 3, 'is not valid YAML: found duplicate key "name"'),
    case("a tab", "  a: {", "\ta: {", 5, "is not valid YAML: found character '\\t'"),
    case("an open brace", "raw/r.jsonl}", "raw/r.jsonl", 6, "is not valid YAML"),
    case("two documents", "about: x", "about: x\n---\nabout: y", 4, "is not valid YAML: but found another document"),
    case("a variable in braces", "raw/r.jsonl", "${RAW}/r.jsonl", 5, "a value with ${NAME} in {…} or […] needs quotes"),
    case("a tag", "about: x", "about: !!python/object/apply:os.system [ls]", 3, "has no meaning here"),
    case("an alias that holds itself", "about: x", "about: &a [*a]", 3, "about: must be text"),
    case("a control character", "about: x", "about: \x01", None, "is not valid YAML: unacceptable character"),
    pytest.param("", 1, "must be a mapping of sections", id="an empty file"),
    pytest.param("# nothing\n", 1, "must be a mapping of sections", id="a comment only"),
    pytest.param("- a\n- b\n", 1, "must be a mapping of sections", id="a list"),
    pytest.param(BASE.encode() + b"# \xff", None, "is not UTF-8 text", id="Latin-1"),
    case("an unset variable", "about: x", "about: ${NO_SUCH}", 3, "about: the variable NO_SUCH is not set; give --var NO_SUCH=VALUE"),
    # what a later release will do
    source("a snapshot of nobody", "{snapshot: other}", ".snapshot: no spec named 'other' here and no snapshot of it"),
    source("a policy without prompts", "{generate: {policy: model}}", ".generate.prompts: missing"),
    source("a file and a snapshot", "{path: raw/r.jsonl, snapshot: other}", ": needs exactly one of path, hf, snapshot and generate; it has path and snapshot"),
    source("a column to keep that is not there", "{path: raw/r.jsonl, keep_columns: [promt]}", ".keep_columns[0]: the file has no column 'promt'; did you mean 'prompt'?"),
    source("a column kept twice", "{path: raw/r.jsonl, keep_columns: [rating, rating]}", ".keep_columns[1]: 'rating' is named twice"),
    source("columns to keep of a policy", "{generate: {policy: model, prompts: {snapshot: other}}, keep_columns: [x]}", ": keep_columns names columns of raw records, and generate has none"),
    case("no reward model", "by: rating, scale: [1, 5]", "by: reward_model", 8, "rate: by: reward_model and reward_model: {run: NAME} belong together"),
    case("a reward model alone", "by: rating, scale: [1, 5]", "reward_model: model", 8, "rate: by: reward_model and reward_model: {run: NAME} belong together"),
    case("a reward model that is not there", "by: rating, scale: [1, 5]", "by: reward_model, reward_model: ./nope", 8, "rate.reward_model: no folder ./nope"),
    case("a reward model of no spec", "by: rating, scale: [1, 5]", "by: reward_model, reward_model: {run: nope}", 8, "rate.reward_model: no spec named 'nope' here and no run of it in .rlhf"),
    case("a template without a reward model", "by: rating", "template: chat, by: rating", 8, "rate: template means something by: reward_model only, and rate is by rating"),
    # words of some ways of rating only
    case("covariates of ratings", "by: rating", "by: rating, covariates: [length]", 8, "rate: covariates means something by: bradley_terry only, and rate is by rating"),
    case("elo by Bradley–Terry", "by: rating, scale: [1, 5]", "by: bradley_terry, elo: {k: 4}", 8, "rate: elo means something by: elo only, and rate is by bradley_terry"),
    case("scale by elo", "by: rating", "by: elo", 8, "rate: scale is of ratings, and rate is by elo"),
    case("an unknown covariate", "by: rating, scale: [1, 5]", "by: bradley_terry, covariates: [lenght]", 8, "rate.covariates[0]: unknown 'lenght'"),
    case("a covariate twice", "by: rating, scale: [1, 5]", "by: bradley_terry, covariates: [length, length]", 8, "rate: covariates names one of them twice"),
    case("an unknown prior", "by: rating, scale: [1, 5]", "by: bradley_terry, prior: flat", 8, "rate.prior: unknown 'flat'; write none"),
    case("a prior of nothing", "by: rating, scale: [1, 5]", "by: bradley_terry, prior: {strength: 0}", 8, "rate.prior"),
    case("a base of one", "by: rating, scale: [1, 5]", "by: elo, elo: {base: 1}", 8, "rate.elo.base"),
    case("per without normalize", "by: rating", "by: rating, per: source", 8, "rate: per says for whom ratings are normalized"),
    case("a number and normalize", "by: rating", "by: aspects, aspects: {a: 1}, normalize: rank, missing: 3", 8, "rate: a number for missing is in the source's units"),
    case("a number outside the scale", "by: rating", "by: aspects, aspects: {a: 1}, missing: 9", 8, "rate: missing is 9, outside the scale; write one from 1 to 5"),
    case("missing: skip", "by: rating", "by: aspects, aspects: {a: 1}, missing: skip", 8, "rate.missing: unknown 'skip'"),
    case("a verifier alone", "by: rating, scale: [1, 5]", "verifier: math:fsum", 8, "rate: by: verifier and verifier: module:function belong together"),
    case("no verifier", "by: rating, scale: [1, 5]", "by: verifier", 8, "rate: by: verifier and verifier: module:function belong together"),
    case("a verifier that is not there", "by: rating, scale: [1, 5]", "by: verifier, verifier: nosuchmodule:f", 8, "rate.verifier: no module nosuchmodule can be imported"),
    case("max_pairs_per_prompt", "pairing: all", "pairing: all, max_pairs_per_prompt: 0", 10, "shape.max_pairs_per_prompt: must be greater than or equal to 1"),
    case("share of an unknown source", "{weight: {row: margin}}", "{share: {a: 0.5, b: 0.5}}", 11, "weigh.share.b: no source of this name"),
    case("share of nothing", "{weight: {row: margin}}", "{share: {a: 0.0}}", 11, "weigh: share leaves every source out"),
    case("share and temperature", "{weight: {row: margin}}", "{share: {a: 1.0}, temperature: 2.0}", 11, "weigh: share and temperature both say"),
    case("of without share", "{weight: {row: margin}}", "{of: tokens}", 11, "weigh: of says what a share is counted in"),
    case("tokens without a tokenizer", "{weight: {row: margin}}", "{share: {a: 1.0}, of: tokens}", 11, "weigh.of: tokens are counted by the tokenizer of"),
    case("rows of an unknown source", "{weight: {row: margin}}", "{rows: {b: 10}}", 11, "weigh.rows.b: no source of this name"),
    case("keep more than all", "{weight: {row: margin}}", "{keep: {a: 1.5}}", 11, "weigh.keep.a: must be less than or equal to 1"),
    case("a table of weights that is not there", "{weight: {row: margin}}", "{weight: {table: {path: w.csv, key: pair_id}}}", 11, "weigh.weight.table.path: no file w.csv"),
    case("a key of the other table", "{weight: {row: margin}}", "{weight: {table: {path: w.csv, key: completion_id}}}", 11, "weigh.weight.table.key: the paired table has no completion_id"),
    case("label_balance of pairs", "rows: [1, null]", "label_balance: [0.3, null]", 12, "expect.label_balance: the paired table has no label"),
    train("a blend of nothing", "{rule: dpo, model: model, blend: []}", "train.blend: must hold 1 or more"),
    blend("no snapshot", "{rule: sft}", ".snapshot: missing; add it"),
    blend("a snapshot of nobody", "{snapshot: dem, rule: sft}", ".snapshot: no spec named 'dem' here and no snapshot of it in"),
    blend("a rule of the other table", "{snapshot: demo, rule: sft}", ".rule: sft trains on the unpaired table, and demo is paired"),
    blend("no such rule", "{snapshot: demo, rule: dpoo}", ".rule: no rule named 'dpoo'; did you mean 'dpo'?"),
    blend("neither a key nor a parameter", "{snapshot: demo, rule: dpo, betta: 1}", ".betta: neither a key of a blend nor a parameter of dpo; did you mean 'beta'?"),
    blend("a parameter out of range", "{snapshot: demo, rule: dpo, beta: -1}", ".beta: dpo: beta is -1: it must be a finite number > 0"),
    blend("a coefficient below 0", "{snapshot: demo, rule: dpo, coefficient: -0.1}", ".coefficient: must be greater than or equal to 0"),
    blend("two of one name", "{snapshot: demo, rule: dpo}, {snapshot: demo, rule: ipo}", ": two parts are named 'demo'; give each a name of its own"),
    train("an unknown word of lora", "{rule: dpo, model: model, lora: {rank: 8}}", "train.lora.rank: unknown key"),
    train("a rank of nothing", "{rule: dpo, model: model, lora: {r: 0}}", "train.lora.r: must be greater than or equal to 1"),
    train("a target that is no list", "{rule: dpo, model: model, lora: {targets: q_proj}}", "train.lora.targets: must be all-linear, or a list of the names of linear layers"),
    train("an adapter that is not there", "{rule: dpo, model: {path: model, adapter: nowhere}}", "train.model.adapter: nowhere has no adapter_config.json"),
    moving("of no form", "{}", "write {ema: 0.99}, or {alpha: 0.6, tau: 512}"),
    moving("of two forms", "{ema: 0.9, tau: 2}", "write {ema: 0.99}, or {alpha: 0.6, tau: 512}"),
    moving("that reads stored scores", "{ema: 0.9}", "stored scores are not valid once the reference moves; leave score out"),
    case("an average of factors", TRAIN, "train: {rule: dpo, model: model, lora: {r: 8}, reference: {ema: 0.9}}\n", 14, "train.reference: the average of two adapters' factors", SCORED.replace(SCORE, "")),
    case("a moving reference of no rule", TRAIN, "train: {rule: simpo, model: model, reference: {ema: 0.9}}\n", 14, "train.reference: no rule here reads log-probs of a reference", SCORED.replace(SCORE, "")),
    # cleaning
    clean("an unknown op", "{op: dedupe, keys: [prompt]}", ".op: unknown 'dedupe'; did you mean 'dedup'?"),
    clean("a key of another op", "{op: dedup, keys: [prompt], where: turns = 1}", ": op dedup has no key 'where'; it has keys, near, prefer"),
    clean("a condition that is absent", "{op: filter}", ": op filter needs where"),
    clean("keys that are absent", "{op: dedup}", ": op dedup needs keys"),
    clean("a pair and more", "{op: dedup, keys: [pair, prompt]}", ": keys must be [prompt], [completion], [prompt, completion] or [pair]"),
    clean("nearer than equal", "{op: dedup, keys: [prompt], near: 1.5}", ".near: must be less than or equal to 1"),
    clean("an unknown preference", "{op: dedup, keys: [prompt], prefer: best}", ".prefer: unknown 'best'"),
    clean("no evaluation files", "{op: decontaminate, against: [evals/*.jsonl]}", ".against: no file at evals/*.jsonl"),
    clean("evaluation files of another kind", "{op: decontaminate, against: demo.yaml}", ".against: cannot look for texts in demo.yaml; use .jsonl"),
    clean("runs of no word", "{op: decontaminate, against: raw/r.jsonl, ngram: 0}", ".ngram: must be greater than or equal to 1"),
    clean("nothing to do", "{op: pii, kinds: [email]}", ": op pii needs do"),
    clean("a language that nobody asked for", "{op: pii, do: mark, language: de}", ": language is Presidio's; say presidio: and a spaCy model, or leave language out"),
    clean("no such spaCy model", "{op: pii, do: mark, presidio: xx_none}", ".presidio: "),
    clean("an unknown kind", "{op: pii, do: mark, kinds: [mail]}", ".kinds: no kind 'mail' of personal data; did you mean 'email'?"),
    clean("an unknown language", "{op: language, keep: [english]}", ".keep: no language 'english'; use codes of ISO 639"),
    case("near without clusters", "test: 0.2", "test: 0.2, near: 0.9", 9, "split: near says which prompts are a cluster"),
    # sources
    source("no place", "{license: MIT}", ": needs exactly one of path, hf, snapshot and generate; it has none"),
    source("two places", "{path: raw/r.jsonl, hf: org/x}", ": needs exactly one of path, hf, snapshot and generate; it has path and hf"),
    source("two readings", "{path: raw/r.jsonl, adapter: hh_rlhf, sql: SELECT 1}", ": may have one of adapter, columns, sql; it has adapter and sql"),
    source("no such adapter", "{path: raw/r.jsonl, adapter: hh_rlfh}", ".adapter: no adapter named 'hh_rlfh'; did you mean 'hh_rlhf'?"),
    source("another data set's adapter", "{path: raw/r.jsonl, adapter: hh_rlhf}", ".path: hh_rlhf needs it: no column 'chosen'"),
    source("no such option", "{path: raw/p.jsonl, adapter: hh_rlhf, options: {tie: 1}}", ".options: hh_rlhf has no option 'tie'"),
    source("no such file", "{path: raw/nope.jsonl}", ".path: no file at raw/nope.jsonl"),
    source("nothing matches", "{path: raw/*.csv}", ".path: no file at raw/*.csv"),
    source("an unknown kind of file", "{path: demo.yaml}", ".path: demo.yaml: the name does not say what it is; add `format:`"),
    source("an unknown format", "{path: raw/r.jsonl, format: jsnl}", ".format: unknown 'jsnl'; did you mean 'jsonl'?"),
    source("a column that is not there", "{path: raw/r.jsonl, columns: {prompt: prompt, completion: completion, rating: ratin}}", ".columns.rating: no column 'ratin', did you mean 'rating'?"),
    source("an unknown part of an observation", "{path: raw/r.jsonl, columns: {promt: prompt, completion: completion}}", ".columns.promt: is no part of an observation, did you mean 'prompt'?"),
    source("two tables for one mapping", "{path: {x: raw/r.jsonl, y: raw/p.jsonl}, columns: {prompt: prompt, completion: completion}}", ".columns: columns map one table, not x, y; join them with sql"),
    source("a query of no column", '{path: raw/r.jsonl, sql: "SELECT nope FROM raw"}', '.sql: Binder Error: Referenced column "nope" not found'),
    source("a query that is none", '{path: raw/r.jsonl, sql: "SELEC prompt FROM raw"}', ".sql: Parser Error: syntax error"),
    source("a query for an unknown part", '{path: raw/r.jsonl, sql: "SELECT prompt, completion AS answer FROM raw"}', ".sql: its column 'answer' is no part of an observation"),
    source("columns that say nothing", "{path: raw/odd.jsonl}", ": nothing says what the columns mean; add adapter, columns or sql (the file has x)"),
    source("a query of nothing", '{path: raw/r.jsonl, sql: ""}', ".sql: is no query"),
    source("a sheet of lines", "{path: raw/r.jsonl, options: {sheet: Data}}", ".options.sheet: is for xlsx, and the source is jsonl"),
    source("a separator of lines", "{path: raw/r.jsonl, options: {separator: ';'}}", ".options.separator: is for csv and tsv, and"),
    source("a separator that is none", "{path: raw/r.csv, options: {separator: tab}}", ".options.separator: must be one character"),
    case("nowhere to publish to", "to: snapshots/demo", "to: ''", 13, "publish.to: must not be empty"),
    # expressions
    where("unfinished", "turns = 1 AND", "is not an expression: unable to parse"),
    where("empty", "", "is not an expression"),
    where("every column", "*", "is not an expression"),
    where("a query", "SELECT 1", "is not an expression"),
    where("a subquery", "turns IN (SELECT 1)", "holds a SELECT"),
    where("an unknown function", "nofunc(turns) = 1", "is not an expression: unsupported function 'nofunc'"),
    where("an unknown column", "turn = 1", "no column 'turn'; did you mean 'turns'?"),
    where("a number", "length(completion)", "is UInt32, but a condition must be true or false"),
    where("text against a number", "completion > 3", "cannot be computed: cannot compare string with numeric"),
    where("a broken pattern", "completion RLIKE '('", "cannot be computed: regex"),
    where("a total", "sum(turns) > 3", "says one thing of the whole table"),
    where("a constant", "true", "says one thing of the whole table"),
    where("a mean beside a row", "length(completion) > avg(length(completion))", "compares a row with others"),
    where("a window", "count(*) OVER (PARTITION BY source) > 3", "compares a row with others"),
    where("a quantile", "turns > quantile_cont(turns, 0.5)", "compares a row with others"),
    row("an unknown column", "margn", "no column 'margn'; did you mean 'margin'?"),
    row("a text", "source", "is String, but a weight must be a number"),
    row("unfinished", "margin *", "is not an expression"),
    row("a text column that is not there yet", "length(chosen)", "no column 'chosen'"),
    # words that do not fit together
    case("no such way of rating", "by: rating", "by: ratings", 8, "rate.by: unknown 'ratings'; did you mean 'rating'?"),
    case("no such pairing", "pairing: all", "pairing: best_vs_wrst", 10, "shape.pairing: unknown 'best_vs_wrst'; did you mean 'best_vs_worst'?"),
    case("a scale upside down", "[1, 5]", "[5, 1]", 8, "rate: scale goes from 5 to 1; write [lowest, highest]"),
    case("aspects without by", "by: rating", "by: rating, aspects: {tone: 1}", 8, "rate: by: aspects and aspects: {NAME: WEIGHT, …} belong together"),
    case("by aspects without aspects", "by: rating", "by: aspects", 8, "belong together"),
    case("nothing left to train on", "test: 0.2", "test: 0.5, validation: 0.5", 9, "split: test and validation take 1 of the rows; nothing is left"),
    case("a margin of given pairs", "pairing: all", "pairing: as_given, min_margin: 0.5", 10, "shape: min_margin needs rewards"),
    case("a label of pairs", "pairing: all", "label: source", 10, "shape: label has no meaning for a table that is paired"),
    case("a pairing of answers", "to: paired, ", f"{UNPAIRED}, ", 10, "shape: pairing has no meaning for a table that is unpaired"),
    case("a threshold for nothing", "to: paired, pairing: all", f"{UNPAIRED}, threshold: 0.5", 10, "shape: threshold has no meaning where label is source; say label: threshold"),
    case("a threshold that is not said", "to: paired, pairing: all", "to: unpaired, label: threshold", 10, "shape: label: threshold needs threshold, the reward from which on"),
    case("a gap for nothing", "to: paired, pairing: all", f"{UNPAIRED}, gap: 0.5", 10, "shape: gap has no meaning where label is source"),
    case("weights of labels of pairs", "row: margin", "label: {true: 2}", 11, "weigh.weight.label: the paired table has no label"),
    case("a weight of no source", "row: margin", "source: {b: 2}", 11, "weigh.weight.source.b: no source of this name"),
    case("bounds upside down", "[1, null]", "[10, 5]", 12, "expect: rows goes from 10 to 5"),
    # models and rules
    score("no such folder", "{model: ./nope}", ".model: no folder ./nope; give a model's folder or a hub id"),
    score("a misspelt folder", "{model: modle}", ".model: no folder modle; give a model's folder or a hub id"),
    score("a folder that is no model", "{model: raw}", ".model: raw has no config.json"),
    score("a misspelt GGUF file", "{model: {path: gguf, gguf_file: mdel.gguf}}", ".model: no file mdel.gguf in gguf; did you mean 'model.gguf'?"),
    score("a folder of GGUF files", "{model: gguf}", ".model: gguf has no config.json; say gguf_file: model.gguf"),
    score("a model and a run", "{model: {path: model, run: x}}", ".model: must be a folder or a hub id"),
    score("a run of no spec", "{model: {run: nope}}", ".model: no spec named 'nope' here and no run of it in .rlhf"),
    score("no such template", "{model: model, template: nope.jinja}", ".template: no file nope.jinja; write chat, plain, or the path"),
    score("no room for an answer", "{model: model, max_length: 8, max_prompt_length: 8}", ".max_prompt_length: leaves no token of 8 for an answer"),
    train("no such rule", "{rule: dp0, model: model}", "train.rule: no rule named 'dp0'; did you mean 'dpo'?"),
    train("a rule of the other table", "{rule: sft, model: model}", "train.rule: sft trains on the unpaired table, and shape makes it paired"),
    train("a parameter it does not have", "{rule: dpo, model: model, bta: 0.1}", "train.bta: neither a key of train nor a parameter of dpo; did you mean 'beta'?"),
    train("a parameter out of range", "{rule: dpo, model: model, beta: 0}", "train.beta: dpo: beta is 0: it must be a finite number > 0"),
    train("a parameter that is no number", "{rule: dpo, model: model, beta: .nan}", "train.beta: dpo: beta is nan"),
    train("a probability that is none", "{rule: cdpo, model: model, label_smoothing: 0.6}", "train.label_smoothing: cdpo: label_smoothing is 0.6: it must be a finite number >= 0 and < 0.5"),
    train("half a formula", "{rule: {chosen: D}, model: model}", "train.rule: the formula of rejected is missing: a rule over pairs has chosen and rejected"),
    train("a formula with a slip", "{rule: {chosen: beta * sigmoid(-beta * log_ratio_margn), rejected: beta, beta: 0.1}, model: model}", "train.rule: chosen: unknown symbol 'log_ratio_margn': did you mean 'log_ratio_margin'?"),
    train("a formula of completions for pairs", "{rule: {completion: R}, model: model}", "train.rule: completion = R trains on the unpaired table, and shape makes it paired"),
    train("a parameter that a formula does not have", "{rule: {chosen: 2 * k, rejected: k, k: 1}, model: model, beta: 1}", "train.beta: neither a key of train nor a parameter of chosen = 2 * k; rejected = k"),
    train("a sum of nothing", "{rule: {sum: []}, model: model}", "train.rule: a sum is a list of terms"),
    train("a term without a rule", "{rule: {sum: [dpo]}, model: model}", "train.rule: term 0 of the sum is 'dpo': write {rule: NAME"),
    train("a term that pairs cannot serve", "{rule: {sum: [{rule: dpo}, {rule: kto}]}, model: model}", "train.rule: kto cannot act on the chosen answers of pairs: they have no mismatched_log_ratio, label"),
    train("a term that remembers", "{rule: {sum: [{rule: dpo}, {rule: beta_dpo_running}]}, model: model}", "train.rule: beta_dpo_running remembers between steps, and a sum cannot"),
    train("a term's parameter", "{rule: {sum: [{rule: dpo, beta: -1}]}, model: model}", "train.rule: dpo: beta is -1: it must be a finite number > 0"),
    train("a function of no module", "{rule: 'no_such:rule', model: model}", "train.rule: no rule no_such:rule: name an importable function as module:function"),
    train("a function that says nothing", "{rule: 'tests.rules.own_rules:silent', model: model}", "train.rule: tests.rules.own_rules:silent does not say what it returns"),
    train("a function of what no batch has", "{rule: 'tests.rules.own_rules:lost', model: model}", "train.rule: tests.rules.own_rules:lost names advantage, which is no quantity of the unpaired table"),
    train("a function without a default", "{rule: 'tests.rules.own_rules:demanding', model: model}", "train.rule: tests.rules.own_rules:demanding: the hyperparameter scale has no default"),
    score("a reference of no meaning", "{model: model, references: {kl: {model: model}}}", ".references: no reference is called 'kl'; old is the policy that wrote the completions"),
    score("a reference without a model", "{model: model, references: {old: {}}}", ".references.old.model: missing"),
    score("a reference that is not there", "{model: model, references: {old: {model: /no/such}}}", ".references.old.model: no folder /no/such"),
    score("a run of no spec as reference", "{model: model, references: {old: {model: {run: other}}}}", ".references.old.model: no spec named 'other' here"),
    score("a second reference of pairs", "{model: model, references: {old: {model: model}}}", ".references: rules over pairs read one reference"),
    score("a column that no scorer gives", "{model: model, publish: [entropy]}", ".publish: unknown 'entropy'; "),
    score("tokens published and not stored", "{model: model, token_logps: false, publish: [token_logps]}", ": token_logps: false stores none, and publish names them"),
    score("squares published and not stored", "{model: model, publish: [mean_log_p2]}", ": publish names mean_log_p2, which squares: true stores; add it"),
    score("an adapter that is none", "{model: {path: model, adapter: raw}}", ".model.adapter: raw has no adapter_config.json"),
    case("token references that are not stored", "score: {model: model}", "score: {model: model, token_logps: false}", 12, "score.token_logps: false stores none, and ld_dpo needs ref_chosen_token_logps, ref_rejected_token_logps; leave it out", SCORED.replace("rule: dpo", "rule: ld_dpo")),
    case("a token rule without score", "publish: {to: snapshots/demo}\n", "publish: {to: snapshots/demo}\n" + TRAIN.replace("rule: dpo", "rule: ld_dpo"), 14, "train.rule: ld_dpo needs ref_chosen_token_logps, ref_rejected_token_logps; add score: {model: …}"),
    case("the ratio to a policy that is not scored", "to: paired, pairing: all", "to: unpaired", 15, "train.rule: ppo_old needs old_logps; add to score: references: {old: {model: the policy that wrote the completions}}", SCORED.replace("rule: dpo", "rule: ppo_old")),
    case("the ratio to a policy without score", "to: paired, pairing: all", "to: unpaired", 14, "train.rule: apa_old needs old_logps; add score: {model: …, references: {old: {model: the policy that wrote the completions}}}", BASE + TRAIN.replace("rule: dpo", "rule: apa_old")),
    train("a reward head and a policy", "{rule: {sum: [{rule: rm}, {rule: dpo}]}, model: model}", "train.rule: rm + dpo reads the score of a reward head and log_ratio_margin, which are of a policy: train the two apart"),
    train("answers of a reward model", "{rule: rm, model: model}\nevaluate: {verifier: 'math:fsum'}", "evaluate.verifier: a reward model writes no answers", 16),
    train("a class beside a reference", "{rule: dpo, model: model, condition: {on: category, text: {x: A, y: B}}}", "train.condition: dpo reads ref_chosen_logps, ref_rejected_logps, which are of prompts without a class"),
    train("a class by a label of pairs", "{rule: simpo, model: model, condition: {on: label, text: {true: A, false: B}}}", "train.condition.on: the paired table has no label"),
    train("half the labels", "{rule: simpo, model: model, condition: {on: label, text: {true: A, other: B}}}", "train.condition: a label is true or false; write text: {true: …, false: …}"),
    train("a source of no name", "{rule: simpo, model: model, condition: {on: source, text: {a: A, b: B}}}", "train.condition.text.b: no source of this name"),
    train("a source without a class", "{rule: simpo, model: model, condition: {on: source, text: {b: A, c: B}}}", "train.condition.text: says nothing of a; every source is a class"),
    train("a class of a reward model", "{rule: rm, model: model, condition: {on: category, text: {x: A, y: B}}}", "train.condition: a reward model judges texts as they are"),
    train("two classes alike", "{rule: simpo, model: model, condition: {on: category, text: {x: A, y: A}}}", "train.condition: two classes have the same text"),
    train("one class", "{rule: simpo, model: model, condition: {on: category, text: {x: A}}}", "train.condition.text: must hold 2 or more"),
    train("a class to ask for that is none", "{rule: simpo, model: model, condition: {on: category, text: {x: A, yy: B}, infer: y}}", "train.condition: infer: no class 'y'; did you mean 'yy'?"),
    train("a rule of rewards for the paired table", "{rule: ppo, model: model}", "train.rule: ppo trains on the unpaired table"),
    case("gaps of rewards of pairs as given", "pairing: all", "pairing: as_given", 15, "train.rule: odpo needs margin, which pairs have that are made from ratings; as_given has none", SCORED.replace("rule: dpo", "rule: odpo")),
    case("ties for a rule that ignores preference", "pairing: all", "pairing: all, ties: soft", 10, "shape.ties: simpo does not read `preference`", SCORED.replace("rule: dpo", "rule: simpo")),
    train("a template beside score's", "{rule: dpo, model: model, template: plain}", "train.template: stands in score"),
    case("dpo without score", "publish: {to: snapshots/demo}\n", "publish: {to: snapshots/demo}\n" + TRAIN, 14, "train.rule: dpo needs ref_chosen_logps, ref_rejected_logps; add score: {model: …}"),
    train("a judge of a reward model", "{rule: rm, model: model}\nevaluate: {reward_model: {run: x}}", "evaluate.reward_model: a reward model writes no answers", 16),
    train("a judge of nobody", "{rule: dpo, model: model}\nevaluate: {reward_model: {run: x}}", "evaluate.reward_model: no spec named 'x' here", 16),
    case("evaluate without train", "publish: {to: snapshots/demo}\n", "publish: {to: snapshots/demo}\nevaluate: {by: category}\n", 14, "evaluate: there is nothing to evaluate without train"),
    train("nothing held out", "{rule: dpo, model: model}\nevaluate: {split: validation}", "evaluate: no rows are held out for validation; add split: {validation: 0.1}", 16),
    train("a verifier that is no function", "{rule: dpo, model: model}\nevaluate: {verifier: mine}", "evaluate.verifier: 'mine' does not name a function; write module:function", 16),
    train("a verifier of no module", "{rule: dpo, model: model}\nevaluate: {verifier: 'no_such:f'}", "evaluate.verifier: no module no_such can be imported", 16),
    train("a schedule that is none", "{rule: dpo, model: model}\nschedule: {cron: daily}", "schedule.cron: 'daily' is no schedule; write five fields", 16),
    train("a timezone of nowhere", "{rule: dpo, model: model}\nschedule: {cron: '0 3 * * 1', timezone: Nowhere}", "schedule.timezone: no timezone named 'Nowhere'", 16),
]  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what sound specs name: raw files, a model's folder, a GGUF file."""
    monkeypatch.chdir(tmp_path)
    for folder in ("raw", "model", "gguf"):
        (tmp_path / folder).mkdir()
    files = {
        "raw/r.jsonl": {"prompt": "q", "completion": "a", "rating": 1},
        "raw/p.jsonl": {"chosen": "x", "rejected": "y"},
        "raw/odd.jsonl": {"x": 1},
        "model/config.json": {},
        "gguf/model.gguf": {},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content) + "\n")
    return tmp_path


def check(spec, capfd) -> tuple[int, list[str]]:
    """The exit code of `check` and what it says, a problem a line."""
    path = spec if isinstance(spec, str) and "\n" not in spec and spec else "demo.yaml"
    if path == "demo.yaml":
        Path(path).write_bytes(spec if isinstance(spec, bytes) else spec.encode())
    code = run_command(["check", path])
    said = capfd.readouterr().err
    assert "Traceback" not in said
    return code, said.splitlines()


def test_the_specs_that_the_mistakes_are_made_in_are_fine(place, capfd):
    assert check(BASE, capfd) == (0, [])
    assert check(SCORED, capfd) == (0, [])


def test_a_class_in_the_prompt_is_fine_beside_rules_that_read_labels_or_rewards(place, capfd):
    classes = '{on: label, text: {true: "good: ", false: "bad: "}}'
    for rule in ("c_rlft", "vpg"):
        train = f"train: {{rule: {rule}, model: model, condition: {classes}}}\n"
        unpaired = BASE.replace("to: paired, pairing: all", "to: unpaired").replace("row: margin", "row: reward")
        assert check(unpaired + train, capfd) == (0, [])


@pytest.mark.parametrize(("spec", "line", "message"), WRONG)
def test_a_mistake_is_named_in_its_line(spec, line, message, place, capfd):
    code, said = check(spec, capfd)
    assert code == 1
    where = r"demo\.yaml: " if line is None else rf"demo\.yaml:{line}: "
    assert any(re.match(where, one) and message in one for one in said), "\n".join(said)
    # A formula stands below its problem, indented, with a line that points into it.
    assert all(one.startswith(("demo.yaml:", "    ")) for one in said[:-1]), "each problem takes one line"


def test_every_problem_is_told_at_once_in_the_order_of_the_file(place, capfd):
    spec = BASE.replace("about: x", "abuot: x").replace("[1, 5]", "[5, 1]").replace("test: 0.2", "test: 2")
    code, said = check(spec, capfd)
    assert code == 1
    assert [one.split(":")[1] for one in said[:-1]] == ["3", "8", "9"]
    assert said[-1] == "3 problems"


def test_problems_of_data_expressions_and_rules_are_told_at_once_too(place, capfd):
    spec = (
        SCORED.replace("raw/r.jsonl", "raw/no.jsonl").replace("turns = 1", "turn = 1").replace("rule: dpo", "rule: dp")
    )
    code, said = check(spec, capfd)
    assert code == 1
    assert [one.split(":")[1] for one in said[:-1]] == ["5", "7", "15"]


def test_problems_of_all_specs_of_a_folder_are_told_at_once(place, capfd):
    (place / "all").mkdir()
    (place / "all" / "a.yaml").write_text(BASE.replace("about", "abuot"))
    (place / "all" / "b.yaml").write_text(BASE.replace("name: demo", "name: 7"))
    code, said = check("all", capfd)
    assert code == 1
    assert [one.split(": ")[0] for one in said[:-1]] == ["all/a.yaml:3", "all/b.yaml:2"]


def test_two_specs_of_one_name_are_refused(place, capfd):
    (place / "all").mkdir()
    for name in "ab":
        (place / "all" / f"{name}.yaml").write_text(BASE)
    code, said = check("all", capfd)
    assert code == 1
    assert said[0] == "all/b.yaml:2: name: 'demo' is the name of all/a.yaml too; give each spec its own"


def test_two_specs_that_are_published_to_one_folder_are_refused(place, capfd):
    (place / "all").mkdir()
    (place / "all" / "a.yaml").write_text(BASE)
    same = BASE.replace("name: demo", "name: other").replace("to: snapshots/demo", "to: ./snapshots/demo/")
    (place / "all" / "b.yaml").write_text(same)
    code, said = check("all", capfd)
    assert code == 1
    assert said[0].startswith("all/b.yaml:13: publish.to: demo is published there too")


def test_specs_that_start_from_each_others_runs_are_refused(place, capfd):
    (place / "all").mkdir()
    for name, other in (("one", "two"), ("two", "one")):
        spec = SCORED.replace("name: demo", f"name: {name}").replace("{model: model}", f"{{model: {{run: {other}}}}}")
        (place / "all" / f"{name}.yaml").write_text(spec)
    code, said = check("all", capfd)
    assert code == 1
    assert "the specs one, two start from each other's runs or snapshots in a circle" in said[0]


@pytest.mark.parametrize("place_name", ["nowhere", "empty"])
def test_a_place_without_specs_is_an_error(place_name, place, capfd):
    (place / "empty").mkdir()
    code, said = check(place_name, capfd)
    assert code == 1
    assert said[0] in ("nowhere: no such file or folder", "empty: no *.yaml in this folder")


def test_a_problem_names_its_parts_as_json(place, capfd):
    (place / "demo.yaml").write_text(BASE.replace("about", "abuot"))
    assert run_command(["check", "demo.yaml", "--json"]) == 1
    (problem,) = json.loads(capfd.readouterr().out)["problems"]
    assert problem == {"file": "demo.yaml", "line": 3, "path": "abuot", "what": "unknown key; did you mean 'about'?"}


def test_a_check_reads_no_data(place, capfd, monkeypatch):
    from rlhf_data.sources import readers

    monkeypatch.setattr(readers, "read_dataset", None)
    rows = [json.dumps({"prompt": "q", "completion": "a", "rating": 1})] * readers.PEEKED
    (place / "raw" / "r.jsonl").write_text("\n".join([*rows, "{broken far down"]) + "\n")
    assert check(BASE, capfd) == (0, [])
    assert not (place / ".rlhf").exists()


@pytest.mark.parametrize("override", ["weigh.weight.label.false=0.5", "weigh.weight.label={false: 0.5}"])
def test_a_label_is_a_key_that_can_be_set(override, place, capfd):
    spec = BASE.replace("to: paired, pairing: all", "to: unpaired, label: threshold, threshold: 0.5")
    (place / "demo.yaml").write_text(spec.replace("row: margin", "label: {true: 1.0, false: 1.0}"))
    assert run_command(["check", "demo.yaml", "--set", override]) == 0, capfd.readouterr().err


@pytest.mark.parametrize("override", ["train.beta=[", "rate.scale.lowest=1", "seed=x", "nonsense=1"])
def test_an_override_that_cannot_be_is_an_error_without_traceback(override, place, capfd):
    (place / "demo.yaml").write_text(SCORED)
    assert run_command(["check", "demo.yaml", "--set", override]) == 1
    assert "Traceback" not in capfd.readouterr().err


def test_a_merge_key_is_yaml_too(place, capfd):
    merged = "&a {path: raw/r.jsonl}\n  b: {<<: *a, category: c}"
    assert check(BASE.replace("{path: raw/r.jsonl}", merged), capfd) == (0, [])
