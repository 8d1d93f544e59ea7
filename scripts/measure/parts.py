"""What there is to measure, part by part: the commands, how long they take, and in which order they are worth it."""
import dataclasses

from machine import ROOT, layout_flags

DTYPES = ("bf16", "fp16")
# A part may take so many times what is expected, and this long at least, before it is ended.
PATIENCE, LEAST_LIMIT = 3, 60


@dataclasses.dataclass(frozen=True)
class Part:
    """One thing to measure, independent of all others. `seconds` are those of H200s."""

    name: str
    kind: str
    seconds: float
    # Programs, one after the other, by the name of their files; each has to end with 0.
    commands: dict
    # A server that runs meanwhile; the text {url} in the commands is its address.
    server: tuple = ()
    about: dict = dataclasses.field(default_factory=dict, hash=False)

    def limit(self, pace):
        return max(LEAST_LIMIT, PATIENCE * self.seconds) * pace


def all_parts(machine):
    """Every part that this machine can do, the most valuable first."""
    layouts = machine.layouts()
    widest, replicas = layouts[0], f"dp{machine.count}"
    of_each = lambda make, dtype, names=layouts: [make(machine, layout, dtype) for layout in names]
    parts = [doctor(machine), plan(machine), kernels(machine), parity(machine), layouts_of(machine, "bf16"),
             *of_each(matrix, "bf16"), crowd(machine, widest)]
    if 1 < machine.count:
        parts.append(crowd(machine, replicas))
        if not machine.on_cpu:
            parts += [latency(machine, widest, "bf16", "nccl"), crowd(machine, widest, "nccl")]
    parts += [*of_each(latency, "bf16"), layouts_of(machine, "fp16"), *of_each(matrix, "fp16"), *of_each(latency, "fp16"),
              *of_each(prefill, "bf16")]
    if 1 < machine.count:
        parts += [make(machine, replicas, "bf16") for make in (latency, matrix)]
    parts.append(parity_table(machine))
    return [part for part in parts if part]


def bench(machine, what, dtype, *flags):
    return [machine.binary, "bench", what, *machine.model_flags(dtype), *map(str, flags), "--json"]


def listed(values):
    return ",".join(map(str, values))


def doctor(machine):
    command = [machine.binary, "doctor", "--port", "0"]
    return Part("doctor", "doctor", 15, {"text": command, "json": [*command, "--json"]})


def kernels(machine):
    if machine.on_cpu:
        return None
    return Part("kernels", "kernels", 40, {"text": [machine.binary, "doctor", "--kernels"]})


def parity_command(machine):
    """Its models are gigabytes and lie where temporary files do; its servers' logs stay. The part's limit ends it."""
    return [machine.python, str(ROOT / "scripts/parity"), "--binary", machine.binary, "--device",
            "cpu" if machine.on_cpu else "gpu", "--limit", "3600", "--logs", str(machine.folder / "parity-logs")]


def parity(machine):
    """One model in each layout of all devices. Its table of servers knows those of up to four."""
    command = parity_command(machine)
    for layout in machine.layouts():
        named = layout if "pp" not in layout or "tp" not in layout else "pp{}xtp2".format(layout.split("pp")[1])
        for dtype in DTYPES:
            command += ["--only", f"7b {dtype} {named}"]
    return Part("parity", "parity", 15 + 12 * len(machine.layouts()), {"text": command})


def parity_table(machine):
    return Part("parity-table", "parity", 150, {"text": parity_command(machine)})


def layouts_of(machine, dtype):
    names = machine.layouts()
    if 1 < machine.count:
        names = [*names, f"dp{machine.count}", "tp1"]
    scale = machine.scale
    command = bench(machine, "layouts", dtype, "--layouts", listed(names), "--input-len", listed(scale.layout_prompts),
                    "--batch-size", listed(scale.batches), "--output-len", scale.decode[1], "--crowd", scale.crowd,
                    "--repeats", scale.repeats)
    return Part(f"layouts-{dtype}", "layouts", 35 * len(names), {"json": command}, about=dict(dtype=dtype))


def matrix(machine, layout, dtype):
    scale = machine.scale
    command = bench(machine, "matrix", dtype, *layout_flags(layout), "--max-model-len", scale.context, "--input-len",
                    listed(scale.matrix), "--output-len", scale.matrix_out, "--repeats", 1)
    seconds = 65 if layout.startswith("dp") or layout == "tp1" else 40
    return Part(f"matrix-{layout}-{dtype}", "matrix", seconds, {"json": command}, about=dict(layout=layout, dtype=dtype))


def latency(machine, layout, dtype, all_reduce=""):
    scale = machine.scale
    command = bench(machine, "latency", dtype, *layout_flags(layout), "--batch-size", listed(scale.batches), "--input-len",
                    scale.decode[0], "--output-len", scale.decode[1], "--repeats", scale.repeats)
    command += ["--all-reduce", all_reduce] if all_reduce else []
    name = "-".join(filter(None, ["latency", layout, dtype, all_reduce]))
    return Part(name, "latency", 14, {"json": command}, about=dict(layout=layout, dtype=dtype, all_reduce=all_reduce))


def prefill(machine, layout, dtype):
    scale = machine.scale
    command = bench(machine, "prefill", dtype, *layout_flags(layout), "--max-model-len", scale.context, "--input-len",
                    listed(scale.prompts), "--repeats", 1)
    return Part(f"prefill-{layout}-{dtype}", "prefill", 25, {"json": command}, about=dict(layout=layout, dtype=dtype))


def plan(machine):
    """What is planned for the memory of each layout; `layouts` has what is used."""
    command = [machine.binary, "plan", "--model", machine.model, "--devices", str(machine.count), "--json"]
    command += ["--device-memory", machine.device_memory] if machine.device_memory else []
    return Part("plan", "plan", 1, {"json": command})


def crowd(machine, layout, all_reduce=""):
    """256 requests at once over HTTP."""
    scale = machine.scale
    server = [machine.binary, "serve", *machine.model_flags("bf16"), *layout_flags(layout), "--port", "0",
              "--max-model-len", str(min(8192, scale.context))]
    server += ["--all-reduce", all_reduce] if all_reduce else []
    # Dummy weights leave the best two tokens closer to each other than trained ones.
    client = [machine.python, str(ROOT / "tests/clients/crowd.py"), "{url}", "--requests", "256", "--tie", "0.3",
              "--most-input", str(scale.most_input), "--most-output", str(scale.most_output)]
    name = "-".join(filter(None, ["crowd", layout, all_reduce]))
    return Part(name, "crowd", 30, {"text": client}, server=tuple(server), about=dict(layout=layout, all_reduce=all_reduce))
