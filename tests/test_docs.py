"""The documentation's links lead somewhere, and the commands it shows exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_public_names import verbs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|(?:src|href)=\"([^\"]+)\"")
FENCE = re.compile(r"^(?:```|~~~).*?^(?:```|~~~)\s*$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def links(text: str) -> Iterator[str]:
    """Targets inside the repository, of links and pictures, outside of code."""
    for match in LINK.finditer(INLINE.sub("", FENCE.sub("", text))):
        target = match.group(1) or match.group(2)
        if not re.match(r"[a-z][a-z+.-]*:|//", target):
            yield target


def commands(text: str, program: str) -> Iterator[list[str]]:
    """The words behind `program` wherever it is at the start of a command in code."""
    start = re.compile(rf"(?:^|[;&|(]|\s&&)\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?{program}((?: [^\s;&|#)]+)+)")
    code = [match.group(1) for match in INLINE.finditer(FENCE.sub("", text))]
    code += [line for block in FENCE.findall(text) for line in block.splitlines()[1:-1]]
    for line in code:
        yield from (match.group(1).split() for match in start.finditer(line.strip()))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    found = set()
    for heading in re.findall(r"^#+\s+(.+?)\s*#*$", FENCE.sub("", page.read_text()), re.MULTILINE):
        found.add(re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).replace(" ", "-"))
    return found


def broken_links(page: Path) -> list[str]:
    """What a page points to that is not there."""
    found = []
    for target in links(page.read_text()):
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            found.append(target)
    return found


def make_verbs() -> set[str]:
    """The targets of the Makefile."""
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def broken_commands(text: str) -> list[str]:
    """The `make` and `recollect` commands of a text that do not exist."""
    known = set(verbs())
    groups = {verb.split()[0] for verb in known if " " in verb}
    found = [
        f"make {word}"
        for words in commands(text, "make")
        for word in words
        if re.fullmatch(r"[a-z][a-z-]*", word) and word not in make_verbs()
    ]
    for words in commands(text, "recollect"):
        verb = " ".join(words[: 2 if words[0] in groups else 1])
        if verb not in known and not words[0].startswith("-") and words[1:2] != ["--help"] and words != ["data", "..."]:
            found.append(f"recollect {verb}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    assert broken_commands(page.read_text()) == []


def test_the_verbs_of_the_makefile_are_those_of_the_help() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    helped = set(re.findall(r"^([a-z-]+):.*##", text, re.MULTILINE))
    assert phony and set(phony.group(1).split()) == helped == make_verbs()


SAMPLE = """
# A page
See [this](other.md), [that](gone.md), [there](other.md#part-two), [nowhere](other.md#part-three), [far](https://x.org/y)
and ![a picture](pictures/none.png), `[not](a-link.md)`. Call `make demo` or `make dmeo DATA=x`; recollect trian is prose.

```sh
$ make test && make tset
.venv/bin/recollect train mguit:tiny && recollect serv x
OMP_NUM_THREADS=2 recollect data stretes out   # recollect nothing
recollect --help; recollect data show x
from recollect import pipeline
```
"""


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One\n## Part `two`!\n")
    page = tmp_path / "page.md"
    page.write_text(SAMPLE)
    assert broken_links(page) == ["gone.md", "other.md#part-three", "pictures/none.png"]
    assert broken_commands(SAMPLE) == ["make dmeo", "make tset", "recollect serv", "recollect data stretes"]
