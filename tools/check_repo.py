#!/usr/bin/env python3
"""Checks the rules of the tree that no compiler sees; exits 1 with one line per breach.

Rules: which folder may include which, and one home per library (INCLUDES, HOMES);
every test source is in a CMake file and none is switched off; README's code map
names every top folder and no other; links in documents resolve; no file names
the machine it was written on. CONTRIBUTING.md says why.
"""

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# A file of the left folder may include "…" files of the folders on the right
# (and of its own). The longest matching name on the left counts; a name on the
# right means that folder itself, with "/…" also what lies below it.
INCLUDES = {
    "common": [],
    "optim": ["common"],
    "storage": ["common"],
    "storage/host": ["common", "storage"],
    "storage/nvme": ["common", "storage", "storage/host"],
    "storage/checkpoint": ["common", "storage", "storage/nvme"],
    "proto": ["common"],
    "server/core": ["common", "optim", "storage/..."],
    "server/rpc": ["common", "proto", "server/core"],
    "server": ["common", "optim", "proto", "storage/...", "server/..."],
    "client": ["common", "proto"],
    "engine": ["common", "optim", "client", "engine/..."],
    "engine/config": ["common", "engine/schedule"],
    "engine/plan": ["common"],
    "engine/product": ["common", "optim"],
    "forecast": ["common", "optim", "server/core", "storage", "storage/nvme", "engine/config",
                 "engine/plan"],
    "cli": ["common", "client", "proto", "storage", "storage/checkpoint", "storage/nvme", "engine/config",
            "engine/schedule", "engine/monitor", "forecast"],
    "examples": ["common", "optim", "client", "engine/...", "examples/..."],
    "bench": ["..."],
    "tests": ["..."],
}
# Generated from proto/stowage; the rule for them is in HOMES.
GENERATED = "stowage/v1/"

# Library -> (what its includes look like, where they may stand). A trailing
# ".cc" of a place means: in its sources, not in its headers.
HOMES = {
    "liburing": (r"<liburing", ["storage/nvme"]),
    "ISA-L": (r"<isa-l", ["storage/nvme", "proto"]),
    "gRPC": (r"<grpc(pp|/)", ["proto", "server/rpc", "client", "cli .cc", "tests", "bench"]),
    "protobuf": (r'(<google/protobuf/|["<][^">]*\.pb\.h[">])',
                 ["proto", "server/rpc", "client", "cli .cc", "tests", "bench"]),
    "LibTorch": (r"<(torch|ATen|c10)/", ["engine", "examples", "tests", "bench"]),
    "CUDA": (r"<(cuda|nccl)[a-z_]*\.h>", ["engine/device"]),
    "JSON": (r"<nlohmann/", ["engine/config", "server/server_config", "storage/checkpoint", "cli", "tests", "bench"]),
    "spdlog": (r"<spdlog/", ["common/log"]),
    "CLI11": (r"<CLI/", ["server/server_config", "cli", "examples", "tests", "bench"]),
}
# What these folders reach through includes of any depth must be free of these
# libraries: the client's public headers show no gRPC, and LibTorch carries
# protobuf headers of its own that generated code does not survive.
NEVER_REACH = {"engine": ["gRPC", "protobuf"], "examples": ["gRPC", "protobuf"],
               "server": ["LibTorch"], "client": ["LibTorch"]}
# Inside a home, the folders that stay free of the library all the same.
NOT_AT_HOME = {"LibTorch": ["engine/config", "engine/monitor", "engine/plan", "engine/product"]}

SWITCHED_OFF = [
    (r"\bDISABLED_\w", "a disabled test"),
    (r"^\s*(//|/\*).*\b(TEST|TEST_F|TEST_P|TYPED_TEST)\s*\(", "a commented-out test"),
    (r"^\s*#\s*if\s+0\b", "code under #if 0"),
]

# Written in a way that this file does not match itself.
FOREIGN = [
    (r"/w[o]rk/", "a path of one machine"),
    (r"/r[o]ot/", "a path of one machine"),
    (r"/opt/wh[e]els", "a path of one machine"),
    (r"\bsub-?a[g]ents?\b", "a word about how the file came to be"),
    (r"pypi\.[o]rg|pythonh[o]sted\.org|deb\.debian\.[o]rg|registry\.npmjs\.[o]rg",
     "the host of a package registry"),
]

breaches = []


def breach(path, line, message):
    where = f"{path}:{line}" if line else f"{path}"
    breaches.append(f"{where}: {message}")


def tracked_files():
    """Files of the repository, also those not yet added but not ignored."""
    try:
        out = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            check=True, capture_output=True).stdout.decode()
        names = [n for n in out.split("\0") if n]
    except (OSError, subprocess.CalledProcessError):
        names = [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.is_file()]
        names = [n for n in names if not n.startswith((".git/", "build/", "out/"))]
    return sorted({n for n in names if (ROOT / n).is_file()})


def read(name):
    try:
        return (ROOT / name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def below(name, folder):
    return name == folder or name.startswith(folder + "/")


def owner(name, table):
    """The longest key of `table` that is a folder of `name`."""
    keys = [k for k in table if below(name, k)]
    return max(keys, key=len) if keys else None


def may_include(source, target):
    home = owner(source, INCLUDES)
    if home is None:
        return True
    folder = os.path.dirname(target)
    if below(folder, home) and owner(target, INCLUDES) == home:
        return True
    for allowed in INCLUDES[home]:
        if allowed == "...":
            return True
        if allowed.endswith("/..."):
            if below(folder, allowed[:-4]):
                return True
        elif folder == allowed or (below(folder, allowed) and owner(target, INCLUDES) == allowed):
            return True
    return False


def check_includes(name, text):
    tops = {k.split("/")[0] for k in INCLUDES}
    for number, line in enumerate(text.splitlines(), 1):
        found = re.match(r'\s*#\s*include\s+(["<])([^">]+)[">]', line)
        if not found:
            continue
        target = found.group(2)
        if found.group(1) == '"' and not target.startswith(GENERATED):
            if target.split("/")[0] in tops:
                if not (ROOT / target).exists():
                    breach(name, number, f"includes {target}, which does not exist")
                elif not may_include(name, target):
                    breach(name, number, f"{owner(name, INCLUDES)} may not include {target}")
        for library, (pattern, places) in HOMES.items():
            if re.search(pattern, line) and not at_home(name, places, library):
                breach(name, number, f"{library} is included outside its home ({', '.join(places)})")


def quoted_includes(text):
    return re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.M)


def check_reach(files):
    texts = {n: read(n) or "" for n in files if n.endswith((".h", ".cc", ".cu"))}
    for name in texts:
        libraries = NEVER_REACH.get(name.split("/")[0], [])
        seen, queue = {name}, [(name, [])] if libraries else []
        while queue:
            at, trail = queue.pop()
            for library in libraries:
                if trail and re.search(r"^\s*#\s*include\s+" + HOMES[library][0], texts[at], re.M):
                    breach(name, 0, f"reaches {library} through {' -> '.join(trail)}")
            for target in quoted_includes(texts[at]):
                if target in texts and target not in seen:
                    seen.add(target)
                    queue.append((target, trail + [target]))


def at_home(name, places, library):
    if any(below(name, folder) for folder in NOT_AT_HOME.get(library, [])):
        return False
    for place in places:
        folder, _, only_sources = place.partition(" ")
        if only_sources and not name.endswith(".cc"):
            continue
        # "common/log" means common/log.h and common/log.cc as well.
        if below(name, folder) or name.rsplit(".", 1)[0] == folder:
            return True
    return False


def cmake_sources(files):
    """Every source path that a CMake file names outside comments."""
    sources = set()
    for name in files:
        if os.path.basename(name) != "CMakeLists.txt":
            continue
        text = re.sub(r"#.*", "", read(name) or "")
        for word in re.findall(r"[\w./${}-]+\.cc\b", text):
            word = re.sub(r"^\$\{(PROJECT_SOURCE_DIR|CMAKE_SOURCE_DIR)\}/", "//", word)
            word = word.replace("${CMAKE_CURRENT_SOURCE_DIR}/", "")
            folder = os.path.dirname(name)
            path = word[2:] if word.startswith("//") else os.path.join(folder, word)
            sources.add(os.path.normpath(path))
    return sources


def check_tests(files):
    listed = cmake_sources(files)
    for name in files:
        if not name.endswith(".cc"):
            continue
        if name.split("/")[0] in {k.split("/")[0] for k in INCLUDES} and name not in listed:
            breach(name, 0, "is in no CMakeLists.txt")
        if name.startswith("tests/"):
            for number, line in enumerate((read(name) or "").splitlines(), 1):
                for pattern, what in SWITCHED_OFF:
                    if re.search(pattern, line):
                        breach(name, number, f"{what}: mend it, or delete it")


def check_code_map(files):
    if not (ROOT / "README.md").exists():
        breach("README.md", 0, "does not exist")
        return
    text = read("README.md")
    section = re.search(r"^## Code map\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    if not section:
        breach("README.md", 0, 'has no section "## Code map"')
        return
    named = set(re.findall(r"^\|\s*\[?`([\w.-]+)/`", section.group(1), re.M))
    real = {n.split("/")[0] for n in files if "/" in n}
    real = {n for n in real if not n.startswith(".")}
    for folder in sorted(real - named):
        breach("README.md", 0, f"the code map lacks the folder `{folder}/`")
    for folder in sorted(named - real):
        breach("README.md", 0, f"the code map names `{folder}/`, which does not exist")


def check_links(name, text):
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        if fenced:
            continue
        for target in re.findall(r"\]\(([^)\s]+)\)", line):
            if re.match(r"[a-z]+:|#", target):
                continue
            path = (ROOT / name).parent / target.split("#")[0]
            if not path.exists():
                breach(name, number, f"links to {target}, which does not exist")
        for target in re.findall(r"`(tests/[\w./-]+\.(?:cc|py|h))`", line):
            if not (ROOT / target).exists():
                breach(name, number, f"names {target}, which does not exist")


def check_foreign(name, text):
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, what in FOREIGN:
            if re.search(pattern, line, re.I):
                breach(name, number, f"{what}: {line.strip()[:80]}")


def main():
    files = tracked_files()
    for name in files:
        text = read(name)
        if text is None:
            continue
        if name.endswith((".h", ".cc", ".cu")):
            check_includes(name, text)
        if name.endswith(".md"):
            check_links(name, text)
        check_foreign(name, text)
    check_reach(files)
    check_tests(files)
    check_code_map(files)
    for line in breaches:
        print(line)
    print(f"check_repo: {len(files)} files, {len(breaches)} breaches")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
