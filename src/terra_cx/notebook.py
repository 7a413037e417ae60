"""`%load_ext terra_cx` and `%%terra`: a cell co-executed, with the summary and the timeline below it.

A cell is compiled here, as IPython's own `%%time` does, because its loops need anchor probes before it runs. Functions
that earlier cells have defined get theirs for as long as the cell runs. Each cell is a session of its own, so that the
first steps of each run in eager.
"""

from __future__ import annotations

import ast
import dataclasses
import html
import os
import shlex
import sys
import types
from typing import Any

from IPython.core.error import UsageError as IPythonUsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, cell_magic, magics_class
from IPython.display import display

from terra_cx import config
from terra_cx.errors import TerraError, UsageError
from terra_cx.launch.commandline import parse
from terra_cx.report import files
from terra_cx.report.record import Record
from terra_cx.report.summary import facts
from terra_cx.session import Session

__all__ = ["Outcome", "TerraMagics"]

_NAME = "%%terra"


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What a cell did: shown as text in a terminal, with the picture where there is a page.

    Attributes:
        record: as in the report of terra-run.
        picture: the timeline of a few steps, SVG; None if too few were co-executed.
    """

    record: Record
    picture: str | None

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        """What IPython asks for; a front end takes the richest that it can show."""
        # Without colours: front ends that show text only would show their codes.
        text = "\n".join(f"{label:<10}{words}" for label, _, words in facts(self.record))
        bundle = {"text/plain": text}
        if self.picture is not None:
            bundle["text/html"] = (
                f'<pre style="white-space: pre-wrap">{html.escape(text)}</pre>{self.picture}'
            )
        return bundle


@magics_class
class TerraMagics(Magics):
    """The magics; `last` is the outcome of the last cell."""

    last: Outcome | None = None

    @cell_magic
    def terra(self, line: str, cell: str) -> Any:
        """Run a cell co-executed, then show how many steps were, how fast, and why others were not.

        %%terra [--run-ahead N] [--pace PACE] [--no-elide] [--report FILE] [--profile DIR] [-q] ...

        The options are those of terra-run. -q shows nothing below the cell.
        """
        options = _options(line)
        shell = self.shell
        tree, name = _parsed(shell, cell)
        if options.disable or options.mode == "eager":
            return _run(shell, tree, name, None)
        claims = _Claims(options)
        session = Session(options)
        session.profiled = options.mode == "co"
        try:
            session.start()
        except TerraError as error:
            raise IPythonUsageError(f"{_NAME}: {error}") from None
        try:
            try:
                result = _run(shell, tree, name, session)
            finally:
                # Also after an error: it may raise an earlier one of the program's, as eager would have.
                session.finish()
        finally:
            session.close()
            self._tell(session, claims, options)
        return result

    def _tell(self, session: Session, claims: _Claims, options: config.Options) -> None:
        """Show and write what there is; what cannot be done is told, and is no error of the cell's."""
        try:
            record = session.report()
            record["command"] = [_NAME]
            _name_cells(record, self.shell)
            outcome = TerraMagics.last = Outcome(record, _picture(session))
            if not options.quiet:
                display(outcome)
            claims.write(session, record)
        except Exception as error:  # noqa: BLE001
            sys.stderr.write(
                f"terra-cx: could not show what the cell did ({error}); its results are not affected\n"
            )


class _Claims:
    """The files that were asked for, if any.

    Raises:
        UsageError: (IPython's) one of them cannot be written.
    """

    def __init__(self, options: config.Options) -> None:
        try:
            self._report = files.claim(options.report) if options.report is not None else None
            self._profile = None
            if options.profile is not None:
                from terra_cx.profile.output import claim

                self._profile = claim(options.profile, options.mode)
        except UsageError as error:
            raise IPythonUsageError(f"{_NAME}: {error}") from None

    def write(self, session: Session, record: Record) -> None:
        if self._report is not None:
            files.write_text(self._report, files.as_json(record))
        if self._profile is not None:
            from terra_cx.profile.output import texts

            self._profile.write(texts(session, record))


def _options(line: str) -> config.Options:
    """The settings that a magic's line gives.

    Raises:
        UsageError: (IPython's, which is shown as one line) an option is unknown or wrong.
    """
    try:
        # A program has to follow the options; the cell is it.
        given = parse([*shlex.split(line), "-c", ""], _NAME)
        if given.target is None or given.target.form != "code":
            raise UsageError(f"only options may follow {_NAME}; see {_NAME[1:]}?")
        return config.load(given.settings)
    except (UsageError, ValueError) as error:
        raise IPythonUsageError(f"{_NAME}: {error}") from None


def _parsed(shell: InteractiveShell, cell: str) -> tuple[ast.Module, str]:
    """The cell's tree after IPython's transformations, and the name by which tracebacks find its text."""
    text = shell.transform_cell(cell)
    name = shell.compile.cache(text, shell.execution_count, raw_code=cell)
    tree = shell.transform_ast(shell.compile.ast_parse(text, filename=name))
    assert isinstance(tree, ast.Module)
    return tree, str(name)


def _run(shell: InteractiveShell, tree: ast.Module, name: str, session: Session | None) -> Any:
    """Run the cell's statements in the user's names; the value of an expression at its end is returned, to be shown."""
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    body = _compiled(shell, tree, name, "exec")
    value = _compiled(shell, ast.Expression(last.value), name, "eval") if isinstance(last, ast.Expr) else None
    if session is not None:
        _plant(session, shell.user_ns, body)
        body = session.instrument(body)
        value = session.instrument(value) if value is not None else None
    exec(body, shell.user_ns)
    return eval(value, shell.user_ns) if value is not None else None


def _compiled(shell: InteractiveShell, tree: ast.AST, name: str, mode: str) -> types.CodeType:
    compiled: types.CodeType = shell.compile(tree, name, mode)
    return compiled


def _plant(session: Session, names: dict[str, Any], body: types.CodeType) -> None:
    """Plant probes in what earlier cells have defined: their files have names that are nobody's otherwise."""
    defined = []
    for thing in list(names.values()):
        for member in vars(thing).values() if isinstance(thing, type) else (thing,):
            function = getattr(member, "__func__", member)
            if isinstance(function, types.FunctionType) and function.__module__ == "__main__":
                session.user.add(function.__code__.co_filename)
                defined.append(function)
    session.inplace.plant_around(types.FunctionType(body, names))
    for function in defined:
        session.user.add_code(function.__code__)


def _name_cells(record: Record, shell: Any) -> None:
    """Call cells `In[3]`, as IPython does in tracebacks, instead of the files that stand for them."""
    label = getattr(shell.compile, "format_code_name", lambda name: None)
    files = {thing["line"].rpartition(":")[0] for thing in record["anchors"]}
    files |= {thing["at"].rpartition(":")[0] for thing in record["fallbacks"]}
    cells = {os.path.basename(file): named[1] for file in files if (named := label(file)) is not None}
    for thing in (*record["anchors"], *record["fallbacks"]):
        for key in thing.keys() & {"line", "detail", "given_up"}:
            for file, cell in cells.items():
                if thing[key] and file in thing[key]:
                    path = thing[key].rpartition(file)[0] if key == "line" else ""
                    thing[key] = thing[key].removeprefix(path).replace(file, cell)


def _picture(session: Session) -> str | None:
    if session.profiler is None:
        return None
    from terra_cx.profile.picture import svg

    windows = session.profiler.windows()
    return svg(max(windows, key=lambda window: len(window.steps()))) if windows else None
