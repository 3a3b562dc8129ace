"""A plan on the terminal: phases, sizes, times, and where a cluster would place it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raydistill.cli.show.labels import print_labels
from raydistill.cluster.forecast import TEACHERS
from raydistill.cluster.resources import described
from raydistill.cluster.room import KIND
from raydistill.config.syntax import as_yaml
from raydistill.evaluate.report.scales import duration
from raydistill.storage.redaction import redact_tree

if TYPE_CHECKING:
    from rich.console import Console


def print_forecast(console: Console, found: Mapping[str, Any]) -> None:
    """Print a forecast below the lines of a plan."""
    from rich.table import Table
    from rich.text import Text

    console.print(Text(f"cluster    {found['address']}"))
    for count, there, text in _kinds(found["nodes"]):
        console.print(Text(f"           {count if there else f'up to {count} more'} × {text}"))
    table = Table("role", "how many", "each asks for", "where", box=None, pad_edge=False)
    for role in found["roles"]:
        least = f"{role['least']} to " if role["least"] < role["count"] else ""
        name = f"{role['name']} ({role['phase']})" if role["name"] == TEACHERS else role["name"]
        table.add_row(name, f"{least}{role['count']}", Text(described(role["resources"])), Text(_where(role)))
    if found["roles"]:
        console.print(table)
    for finding in found["findings"]:
        console.print(Text.assemble(("! ", "yellow"), finding))


def _where(role: Mapping[str, Any]) -> str:
    parts = [f"{count} on {node}" for node, count in role["now"].items()]
    parts += [f"{count} on new {group} nodes" for group, count in role["new"].items()]
    parts += [f"{role['waiting']} later"] if role["waiting"] else []
    parts += [f"{role['missing']} nowhere"] if role["missing"] else []
    return ", ".join(parts)


def _kinds(nodes: Sequence[Mapping[str, Any]]) -> list[tuple[int, bool, str]]:
    """Like nodes together: how many, whether they are there, what they are for and have."""
    counts: dict[tuple[bool, str], int] = {}
    for node in nodes:
        has = {name: amount for name, amount in node["resources"].items() if name in ("CPU", "GPU") or KIND in name}
        others = [
            name for name in node["resources"] if name not in has and name not in ("memory", "object_store_memory")
        ]
        marks = sorted(name for name in others if not name.startswith("node:") and "_group" not in name)
        key = (node["there"], ": ".join(filter(None, [", ".join(marks), described(has)])))
        counts[key] = counts.get(key, 0) + node["count"]
    return [(count, there, text) for (there, text), count in counts.items()]


def print_plan(console: Console, plan: dict[str, Any]) -> None:
    """Print a plan for people; figures marked ≈ come from a sample, times from a few batches."""
    from rich.markup import escape
    from rich.table import Table

    about = "≈ " if plan["estimate"] else ""
    data = plan["data"]
    console.print(f"storage    {escape(plan['storage'])}")
    unit = data.get("unit", "tokens")
    for split, rows in data["rows"].items():
        extra = f", {data['labeled']:,} labelled" if split == "train" else ""
        cut = f", {about}{data['cut'][split]:,} texts cut" if data["cut"][split] else ""
        console.print(f"{split:<11}{rows:,} rows{extra}, {about}{data['tokens'][split]:,} {unit}{cut}")
    if any(data["cut"].values()):
        console.print(f"           texts are cut at {data['max_length']} tokens (data.max_length)")
    for note in data["notes"]:
        console.print(f"- {note}", markup=False)
    print_labels(console, data["per_class"])
    for choice in plan["choices"]:
        console.print(f"chosen     {choice['name']} {as_yaml(choice['value'])} ({choice['why']})", markup=False)
    table = Table("phase", "state", "steps", box=None, pad_edge=False)
    for phase in plan["phases"]:
        name = phase["phase"]
        least, most = (
            sum(n for key, n in plan[kind].items() if key.split(".")[0] == name) for kind in ("min_steps", "steps")
        )
        count = f"{least:,} to {most:,}" if least < most else f"{most:,}" if most else ""
        table.add_row(name.replace("signal ", "teacher output "), phase["state"], count)
    console.print(table)
    teacher, student = plan["teacher"], plan["student"]
    for signal, size in teacher["signal_bytes"].items():
        console.print(f"recorded   {escape(signal)} of the teacher: {about}{size:,} bytes")
    chance = "the run goes on" if teacher["allow_chance"] else "the run ends after it"
    console.print(
        f"teacher    {teacher['mode']} ({teacher['why']}), {teacher['dtype']}; if no better than guessing, {chance}"
    )
    if weights := teacher.get("weights"):
        console.print(f"           mean of {', '.join(f'{name} (weight {w:g})' for name, w in weights.items())}")
    taken = ", ".join(str(layer + 1) for layer in student["teacher_layers"])  # from 1, as in all that is shown
    layers = f", from layers {taken} of the teacher" if taken else ""
    if (shared := student["share_layers"]) is not None:
        layers += f"; the embeddings and the first {shared} are the teacher's and stay as they are"
    shape = f"{student['num_layers']} layers, width {student['hidden_size']}"
    shape += f", {student['num_heads']} heads" if student["num_heads"] else " of convolutions"
    console.print(f"student    {shape}{escape(layers)}")
    for name, pairs in plan["layer_maps"].items():
        console.print(f"layers     {name}: " + ", ".join(f"{s} ← {t}" for s, t in pairs))
    if "sweep" in plan:
        print_estimate(console, plan["sweep"])
    if "time" in plan:
        print_run_estimate(console, plan["time"])
    for finding in plan["findings"]:
        is_grave = finding.startswith(("teacher.trust_remote_code", "teacher.model"))
        console.print(f"[{'red' if is_grave else 'yellow'}]![/] {escape(finding)}")


def print_estimate(console: Console, found: Mapping[str, Any]) -> None:
    """Print the estimate of a sweep in the lines of a plan."""
    from rich.text import Text

    size, rejected, gpu_hours = found["size"], found["rejected_shapes"], found["gpu_hours"]
    of = f" of {size:,} combinations" if size is not None else ""
    without = f", {rejected:,} of them rejected by num_parameters" if rejected else ""
    teacher = f"≈ {duration(found['teacher_seconds'])}" if found["teacher_seconds"] else "there already"
    gpus = f", ≈ {gpu_hours:.2g} GPU hours" if gpu_hours is not None else ""
    lines = [
        f"sweep      {plural(found['trials'], 'trial')}{of}: {found['search']}, scheduler {found['scheduler']}",
        f"           {plural(found['shapes'], 'student size')}{without}; {found['concurrency']} at a time",
        f"cost       teacher {teacher}, a trial of the config ≈ {duration(found['trial_seconds'])}",
        f"           with {plural(found['final_trainings'], 'final training')} at most ≈ "
        f"{duration(3600 * found['hours'])} in all{gpus}",
        f"           timed with random weights on {found['measured_on']}",
    ]
    console.print(Text("\n".join(lines)))


def print_run_estimate(console: Console, found: Mapping[str, Any]) -> None:
    """Print the time of a run in the lines of a plan."""
    if not found["seconds"]:
        console.print("time       nothing is left to train")
        return
    parts = ", ".join(f"{name} {between(*seconds)}" for name, seconds in found["seconds"].items())
    lines = [
        f"time       {between(found['total'], found['longest'])} in all",
        f"           {parts}",
        f"           timed with random weights on {found['measured_on']}",
    ]
    console.print("\n".join(lines), markup=False)


def between(least: float, most: float) -> str:
    """Both, or the one, where they are about the same."""
    return f"≈ {duration(least)}" + (f" to {duration(most)}" if most > 1.1 * least else "")


def plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def print_config(
    console: Console, source: str | Mapping[str, Any], overrides: Sequence[str], choices: Sequence[Mapping[str, Any]]
) -> None:
    """Print the config that a command without one amounts to, with what was chosen for it."""
    from raydistill.config.loading import load_config
    from raydistill.config.syntax import dump_yaml

    chosen = [f"{choice['name']}={as_yaml(choice['value'])}" for choice in choices]
    config = load_config(source, [*overrides, *chosen]).model_dump(mode="json", exclude_unset=True)
    console.print("\nThe config of this, to keep and change:")
    console.print(dump_yaml(redact_tree(config)).rstrip(), markup=False, highlight=False, soft_wrap=True)
