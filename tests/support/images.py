"""Manifests that no builder of ordinary images makes."""

import json
from collections.abc import Sequence

from tests.fakes.images import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, describe

NOT_DISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"


def foreign_image(foreign: Sequence[bytes], layers: Sequence[bytes] = ()) -> tuple[bytes, str]:
    """Body and media type; of the foreign layers one is so by its type, the others by URLs."""
    named = [describe(layer, OCI_LAYER) for layer in layers]
    for n, layer in enumerate(foreign):
        if n == 0:
            named.append(describe(layer, NOT_DISTRIBUTABLE))
        else:
            named.append(describe(layer, OCI_LAYER, urls=["https://elsewhere.example/layer"]))
    config = describe(b"{}", OCI_CONFIG) if layers else {}
    body = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": named}
    return json.dumps(body).encode(), OCI_MANIFEST
