"""Files that others wrote: one way in for each format, and nothing that comes in is believed.

Each function ends in a frame or a value with the stated shape, or in a ValueError that names the file, the place and
the rule; a pipe is not waited for, and a file too large to be what it should be is not read.
"""

import io
import json
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from coordcheck.records.names import printable, shown

MOST_BYTES = 1 << 30  # of a file, and of what it unpacks to
MOST_JSON = 1 << 26
MOST_ROWS = 20_000_000
MOST_COLUMNS = 500
DEEPEST = 40  # lists and objects in one another
SHOWN = 80  # characters of a value in a message


def refuse(path: Path, what: str, example: str) -> NoReturn:
    """Says what is wrong with a file, and what to do.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{path} {what}. For example {example}")


def regular_file(path: Path, most: int = MOST_BYTES, example: str = "record it anew.") -> None:
    """Makes sure that `path` is a file that can be read to its end.

    Raises:
        ValueError: if it is missing, a directory, a pipe or a device, or larger than any that we write.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        refuse(path, f"cannot be read ({getattr(error, 'strerror', None) or error})", example)
    if not stat.S_ISREG(found.st_mode):
        kind = "directory" if stat.S_ISDIR(found.st_mode) else "pipe or device"
        refuse(path, f"must be a file; it is a {kind}", example)
    if found.st_size > most:
        refuse(path, f"holds at most {most >> 20} MiB; it has {found.st_size >> 20}", example)


def read_bytes(path: Path, most: int = MOST_BYTES, example: str = "record it anew.") -> bytes:
    """The content of a file.

    Raises:
        ValueError: see :func:`regular_file`, or if it may not be read.
    """
    regular_file(path, most, example)
    try:
        return path.read_bytes()
    except OSError as error:
        refuse(path, f"cannot be read ({error.strerror or error})", example)


def read_text(path: Path, most: int = MOST_BYTES, example: str = "record it anew.") -> str:
    """The content of a UTF-8 file.

    Raises:
        ValueError: see :func:`read_bytes`, or if it is no UTF-8.
    """
    content = read_bytes(path, most, example)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        refuse(path, f"must be UTF-8 text; byte {error.start} is not ({error.reason})", example)


def read_json(path: Path, schema: Mapping[str, Any], example: str = "make it anew.", strict: bool = True) -> Any:
    """A JSON file whose content fits a schema.

    Args:
        path: The file.
        schema: JSON Schema, draft 2020-12.
        example: Ends the message, a working one.
        strict: Whether NaN and numbers beyond a float are refused here; False where a caller says better where they
            stand.

    Raises:
        ValueError: if the file cannot be read, is no strict JSON (NaN, a number beyond a float, a key twice), is nested
            too deeply, or does not fit: then with the place, as a JSON path, and the rule.
    """
    text = read_text(path, MOST_JSON, example)
    try:
        hooks: dict[str, Any] = {"parse_constant": _no_constant, "parse_float": _finite} if strict else {}
        value = json.loads(text, object_pairs_hook=_once, **hooks)
    except RecursionError:
        refuse(path, f"may nest lists and objects {DEEPEST} deep; it goes deeper", example)
    except ValueError as error:
        refuse(path, f"must be JSON ({printable(error, 200)})", example)
    if _deeper_than(value, DEEPEST):
        refuse(path, f"may nest lists and objects {DEEPEST} deep; it goes deeper", example)
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    problem = best_match(Draft202012Validator(schema).iter_errors(value))
    if problem is not None:
        rule = f"{problem.validator} {printable(json.dumps(problem.validator_value), SHOWN)}"
        refuse(
            path,
            f"does not fit at {printable(problem.json_path, SHOWN)}: {rule}; got {shown(problem.instance)}",
            example,
        )
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not np.isfinite(number):
        raise ValueError(f"{text[:SHOWN]} is beyond the numbers of a float")
    return number


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError(
            f"the key {shown(next(k for i, (k, _) in enumerate(pairs) if k in dict(pairs[:i])))} stands twice"
        )
    return value


def _deeper_than(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        level = [item for inner in level for item in _items(inner)]
    return any(isinstance(item, dict | list) for item in level)


def _items(value: Any) -> Iterator[Any]:
    yield from value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def read_parquet(path: Path, example: str = "record it anew.") -> pd.DataFrame:
    """A parquet file of numbers and text as a frame; its index and what pandas says of it are left out.

    Raises:
        ValueError: if the file cannot be read, is damaged, has columns of other types or of one name, or unpacks to
            more than any that we write.
    """
    content = read_bytes(path, example=example)
    import pyarrow as pa
    from pyarrow import parquet

    try:
        source = parquet.ParquetFile(io.BytesIO(content))
        problem = _parquet_problem(source)
        if problem is None:
            schema = source.schema_arrow
            words = [field.name for field in schema if _is_text(field.type)]
            table = parquet.read_table(io.BytesIO(content), read_dictionary=words)
            problem = _text_problem(table)
        if problem is None:
            plain = [(field.name, pa.string() if _is_text(field.type) else field.type) for field in schema]
            frame: pd.DataFrame = table.cast(pa.schema(plain)).to_pandas(ignore_metadata=True)
            attrs = json.loads((schema.metadata or {}).get(b"PANDAS_ATTRS", b"{}"))
    except Exception as error:  # pyarrow meets garbage with whatever its decoders raise
        refuse(
            path, f"is no parquet file that can be read ({printable(str(error) or type(error).__name__, 200)})", example
        )
    if problem is not None:
        refuse(path, problem, example)
    frame = frame[[name for name in frame.columns if not name.startswith("__index_level_")]]
    if isinstance(attrs, dict):
        frame.attrs = attrs
    return frame


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _parquet_problem(source: Any) -> str | None:
    """What forbids reading a parquet file, as far as its footer tells."""
    import pyarrow as pa

    footer, schema = source.metadata, source.schema_arrow
    unpacked = sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))
    if footer.num_rows > MOST_ROWS or unpacked > MOST_BYTES or len(schema) > MOST_COLUMNS:
        return (
            f"may hold {MOST_ROWS} rows, {MOST_COLUMNS} columns and {MOST_BYTES >> 20} MiB; it claims "
            f"{footer.num_rows} rows, {len(schema)} columns and {unpacked >> 20} MiB"
        )
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        return f"must have each column once; these stand twice: {shown(twice)}"
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    for field in schema:
        if not (_is_text(field.type) or any(is_number(field.type) for is_number in numbers)):
            return (
                f"must have columns of numbers or text; {shown(field.name)} is of type {printable(field.type, SHOWN)}"
            )
    return None


def _text_problem(table: Any) -> str | None:
    """Whether text that is stored once would fill the memory when it stands in every row."""
    import pyarrow as pa
    from pyarrow import compute

    for name, column in zip(table.column_names, table.columns, strict=True):
        if not pa.types.is_dictionary(column.type):
            continue
        size = sum(len(c) * (compute.max(compute.binary_length(c.dictionary)).as_py() or 0) for c in column.chunks)
        if size > MOST_BYTES:
            return f"may hold {MOST_BYTES >> 20} MiB of text in a column; {shown(name)} has up to {size >> 20}"
    return None


def read_csv(path: Path, example: str = "record it anew.") -> pd.DataFrame:
    """A CSV file as a frame of text: every cell as it stands in the file.

    Raises:
        ValueError: if the file cannot be read, is empty, has rows of unequal length or a column twice.
    """
    text = read_text(path, example=example)
    header = text[: 1 << 16].partition("\n")[0]
    if header.count(",") >= MOST_COLUMNS:
        refuse(path, f"may have {MOST_COLUMNS} columns; its first line has {header.count(',') + 1}", example)
    try:
        # without a header, for pandas would rename a column that stands twice
        frame = pd.read_csv(io.StringIO(text), header=None, dtype="str", na_filter=False, index_col=False)
    except Exception as error:  # the parser meets garbage with errors of many classes
        refuse(path, f"is no CSV file that can be read ({printable(error, 200)})", example)
    names = frame.iloc[0].tolist()
    if twice := sorted({name for name in names if names.count(name) > 1}):
        refuse(path, f"must have each column once; these stand twice: {shown(twice)}", example)
    return frame.iloc[1:].set_axis(names, axis=1).reset_index(drop=True)


def numbers(frame: pd.DataFrame, name: str, path: Path, example: str = "record it anew.") -> "pd.Series[Any]":
    """A column as numbers, whole ones if all are; an empty cell is NaN.

    Raises:
        ValueError: with the row of the first cell that is no number.
    """
    column = frame[name]
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return column
    text = column.astype("str").str.strip()
    known = pd.to_numeric(text, errors="coerce").notna()
    wrong = ~known & ~text.str.lower().isin(["", "nan", "na", "none", "null", "<na>"])
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        refuse(
            path, f"must hold a number in column {shown(name)}, row {row + 1}; got {shown(column.iloc[row])}", example
        )
    if text.str.fullmatch(r"-?\d{1,15}").all():
        return text.astype("int64")
    return text.where(known, "nan").astype("float64")  # which rounds as Python does; to_numeric is off by a bit
