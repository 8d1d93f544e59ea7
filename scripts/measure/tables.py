"""The tables of a report, from the files that the parts left: made anew after each part, of whatever there is."""
import datetime
import hashlib
import json
import pathlib
import re

TOPICS = ("cpu", "memory", "driver", "gpu", "library", "link")
# They are the same for every part, but for the type, which each table names.
MODEL_FLAGS = ("--model", "--device", "--measurements", "--dtype", "--load-format", "--tokenizer", "--threads",
               "--kv-cache-memory")
JUDGED = re.compile(r"^ *[\d.]+ s  (.+): judged, (\d+) of (\d+) rows agree")


def report(machine, results, command):
    """The whole text; `results` by the parts' names, in the order they ran."""
    files = Files(machine.folder, results)
    sections = [head(machine, files, command), parts_table(results), doctor_section(files), kernels_section(files),
                parity_section(files), layouts_section(files), memory_section(files), latency_section(files),
                prefill_section(files), matrix_section(files), crowd_section(files)]
    return "\n\n".join(section for section in sections if section) + "\n"


class Files:
    """What parts left behind; a part that was ended early may have left half of it."""

    def __init__(self, folder, results):
        self.folder, self.results = folder, results

    def of(self, kind):
        """The results of that kind of part."""
        return [result for result in self.results.values() if result["kind"] == kind]

    def text(self, part, name):
        path = self.folder / f"{part}.{name}"
        return path.read_text(errors="replace") if path.exists() else ""

    def json(self, part):
        """The object that the part printed; an empty one when it did not."""
        try:
            return json.loads(self.text(part, "json"))
        except ValueError:
            return {}

    def json_lines(self, part):
        """The objects it printed, one a line; the last line may be torn."""
        found = []
        for line in self.text(part, "json").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                break
        return found

    def findings(self):
        return self.json("doctor").get("findings", [])


def table(heads, rows):
    """Markdown; nothing without rows."""
    if not rows:
        return ""
    line = lambda cells: "| " + " | ".join(str(cell) for cell in cells) + " |"
    return "\n".join([line(heads), "|" + "---|" * len(heads), *map(line, rows)])


def section(title, *texts):
    texts = [text for text in texts if text]
    return "\n\n".join([f"## {title}", *texts]) if texts else ""


def number(value):
    """Three digits at least, thousands apart."""
    if value is None:
        return ""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def share(figure):
    return f"{number(figure['median'])} ({100 * figure['of_limit']:.0f} %)"


def command_of(result, layout="LAYOUT"):
    """The last program of a part as people would type it: MODEL stands for the flags that all have, see `head`."""
    words = list(result["commands"].values())[-1]
    shown, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in ("--tp", "--pp", "--dp"):
            skip = True
            if shown[-1] != layout:
                shown.append(layout)
        elif word in MODEL_FLAGS:
            skip = True
            if "MODEL" not in shown:
                shown.append("MODEL")
        else:
            shown.append(pathlib.Path(word).name if word.startswith("/") else word)
    return "`" + " ".join(shown) + "`"


def date_of(results):
    days = sorted({result["started"][:10] for result in results})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}" if days else str(datetime.date.today())


def head(machine, files, command):
    gpus = [finding["data"]["name"] for finding in files.findings()
            if finding["topic"].startswith("gpu") and "name" in (finding.get("data") or {})]
    kind = f"{machine.count} ranks by threads on a CPU" if machine.on_cpu else (
        f"{machine.count} x {gpus[0].removeprefix('NVIDIA ')}" if gpus else f"{machine.count} GPUs")
    binary = hashlib.sha256(pathlib.Path(machine.binary).read_bytes()).hexdigest()[:12]
    hardware = [f"- {finding['topic']}: {finding['text']}" for finding in files.findings()
                if finding["topic"].split()[0] in TOPICS]
    flags = " ".join(pathlib.Path(word).name if word.startswith("/") else word for word in machine.model_flags("bf16"))
    return "\n\n".join(filter(None, [
        f"# {kind}",
        f"{date_of(files.results.values())}, `{command}`; binary {binary}. MODEL is `{flags}`, or `--dtype half` where it "
        "says fp16; LAYOUT is `--tp 2` for tp2, `--pp 2 --tp 2` for tp2pp2.",
        "\n".join(hardware), limits(files)]))


def limits(files):
    """The devices' limits, of every run that measured them: from the lowest to the highest."""
    seen = {}
    reports = [files.json(result["part"]) for kind in ("latency", "prefill", "matrix") for result in files.of(kind)]
    reports += [line["summary"] for result in files.of("layouts") for line in files.json_lines(result["part"])
                if "summary" in line]
    for told in reports:
        for limit in told.get("limits", []):
            seen.setdefault(limit["name"], []).append((limit["bytes_per_second"], limit["operations_per_second"]))
    span = lambda values: number(min(values)) if len(values) == 1 else f"{number(min(values))} to {number(max(values))}"
    lines = [f"- {name}: reads {span([bandwidth / 1e9 for bandwidth, _ in pairs])} GB/s, multiplies at "
             f"{span([arithmetic / 1e12 for _, arithmetic in pairs])} TFLOP/s ({len(pairs)} runs)"
             for name, pairs in seen.items()]
    return "Limits, measured in the same runs as the figures:\n\n" + "\n".join(lines) if lines else ""


def parts_table(results):
    rows = [(result["part"], result["state"], result["seconds"], result.get("reason", "").replace("|", "/")[:200])
            for result in results.values()]
    return section("Parts", table(("part", "", "s", ""), rows))


def doctor_section(files):
    wrong = [f"- {finding['verdict']}: {finding['topic']}: {finding['text']}" for finding in files.findings()
             if finding["verdict"] != "ok"]
    sums = [f"- {finding['text']}" for finding in files.findings() if finding["topic"] == "sums"]
    return section("Doctor", "\n".join(wrong), "\n".join(sums))


def kernels_section(files):
    lines = files.text("kernels", "text").splitlines()
    told = [line for line in lines if "MISS" in line or line.startswith(("missed:", "all_reduce of"))] + lines[-1:]
    return section("Operations against the CPU's", "\n".join(f"- {line.strip()}" for line in told))


def parity_section(files):
    """One line a server; told as soon as it was judged, so that a run that was ended has its part."""
    rows, misses = {}, []
    for result in files.of("parity"):
        for line in files.text(result["part"], "text.err").splitlines():
            if judged := JUDGED.match(line):
                rows[judged[1]] = (judged[1], f"{judged[2]} of {judged[3]}")
            elif "MISS" in line:
                misses.append("- " + " ".join(line.split()))
    return section("Against PyTorch", table(("server", "rows agree"), list(rows.values())), "\n".join(misses))


def layouts_section(files):
    texts = []
    for result in files.of("layouts"):
        lines = files.json_lines(result["part"])
        rows = [line for line in lines if "layout" in line]
        if not rows:
            continue
        left_out = "\n".join(f"- {row['layout']}, left out: {reason}" for row in rows if any(figures_of(row))
                             for reason in row["left_out"])
        texts += [f"{result['about']['dtype']}, {command_of(result)}; predicted / measured (predicted over measured):",
                  layouts_table(rows), left_out, *[conclusions(line["summary"]) for line in lines if "summary" in line]]
    return section("Layouts", *texts)


def figures_of(row):
    return [*row["first_tokens"], *row["decode"], row["crowd"]]


def layouts_table(rows):
    # A column is named by whichever layout has its figure.
    columns = zip(*map(figures_of, rows))
    known = [next((figure for figure in column if figure), None) for column in columns]
    heads = [f"{figure['name']}, {figure['unit']}" if figure else "" for figure in known]
    lines = []
    for row in rows:
        if not any(figures_of(row)):
            lines.append([row["layout"], "; ".join(row["left_out"]), *[""] * (len(heads) + 1)])
            continue
        fullest = max(row["memory"], key=lambda memory: memory["planned_bytes"])
        memory = number(fullest["planned_bytes"] / 1e9)
        if fullest["used_bytes"]:
            memory += f" / {number(fullest['used_bytes'] / 1e9)}"
        lines.append([row["layout"], f"{row['start_seconds']:.1f}", *map(compared, figures_of(row)), memory])
    return table(["layout", "start, s", *heads, "GB of the fullest device, planned / used"], lines)


def compared(figure):
    if not figure:
        return ""
    if figure["predicted"] is None:
        return number(figure["median"])
    return f"{number(figure['predicted'])} / {number(figure['median'])} ({figure['ratio']:.2f})"


def conclusions(summary):
    lines = []
    for winner in summary["fastest"]:
        auto = f"; `auto` takes {winner['auto']}" if winner["auto"] else ""
        speed = f", {winner['auto_speed']:.2f} of its speed" if winner["auto_speed"] else ""
        lines.append(f"- {winner['objective']}: {winner['layout']} is the fastest, {number(winner['measured'])}{auto}{speed}")
    for key, what in (("worst", "a figure"), ("worst_memory", "memory")):
        if worst := summary[key]:
            lines.append(f"- {what} is off by {100 * worst['deviation']:.1f} % at worst: {worst['layout']}, {worst['figure']}")
    if summary["unpredicted"]:
        lines.append(f"- nothing is predicted: {summary['unpredicted']}")
    return "\n".join(lines)


def memory_section(files):
    """Every device of every layout against its plan, and what `plan` says of the layout without a machine."""
    planned = files.json("plan") or []
    rows = [(f"tp{plan['tensor_parallel_size']}pp{plan['pipeline_parallel_size']}", *(
        [number(plan[key] / 1e9) for key in ("weights_bytes", "workspace_bytes")] + [plan["kv_bytes_per_token"]]
        if "weights_bytes" in plan else [plan.get("does_not_fit") or plan.get("impossible"), "", ""])) for plan in planned]
    held = [(row["layout"], memory["device"], number(memory["planned_bytes"] / 1e9), number(memory["used_bytes"] / 1e9),
             f"{100 * (memory['used_bytes'] / memory['planned_bytes'] - 1):+.2f} %")
            for result in files.of("layouts") for row in files.json_lines(result["part"]) if "layout" in row
            for memory in row["memory"] if memory["used_bytes"]]
    return section("Memory", table(("plan", "weights, GB", "workspace, GB", "KV bytes a token"), rows),
                   table(("layout", "device", "planned, GB", "used, GB", ""), held))


def by_layout(files, kind, cells):
    """A table of figures: a line for each figure, a column for each part of that kind."""
    results = [result for result in files.of(kind) if files.json(result["part"])]
    columns = [cells(files.json(result["part"])) for result in results]
    names = list(dict.fromkeys(name for column in columns for name in column))
    heads = [" ".join(filter(None, [result["about"]["layout"], result["about"]["dtype"],
                                    result["about"].get("all_reduce")])) for result in results]
    lines = [[name, *[column.get(name, "") for column in columns]] for name in names]
    # One for all columns, unless they were asked differently.
    commands = "\n".join(dict.fromkeys(command_of(result) for result in results))
    left_out = "\n".join(f"- {head}, left out: {reason}" for head, result in zip(heads, results)
                         for reason in files.json(result["part"]).get("left_out", []))
    return table(["", *heads], lines), commands, left_out


def latency_section(files):
    cells = lambda told: {f"{figure['name']}, {figure['unit']}": share(figure) for figure in told["figures"]
                          if figure["unit"] == "tok/s"}
    return section("Decode (of limit)", *by_layout(files, "latency", cells))


def prefill_section(files):
    cells = lambda told: {f"{figure['name']}, {figure['unit']}": share(figure) for figure in told["figures"]
                          if figure["unit"] == "ms"}
    return section("First token (of limit)", *by_layout(files, "prefill", cells))


def matrix_section(files):
    def cells(told):
        found = {}
        for row in told["matrix"]:
            name = f"{row['input_len']:,} + {row['output_len']}" + f" x {row['batch_size']}" * (1 < row["batch_size"])
            found[f"{name}: output tok/s"] = share(row["output"])
            found[f"{name}: total tok/s"] = number(row["total"]["median"])
            found[f"{name}: first token, ms"] = share(row["first_token"])
            found[f"{name}: GB per device"] = number(row["device_bytes"] / 1e9)
        return found
    return section("The source's table (of limit)", *by_layout(files, "matrix", cells))


def crowd_section(files):
    texts = []
    for result in files.of("crowd"):
        lines = files.text(result["part"], "text").splitlines()
        served = command_of(dict(commands={"server": result["server"]}))
        about = " ".join(filter(None, [result["about"]["layout"], result["about"]["all_reduce"]]))
        texts.append(f"{about}, {served}, {command_of(result)}:\n\n" + "\n".join(f"- {' '.join(line.split())}" for line in lines))
    return section("256 requests at once", *texts)
