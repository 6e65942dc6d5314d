"""The documentation as a site (mkdocs.yml): its navigation, its reference, and where links out of docs/ lead."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDERS = (
    "training",
    "tracking",
    "scores",
    "selection",
    "tables",
    "sampling",
    "capture",
    "analysis",
    "shards",
    "condensation",
)
MODULES = {  # of which the reference has everything, beside the public names of their folder
    "scores": ("logits", "sequences", "gradients", "curvature", "dynamics", "ntk"),
    "sampling": ("block_shuffle",),
    "integrations": ("lightning", "transformers", "ray", "timm_vit"),
}


def public() -> dict[str, list[str]]:
    """Folder → full names, in the order of the list of public names, which says where each lives."""
    found: dict[str, list[str]] = {folder: [] for folder in (*FOLDERS, *MODULES)}
    for file in ("__init__.pyi", "shards/__init__.py", "condensation/__init__.py"):
        listed = (ROOT / "prunesampler" / file).read_text(encoding="utf-8")
        for module, names in re.findall(r"^from (\S+) import (\([^)]*\)|.*)$", listed, re.MULTILINE):
            folder = {"_load": "tables", "_logging": "errors"}.get(module.split(".")[1], module.split(".")[1])
            for name in (part.split()[-1] for part in names.strip("()").split(",") if part.strip()):
                if not name.startswith("_"):
                    found.setdefault(folder, []).append(f"{module}.{name}")
    return found


def reference(folder: str) -> str:
    """A page for mkdocstrings."""
    package = ROOT / "prunesampler" / folder / "__init__.py"
    text = (package if package.exists() else package.parent.with_suffix(".py")).read_text(encoding="utf-8")
    lines = [f"# {folder}", text.removeprefix('"""').partition("\n")[0].removesuffix('"""')]
    lines += [f"::: {name}" for name in public()[folder]]
    lines += [f"::: prunesampler.{folder}.{module}" for module in MODULES.get(folder, ())]
    return "\n\n".join(lines) + "\n"


def navigation(page: str) -> list[Any]:
    """The first page's tables: a section each, in which pages stand under their own titles."""
    found: list[Any] = [{"prunesampler": "README.md"}, {"All pages": "pages.md"}]
    for section, table in re.findall(r"^\*\*(.+)\*\*\n\n((?:\|.*\n)+)", page, re.MULTILINE):
        found.append({section: re.findall(r"^\| \[[^\]]+\]\(([\w-]+\.md)\)", table, re.MULTILINE)})
    return [*found, {"Reference": [f"reference/{folder}.md" for folder in public()]}]


def inside(markdown: str, here: str, repository: str) -> str:
    """Links out of the site lead to the repository, or are text where nobody said where that is."""

    def link(found: re.Match[str]) -> str:
        text, target = found.groups()
        target = os.path.normpath(os.path.join("docs", target))
        return f"[{text}]({repository}/blob/main/{target})" if repository else text

    if here == "README.md":  # the first page of the site is the project's
        markdown = re.sub(r"\]\(docs/(?:README\.md)?(?=\))", "](pages.md", markdown).replace("](docs/", "](")
        markdown = re.sub(r"\]\((?=(benchmarks|examples|[A-Z]+\.md))", "](../", markdown)
    return re.sub(r"(?<!!)\[([^\]]+)\]\((\.\./[^)]*|[\w/]+\.py)\)", link, markdown)


# -- what mkdocs calls -------------------------------------------------------------------------------------------


def on_config(config: Any) -> None:
    config.nav = navigation((ROOT / "docs/README.md").read_text(encoding="utf-8"))


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    files.append(File.generated(config, "pages.md", content=(ROOT / "docs/README.md").read_text(encoding="utf-8")))
    for folder in public():
        files.append(File.generated(config, f"reference/{folder}.md", content=reference(folder)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    here = page.file.src_uri
    if here == "README.md":
        markdown = (ROOT / "README.md").read_text(encoding="utf-8")
    return inside(markdown, here, (config.repo_url or "").rstrip("/"))
