"""Fails unless the other readers of our tables work without the network: DuckDB with its Iceberg extension, PyIceberg.

Run by python.sh when it has made its environment. The loading of DuckDB's extensions is for tests to copy.
"""

from pathlib import Path

import confluent_kafka
import duckdb
import duckdb_extension_avro
import duckdb_extension_iceberg
import fastavro
import psycopg
import pyarrow
import pymongo
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.io.pyarrow import PyArrowFileIO

connection = duckdb.connect()
# By path: by name, DuckDB would look in the user's home and then download. Iceberg's manifests are Avro.
for module, name in ((duckdb_extension_avro, "avro"), (duckdb_extension_iceberg, "iceberg")):
    folder = Path(module.__file__).parent / "extensions" / f"v{duckdb.__version__}"
    connection.execute(f"LOAD '{folder}/{name}.duckdb_extension'")
loaded = connection.execute("SELECT extension_name FROM duckdb_extensions() WHERE loaded").fetchall()
assert {("avro",), ("iceberg",)} <= set(loaded), loaded
for used in (confluent_kafka.Consumer, fastavro.schemaless_reader, psycopg.connect, pyarrow.table, pymongo.MongoClient, SqlCatalog, PyArrowFileIO):
    assert callable(used)
