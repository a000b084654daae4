"""Texts to train on: descriptions of Debian's packages, and their human translations, from Debian's archive.

One `apt-get update` into a private folder brings them (36 MB; nothing of the system's changes). Source: the
indices Packages and Translation-* of Debian 12 "bookworm", main, and the Debian Description Translation
Project (https://www.debian.org/international/l10n/ddtp), under the licences of the packages themselves.
No text is shipped: the demo holds token ids of 8,000 pieces of words.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError

MIRROR, SUITE = "http://deb.debian.org/debian", "bookworm"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
LANGUAGES = ("en", "da", "it", "fr", "de")  # the first is what the bases learn, the others are tasks
CLASSES = {  # sections of the archive, grouped
    "libraries": "libs oldlibs",
    "doc": "doc",
    "devel": "devel libdevel vcs debug",
    "system": "admin utils shells kernel otherosfs misc metapackages",
    "net": "net web mail httpd comm news",
    "science": "science math electronics hamradio",
    "desktop": "gnome kde x11 xfce gnustep",
    "text": "text editors tex fonts localization",
    "media": "sound video graphics",
    "games": "games education",
    "scripting": "python perl ruby php javascript zope",
    "compiled": "java haskell rust golang ocaml lisp gnu-r cli-mono interpreters",
}
CLASS_OF = {section: k for k, sections in enumerate(CLASSES.values()) for section in sections.split()}


@dataclass(frozen=True)
class Row:
    """A description in one language, its class, and the part that its source package lies in."""

    text: str
    label: int
    part: str  # "A", "B" or "test"


def fetch(folder: Path) -> None:
    """Bring the indices into `folder`, by apt-get and for this folder alone."""
    for part in ("state/lists/partial", "cache/archives/partial", "parts"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    (folder / "sources.list").write_text(f"deb [signed-by={KEYS}] {MIRROR} {SUITE} main\n")
    settings = {
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": folder / "parts",
        "Dir::State": folder / "state",
        "Dir::Cache": folder / "cache",
        "APT::Architecture": "amd64",
        "Acquire::Languages": ",".join(LANGUAGES),
        "Acquire::GzipIndexes": "false",
    }
    if shutil.which("apt-get") is None:
        raise CheckpointError("apt-get is not here, and it brings the texts: run this on Debian or its like")
    command = ["apt-get", "update", *(f"-o{name}={value}" for name, value in settings.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckpointError(
            f"apt-get update failed: {(done.stderr.strip() or 'no reason given').splitlines()[0]}: "
            f"is {MIRROR} in reach?"
        )


def rows(folder: Path) -> dict[str, list[Row]]:
    """Language -> its rows, in the archive's order; a description that several packages share counts once."""
    lists = folder / "state" / "lists"
    known: dict[str, tuple[int, str]] = {}
    for package in _stanzas(_file(lists, "*_Packages")):
        label = CLASS_OF.get(package.get("Section", "").split("/")[-1])
        if label is not None and "Description-md5" in package:
            source = package.get("Source", package["Package"]).split(" ")[0]
            known.setdefault(package["Description-md5"], (label, part_of(source)))
    return {
        language: [
            Row(_text(entry[f"Description-{language}"]), *known[entry["Description-md5"]])
            for entry in _once(_file(lists, f"*_Translation-{language}"))
            if entry["Description-md5"] in known and f"Description-{language}" in entry
        ]
        for language in LANGUAGES
    }


def part_of(source: str) -> str:
    """Where all packages of a source package lie: 15 % test, the rest in two halves."""
    place = int(hashlib.md5(source.encode()).hexdigest()[:8], 16) / 16**8
    return "test" if place < 0.15 else "A" if place < 0.575 else "B"


def _once(file: Path) -> Iterator[dict[str, str]]:
    seen = set()
    for entry in _stanzas(file):
        if entry["Description-md5"] not in seen:
            seen.add(entry["Description-md5"])
            yield entry


def _file(lists: Path, pattern: str) -> Path:
    found = sorted(lists.glob(pattern))
    if not found:
        raise CheckpointError(f"{lists} holds no {pattern}: fetch the texts first")
    return found[0]


def _stanzas(file: Path) -> Iterator[dict[str, str]]:
    """The entries of an index: field -> value, continued lines joined."""
    for stanza in file.read_text(encoding="utf-8").split("\n\n"):
        fields = re.findall(r"^([A-Za-z0-9-]+): ?(.*(?:\n[ \t].*)*)", stanza, re.M)
        if fields:
            yield dict(fields)


def _text(description: str) -> str:
    """Short and long description as one line."""
    return " ".join(description.replace("\n .", "\n").split())
