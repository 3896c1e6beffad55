"""HEAD on a manifest: free on Docker Hub, but not offered everywhere."""

from mirror.errors import UpstreamBroken
from mirror.names import Reference
from mirror.upstream.client import ManifestHead, UpstreamClient

_NOT_OFFERED = frozenset({400, 405, 501})
_NOTHING_TOLD = ManifestHead(None, "", None)


async def head_manifest(
    client: UpstreamClient, repository_name: str, reference: Reference
) -> ManifestHead:
    """What HEAD tells; nothing where it is not offered, and GET has to. Raises UpstreamError."""
    try:
        return await client.head_manifest(repository_name, reference)
    except UpstreamBroken as error:
        if error.answered in _NOT_OFFERED:
            return _NOTHING_TOLD
        raise
