"""Whatever the README shows is run: its Python blocks, its commands, its links."""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TWO_COMMANDS = ["pip install -e . && refquant study", 'pip install -e ".[test]" && pytest']  # .ci/run runs them


class Block(NamedTuple):
    language: str
    line: int  # of the first line of code, from 1
    code: str


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a Markdown text, in order."""
    fences = re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(m[1], text.count("\n", 0, m.start(2)) + 1, m[2]) for m in fences]


def commands(code: str) -> list[tuple[str, int]]:
    """The `refquant` commands of a shell block, each with the exit status that it should have.

    That is 0, or what a comment `# exit status N` at the end of the command says.
    """
    lines = code.replace("\\\n", " ").splitlines()
    found = [line.removeprefix("$ ") for line in lines if re.match(r"(\$ )?refquant\b", line)]
    status = [re.search(r"# exit status (\d+)$", line) for line in found]
    return [(line, int(m[1]) if m else 0) for line, m in zip(found, status, strict=True)]


def local_links(text: str) -> list[str]:
    """The targets of links and images that are files of the checkout."""
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    return [target.partition("#")[0] for target in targets if not re.match(r"\w+:|#", target)]


def run_python(block: Block, namespace: dict[str, object]) -> None:
    """Run a block; if it is an interactive session, its output must be what is shown."""
    if not block.code.startswith(">>>"):
        exec(compile("\n" * (block.line - 1) + block.code, "README.md", "exec"), namespace)
        return
    session = doctest.DocTestParser().get_doctest(block.code, namespace, "README.md", "README.md", block.line - 1)
    report: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(
        session, out=report.append, clear_globs=False
    )
    namespace.update(session.globs)
    assert result.failed == 0, "".join(report)


def run_command(command: str, status: int) -> None:
    """Run a command line with this Python's own programs first in the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(command, shell=True, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == status, f"{command}: exit status {done.returncode}\n{done.stdout}{done.stderr}"


def run_text(text: str) -> int:
    """Run everything that a Markdown text shows, in its order and in one namespace; how much was run."""
    namespace: dict[str, object] = {"__name__": "readme"}
    count = 0
    for block in blocks(text):
        if block.language == "python":
            run_python(block, namespace)
            count += 1
        elif block.language in ("sh", "console"):
            for command, status in commands(block.code):
                run_command(command, status)
                count += 1
    return count


def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_text(README) > 0


def test_the_readme_names_the_two_commands() -> None:
    marked = README.partition("<!-- the two commands -->\n")[2]
    assert blocks(marked)[0].code.splitlines() == TWO_COMMANDS


def test_linked_files_and_figures_exist() -> None:
    assert [target for target in local_links(README) if not (ROOT / target).exists()] == []


@pytest.mark.parametrize(
    "planted",
    [
        "```python\nassert 1 + 1 == 3\n```\n",
        "```python\n>>> 1 + 1\n3\n```\n",
        "```python\nn = 2\n```\n\n```python\n>>> n\n3\n```\n",
        "```sh\nrefquant no-such-command\n```\n",
        "```console\n$ refquant --help  # exit status 1\n```\n",
    ],
    ids=["assertion", "output", "output of a later block", "command", "exit status"],
)
def test_a_planted_fault_is_reported(planted: str) -> None:
    with pytest.raises(AssertionError):
        run_text(planted)


def test_extraction_finds_what_is_there() -> None:
    text = "a\n```sh\n$ refquant x \\\n  -y  # exit status 2\nok\nls\n```\n\n```python\nn = 1\n```\n```\nplain\n```\n"
    assert [(block.language, block.line) for block in blocks(text)] == [("sh", 3), ("python", 9 + 1), ("", 13)]
    assert commands(blocks(text)[0].code) == [("refquant x    -y  # exit status 2", 2)]
    assert commands("\n".join(TWO_COMMANDS)) == []
    links = '![f](docs/f.png "title") [web](https://a.b/c) [up](#top) [x](b.md#part) <img width="9" src="g.svg">'
    assert local_links(links) == ["docs/f.png", "b.md", "g.svg"]
