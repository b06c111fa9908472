"""A plugin for pytest: a backend held to level 1, a test each, and to a search for what level 1 does not hold.

A whole test file:

    def test_golden(refquant_golden):
        refquant_golden()

    def test_search(refquant_search):
        refquant_search()

Run it with `pytest --refquant-backend MODULE:FUNCTION --refquant-profile onnx@21`, or put `refquant_backend` and
`refquant_profile` into pytest's own settings; a fixture called `refquant_backend` may give the function instead.  What
the backend declines is skipped, with its reason; if it declines everything, or a known deviation excused nothing in
a whole run, the run fails.

Nothing but pytest is imported until a test asks for one of the fixtures.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .known import Known
    from .operations import Request
    from .packs import Asked, PackTest
    from .verify import Backend, Verdict

__all__ = ["refquant_backend", "refquant_golden", "refquant_search"]

OPTIONS = {
    "backend": ("MODULE:FUNCTION", "the backend: a Python function of a refquant Request"),
    "profile": ("P", "the semantics that it should have, such as onnx@21"),
    "known": ("FILE", "accepted deviations, a line each: OPERATION | DEVIATION | REASON"),
    "ops": ("A,B", "hold it only to these operations"),
    "examples": ("N", "requests an operation that the search tries (default 100)"),
}

PROPERTY = "refquant"
"""The name under which a test notes [golden or search, operation, status, explanations or the excusing line]."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Each option on the command line and in pytest's settings."""
    group = parser.getgroup("refquant", "conformance to refquant's quantization semantics")
    for name, (metavar, text) in OPTIONS.items():
        group.addoption(f"--refquant-{name}", metavar=metavar, default=None, help=text)
        parser.addini(f"refquant_{name}", text, default=None)


def _option(config: pytest.Config, name: str) -> str | None:
    return config.getoption(f"--refquant-{name}") or config.getini(f"refquant_{name}") or None


# ---- what is asked --------------------------------------------------------------------------------------------


def _profile(config: pytest.Config) -> str:
    found = _option(config, "profile")
    if found is None:
        raise pytest.UsageError("refquant: no profile; give --refquant-profile, or refquant_profile in the settings")
    return found


def _ops(config: pytest.Config) -> list[str] | None:
    from .operations import OPERATIONS

    text = _option(config, "ops")
    names = None if text is None else text.split(",")
    unknown = sorted(set(names or ()) - set(OPERATIONS))
    if unknown:
        raise pytest.UsageError(f"refquant: no operation {', '.join(unknown)}; there are {', '.join(OPERATIONS)}")
    return names


def _golden_tests(config: pytest.Config) -> list[tuple["PackTest", "Asked"]]:
    from ..errors import ArgumentError
    from .packs import level_one

    ops = _ops(config)
    try:
        found = list(level_one().requests(_profile(config)))
    except ArgumentError as error:
        raise pytest.UsageError(f"refquant: {error}") from None
    return [(t, a) for t, a in found if ops is None or a.request.op in ops]


def _searched(config: pytest.Config) -> list[str]:
    from .requests import PACK_PROFILES, SPOKEN

    profile, ops = _profile(config), _ops(config)
    if profile not in PACK_PROFILES:
        raise pytest.UsageError(f"refquant: no profile {profile}; there are {', '.join(PACK_PROFILES)}")
    spoken = [op for op, names in SPOKEN.items() if profile in names and op != "network"]  # networks are golden alone
    return [op for op in spoken if ops is None or op in ops]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of level 1 each, and a search an operation."""
    if "refquant_golden" in metafunc.fixturenames:
        tests = _golden_tests(metafunc.config)
        metafunc.parametrize("refquant_golden", tests, ids=[t.id for t, _ in tests], indirect=True)
    if "refquant_search" in metafunc.fixturenames:
        metafunc.parametrize("refquant_search", _searched(metafunc.config), indirect=True)


@pytest.fixture(scope="session")
def refquant_backend(request: pytest.FixtureRequest) -> "Backend":
    """The function of `--refquant-backend`; a fixture of this name in a test file takes its place."""
    from ..errors import ArgumentError
    from .commands import function_at

    place = _option(request.config, "backend")
    if place is None:
        raise pytest.UsageError("refquant: no backend; give --refquant-backend MODULE:FUNCTION")
    try:
        return function_at(place, "--refquant-backend")  # type: ignore[no-any-return]
    except ArgumentError as error:
        raise pytest.UsageError(f"refquant: {error}") from None


def _known(config: pytest.Config) -> tuple["Known", ...]:
    from ..errors import FileError
    from .known import read_known

    place = _option(config, "known")
    if place is None:
        return ()
    folder = config.invocation_params.dir if config.getoption("--refquant-known") else config.rootpath
    try:
        return read_known((folder / place).read_text(encoding="utf-8"), place)
    except (FileError, OSError, UnicodeDecodeError) as error:
        raise pytest.UsageError(f"refquant: {error}") from None


@pytest.fixture(scope="session")
def _refquant_known(request: pytest.FixtureRequest) -> tuple["Known", ...]:
    return _known(request.config)


# ---- what comes of it -----------------------------------------------------------------------------------------


def _shown(request: "Request") -> list[str]:
    from .diagnosis import short

    given = ", ".join(f"{name} = {short(a)}" for name, a in request.inputs.items())
    options = ", ".join(f"{name} = {v}" for name, v in request.options.items())
    return [f"  asked: {given}", *([f"  options: {options}"] if options else []), f"  semantics: {request.spec!r}"]


def _explained(verdict: "Verdict") -> tuple[list[str], list[str]]:
    """Names of what explains a wrong answer alone, and lines that say it with clauses."""
    from ..errors import ArgumentError
    from .clauses import clauses_of
    from .diagnose import diagnose_requests

    if verdict.status != "wrong":
        return [], []
    try:
        found = diagnose_requests([verdict.asked.request], [verdict.answer])
    except ArgumentError:  # outputs of other names or shapes: the findings say so
        return [], []
    lines = [
        f"  explained by: {e.name} (clause {', '.join(clauses_of(e.deviations))}: {e.story})"
        for e in found.explanations
    ]
    lines = lines[:3] + ([f"  and by {len(lines) - 3} more"] if len(lines) > 3 else [])
    return [e.name for e in found.explanations], lines or ["  explained by none of the catalogue, and no pair of it"]


def _concluded(request: pytest.FixtureRequest, kind: str, verdict: "Verdict", about: list[str]) -> None:
    """Pass, skip or fail the test, and note what came of it, where reports from other processes carry it too."""
    from .operations import OPERATIONS

    op = verdict.asked.request.op
    names, lines = _explained(verdict)
    note = [kind, op, verdict.status, names or list(verdict.findings[:1])]
    request.node.user_properties.append((PROPERTY, note))
    if verdict.status == "declined":
        pytest.skip(f"declined: {verdict.findings[0] if verdict.findings else 'no reason given'}")
    if verdict.status in ("wrong", "failed"):
        head = f"{verdict.test.id}: {op}, {OPERATIONS[op].text}: {verdict.status}"
        found = [f"  {finding}" for finding in verdict.findings]
        pytest.fail("\n".join([head, *found, *lines, *about, *_shown(verdict.asked.request)]), pytrace=False)


@pytest.fixture
def refquant_golden(
    request: pytest.FixtureRequest, refquant_backend: "Backend", _refquant_known: tuple["Known", ...]
) -> Callable[[], None]:
    """A function that holds the backend to one test of level 1."""
    from .cases import FAMILIES
    from .verify import answer_of, judge_answer

    def check() -> None:
        test, asked = request.param
        verdict = judge_answer(test, asked, answer_of(refquant_backend, asked.request), _refquant_known)
        family = FAMILIES[test.family]
        about = [f"  hard: {test.comment} ({family.why})", f"  the effect of failing: {family.effect}"]
        _concluded(request, "golden", verdict, about)

    return check


class _WrongError(Exception):
    """A request with a wrong answer was drawn."""


@pytest.fixture
def refquant_search(
    request: pytest.FixtureRequest, refquant_backend: "Backend", _refquant_known: tuple["Known", ...]
) -> Callable[[], None]:
    """A function that draws hard requests of one operation, and shrinks the first that is answered wrongly."""
    hypothesis = pytest.importorskip("hypothesis")
    from .packs import Asked, PackTest
    from .strategies import answered, requests
    from .verify import answer_of, judge_answer

    op, profile = request.param, _profile(request.config)
    examples = int(_option(request.config, "examples") or 100)
    seen: list[Verdict] = []

    def one(drawn: "Request") -> None:
        expected = answered(drawn)
        assert expected is not None  # so are requests drawn
        asked = Asked(drawn, expected, (profile,))
        test = PackTest(f"search-{op}", "", "", (asked,))
        seen.append(judge_answer(test, asked, answer_of(refquant_backend, drawn), _refquant_known))
        if seen[-1].status in ("wrong", "failed"):
            raise _WrongError

    def check() -> None:
        quiet = list(hypothesis.HealthCheck)
        drawn = hypothesis.settings(max_examples=examples, deadline=None, suppress_health_check=quiet)
        try:
            drawn(hypothesis.given(requests(op, profile))(one))()
        except _WrongError:
            _concluded(request, "search", seen[-1], [])
        statuses = {v.status for v in seen}
        better = next(v for v in reversed(seen) if v.status == "right" or statuses <= {"declined", "excused"})
        _concluded(request, "search", better, [])

    return check


# ---- what came of all -----------------------------------------------------------------------------------------

_COMPLAINTS = pytest.StashKey[list[str]]()


def _notes(config: pytest.Config) -> Iterator[list[Any]]:
    """What tests noted, wherever they ran."""
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    stats = {} if reporter is None else reporter.stats
    for report in (r for status in ("passed", "failed", "skipped") for r in stats.get(status, ())):
        for name, what in report.user_properties if report.when == "call" else ():
            if name == PROPERTY:
                yield what


def _stale(config: pytest.Config, notes: list[list[Any]]) -> list[str]:
    """Known deviations that excused nothing, though all of level 1 was asked."""
    known = _known(config)
    asked = [op for kind, op, _, _ in notes if kind == "golden"]
    if not known or len(asked) < len(_golden_tests(config)):
        return []
    used = {line for _, _, status, lines in notes if status == "excused" for line in lines}
    return [str(k) for k in known if k.op in asked and str(k) not in used]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run that tested nothing, or whose known deviations are stale, fails."""
    config, notes = session.config, list(_notes(session.config))
    if session.exitstatus != pytest.ExitCode.OK or not notes:
        return
    found = [f"stale: no answer is explained by the known deviation {line}" for line in _stale(config, notes)]
    if all(status == "declined" for _, _, status, _ in notes):
        found.append(f"nothing was tested: the backend declined all of {len(notes)} tests")
    config.stash[_COMPLAINTS] = found
    if found:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """For each operation with wrong answers, what explains all of them; and what is wrong with the run as a whole."""
    lines = config.stash.get(_COMPLAINTS, list[str]()).copy()
    wrong: dict[str, list[list[str]]] = {}
    for _, op, status, names in _notes(config):
        if status == "wrong":
            wrong.setdefault(op, []).append(names)
    for op, each in wrong.items():
        common = [name for name in each[0] if all(name in names for names in each)]
        lines.append(f"{op}: {len(each)} wrong; what explains every one: {', or '.join(common) or 'nothing alone'}")
    if lines:
        terminalreporter.section("refquant")
        for line in lines:
            terminalreporter.write_line(line)
