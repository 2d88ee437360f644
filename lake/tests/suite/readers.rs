//! Tables as other engines see them: PyIceberg through the same SQL catalog, DuckDB through the metadata file.

use std::path::PathBuf;
use std::process::Command;

use crate::harness::*;
use crate::on_both;

const SCRIPT: &str = r#"
import sys, json, duckdb
from pyiceberg.catalog.sql import SqlCatalog
catalog, uri, warehouse, endpoint, table = sys.argv[1:6]
properties = {"uri": uri, "warehouse": warehouse, "init_catalog_tables": "false"}
if endpoint:
    properties |= {"s3.endpoint": endpoint, "s3.access-key-id": "lakeward", "s3.secret-access-key": "lakeward-secret", "s3.region": "us-east-1"}
found = SqlCatalog(catalog, **properties)
loaded = found.load_table(table)
rows = sorted([r["id"], r["name"]] for r in loaded.scan().to_arrow().to_pylist())
print(json.dumps(rows))
connection = duckdb.connect()
connection.execute("SET enable_progress_bar = false")
try:
    import duckdb_extension_avro, duckdb_extension_iceberg, glob, os
    for module in (duckdb_extension_avro, duckdb_extension_iceberg):
        [file] = glob.glob(os.path.join(os.path.dirname(module.__file__), "**", "*.duckdb_extension"), recursive=True)
        connection.execute(f"LOAD '{file}'")
except ImportError:
    connection = None
if connection is None or endpoint:
    print(json.dumps(rows))
else:
    rows = connection.execute(f"SELECT id, name FROM iceberg_scan('{loaded.metadata_location}') ORDER BY id").fetchall()
    print(json.dumps([list(r) for r in rows]))
"#;

/// The private Python that `deploy/local` installs, if it is there.
fn python() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let folders = std::fs::read_dir(cache.join("lakeward")).ok()?.flatten();
    let found =
        folders.map(|f| f.path()).filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("python-")));
    found.map(|p| p.join("bin/python")).find(|p| p.exists())
}

on_both!(other_engines_read_the_same, same);
async fn same(fresh: Fresh) {
    let Some(python) = python() else {
        eprintln!("skipped: no private Python; the end-to-end suite compares engines too");
        return;
    };
    let lake = &fresh.lake;
    let table = create(lake, &ident("users", "people"), &people()).await;
    let table = append(lake, &table, &[(1, "a"), (2, "b"), (3, "c")]).await;
    let table = row_delta(lake, &table, &[2], &[(2, "B"), (4, "d")]).await;
    let deletes = table.files(table.snapshot().unwrap().snapshot_id()).await.unwrap().deletes.len();
    assert_eq!(deletes, 1, "a live delete file");
    let url = fresh.catalog.url.expose();
    let (uri, endpoint) = match url.strip_prefix("sqlite:") {
        Some(path) => (format!("sqlite:///{path}"), String::new()),
        None => (url.replace("postgresql://", "postgresql+psycopg2://"), s3_endpoint()),
    };
    let args = [&fresh.catalog.name, &uri, &fresh.warehouse.url, &endpoint, &"users.people".to_owned()];
    let run = Command::new(python).arg("-c").arg(SCRIPT).args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&run.stderr).into_owned();
    if errors.contains("No module named 'psycopg2'") {
        eprintln!("skipped: that Python has no PostgreSQL driver");
        return;
    }
    assert!(run.status.success(), "{errors}");
    let expected = r#"[[1, "a"], [2, "B"], [3, "c"], [4, "d"]]"#;
    let output = String::from_utf8_lossy(&run.stdout).into_owned();
    assert_eq!(output.lines().collect::<Vec<_>>(), [expected, expected], "PyIceberg, then DuckDB");
}
