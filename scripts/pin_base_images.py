#!/usr/bin/env python3
"""Pin the Dockerfile's base images by digest (Python 3.8+, standard library only).

    scripts/pin_base_images.py              writes NAME:TAG@sha256:... with the digests that the tags have now
    scripts/pin_base_images.py --check      changes nothing; exit code 1 if a base has no digest or its tag has another

Asks the registry itself: the digest is the SHA-256 of the list of images that it sends, which covers all architectures.
Part of a release (docs/RELEASE-CHECK.md): a digest copied from elsewhere proves nothing.
"""

import argparse
import hashlib
import json
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import List, Optional

DOCKERFILE = Path(__file__).resolve().parent.parent / "Dockerfile"
BASE = re.compile(r"^(ARG [A-Z]+_IMAGE=)([^@\s]+):([^@:\s]+)(@\S+)?$", re.M)
LISTS = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json"
TIMEOUT_SECONDS = 60


class PinError(Exception):
    """What failed, in one line."""


def address_of(name: str) -> str:
    """docker.io/library/rust → where its manifests are."""
    host, _, repository = name.partition("/")
    return f"https://{'registry-1.docker.io' if host == 'docker.io' else host}/v2/{repository}/manifests"


def token_for(challenge: str) -> str:
    """The anonymous token that a registry asks for in `WWW-Authenticate`."""
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    query = urllib.parse.urlencode({name: fields[name] for name in ("service", "scope") if name in fields})
    with urllib.request.urlopen(f"{fields['realm']}?{query}", timeout=TIMEOUT_SECONDS) as answer:
        return json.load(answer)["token"]


def digest_of(url: str) -> str:
    request = urllib.request.Request(url, headers={"Accept": LISTS})
    try:
        try:
            answer = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            if error.code != 401:
                raise
            request.add_unredirected_header("Authorization", "Bearer " + token_for(error.headers["WWW-Authenticate"]))
            answer = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
        with answer:
            body, told = answer.read(), answer.headers.get("Docker-Content-Digest")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise PinError(f"cannot get {url}: {error}")
    digest = "sha256:" + hashlib.sha256(body).hexdigest()
    if told not in (None, digest):
        raise PinError(f"{url} says {told}, but what it sent has {digest}")
    return digest


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(description="Pin the Dockerfile's base images by digest.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a digest is missing or old")
    options = parser.parse_args(arguments)
    text, stale = DOCKERFILE.read_text(), []

    def pinned(found: "re.Match[str]") -> str:
        digest = digest_of(f"{address_of(found[2])}/{found[3]}")
        if found[4] != f"@{digest}":
            stale.append(f"{found[2]}:{found[3]}@{digest}")
        return f"{found[1]}{found[2]}:{found[3]}@{digest}"

    try:
        new = BASE.sub(pinned, text)
    except PinError as error:
        print(f"pin_base_images: {error}", file=sys.stderr)
        return 2
    for base in stale:
        print(base)
    if not options.check:
        DOCKERFILE.write_text(new)
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
