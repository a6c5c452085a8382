"""``llms.txt`` and ``SKILL.md``, made from the pages and the docstrings; nothing in them is written by hand.

The build of the wheel puts them into the package (``hatch_build.py``), and that of the site beside its pages (``conf.py``).
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SKILL = "asgi-server-sessions"
SUMMARY = "Server-side sessions for FastAPI, Starlette, Litestar, Quart and any other ASGI app: log-in, log-out, devices, stores"


def pages() -> list[Path]:
    """The pages that are readable as text. ``api.md`` is made of directives, and ``index.md`` has become ``llms.txt``."""
    return sorted(page for page in DOCS.rglob("*.md") if page.name not in ("api.md", "index.md"))


def llms_txt(prefix: str) -> str:
    """The list of pages in the form of https://llmstxt.org; links begin with ``prefix``."""
    lines = ["# asgi-server-sessions", "", f"> {SUMMARY}."]
    for line in _text(DOCS / "index.md").splitlines():
        if line.startswith("## "):
            lines += ["", line, ""]
        elif row := re.match(r"\| \[(.+?)\]\((?!\.\.)(.+?\.md)\) \| (.+) \|", line):
            title, page, purpose = row.groups()
            if page != "api.md":
                lines.append(f"- [{title}]({prefix}{page}): {purpose}")
    return "\n".join(lines) + "\n"


def skill_md() -> str:
    """What a coding assistant must know to use the package well; it stands beside a folder ``references`` with the pages."""
    parts = [
        # In quotes, since a colon means something in YAML.
        f'---\nname: {SKILL}\ndescription: "{SUMMARY}. Use it when an ASGI app needs sessions, log-in or log-out."\n---',
        f"# {SKILL}",
        "The import name is `asgi_sessions`.",
        _block(ROOT / "README.md", "python"),
        _section(ROOT / "README.md", "Install"),
        "## The verbs and attributes of a session",
        "\n".join(f"- `{name}`: {said}" for name, said in _session()),
        _section(DOCS / "recipes" / "surprises.md", "What surprises people").partition("\n\nThis program")[0],
        _links(_text(DOCS / "options.md").replace("\n## ", "\n### ").replace("# Options", "## Options", 1).strip(), ""),
        "## Pages\n" + llms_txt("references/").partition("\n## ")[2].partition("\n")[2].replace("\n## ", "\n### "),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def write(into: Path) -> None:
    """The skill with its pages, and ``llms.txt``, below a folder that is empty."""
    skill = into / ".agents" / "skills" / SKILL
    for page in pages():
        copy = skill / "references" / page.relative_to(DOCS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(_text(page), encoding="utf-8")
    (skill / "SKILL.md").write_text(skill_md(), encoding="utf-8")
    (into / "llms.txt").write_text(llms_txt(f".agents/skills/{SKILL}/references/"), encoding="utf-8")


def write_site(into: Path) -> None:
    """``llms.txt`` for the site, and the pages as text beside those in HTML."""
    (into / "llms.txt").write_text(llms_txt("docs/"), encoding="utf-8")
    for page in pages():
        (into / "docs" / page.relative_to(DOCS)).write_text(_text(page), encoding="utf-8")


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def _block(page: Path, language: str) -> str:
    found = re.search(rf"^```{language}\n.*?^```$", _text(page), flags=re.MULTILINE | re.DOTALL)
    if found is None:
        raise LookupError(f"{page} shows no {language}")
    return found[0]


def _section(page: Path, heading: str) -> str:
    """One section as one of the second level."""
    found = re.search(rf"^#+ {heading}\n(.*?)(?=^#+ |\Z)", _text(page), flags=re.MULTILINE | re.DOTALL)
    if found is None:
        raise LookupError(f"{page} has no section {heading!r}")
    return _links(f"## {heading}\n{found[1]}", "recipes/" if "recipes" in page.parts else "")


def _links(text: str, folder: str) -> str:
    """Links of a page of ``docs``, as links of the skill."""
    return re.sub(r"\]\((?!https?://|#)(?:docs/)?", f"](references/{folder}", text)


def _session() -> list[tuple[str, str]]:
    """Each public verb and attribute of ``Session`` with the first sentence of its docstring."""
    tree = ast.parse((ROOT / "asgi_sessions" / "_core" / "session.py").read_text(encoding="utf-8"))
    (session,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Session")
    found = {}
    for node in session.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            said = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split()).rstrip(":")
            said = re.sub(r":\w+:`", "`", said).replace("``", "`")
            is_property = any(isinstance(each, ast.Name) and each.id == "property" for each in node.decorator_list)
            if said:
                wait = "await " if isinstance(node, ast.AsyncFunctionDef) else ""
                found.setdefault(f"{wait}session.{node.name}{'' if is_property else _arguments(node)}", said)
    return sorted(found.items())


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The parameters without ``self`` and types: ``(user_id, *, remember=False)``."""
    for each in (*node.args.args, *node.args.kwonlyargs):
        each.annotation = None
    return f"({ast.unparse(node.args).removeprefix('self').removeprefix(', ')})"
