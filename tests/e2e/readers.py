"""A table as PyIceberg and DuckDB read it, compared value by value with what `lakeward sql` answered.

lakeward.toml, namespace.table, answer.arrow (rows by id), readers -> "READER: N rows equal" -> exit status
"""

import sys
import tomllib
import uuid
from pathlib import Path

import pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog

configuration, name, answer, readers = sys.argv[1:]
configuration = tomllib.loads(Path(configuration).read_text())


def plain(column):
    """Values that compare with ==, whatever Arrow type a reader chose for them."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64())
    values = column.to_pylist()
    if pa.types.is_fixed_size_binary(column.type):
        values = [v and str(uuid.UUID(bytes=v)) for v in values]
    return ["NaN" if v != v else str(v) if isinstance(v, uuid.UUID) else v for v in values]


def compare(reader, table):
    table = table.sort_by("id")
    assert sorted(table.column_names) == sorted(expected.column_names), f"{reader}: columns {table.column_names}"
    for column in expected.column_names:
        ours, theirs = plain(expected[column]), plain(table[column])
        assert len(ours) == len(theirs), f"{reader}: {len(theirs)} rows, lakeward sql: {len(ours)}"
        for row, (a, b) in enumerate(zip(ours, theirs)):
            assert a == b, f"{reader}: row {row}, {column}: {b!r}, lakeward sql: {a!r}"
    print(f"{reader}: {len(ours)} rows equal")


with pa.ipc.open_stream(answer) as stream:
    expected = stream.read_all()

warehouse = configuration["warehouse"]
url = configuration["catalog"]["url"]
url = url.replace("sqlite:", "sqlite:///", 1).replace("postgresql://", "postgresql+psycopg://", 1)
properties = {"uri": url, "warehouse": warehouse["url"]}
if warehouse["url"].startswith("s3://"):
    properties |= {"s3.endpoint": warehouse["endpoint"], "s3.access-key-id": warehouse["access_key_id"],
                   "s3.secret-access-key": warehouse["secret_access_key"], "s3.region": warehouse["region"]}
table = SqlCatalog("lake", **properties).load_table(tuple(name.split(".")))

# Without delete files this would prove little: they are there, they are live, and they are position deletes.
summary = table.current_snapshot().summary.additional_properties
assert int(summary["total-delete-files"]) > 0 and int(summary["total-position-deletes"]) > 0, summary
assert int(summary.get("total-equality-deletes", 0)) == 0, summary
tasks = list(table.scan().plan_files())
assert sum(len(task.delete_files) for task in tasks) > 0, "no data file has deletes"

for reader in readers.split(","):
    if reader == "pyiceberg":
        compare(reader, table.scan().to_arrow())
    else:
        import duckdb
        import duckdb_extension_avro
        import duckdb_extension_iceberg

        connection = duckdb.connect()
        connection.execute("SET enable_progress_bar = false")
        connection.execute("SET TimeZone = 'UTC'")
        # By path: by name, DuckDB would download them.
        for module, extension in ((duckdb_extension_avro, "avro"), (duckdb_extension_iceberg, "iceberg")):
            folder = Path(module.__file__).parent / "extensions" / f"v{duckdb.__version__}"
            connection.execute(f"LOAD '{folder}/{extension}.duckdb_extension'")
        location = table.metadata_location.removeprefix("file://")
        compare(reader, connection.execute(f"SELECT * FROM iceberg_scan('{location}')").fetch_arrow_table())
