//! The publication: which tables the server sends. `configuration + catalog -> CREATE / ALTER PUBLICATION`.

use std::collections::{BTreeMap, BTreeSet};

use lakeward_runtime::{Error, Result};
use tokio_postgres::Client;

use super::catalog::{ReplicaIdentity, Table, quote_identifier};
use super::client::sql_error;

/// Why a table that the configuration includes is not captured, and what to do about it.
pub fn unfit(table: &Table) -> Option<(String, String)> {
    let name = format!("{}.{}", table.schema, table.name);
    if table.replica_identity == ReplicaIdentity::Nothing {
        // In a publication with updates it would make the application's UPDATE and DELETE fail.
        return Some((
            format!("table {name} has REPLICA IDENTITY NOTHING: its updates and deletes cannot be captured"),
            format!("ALTER TABLE {} REPLICA IDENTITY DEFAULT, or exclude the table", table.qualified()),
        ));
    }
    if table.key.is_empty() {
        return Some((
            format!("table {name} has no key: tables without one are not captured yet"),
            format!(
                "add a primary key, or a unique index on NOT NULL columns with ALTER TABLE {} REPLICA IDENTITY USING INDEX, or exclude the table",
                table.qualified()
            ),
        ));
    }
    None
}

/// Tables (oids) of a publication; None: there is no such publication.
async fn members(client: &Client, name: &str) -> Result<Option<(bool, BTreeSet<u32>)>> {
    let row = client
        .query_opt(
            "SELECT p.puballtables, p.pubviaroot, p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate,
                    ARRAY(SELECT r.prrelid FROM pg_publication_rel r WHERE r.prpubid = p.oid)
               FROM pg_publication p WHERE p.pubname = $1",
            &[&name],
        )
        .await
        .map_err(|e| sql_error("looking for the publication", e))?;
    let Some(row) = row else { return Ok(None) };
    // Column lists and row filters came with PostgreSQL 15; as JSON the query is the same before.
    let partial = client
        .query_opt(
            "SELECT r.prrelid::regclass::text FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
              WHERE p.pubname = $1
                AND (to_jsonb(r) -> 'prattrs' NOT IN ('null', '\"\"') OR to_jsonb(r) -> 'prqual' <> 'null') LIMIT 1",
            &[&name],
        )
        .await
        .map_err(|e| sql_error("reading the publication", e))?;
    if let Some(partial) = partial {
        return Err(Error::configuration(
            "the publication must publish whole tables; take the column list or row filter off, or name another one by `publication`",
        )
        .with("publication", name)
        .with("table", partial.get::<_, &str>(0)));
    }
    if !row.get::<_, bool>(1) || !row.get::<_, bool>(2) {
        return Err(Error::configuration(
            "the publication must publish insert, update, delete and truncate, with publish_via_partition_root = true",
        )
        .with("publication", name));
    }
    Ok(Some((row.get(0), row.get::<_, Vec<u32>>(3).into_iter().collect())))
}

/// Makes the publication hold exactly `wanted`. Returns the oids that it has not held before: what is written to them until
/// now may be in no stream.
pub async fn ensure(client: &Client, name: &str, wanted: &BTreeMap<u32, Table>) -> Result<BTreeSet<u32>> {
    let wanted_oids: BTreeSet<u32> = wanted.keys().copied().collect();
    let list = |oids: &BTreeSet<u32>| {
        let names: Vec<String> = oids.iter().filter_map(|oid| wanted.get(oid)).map(Table::qualified).collect();
        names.join(", ")
    };
    let quoted = quote_identifier(name);
    let (sql, added) = match members(client, name).await? {
        None => {
            let tables = if wanted.is_empty() { String::new() } else { format!("FOR TABLE {}", list(&wanted_oids)) };
            (format!("CREATE PUBLICATION {quoted} {tables} WITH (publish_via_partition_root = true)"), wanted_oids)
        }
        Some((true, _)) => return Ok(BTreeSet::new()),
        Some((false, held)) if held == wanted_oids => return Ok(BTreeSet::new()),
        Some((false, held)) => {
            let added: BTreeSet<u32> = wanted_oids.difference(&held).copied().collect();
            let sql = if wanted.is_empty() {
                let rows = client
                    .query("SELECT r.prrelid::regclass::text FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = $1", &[&name])
                    .await
                    .map_err(|e| sql_error("reading the publication", e))?;
                let names: Vec<&str> = rows.iter().map(|r| r.get(0)).collect();
                format!("ALTER PUBLICATION {quoted} DROP TABLE {}", names.join(", "))
            } else {
                format!("ALTER PUBLICATION {quoted} SET TABLE {}", list(&wanted_oids))
            };
            (sql, added)
        }
    };
    client
        .batch_execute(&sql)
        .await
        .map_err(|e| sql_error("creating or changing the publication", e).with("publication", name))?;
    tracing::info!(publication = name, tables = wanted.len(), added = added.len(), "publication set");
    Ok(added)
}
