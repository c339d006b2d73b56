"""What a signature is worth: the policy refuses what has none, takes what has one, and refuses everything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from dsv4_image.supply import attach_sbom, sign, write_lookaside, write_policy
from dsv4_image.tools import ImageError, Tools
from image_rig import Pushed, empty_store


def assert_only_signed_is_taken(pushed: Pushed, folder: Path) -> None:
    """Sign with a key of its own, under a policy that takes nothing but signed images of this repository."""
    home = folder / "gnupg"
    home.mkdir(mode=0o700)
    with empty_store(folder / "signer", GNUPGHOME=str(home)) as signing:
        try:
            _sign_and_try(pushed, signing, folder)
        finally:
            signing.run(["gpgconf", "--kill", "gpg-agent"])


def _sign_and_try(pushed: Pushed, signing: Tools, folder: Path) -> None:
    user = "builder@example.org"
    signing.run(["gpg", "--batch", "--passphrase", "", "--quick-gen-key", user, "rsa2048", "sign", "1d"])
    public = folder / "key.asc"
    public.write_text(signing.run(["gpg", "--armor", "--export", user]), encoding="utf-8")
    host = pushed.target.partition("/")[0]
    policy = folder / "policy.json"
    write_policy(policy, pushed.repository, public)
    strict = Tools(folder / "strict", policy=policy)
    strict.prepare()
    for tools in (signing, strict):
        write_lookaside(tools, host, f"file://{folder}/signatures")
    copy = ["copy", "--src-tls-verify=false", f"docker://{pushed.by_digest}"]
    with pytest.raises(ImageError, match="A signature was required, but no signature exists"):
        strict.skopeo(*copy, f"dir:{folder}/unsigned")
    sign(signing, pushed.target, pushed.digest, user, is_plain_http=True)
    strict.skopeo(*copy, f"dir:{folder}/signed")
    assert (folder / "signed" / "manifest.json").is_file()
    other = attach_sbom(signing, "{}", f"{host}/other:latest", "sha256:0", is_plain_http=True)
    with pytest.raises(ImageError, match="rejected by policy"):
        strict.skopeo("copy", "--src-tls-verify=false", f"docker://{other}", f"dir:{folder}/other")
