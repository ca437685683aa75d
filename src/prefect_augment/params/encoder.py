"""A pretrained network of the user's own, whose features serve the comparison of images."""

import re
from pathlib import PurePosixPath
from typing import Self

from pydantic import Field, model_validator

from prefect_augment.params.base import Params
from prefect_augment.params.locations import Location

# Beginnings of SPDX ids that keep commercial use or changed copies from whoever gets the outputs.
_FORBIDS = ("cc-by-nc", "cc-by-nd", "polyform-noncommercial", "polyform-strict", "noassertion")

# Protocols of the internet, also as the inside of a chained URL (zip://…::https://…).
_DOWNLOADS = re.compile(r"(?:^|::)(https?|ftp|hf|github|git|gist)://")


class Encoder(Params):
    """A pretrained network of your own for images: its features serve a strategy, filter, fidelity and audit."""

    uri: Location = ""
    """An ONNX file, or safetensors with a factory: a local path or any fsspec URL of your storage; nothing is
    downloaded from elsewhere. Empty: no encoder."""
    sha256: str = ""
    """The file's sha256, 64 hexadecimal digits (sha256sum FILE)."""
    licence: str = ""
    """SPDX identifier of the weights' licence, e.g. Apache-2.0. Without one, or with one that forbids commercial use or
    changes (CC-BY-NC, CC-BY-ND), nothing is published."""
    mean: list[float] = Field(default_factory=list, max_length=3)
    """Subtracted from pixels in [0, 1], one number per channel or one for all. Empty: 0."""
    std: list[float] = Field(default_factory=list, max_length=3)
    """Pixels are divided by it then. Empty: 1. A network that takes 0 to 255 has 0.00392157 (1/255)."""
    size: int = Field(default=0, ge=0, le=1024)
    """Side of the images in pixels, where the file leaves it open; 0 takes the file's."""
    factory: str = ""
    """For weights in a safetensors file: your function that makes the network, module:function or its name in the
    entry-point group prefect_augment.encoders. Called without arguments, it returns a torch module. Empty: ONNX."""
    output: str = ""
    """Name of the output with the features, where the file has several."""
    storage_block: str = ""
    """Name of a saved Prefect storage block with the credentials."""

    @model_validator(mode="after")
    def _named_by_its_content(self) -> Self:
        if self.uri and not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(
                f"sha256 is {self.sha256!r}; give the sha256 of {self.uri} as 64 lower-case hexadecimal digits "
                "(sha256sum FILE)."
            )
        if download := _DOWNLOADS.search(self.uri):
            raise ValueError(
                f"uri is {self.uri!r}, and nothing is downloaded by {download[1]}; copy the file to a folder or an "
                "object store of yours, and name that."
            )
        if any(value <= 0 for value in self.std):
            raise ValueError(f"std is {self.std}; expected numbers above 0.")
        return self

    @property
    def name(self) -> str:
        """The file's name."""
        return PurePosixPath(self.uri.replace("\\", "/")).name

    @property
    def why_unpublishable(self) -> str:
        """Why the licence lets nothing be published that the weights had a part in; empty where it does."""
        if not self.uri:
            return ""
        fix = "use weights with another licence, or leave encoder.uri empty."
        if not self.licence.strip():
            return (
                f"encoder {self.name} has no licence, so nothing made with it can be published; set encoder.licence to "
                f"the SPDX identifier of its weights' licence (e.g. Apache-2.0), or {fix}"
            )
        for word in re.split(r"[^\w.+-]+", self.licence):
            if word.lower().startswith(_FORBIDS) or word.lower() == "none":
                return (
                    f"encoder {self.name} is under {word}, which forbids commercial use or changes, so nothing made "
                    f"with it can be published; {fix}"
                )
        return ""
