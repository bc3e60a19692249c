"""The documentation says what is so: links, commands, settings, job types, files, and the Python in it."""

import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import click
import pytest

from cli.main import main
from providers.mail import templates
from streams import shortcuts
from streams.agents import MODULES, load
from streams.durations import parse_duration
from streams.jobs import HANDLERS, Handler
from streams.queues import QUEUES, RETRY_DELAYS, RateLimit
from streams.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.M | re.S)

load()
SHIPPED = [handler for handler in HANDLERS.values() if handler.function.__module__ in MODULES]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> Iterator[tuple[str, str]]:
    """Yield the info and the content of each fenced block in one of the languages."""
    for info, content in FENCE.findall(page.read_text()):
        if info.split()[:1] and info.split()[0] in languages:
            yield info, content


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# -- links and files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def test_the_index_has_every_page() -> None:
    listed = set(re.findall(r"\]\(([^)#]+)\)", (ROOT / "docs/index.md").read_text()))
    there = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert listed == there - {"index.md"}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    folders = "streams|cli|providers|tracking|ratelimit|schemas|devstack|demo|bench|tests|docs|docker"
    for path in re.findall(rf"`((?:{folders})/[\w./*-]*|[\w.-]+\.(?:yml|toml))`", prose(page)):
        assert list(ROOT.glob(path.rstrip("/"))), path


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_test_that_is_named_is_there(page: Path) -> None:
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    for test in re.findall(r"`(test_\w+)`", prose(page)):
        assert f"def {test}(" in tests, test


# -- Python ---------------------------------------------------------------------------------------------

SNIPPETS = [
    pytest.param(info, content, id=f"{name(page)}-{number}")
    for page in PAGES
    for number, (info, content) in enumerate(blocks(page, "python"), start=1)
]


@pytest.mark.parametrize(
    ("info", "content"), [one for one in SNIPPETS if "run" in str(one.values[0]).split()]
)
def test_a_block_marked_so_runs(info: str, content: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", content], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_all_python_fits_the_types_of_the_code(tmp_path: Path) -> None:
    """The tutorial's module can be imported; the wire format's producer is without types, and run by its own test."""
    for number, snippet in enumerate(one for one in SNIPPETS if "wire-format" not in str(one.id)):
        content = str(snippet.values[1])
        module = "greetings" if "Greetings, for the tutorial" in content else f"snippet_{number}"
        (tmp_path / f"{module}.py").write_text(content)
    # A cache of its own: what is checked here must not be remembered as a part of the project.
    options = ["--config-file", f"{ROOT}/pyproject.toml", "--cache-dir", f"{ROOT}/.mypy_cache/docs"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *sorted(tmp_path.glob("*.py"))],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# -- commands -------------------------------------------------------------------------------------------


def commands(group: click.Command = main, path: str = "streams") -> Iterator[tuple[str, click.Command]]:
    """Yield every command that does something, with what is typed for it."""
    if isinstance(group, click.Group):
        context = click.Context(group)
        for each in group.list_commands(context):
            command = group.get_command(context, each)
            assert command is not None
            assert command.name == each
            yield from commands(command, f"{path} {each}")
    if not isinstance(group, click.Group) or group.invoke_without_command:
        yield path, group


COMMANDS = dict(commands())


def test_every_command_and_option_is_in_the_reference() -> None:
    page = (ROOT / "docs/reference/cli.md").read_text()
    common = page.partition("\n## ")[0]
    look = page.partition("\n## Look\n")[2].partition("\n### ")[0]
    sections = {
        heading.split(" QUEUE")[0].split(" JOB_ID")[0]: body
        for heading, body in re.findall(r"^### `([^`]+)`\n(.*?)(?=^### |^## |\Z)", page, re.M | re.S)
    }
    assert set(sections) == set(COMMANDS)
    for path, command in COMMANDS.items():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                for option in parameter.opts:
                    assert f"`{option}`" in sections[path] + look + common, f"{path} {option}"
    known = {option for command in COMMANDS.values() for one in command.params for option in one.opts}
    assert set(re.findall(r"`(--[a-z-]+)`", page)) <= known


def typed() -> Iterator[tuple[str, list[str]]]:
    """Yield each line of a shell block, with the page it is on, as the words that are typed."""
    for page in PAGES:
        for _, content in blocks(page, "sh"):
            for line in re.sub(r"'[^']*'|\$\([^()]*\)", "TEXT", content).splitlines():
                for command in re.split(r"\||;|&&", line):
                    words = shlex.split(command, comments=True)
                    while words and re.match(r"[A-Z_]+=|export$|exec$|worker-primary$", words[0]):
                        words.pop(0)
                    if words:
                        yield name(page), words


def test_what_the_pages_have_typed_is_a_command_with_such_options() -> None:
    seen = 0
    for page, words in typed():
        if words[0] != "streams":
            continue
        path = max((known for known in COMMANDS if " ".join(words).startswith(known)), key=len, default="")
        assert path, (page, words)
        options = {option for one in COMMANDS[path].params for option in one.opts}
        for word in words:
            assert not word.startswith("--") or word.partition("=")[0] in options, (page, words)
        seen += 1
    assert seen > 30


def test_every_make_target_that_is_named_is_there() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))
    named = {(page, words[1]) for page, words in typed() if words[0] == "make"}
    named |= {(name(page), word) for page in PAGES for word in re.findall(r"`make ([a-z-]+)", prose(page))}
    assert {entry for entry in named if entry[1] not in targets} == set()
    assert {"demo", "test", "up", "down"} <= {target for _, target in named}


# -- settings, queues, job types ------------------------------------------------------------------------


def rows(page: str) -> dict[str, list[str]]:
    """Return the rows of all tables of a page whose first cell is one name in backticks."""
    cells = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in (ROOT / page).read_text().splitlines()]
    return {row[0].strip("`"): row[1:] for row in cells if re.fullmatch(r"`[^`]+`", row[0])}


def test_every_setting_is_listed_with_its_default() -> None:
    listed = rows("docs/reference/settings.md")
    example = set(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]+)=", (ROOT / ".env.example").read_text(), re.M))
    assert set(listed) == example
    for field, info in Settings.model_fields.items():
        stated = listed[field.upper()][0]
        if info.default_factory is not None or info.default in (None, (), {}):
            assert stated == "–", field
        elif isinstance(info.default, timedelta):
            assert parse_duration(stated.strip("`")) == info.default, field
        else:
            expected = str(info.default).lower() if isinstance(info.default, bool) else str(info.default)
            assert stated == f"`{expected}`", field
    for queue in QUEUES.values():
        variable = "CONCURRENCY_" + queue.name.upper().replace("-", "_")
        assert listed[variable][0] == f"`{queue.concurrency}`"


def test_every_variable_that_a_page_names_is_listed() -> None:
    listed = rows("docs/reference/settings.md")
    for page in PAGES:
        for word in re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+)(?:=[^`]*)?`", page.read_text()):
            assert word in listed or word in ("JOB_TYPE", "JOB_ID"), (name(page), word)


def test_every_queue_is_listed_as_it_is() -> None:
    listed = rows("docs/reference/job-types.md")
    for queue in QUEUES.values():
        assert listed[queue.name] == [
            queue.purpose, f"`{queue.worker}`", str(queue.priority), str(queue.concurrency),
            "–" if queue.limit is None else limit(queue.limit), queue.on_redis_down,
        ]  # fmt: skip


def limit(rate: RateLimit) -> str:
    unit = {timedelta(seconds=1): "s", timedelta(minutes=1): "min"}[rate.per]
    return f"{rate.count} / {unit}" + (" per organization" if rate.scope == "organization" else "")


@pytest.mark.parametrize("handler", SHIPPED, ids=lambda handler: handler.job_type)
def test_every_job_type_is_listed_as_it_is(handler: Handler) -> None:
    page = (ROOT / "docs/reference/job-types.md").read_text()
    section = page.partition(f"\n### `{handler.job_type}`\n")[2].partition("\n##")[0]
    seconds = int(handler.timeout.total_seconds())
    timeout = f"{seconds // 60} min" if seconds % 60 == 0 else f"{seconds} s"
    place = {"loop": "in the loop", "thread": "in a thread", "process": "in a process"}[handler.runs_in]
    (function,) = [
        each
        for each, one in vars(shortcuts).items()
        if each.startswith("queue_") and (inspect.getdoc(one) or "").endswith(f"`{handler.job_type}`.")
    ]
    assert (
        f"Queue `{handler.queue.name}`, timeout {timeout}, {handler.max_attempts} attempts, {place}. "
        f"Function: `{function}`." in section
    )
    listed = {
        field: cells[-1] for field, *cells in re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", section, re.M)
    }
    fields = handler.payload.model_fields.items()
    assert list(listed) == [info.alias or field for field, info in fields]
    required = {info.alias or field for field, info in fields if info.is_required()}
    assert {field for field, default in listed.items() if default == "required"} == required


def test_no_other_job_type_is_listed() -> None:
    named = re.findall(r"^### `([\w.]+)`$", (ROOT / "docs/reference/job-types.md").read_text(), re.M)
    assert sorted(named) == sorted(handler.job_type for handler in SHIPPED)
    guide = (ROOT / "docs/QUEUE_SYSTEM.md").read_text()
    assert [h.job_type for h in SHIPPED if f"`{h.job_type}`" not in guide] == []


def test_every_mail_template_is_listed_with_variables_that_fill_it() -> None:
    page = (ROOT / "docs/reference/job-types.md").read_text().partition("## E-mail templates")[2]
    listed = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.M))
    assert sorted(listed) == list(templates.names())
    for template, cell in listed.items():
        variables = re.findall(r"`(\w+)`", cell)
        templates.render(template, dict.fromkeys(variables, "https://example.org"))


def test_every_retry_topic_is_listed() -> None:
    listed = rows("docs/explanation/retries.md")
    units = {"s": "s", "min": "m", "h": "h"}
    stated = {}
    for topic, cells in listed.items():
        if topic.startswith("jobs."):
            number, unit = cells[0].split()
            stated[topic] = parse_duration(number + units[unit])
    assert stated == RETRY_DELAYS
