"""A hook of MkDocs: pages that stand beside docs/ in the repository are pages of the site too, README.md the first."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

OUTSIDE = {"README.md": "index.md", **{name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "LICENSE")}}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of docs/ and those outside."""
    root = Path(config.config_file_path).parent
    for name, address in OUTSIDE.items():
        files.append(File.generated(config, address, abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between the two places: `docs/x.md` and `../CONTRIBUTING.md` here, side by side on the site."""
    if page.file.src_uri in OUTSIDE.values():
        return re.sub(r"\]\(docs/", "](", markdown)
    return re.sub(rf"\]\(\.\./({'|'.join(map(re.escape, OUTSIDE))})", lambda link: f"]({OUTSIDE[link[1]]}", markdown)
