"""What the documents point at exists: files they link to, files, functions and variables they name."""

import re
from pathlib import Path

import pytest

import rnnkernels
from rnnkernels import backends, info
from rnnkernels.backends import reference

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
SOURCES = ("rnnkernels", "csrc", "benchmarks", "examples", "tests")
IDS = [document.name for document in DOCUMENTS]

#: Paths as they are written in running text and tables, relative to the repository's root.
NAMED_FILE = re.compile(r"(?<![\w/.(])((?:rnnkernels|csrc|tests|benchmarks|examples|docs)/[\w/.]*\w\.\w+)")
VARIABLE = re.compile(r"\bRNNKERNELS_[A-Z_]+\b")
#: Where Python and C++ read one.
READ_VARIABLE = re.compile(r"""(?:environ(?:\.get|\.setdefault)?[(\[]|getenv\()\s*"([A-Z_]+)\"""")


def _sources():
    files = [path for folder in ("rnnkernels", "csrc") for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".cpp")]
    return "\n".join(path.read_text(encoding="utf-8") for path in [*files, ROOT / "setup.py"])


def _text(document):
    """Without the code, in which other rules hold."""
    return re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_relative_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("https://", "http://", "#")):
            assert (document.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_named_files_exist(document):
    for name in NAMED_FILE.findall(_text(document)):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_named_environment_variables_are_read_and_listed_by_info(document):
    sources = _sources()
    for name in set(VARIABLE.findall(_text(document))):
        if not name.startswith("RNNKERNELS_TEST_"):  # test_the_environment_document_... has these
            assert f'"{name}"' in sources, name
            assert name in info.ENVIRONMENT


def test_the_environment_document_has_every_variable_that_is_read_and_no_other():
    text = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    documented = set(VARIABLE.findall(text))
    read = set()
    paths = [ROOT / "setup.py", *(path for folder in SOURCES for path in (ROOT / folder).rglob("*"))]
    for path in paths:
        if path.suffix in (".py", ".cpp", ".h", ".cu"):
            read |= set(READ_VARIABLE.findall(path.read_text(encoding="utf-8")))
    assert documented == {name for name in read if name.startswith("RNNKERNELS_")}
    for name in (*info.ENVIRONMENT, *(name for name in read if name in ("CXX", "CXXFLAGS", "MAX_JOBS", "CUDA_HOME"))):
        assert f"`{name}`" in text, name


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_links_to_a_heading_find_it(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if not anchor or path.startswith(("https:", "http:")):
            continue
        text = (document.parent / path).read_text(encoding="utf-8") if path else document.read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        # As GitHub makes anchors of headings.
        assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


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
