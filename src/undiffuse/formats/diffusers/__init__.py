"""Folders of the library diffusers <-> our pipelines: their network, schedule, prediction, range, grid and sampler.

    read(folder)                 what a folder holds, as a recipe, weights and notes
    load(folder)                 as a pipeline
    import_folder(folder, run)   as a run folder
    export(run, folder)          a run folder as a folder of theirs

Every option without an equal is refused by name, or noted where it changes no more than how samples are drawn. The
library itself is not needed. See docs/checkpoints.md.
"""

from undiffuse.formats.diffusers.exporting import export, write
from undiffuse.formats.diffusers.folder import is_folder
from undiffuse.formats.diffusers.importing import Imported, import_folder, load, read

__all__ = ["Imported", "export", "import_folder", "is_folder", "load", "read", "write"]
