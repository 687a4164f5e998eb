"""Published weights: from a file of the user's, or from their address, and read only when their checksum is right."""

import hashlib
import os
import shutil
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.files import atomic_path, cache_folder

SECONDS = 20  # that a server may be silent


@dataclass(frozen=True)
class Published:
    """A file of weights that anybody can check: its name, its address and its SHA-256."""

    name: str
    address: str
    sha256: str

    def find(self, path: str | Path | None = None) -> Path:
        """The file: `path` where it is given, else in the folders of `weights_folders`, else downloaded to the last.

        Raises: InputError, in one line, when it is nowhere and cannot be downloaded, and when its checksum is another.
        """
        places = [Path(path)] if path else [folder / self.name for folder in weights_folders()]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            if path:
                raise InputError(f"{path} does not exist: it should be {self.name} from {self.address}")
            return self._download(places[-1])
        self._check(found)
        return found

    def load(self, path: str | Path | None = None) -> dict[str, Tensor]:
        """The tensors in the file that `find` finds. Tensors only: no other object is made from it."""
        found = self.find(path)
        try:
            weights: dict[str, Tensor] = torch.load(found, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, UnpicklingError) as error:
            raise InputError(f"cannot read the weights {found}: {str(error).splitlines()[0]}") from error
        return weights

    def _download(self, place: Path) -> Path:
        with atomic_path(place) as temporary:
            try:
                with urllib.request.urlopen(self.address, timeout=SECONDS) as answer, temporary.open("wb") as file:
                    shutil.copyfileobj(answer, file)
            except (OSError, HTTPException) as error:
                raise InputError(
                    f"the weights {self.name} are not on this machine and cannot be downloaded "
                    f"({getattr(error, 'reason', error)}): put the file from {self.address} into {place.parent}, or "
                    "name its folder in UNDIFFUSE_WEIGHTS"
                ) from error
            self._check(temporary)
        return place

    def _check(self, file: Path) -> None:
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != self.sha256:
            raise InputError(
                f"{file} is not {self.name}: its SHA-256 begins with {found[:8]}, not {self.sha256[:8]}; put the file "
                f"from {self.address} there"
            )


def weights_folders() -> list[Path]:
    """Where published weights are looked for: the folder UNDIFFUSE_WEIGHTS, then `weights` in the cache folder."""
    chosen = os.environ.get("UNDIFFUSE_WEIGHTS")
    return [*([Path(chosen)] if chosen else []), cache_folder() / "weights"]
