"""Vega, Vega-Lite and vega-embed as one script, so that a page needs no network."""

from contextlib import suppress
from functools import cache
from importlib.metadata import version

from coordcheck.records.files import write_text


@cache
def vega() -> str:
    """The libraries that draw, as the package ``vl-convert-python`` brings them, safe within a ``<script>``.

    Putting them together takes more than a second, so they are kept in the user's cache, by version.
    """
    from platformdirs import user_cache_path
    from vl_convert import javascript_bundle

    path = user_cache_path("coordcheck") / f"vega-{version('vl-convert-python')}.js"
    try:
        return path.read_text("utf-8")
    except OSError:
        script = str(javascript_bundle()).replace("</script", r"<\/script")  # type: ignore[call-arg]
    with suppress(ValueError):  # no cache to write to; the page has it all the same
        write_text(path, script)
    return script
