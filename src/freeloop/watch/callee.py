"""What a line calls: functions written in C have no frame, so that only the line itself can tell.

``time.sleep``, found as ``from time import sleep as rest`` too, or ``_thread.lock.acquire`` for a local name.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import linecache
from itertools import islice
from types import CodeType, FrameType, ModuleType
from typing import Any

from freeloop.watch.stack import Line


def name_calls(line: Line, frame: FrameType | None, lasti: int = -1) -> tuple[str, ...]:
    """Return the dotted names of what a line calls, as far as they can be told.

    Args:
        line: The innermost line.
        frame: A frame of its function, which knows what names mean. None: names stand for themselves.
        lasti: Where the frame was when it ran the line, for the one call of it that ran; -1: not known.
    """
    with contextlib.suppress(SyntaxError, ValueError):
        for node in _find_nodes(line, frame, lasti):
            names = [name for name in (_name(each, frame) for each in _callees(node)) if name]
            if names:
                return tuple(dict.fromkeys(names))
    return ()


def _find_nodes(line: Line, frame: FrameType | None, lasti: int) -> list[ast.AST]:
    """Return the expression that ran, where it is known, or else the whole line."""
    if frame is not None and lasti >= 0 and (text := _read_running(frame.f_code, lasti)):
        return [ast.parse(text, mode="eval").body]
    text = linecache.getline(line.file, line.line).strip()
    if text.endswith(":"):  # the head of a block
        text += " pass"
    return [ast.parse(text.removeprefix("return ").removeprefix("el"))]


def _read_running(code: CodeType, lasti: int) -> str:
    """Return the source of the expression at an instruction (PEP 657)."""
    position = next(islice(code.co_positions(), lasti // 2, None), None)
    if position is None or None in position:
        return ""
    first, last, start, end = position
    assert first is not None and last is not None  # noqa: S101, PT018 - as just asked
    lines = [text.encode() for text in linecache.getlines(code.co_filename)[first - 1 : last]]
    if not lines:
        return ""
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][start:]
    return f"({b''.join(lines).decode()})"  # several lines are one expression within parentheses


def _callees(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Call):
        return [node.func]
    if isinstance(node, ast.expr):  # what a with block enters, what an operator computes
        return [node]
    return [each.func for each in ast.walk(node) if isinstance(each, ast.Call)] or [
        item.context_expr for each in ast.walk(node) if isinstance(each, ast.With) for item in each.items
    ]


def _name(node: ast.expr, frame: FrameType | None) -> str:
    if isinstance(node, ast.Name):
        found, value = _look_up(node.id, frame)
        return _name_value(value) if found else node.id
    if isinstance(node, ast.Attribute):
        owner = _find_module(node.value, frame)
        if owner is not None and node.attr in vars(owner):
            return _name_value(vars(owner)[node.attr])
        return f"{_name(node.value, frame)}.{node.attr}".lstrip(".")
    return _name(node.func, frame) if isinstance(node, ast.Call) else ""  # open(path).read()


def _find_module(node: ast.expr, frame: FrameType | None) -> ModuleType | None:
    """Return the module that an expression names, such as ``urllib.request``; None: it names none."""
    value: Any = None
    if isinstance(node, ast.Name):
        value = _look_up(node.id, frame)[1]
    elif isinstance(node, ast.Attribute) and (owner := _find_module(node.value, frame)) is not None:
        value = vars(owner).get(node.attr)
    return value if isinstance(value, ModuleType) else None


def _look_up(name: str, frame: FrameType | None) -> tuple[bool, Any]:
    if frame is not None:
        # Looked up as Python does, without running anything of the app.
        for names in (frame.f_locals, frame.f_globals):
            if name in names:
                return True, names[name]
    if hasattr(builtins, name):
        return True, getattr(builtins, name)
    return False, None


def _name_value(value: object) -> str:
    """Return the dotted name of a function or class; of any other object that of its type."""
    if not callable(value) or not hasattr(value, "__qualname__"):
        value = type(value)
    return f"{getattr(value, '__module__', None) or 'builtins'}.{getattr(value, '__qualname__', '')}"
