#!/usr/bin/env python3
"""Checks docs/configuration.md against the schema and the tests.

Fails when a key of engine/config/schema_*.cc has no row in the document, when
a row has no key, or when a row names a test that does not exist. Needs no
build. Run from anywhere; prints one line per fault.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "configuration.md"
KEYS_TEST = ROOT / "tests" / "unit" / "engine" / "config" / "keys_test.cc"


def unquote(text: str, macros: dict) -> str:
    """The value of adjacent C++ string literals and string macros."""
    out = ""
    for literal, macro in re.findall(r'"((?:[^"\\]|\\.)*)"|([A-Z_]+)', text):
        out += macros[macro] if macro else literal.replace('\\"', '"')
    return out


def schema() -> dict:
    """Path -> (rule, alias target) of every row of the schema."""
    keys = {}
    for path in sorted((ROOT / "engine" / "config").glob("schema_*.cc")):
        text = path.read_text()
        macros = {}
        for name, value in re.findall(r"#define (\w+) (.*(?:\\\n.*)*)", text):
            macros[name] = unquote(value, macros)
        for row in re.split(r"\{\s*\.path = ", text)[1:]:
            key = unquote(row[: row.index(",")], macros)
            rule = re.search(r"\.rule = Rule::(\w+)", row)
            alias = re.search(r"\.same_as = ([^,}]*)", row)
            block = ".type = kBlock" in row
            keys[key] = (
                "kBlock" if block else rule.group(1) if rule else "kHonoured",
                unquote(alias.group(1), macros) if alias else "",
            )
    return keys


def tests() -> set:
    """Suite.Name of every GoogleTest case of the tree."""
    names = set()
    for path in (ROOT / "tests").rglob("*_test.cc"):
        for suite, name in re.findall(
            r"^TEST(?:_F|_P)?\(\s*(\w+),\s*(\w+)\s*\)", path.read_text(), re.M
        ):
            names.add(f"{suite}.{name}")
    return names


def rows() -> dict:
    """Key -> text of the test cell, for every row of the document's tables."""
    text = DOCUMENT.read_text()
    begin = text.index("<!-- keys: begin -->")
    end = text.index("<!-- keys: end -->")
    out = {}
    for line in text[begin:end].splitlines():
        cells = [c.strip() for c in re.split(r"(?<!\\)\|", line)][1:-1]
        match = re.fullmatch(r"`([^`]+)`", cells[0]) if cells else None
        if match is None:
            continue
        if len(cells) != 6:
            print(f"{DOCUMENT.name}: {match.group(1)}: {len(cells)} cells, "
                  "expected 6")
        out[match.group(1)] = cells[-1]
    return out


def main() -> int:
    faults = []
    keys, known, documented = schema(), tests(), rows()
    keys_test = KEYS_TEST.read_text()
    macros = {
        name: unquote(value, {})
        for name, value in re.findall(r"#define (\w+) (\".*\")", keys_test)
    }
    cases = {
        unquote(literal, macros)
        for literal in re.findall(r"^\s*\{((?:[A-Z]+ )?\"[\w.]+\"),", keys_test,
                                  re.M)
    }
    for key in keys.keys() - documented.keys():
        faults.append(f"{key}: no row in docs/configuration.md")
    for key in documented.keys() - keys.keys():
        faults.append(f"{key}: a row in docs/configuration.md, no such key")
    for key in keys.keys() & documented.keys():
        named = re.findall(r"`([^`]+)`", documented[key])
        if not named:
            faults.append(f"{key}: its row names no test")
        for test in named:
            if test.startswith("ConfigKey:"):
                rule, alias = keys[key]
                if alias:
                    rule = keys[alias][0]
                # The other rules are tested from the schema itself.
                if test != f"ConfigKey:{key}":
                    faults.append(f"{key}: names the case of another key, {test}")
                elif rule == "kHonoured" and key not in cases:
                    faults.append(f"{key}: no case in {KEYS_TEST.name}")
            elif test not in known:
                faults.append(f"{key}: names {test}, which does not exist")
    for fault in sorted(faults):
        print(fault)
    print(f"{len(keys)} keys, {len(documented)} rows, {len(faults)} faults")
    return 1 if faults or not keys else 0


if __name__ == "__main__":
    sys.exit(main())
