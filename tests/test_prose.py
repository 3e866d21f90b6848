"""The text that people read: spelling, links, references. Nothing here uses a network.

Spelling: pyspellchecker's English word list, which is American, and tests/words.txt, the course's
own words: names, terms, British spellings. American spellings are refused (see AMERICAN), so that
the course keeps to one. Code, formulas and reference lists are left out.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from notebook_tools import ROOT
from spellchecker import SpellChecker

NOTEBOOKS = sorted([*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("solutions/*/*.ipynb")])
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WORDS = (ROOT / "tests" / "words.txt").read_text(encoding="utf-8").split()

# Links that leave the repository: well formed here, and looked at by hand before they are listed.
EXTERNAL = {
    "https://github.com/fastai/imagenette",
    "https://huggingface.co/FasterAI-Labs/pilot-resnet18-imagenette",
}

# American where the course writes -our, -tre, -ise, -yse, -lled.
AMERICAN = re.compile(
    r"(behavi|col|fav|hon|hum|lab|neighb|vap)ors?(ed|ing|hood|ite|able|ful)?"
    r"|(cent|fib|lit|theat)er(s|ed)?|gray(s|er|ish)?|artifacts?|(de|of)fense|skeptic\w*"
    r"|(?!(out|over|re)?siz|priz|seiz)\w{2,}iz(e[ds]?|ing|ers?|ations?)|\w+[^m]yz(e[ds]?|ing)"
    r"|(cancel|label|level|model|signal|travel)(ed|ing)"
)
INNER = re.compile(  # a formula may go on in the next line
    r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]+(?:\n[^$\n]+)?\$|<code>.*?</code>", re.S
)
LINK = re.compile(r"\[([^]]*)\]\(\s*<?([^)\s>]+)>?[^)]*\)")
# Addresses, and names of files.
ADDRESS = re.compile(r"https?:[^\s)>\"]+|\b[\w-]+(\.[\w-]+)*\.[a-z]{2,5}\b(/[\w./-]*)?")
CITED = re.compile(r"\w+( et al\.| and \w+)?,? \(?(19|20)\d\d\b")  # as in "Hu et al., 2022"
WORD = re.compile(r"(?<![\w\\])[^\W\d_]{2,}(?:['’][^\W\d_]+)?(?!\w)")


def text_of(path: Path) -> str:
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def words_in(text: str) -> list[str]:
    """The words of the prose: no code, formulas, HTML tags, addresses, and no reference list."""
    text = re.sub(r"^## References$.*?(?=^## |\Z)", "", text, flags=re.M | re.S)
    text = LINK.sub(r"\1", INNER.sub(" ", text))
    text = ADDRESS.sub(" ", CITED.sub(" ", re.sub(r"</?\w[^>]*>|&\w+;", " ", text)))
    return [re.sub(r"['’]s?$", "", word) for word in WORD.findall(text)]


@functools.cache
def speller() -> SpellChecker:
    return SpellChecker()


def misspelt(text: str) -> list[str]:
    """Words of `text` that are unknown, or American. A word of words.txt is written as it is there.

    A word there in small letters may start with a capital; "ResNet" may not become "resnet".
    """
    own = {word.casefold(): word for word in WORDS}
    wrong = set()
    for word in words_in(text):
        small = word.casefold()
        known = bool(speller().known([small])) and not AMERICAN.fullmatch(small)
        entry = own.get(small, small if known else "")
        if word != entry and not (entry.islower() and word in (small.capitalize(), small.upper())):
            wrong.add(word)
    return sorted(wrong, key=str.casefold)


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ +(.+?) *$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)


def anchors(path: Path) -> set[str]:
    """Where a link into the file can point, as GitHub (.md) and JupyterLab (.ipynb) name it."""
    titles = [LINK.sub(r"\1", title).replace("`", "") for title in headings(text_of(path))]
    if path.suffix == ".ipynb":
        return {title.replace("*", "").replace(" ", "-") for title in titles}
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def targets(text: str) -> list[str]:
    """Targets of all links and pictures, bare addresses included."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    found = [target for _, target in LINK.findall(text)]
    found += re.findall(r"\b(?:href|src)=\"([^\"]+)\"", text)
    found += re.findall(r"https?:[^\s)>\"]+", LINK.sub(r"\1", text))
    return [target.rstrip(".,") for target in found]


def broken(path: Path, text: str) -> list[str]:
    """Relative links of `text`, which stands in `path`, to a missing file or heading."""
    wrong = []
    for link in targets(text):
        if urlsplit(link).scheme:
            continue
        file, _, anchor = unquote(link).partition("#")
        target = path.parent / file if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


def badly_formed(text: str) -> list[str]:
    """Links out of the repository that are not https, or have no sound address."""
    out = [link for link in targets(text) if urlsplit(link).scheme]
    host = r"([a-z0-9-]+\.)+[a-z]{2,}"
    return [link for link in out if not re.fullmatch(rf"https://{host}(/[^\s<>\\]*)?", link)]


def incomplete(text: str) -> list[str]:
    """References without title, venue or year. A page on the web may have no year."""
    lists = re.findall(r"^## References$(.*?)(?=^## |\Z)", text, re.M | re.S)
    items = [
        " ".join(item.split()) for part in lists for item in re.split(r"^- ", part, flags=re.M)
    ]
    wrong = []
    for item in filter(None, items):
        after = re.search(r"\*[^*]{5,}\*[,.:]? *(.*)", item)
        rest = re.sub(r"\b(19|20)\d\d\b|\(.*?\)", "", after[1]) if after else ""
        dated = re.search(r"\b(19|20)\d\d\b", item) or "on the web" in item
        if not (re.search(r"[A-Za-z]{2}", rest.split(":")[0]) and dated):
            wrong.append(item)
    return wrong


every = pytest.mark.parametrize("path", NOTEBOOKS + PAGES, ids=lambda path: path.name)


@every
def test_words_are_spelt_right(path):
    wrong = misspelt(text_of(path))
    assert not wrong, f"mend them, or add them to tests/words.txt: {', '.join(wrong)}"


@every
def test_links_and_anchors_lead_somewhere(path):
    assert not broken(path, text_of(path))


@every
def test_links_to_the_web_are_well_formed(path):
    assert not badly_formed(text_of(path))


def test_links_to_the_web_are_listed():
    links = {link for path in NOTEBOOKS + PAGES for link in targets(text_of(path))}
    assert {link for link in links if urlsplit(link).scheme} == EXTERNAL


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_references_name_title_venue_and_year(path):
    assert not incomplete(text_of(path))


def test_own_words_are_sorted_needed_and_used():
    assert WORDS == sorted({word.casefold(): word for word in WORDS}.values(), key=str.casefold)
    used = {word.casefold() for path in NOTEBOOKS + PAGES for word in words_in(text_of(path))}
    assert not [word for word in WORDS if word.casefold() not in used], "not used"
    plain = [word for word in WORDS if word.islower() and speller().known([word])]
    assert not [word for word in plain if not AMERICAN.fullmatch(word)], "known anyway"


# ---- The checks themselves: each finds what it is there for. -----------------------------------


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("The recieved matrix is teh best.", ["recieved", "teh"]),
        ("A color, an optimized center; we analyze.", ["analyze", "center", "color", "optimized"]),
        ("Sizes of a prize, seized; the Colour of four factors.", []),
        ("`teh` $\\alhpa$ <b>bold</b> [word](teh.md) x1y and https://teh.org/wrnog", []),
        ("```\nteh\n```\n## References\n- Qwertz, *Teh*\n\n## Next\nwrnog", ["wrnog"]),
        ("A Resnet and PyTorch's ResNet, by Teh et al. (2020).", ["Resnet"]),
    ],
)
def test_misspelt_words_are_found(text, wrong):
    assert misspelt(text) == wrong


def test_broken_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# One `code` title\n[a](page.md) [b](#one-code-title) ![c](page.md#one-code-title)"
    )
    assert broken(page, page.read_text()) == []
    text = '[a](no.md) [b](#two) <img src="no.png"> `[c](no.md)` [d](page.md#two)'
    assert broken(page, text) == ["no.md", "#two", "page.md#two", "no.png"]
    text = "[a](http://b.org) https://c (https://d.org/x) [e](https://e.org/y z) [f](mailto:g)"
    assert badly_formed(text) == ["http://b.org", "mailto:g", "https://c"]


def test_incomplete_references_are_found():
    good = "A. Be, *A long title*, ICLR, 2015. (more)", "*A page*, a tutorial on the web"
    bad = "A. Be, *A long title*, 2015.", "A. Be, *A long title*, ICLR.", "A. Be, ICLR 2015"
    text = "## References\n\n" + "".join(f"- {item}\n" for item in good + bad)
    assert incomplete(text) == list(bad)
