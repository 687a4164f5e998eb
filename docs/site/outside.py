"""A hook of MkDocs: pages that stand beside docs/ in the repository are pages of the site too, README.md the first."""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

OUTSIDE = {"README.md": "index.md", **{name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "LICENSE")}}
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of docs/ and those outside."""
    root = Path(config.config_file_path).parent
    for name, address in OUTSIDE.items():
        files.append(File.generated(config, address, abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of the repository as those of the site; of links to files of the source the text alone."""
    root, docs = Path(config.config_file_path).parent, Path(config.docs_dir)
    here = Path(page.file.src_uri).parent
    folder = root if page.file.src_uri in OUTSIDE.values() else docs / here

    def moved(link: re.Match[str]) -> str:
        path = (folder / link[2]).resolve()
        if not path.is_relative_to(root) or not path.exists():
            return link[0]  # MkDocs will say that it leads nowhere
        inside = path.is_relative_to(docs)
        address = path.relative_to(docs) if inside else OUTSIDE.get(path.relative_to(root).as_posix())
        return f"[{link[1]}]({os.path.relpath(address, here)}{link[3] or ''})" if address else link[1]

    return LINK.sub(moved, markdown)
