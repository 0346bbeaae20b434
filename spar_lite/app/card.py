"""The README of what is exported: what it is made of, its scores, and what they do not show.

Reads finished records alone. What a user or a model wrote stands in code spans, where Markdown
reads no markup and makes no link.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spar_lite import __version__
from spar_lite.app.console import harmless
from spar_lite.app.loop_table import weak_parts
from spar_lite.app.report import settings
from spar_lite.app.tables import difference_row, label, score_text
from spar_lite.errors import StoreError
from spar_lite.evaluation.compare import compare, differences, run_alarms
from spar_lite.loop import summaries
from spar_lite.recipe import Recipe
from spar_lite.run import Summary

EVERY = "of all iterations"
"""In place of a checkpoint's name."""
LONGEST = 200
"""Characters of a foreign text that are shown."""
PRIVATE = re.compile(r"^engine\.")
"""Settings that stay at home too: they may name a server."""
JUDGES = {
    "llm": "the votes of the model itself: no one else checked them",
    "code": "a program, which sees what it can check and nothing else",
    "hybrid": "a program where it can check, the votes of the model itself for the rest",
}
USE = {
    "adapter": "An adapter for PEFT: `PeftModel.from_pretrained(base, FOLDER)` puts it on the base "
    "model; `spar-lite chat FOLDER` and `spar-lite eval constraints FOLDER` take it as it is.",
    "merged": "A whole model in bf16, added to the base in float32 and rounded once: "
    "`AutoModelForCausalLM.from_pretrained(FOLDER)`.",
    "gguf-ready": "A whole model in f16 (added to the base in float32, rounded once) for llama.cpp:"
    " `python llama.cpp/convert_hf_to_gguf.py FOLDER --outtype f16 --outfile model.gguf`",
    "pairs": "Preference pairs: {}. A model wrote both.",
    "trees": "Search trees: refinements of answers that were judged to fail. A model wrote them.",
}
FAILED = "the rejected side is a sampled answer that was judged to fail, the chosen one"
SIDES = {
    "refined": f"{FAILED} its refinement that was accepted",
    "first-refinement": f"{FAILED} the first refinement of it, which was judged to pass",
    "sampled": f"{FAILED} another that was judged to pass",
    "best-of-n": "both sides are sampled answers, those of the highest and the lowest value",
    "constraint-drop": "the chosen side is a sampled answer that was judged to pass, the rejected "
    "one answers the prompt without one of its constraints and was judged to fail by all of them",
}
"""What a pair is, by ``pairs.source``."""
INITIAL = "; from iteration 2 on the rejected side is by the actor before iteration 1 instead"
AUDITED = {
    "truly_better": "pairs whose chosen side is truly better, %:",
    "accepted_truly": "accepted refinements that are truly good, %:",
}
LIMITS = """\
- The prompts of the held-out score are written by a program and have constraints that a program can
  check. Whether answers are true, useful or harmless, nobody looked at.
- Checked is the letter: an answer that counts meets its constraints, names its topic and ended.
- An interval is over prompts, for this one run: another seed may come out otherwise.
- Other languages, longer chats and other prompts were not tried."""


def code(text: Any) -> str:
    """Foreign text as a code span, which a table's cell can hold too."""
    shown = " ".join(harmless(str(text)).split())
    shown = shown[:LONGEST] + (" …" if len(shown) > LONGEST else "")
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if "`" in shown or not shown else ""
    return f"{fence}{space}{shown or '-'}{space}{fence}".replace("|", "\\|")


def make_card(recipe: Recipe, run: Path, name: str, shape: str, facts: list[str]) -> str:
    """The whole README of one format of a checkpoint; ``facts``: lines on what is in the folder."""
    model, data, found = recipe.model.id, shape in ("pairs", "trees"), summaries(recipe, run)
    head: dict[str, Any] = {"tags": ["spar", "spar-lite"]}
    if shape == "pairs":  # two files of unlike columns would be one table to the Hub
        head["configs"] = [{"config_name": "trl", "data_files": "pairs.jsonl"}]
        head["configs"] += [{"config_name": "sharegpt", "data_files": "pairs_sharegpt.jsonl"}]
    if not data:
        head["library_name"] = "peft" if shape == "adapter" else "transformers"
        if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model, re.ASCII) and not Path(model).exists():
            head["base_model"] = model
    sides = SIDES[recipe.pairs.source] + INITIAL * (recipe.dpo.rejected == "initial")
    pairs = {label: step["pairs"] for label, step in found.items() if label.endswith("/pairs")}
    settled = [row for row in settings(recipe)["rows"] if not PRIVATE.search(row[0])]
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in head.items()),
        f"---\n# SPaR {shape}: {code(f'{run.resolve().name} {name}')}\n\n"
        f"{USE[shape].format(sides)}\n",
        *(f"- {fact}" for fact in facts),
        f"- Base model: {code(model)}",
        f"- Prompts: {code(recipe.prompts.source)}, {recipe.prompts.count} an iteration; warm-up: "
        f"{code(recipe.bootstrap.source)}; preference pairs: "
        + (", ".join(f"{n} in {label.partition('/')[0]}" for label, n in pairs.items()) or "none"),
        f"- Judged, and chosen for training, by {JUDGES[recipe.judge.mode]}",
        f"- Made by spar-lite {__version__}, self-play after SPaR (arXiv 2412.11605)",
        *(audits(found, name) if data else scores(recipe, run, name, found)),
        f"\n## What this does not show\n\n{LIMITS}",
        "\n## Settings that differ from the defaults\n\n| key | here | default |\n|---|---|---|",
        *(f"| {key} | {code(here)} | {code(usual)} |" for key, here, usual, _ in settled),
    ]
    return "\n".join(lines) + "\n"


def audits(found: Mapping[str, Summary], name: str) -> Iterator[str]:
    """What a program says of the accepted refinements, by iteration: of all, or the named one."""
    found = {k: step for k, step in found.items() if name in (EVERY, k.partition("/")[0])}
    yield "\n## What a program says of them, 95 % interval in brackets\n"
    for step, audit in found.items():
        for key, words in AUDITED.items() if step.endswith("/audit") else ():
            score = audit.get(key) or {"n": 0}
            yield f"- {step.partition('/')[0]}: {words} {score_text(score, key)}, n={score['n']}"
    yield from (f"- {step}: {s}" for step, some in weak_parts(found).items() for s in some)


def scores(recipe: Recipe, run: Path, name: str, found: Mapping[str, Summary]) -> Iterator[str]:
    """A checkpoint's scores beside the base's, how they changed, and what got worse."""
    sides: dict[str, Any] = {}
    for place in dict.fromkeys(("base", name)):
        with contextlib.suppress(StoreError):  # it has none
            sides[place] = compare([f"{run}:{place}"])["runs"][0]["scores"]
    yield "\n## Scores of this checkpoint, 95 % interval in brackets\n"
    if name not in sides:
        yield "It was not scored."
        return
    yield "| score | value | n | the base |\n|---|---|---|---|"
    for task, some in sides[name].items():
        for key, score in some.items():
            before = sides.get("base", {}).get(task, {}).get(key) or {"n": 0}
            figures = f"{score_text(score, key)} | {score['n']} | {score_text(before, key)}"
            if score["n"]:
                yield f"| {task}: {label(key)} | {figures} |"
    yield ""
    yield from (f"- {difference_row(d)}" for d in differences(recipe, run) if d["to"] == name)
    yield "\n## Alarms\n"
    alarms = {**run_alarms(recipe, run), **weak_parts(found)}
    said = [f"- {step}: {s}" for step, some in alarms.items() if step.endswith(name) for s in some]
    yield from said or ["None of the scores got clearly worse."]
