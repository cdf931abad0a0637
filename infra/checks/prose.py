#!/usr/bin/env python3
"""Checks the wording of comments, documents and messages.

Counts turns of phrase that the project does not use, and sentences that open with a relative pronoun
instead of their subject. Fails if a class of text has more than 10 turns in 10,000 words or more
than 1 % of such sentences, or if a Rust test name has more than 8 words or a turn of phrase.

    infra/checks/prose.py              check every tracked file
    infra/checks/prose.py -v [PATH…]   print each finding, of these files or folders only
"""

import re
import subprocess
import sys
from pathlib import Path

MAX_TURNS_PER_10_000_WORDS = 10
MAX_HEADLESS_SHARE = 0.01
MAX_TEST_NAME_WORDS = 8

TURNS = re.compile(
    "|".join(
        [
            r"\banew\b",
            r"\bwh(o|at|ich|om|ose)ever\b",
            r"\blies?\b",
            r"\bstands?\b",
            r"\bof ours\b",
            r"\b(is|are|be) none\b",
            r"\bmend(s|ed|ing)?\b",
            r"\bat hand\b",
            r"\b(some|no)body\b",
            r"\bcommas between\b",
            r"\balone\b",
            r"\bmeanwhile\b",
            r"\b(un)?told\b|\btell(s|ing)?\b",
            r"\bha(s|ve|d) (it|its|them|an?|the|each|every|all)( \w+){0,2} (sent|held|written|read|made|done|judged|checked|told|counted|kept)\b",
            r", for (it|he|she|they|we|there|this|that|these|those|no|nobody|nothing|what|then|only|else) ",
        ]
    ),
    re.IGNORECASE,
)
HEADLESS = re.compile(r"^(What|Who|Whose|Whom|Where|Whatever|Whoever|Wherever|Whichever)\b[^?]*$")

LINE_COMMENT = {
    ".rs": r"//[/!]?",
    ".ts": r"//",
    ".mjs": r"//",
    ".js": r"//",
    ".go": r"//",
    ".py": r"#",
    ".sh": r"#",
    ".toml": r"#",
    ".yaml": r"#",
    "": r"#",
}
# Texts that are not ours, or are generated.
NOT_OURS = re.compile(r"LICENSE|package-lock\.json|openapi\.json|\.lock$|requirements\.txt$|docs/permissions\.md$")
MESSAGE_ROOTS = (
    "shared/src/",
    "functions/",
    "infra/local/src/",
    "sdk/shared/src/",
    "sdk/typescript/src/",
    "sdk/sessions/src/",
    "infra/bootstrap/",
)


def tracked(paths):
    listed = subprocess.run(["git", "ls-files", "-z", "--", *paths], check=True, capture_output=True, text=True).stdout
    return [Path(path) for path in listed.split("\0") if path and not NOT_OURS.search(path) and Path(path).is_file()]


def comments(path, source):
    """Yields (line, text) for each run of comment lines, joined, and for each comment behind code."""
    mark = LINE_COMMENT[path.suffix]
    whole = re.compile(rf"^\s*{mark}(?!!)\s?(.*)$")
    behind = re.compile(rf"\S\s+{mark} (.*)$")
    block, start = [], 0
    in_block_comment = False
    for number, line in enumerate(source.splitlines(), 1):
        text = None
        if path.suffix in (".ts", ".mjs", ".js", ".go"):
            if in_block_comment or re.match(r"^\s*/\*", line):
                text = re.sub(r"^\s*(/\*+|\*(?!/))?\s?", "", line)
                in_block_comment = "*/" not in line
                text = text.replace("*/", "")
        if text is None and (found := whole.match(line)):
            text = found[1]
        if text is not None:
            if not text.strip() or re.match(r"^\s*([-*|#]|\d+\.)\s?", text):
                if block:
                    yield start, " ".join(block)
                block, start = [], number
            if text.strip():
                if not block:
                    start = number
                block.append(text.strip())
            continue
        if block:
            yield start, " ".join(block)
            block = []
        if '"' not in line and "'" not in line and (found := behind.search(line)):
            yield number, found[1]
    if block:
        yield start, " ".join(block)


def prose(source):
    """Yields (line, text) for each paragraph, list item, heading and table cell of a Markdown file."""
    block, start, fenced = [], 0, False
    for number, line in enumerate(source.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
            line = ""
        if fenced:
            line = ""
        bare = line.strip()
        if not bare or re.match(r"^([-*|#>]|\d+\.)\s?", bare):
            if block:
                yield start, " ".join(block)
            block = []
        if bare.startswith("|"):
            for cell in bare.strip("|").split(" | "):
                yield number, cell.strip()
            continue
        if bare:
            if not block:
                start = number
            block.append(re.sub(r"^([-*>]|#+|\d+\.)\s+", "", bare))
    if block:
        yield start, " ".join(block)


def messages(source):
    """Yields (line, text) for each string literal of at least three words outside the tests at a file's end."""
    source = source.split("#[cfg(test)]\nmod tests {")[0]
    for found in re.finditer(r'(?<!\w)"((?:[^"\\\n]|\\.)*)"', source):
        before = source[: found.start()]
        line = before.count("\n") + 1
        if source.splitlines()[line - 1].lstrip().startswith("//"):
            continue
        if len(found[1].split()) >= 3:
            yield line, found[1]


def test_names(source):
    """Yields (line, name) for each test function of a Rust file."""
    for found in re.finditer(r"#\[(?:tokio::)?test[^\]]*\](?:\s*#\[[^\]]*\])*\s*(?:pub )?(?:async )?fn (\w+)", source):
        yield source[: found.start(1)].count("\n") + 1, found[1]


def turn_in_name(name):
    """Returns the first turn of phrase in a test name, or None."""
    found = TURNS.search(name.replace("_", " "))
    return found and found[0].strip()


def sentences(text):
    return [part.strip(" *_|-") for part in re.split(r"(?<=[.!?:;])\s+(?=[A-Z`\"*])", text) if part.strip(" *_|-")]


class Tally:
    def __init__(self, name):
        self.name = name
        self.words = self.turns = self.sentences = self.headless = 0

    def add(self, path, line, text, verbose):
        text = re.sub(r"`[^`]*`", "`x`", text)
        self.words += len(text.split())
        for found in TURNS.finditer(text):
            self.turns += 1
            if verbose:
                print(f"{path}:{line}: turn of phrase: {found[0].strip()}: …{text[max(0, found.start() - 40):found.end() + 40]}…")
        for sentence in sentences(text):
            self.sentences += 1
            if HEADLESS.match(sentence):
                self.headless += 1
                if verbose:
                    print(f"{path}:{line}: opens without its subject: {sentence[:90]}")

    def report(self):
        turns = 10_000 * self.turns / max(1, self.words)
        headless = self.headless / max(1, self.sentences)
        print(
            f"prose: {self.name}: {self.words} words, {self.turns} turns ({turns:.1f} in 10,000),"
            f" {self.headless} of {self.sentences} sentences open without their subject ({headless:.1%})"
        )
        return turns <= MAX_TURNS_PER_10_000_WORDS and headless <= MAX_HEADLESS_SHARE


def control():
    """Fails if the check misses what it exists to find, or finds something in plain text."""
    bad = Tally("control")
    bad.add("control", 1, "Whatever is told anew lies at hand, for it stands alone. What is due is not sent.", False)
    good = Tally("control")
    good.add("control", 1, "The worker retries the event. It returns `None` if the queue is empty.", False)
    names = list(test_names("#[test]\nfn a_name_of_more_than_eight_words_is_found_here() {}\n"))
    turns = [turn_in_name("failed_turn_runs_anew"), turn_in_name("lies_are_not_told"), turn_in_name("failed_turn_runs_again")]
    if (bad.turns, bad.headless, good.turns, good.headless, len(names), turns) != (8, 2, 0, 0, 1, ["anew", "lies", None]):
        sys.exit(f"prose: the check does not work: {bad.turns}, {bad.headless}, {good.turns}, {good.headless}, {names}, {turns}")


def main(arguments):
    control()
    verbose = "-v" in arguments
    paths = [argument for argument in arguments if argument != "-v"]
    in_comments, in_documents, in_messages = Tally("comments"), Tally("documents"), Tally("messages")
    names = long_names = odd_names = 0
    for path in tracked(paths):
        if path.suffix not in (*LINE_COMMENT, ".md") or path.suffix == "" and path.name not in ("justfile", "run"):
            continue
        if path == Path("infra/checks/prose.py"):
            continue
        source = path.read_text()
        if path.suffix == ".md":
            for line, text in prose(source):
                in_documents.add(path, line, text, verbose)
            continue
        for line, text in comments(path, source):
            in_comments.add(path, line, text, verbose)
        if path.suffix in (".rs", ".ts") and str(path).startswith(MESSAGE_ROOTS):
            for line, text in messages(source):
                in_messages.add(path, line, text, verbose)
        if path.suffix == ".rs":
            for line, name in test_names(source):
                names += 1
                if len(name.split("_")) > MAX_TEST_NAME_WORDS:
                    long_names += 1
                    if verbose:
                        print(f"{path}:{line}: test name of {len(name.split('_'))} words: {name}")
                if turn := turn_in_name(name):
                    odd_names += 1
                    if verbose:
                        print(f"{path}:{line}: turn of phrase in a test name: {turn}: {name}")
    passed = all([tally.report() for tally in (in_comments, in_documents, in_messages)])
    print(f"prose: {names} test names, {long_names} of more than {MAX_TEST_NAME_WORDS} words, {odd_names} with a turn of phrase")
    return 0 if passed and not long_names and not odd_names else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
