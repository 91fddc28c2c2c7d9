"""What the documents point at exists: files they link to, files, functions and variables they name."""

import re
from pathlib import Path

import pytest

import rnnkernels
from rnnkernels import backends, info
from rnnkernels.backends import reference

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
IDS = [document.name for document in DOCUMENTS]

#: Paths as they are written in running text and tables, relative to the repository's root.
NAMED_FILE = re.compile(r"(?<![\w/.(])((?:rnnkernels|csrc|tests|benchmarks|examples|docs)/[\w/.]*\w\.\w+)")
VARIABLE = re.compile(r"\bRNNKERNELS_[A-Z_]+\b")


def _sources():
    files = [path for folder in ("rnnkernels", "csrc") for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".cpp")]
    return "\n".join(path.read_text(encoding="utf-8") for path in [*files, ROOT / "setup.py"])


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_relative_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("https://", "http://", "#")):
            assert (document.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_named_files_exist(document):
    for name in NAMED_FILE.findall(document.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_named_environment_variables_are_read_and_listed_by_info(document):
    sources = _sources()
    for name in set(VARIABLE.findall(document.read_text(encoding="utf-8"))):
        assert f'"{name}"' in sources, name
        assert name in info.ENVIRONMENT


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_named_attributes_of_the_package_exist(document):
    for name in re.findall(r"`rnnkernels\.([A-Za-z_]+)[`(]", document.read_text(encoding="utf-8")):
        assert name == "info" or hasattr(rnnkernels, name), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_make_targets_that_are_named_exist(document):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z-]+)\b(?=`|\s+#| TORCH)", document.read_text(encoding="utf-8")):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_derivation_treats_every_backward_equation_of_the_reference():
    labels = set(re.findall(r"\b(?:LB|GB)\d(?:-\d)?", reference.__doc__))
    text = (ROOT / "docs" / "derivation.md").read_text(encoding="utf-8")
    assert labels == set(re.findall(r"^\*\*((?:LB|GB)\d(?:-\d)?)\.\*\*", text, re.MULTILINE))


def test_the_architecture_names_the_backends_in_the_order_auto_tries_them():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert ", ".join(f"`{name}`" for name in backends.PREFERENCE) in text


def test_the_readme_is_under_two_screens():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100
