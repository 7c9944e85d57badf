"""Loaded by Schemathesis: valid waits are shortened, so that the run ends soon; wrong values stay."""

import contextlib

import schemathesis


@schemathesis.hook
def before_call(context, case, kwargs):
    with contextlib.suppress(TypeError, ValueError, KeyError):
        if 0.01 < float(case.query["seconds"]) <= 60:
            case.query["seconds"] = 0.01
