"""Names of parameters in one model -> names in another."""

import re


class NameMap:
    """Rules "PATTERN=REPLACEMENT", regular expressions over whole names; the first
    that matches counts, a name without one stays. "gpt" is the set for the GPT of
    examples/gpt from its twin in bench/peers/gpt.py."""

    PRESETS = {
        "gpt": [r"token\.weight=embed.token", r"position\.weight=embed.position",
                r"blocks\.(\d+)\.norm_([12])\.(weight|bias)=block.\1.norm\2_\3",
                r"blocks\.(\d+)\.(qkv|proj|fc|out)\.(weight|bias)=block.\1.\2_\3",
                r"norm\.(weight|bias)=head.norm_\1", r"head\.weight=head.weight"],
    }

    def __init__(self, rules):
        self.rules = []
        for rule in rules:
            for one in self.PRESETS.get(rule, [rule]):
                pattern, equal, replacement = one.partition("=")
                if not equal:
                    raise ValueError(f"name rule {one!r}: expected PATTERN=REPLACEMENT or one of "
                                     f"{', '.join(self.PRESETS)}")
                self.rules.append((re.compile(pattern), replacement))

    def __call__(self, name):
        for pattern, replacement in self.rules:
            match = pattern.fullmatch(name)
            if match:
                return match.expand(replacement)
        return name

    def all(self, names):
        """name -> new name; two that meet are an error."""
        mapped = {name: self(name) for name in names}
        taken = {}
        for name, new in mapped.items():
            if new in taken:
                raise ValueError(f"{taken[new]} and {name} would both be named {new}")
            taken[new] = name
        return mapped


# From Stowage's names back to those of bench/peers/gpt.py.
NameMap.PRESETS["gpt-back"] = [
    r"embed\.token=token.weight", r"embed\.position=position.weight",
    r"block\.(\d+)\.norm([12])_(weight|bias)=blocks.\1.norm_\2.\3",
    r"block\.(\d+)\.(qkv|proj|fc|out)_(weight|bias)=blocks.\1.\2.\3",
    r"head\.norm_(weight|bias)=norm.\1", r"head\.weight=head.weight"]
