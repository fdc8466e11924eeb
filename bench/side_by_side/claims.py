"""What the project set out to reach, each beside what this run measured.

A claim whose figures are missing stays "not measured"; it is never filled in
from another run.
"""

import statistics

MIB = 1 << 20


def figures(entry, get):
    """get() over the rounds of one side; None if the side was not measured."""
    if not entry or "rounds" not in entry:
        return None
    try:
        values = [get(r) for r in entry["rounds"]]
    except (KeyError, TypeError):
        return None
    return values if values and all(v is not None for v in values) else None


def ratio(above, below):
    """The rounds' own ratios."""
    if above is None or below is None:
        return None
    return [a / b for a, b in zip(above, below)]


def difference(above, below):
    if above is None or below is None:
        return None
    return [a - b for a, b in zip(above, below)]


def median(values):
    return None if values is None else statistics.median(values)


def claim(what, values, sign, target, unit=""):
    """`values`: one a round. What counts is their median. Without a target it is
    there to read the others by."""
    median_of = median(values)
    met = None
    if median_of is not None and target is not None:
        met = median_of >= target if sign == ">=" else median_of <= target
    spread = None if values is None else [round(f(values), 4) for f in (min, statistics.median, max)]
    return {"what": what, "value": None if median_of is None else round(median_of, 4), "spread": spread,
            "target": "" if target is None else f"{sign} {target}", "unit": unit, "met": met}


def kernel_claims(section):
    ours = section.get("ours")

    def ms(name):
        return figures(ours, lambda r: r[name]["ms"])

    def rate(name):
        return figures(ours, lambda r: r[name]["bytes_per_second"])

    def theirs(size, peer):
        return figures(section.get("peers"), lambda r: r[size][peer]["median"])

    adam, small = ms("adam_1_slot/64M"), ms("adam_1_slot/1M")
    return [
        claim("kernel, 64 M: share of the measured memory ceiling",
              ratio(ms("ceiling_adam_accesses_1_slot/64M"), adam), ">=", 0.95),
        claim("that ceiling over read-modify-write in place, in bytes per second",
              ratio(rate("ceiling_adam_accesses_1_slot/64M"), rate("ceiling_read_modify_write/64M")),
              ">=", 0.9),
        claim("kernel, 64 M: torch fused AdamW (fp32) / ours", ratio(theirs("64M", "torch_fused"), adam),
              ">=", 1.1, "x"),
        claim("kernel, 64 M: DeepSpeedCPUAdam and bf16 copy / ours",
              ratio(theirs("64M", "deepspeed_copy"), adam), ">=", 1.6, "x"),
        claim("kernel, 1 M: torch fused AdamW (fp32) / ours", ratio(theirs("1M", "torch_fused"), small),
              ">=", 1.0, "x"),
        claim("kernel, 1 M: DeepSpeedCPUAdam and bf16 copy / ours",
              ratio(theirs("1M", "deepspeed_copy"), small), ">=", 1.0, "x"),
    ]


def chain_claims(section):
    out = []
    for gradients, name, target in ((1, "chain_1_slot/64M", 3.0), (2, "chain_2_slots/64M", 3.5)):
        theirs = figures(section.get(f"deepspeed_{gradients}"), lambda r: r["ms"]["median"])
        ours = figures(section.get("ours"), lambda r: r[name]["ms"])
        word = "one gradient" if gradients == 1 else "two ranks' gradients"
        out.append(claim(f"chain, 64 M, {word}: DeepSpeed / ours", ratio(theirs, ours), ">=", target, "x"))
    return out


def microseconds(values):
    return None if values is None else [v * 1e3 for v in values]


def service_claims(section):
    def ms(name):
        return figures(section.get("ours"), lambda r: r[name]["ms"])

    idle = ms("service_empty_step")
    return [
        claim("service, 64 M: through stowd / in process",
              ratio(ms("service_chain/64M"), ms("in_process_chain/64M")), "<=", 1.06, "x"),
        claim("service, 1 M: through stowd - in process",
              difference(ms("service_chain/1M"), ms("in_process_chain/1M")), "<=", 0.7, "ms"),
        claim("service: prepare and apply with nothing to do",
              microseconds(idle), "<=", 80, "us"),
        claim("the same messages over a bare gRPC stream between two processes",
              microseconds(ms("bare_stream")), "", None, "us"),
        claim("prepare and apply / the bare gRPC stream", ratio(idle, ms("bare_stream")), "", None, "x"),
        claim("a bare round trip between two processes over a socket, just before",
              microseconds(ms("socket_round_trip")), "", None, "us"),
    ]


def training_claims(section):
    limits = {"25M": 1.3, "85M": 1.4, "25M micro batch 4": 1.2}
    out = []
    for model, limit in limits.items():
        entry = section.get(model, {})

        def ms(side):
            return figures(entry.get(side), lambda r: r["step_ms"]["median"])

        ours = ms("ours")
        if "micro" not in model:
            out.append(claim(f"training {model}: DeepSpeed / ours, time of a step",
                             ratio(ms("deepspeed"), ours), ">=", 3.5, "x"))
            out.append(claim(f"training {model}: the same with the peers' products in ours",
                             ratio(ms("deepspeed"), ms("ours_peers_products")), "", None, "x"))
            if "deepspeed_as_installed" in entry:
                out.append(claim(f"training {model}: DeepSpeed with torch's own bf16 products / ours",
                                 ratio(ms("deepspeed_as_installed"), ours), "", None, "x"))
        out.append(claim(f"training {model}: ours / plain forward and backward",
                         ratio(ours, ms("plain")), "<=", limit, "x"))
    return out


def remote_claims(section):
    entry = section.get("ours", {}).get("rounds")
    out = []
    for way, what in (("send", "gradients to the server"), ("fetch", "parameters from it")):
        spread = [entry[0][way]["ours_over_plain"][k] for k in ("min", "median", "max")] if entry else None
        out.append(claim(f"remote rank, {what}: GB/s, ours / a plain gRPC stream of the same chunks",
                         spread, ">=", 0.9, "x"))
    return out


def exchange_claims(section):
    out = []
    for model, entry in section.items():
        def ms(side, entry=entry):
            return figures(entry.get(side), lambda r: r["step_ms"]["median"])

        def volume(of, entry=entry):
            return figures(entry.get("volume"), lambda r: r["counted"] / of(r))

        out.append(claim(f"exchange {model}: DeepSpeed / c10d, time of a step, both over Gloo",
                         ratio(ms("deepspeed"), ms("c10d")), ">=", 2.0, "x"))
        out.append(claim(f"exchange {model}: the same with the peers' products in ours",
                         ratio(ms("deepspeed"), ms("c10d_peers_products")), "", None, "x"))
        out.append(claim(f"exchange {model}: c10d / segments, time of a step",
                         ratio(ms("c10d"), ms("segments")), "", None, "x"))
        # Equal to the byte, or the formula is wrong.
        spread = volume(lambda r: r["formula"])
        same = claim(f"exchange {model}: bytes a rank sends in a step of ZeRO-3, counted / formula",
                     spread, "=", 1, "x")
        same["met"] = None if spread is None else all(v == 1 for v in spread)
        out.append(same)
        # 2 ranks: each sends half of 3 x parameters, of 2 bytes.
        out.append(claim(f"exchange {model}: counted / 3 x parameters, not padded",
                         volume(lambda r: 3 * r["parameters"] * 2 / 2), "", None, "x"))
    return out


def memory_claims(section):
    def growth(side):
        small = figures(section.get(f"{side} 25M"), lambda r: r["peak_bytes"])
        large = figures(section.get(f"{side} 85M"), lambda r: r["peak_bytes"])
        if small is None or large is None:
            return None
        return [(large[0] - small[0]) / PARAMETERS_MORE]

    ours, theirs = growth("ours"), growth("deepspeed")
    out = [claim("memory, 25 M to 85 M: bytes a parameter, ours", ours, "<=", 20, "B")]
    less = difference(ours, theirs)
    out.append(claim("memory, 25 M to 85 M: bytes a parameter, ours - DeepSpeed", less, "<=", 0, "B"))
    return out


def gpt_parameters(layers, width, context=128, vocabulary=256):
    block = 12 * width * width + 13 * width
    return 2 * vocabulary * width + context * width + layers * block + 2 * width


PARAMETERS_MORE = gpt_parameters(12, 768) - gpt_parameters(8, 512)


CLAIMS = {"kernel": kernel_claims, "chain": chain_claims, "service": service_claims,
          "remote": remote_claims, "training": training_claims, "exchange": exchange_claims,
          "memory": memory_claims}


def evaluate(sections) -> list:
    """Of the sections that the run had, in the order of the table."""
    return [c for name, make in CLAIMS.items() if name in sections for c in make(sections[name])]
