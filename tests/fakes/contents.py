"""What a registry holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.fakes.images import Image, Index, digest_of, make_config, make_image, make_index


@dataclass
class Repository:
    blobs: set[str] = field(default_factory=set)
    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class Contents:
    """Repositories by name; a blob's bytes are kept once, whichever repositories have it."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.contents: dict[str, bytes] = {}

    def repository(self, name: str) -> Repository:
        """The repository; made when it is not there yet."""
        return self.repositories.setdefault(name, Repository())

    def add_blob(self, repository: str, data: bytes) -> str:
        digest = digest_of(data)
        self.contents[digest] = data
        self.repository(repository).blobs.add(digest)
        return digest

    def add_manifest(
        self, repository: str, body: bytes, media_type: str, tag: str | None = None
    ) -> str:
        digest = digest_of(body)
        self.repository(repository).manifests[digest] = (body, media_type)
        if tag is not None:
            self.tag(repository, tag, digest)
        return digest

    def add_image(
        self,
        repository: str,
        tag: str | None = "latest",
        layers: Sequence[bytes] = (b"a layer",),
        *,
        platform: str = "linux/amd64",
        docker: bool = False,
        annotations: Mapping[str, str] | None = None,
    ) -> Image:
        config = make_config(layers, platform)
        image = make_image(layers, config, docker=docker, annotations=annotations)
        return self._keep(repository, tag, image, [config, *layers])

    def add_referrer(
        self,
        repository: str,
        subject: Image | Index,
        artifact_type: str,
        data: bytes = b"a signature",
        tag: str | None = None,
    ) -> Image:
        """Something that refers to an image, like a signature; by tag for the fallback schema."""
        about = {
            "mediaType": subject.media_type,
            "digest": subject.digest,
            "size": len(subject.manifest),
        }
        image = make_image([data], b"{}", subject=dict(about), artifact_type=artifact_type)
        return self._keep(repository, tag, image, [b"{}", data])

    def add_index(
        self,
        repository: str,
        tag: str | None,
        images: Mapping[str, Image],
        *,
        docker: bool = False,
    ) -> Index:
        index = make_index(images, docker=docker)
        self.add_manifest(repository, index.manifest, index.media_type, tag)
        return index

    def tag(self, repository: str, tag: str, digest: str) -> None:
        self.repository(repository).tags[tag] = digest

    def untag(self, repository: str, tag: str) -> None:
        del self.repositories[repository].tags[tag]

    def remove_manifest(self, repository: str, digest: str) -> None:
        """Takes out the manifest and the tags that point to it."""
        place = self.repositories[repository]
        del place.manifests[digest]
        place.tags = {tag: there for tag, there in place.tags.items() if there != digest}

    def remove_blob(self, repository: str, digest: str) -> None:
        self.repositories[repository].blobs.remove(digest)

    def _keep(
        self, repository: str, tag: str | None, image: Image, blobs: Sequence[bytes]
    ) -> Image:
        for data in blobs:
            self.add_blob(repository, data)
        self.add_manifest(repository, image.manifest, image.media_type, tag)
        return image
