//! What stands in the way of capturing a source: `configuration + server -> problems with their fix`, for `lakeward check`.

use lakeward_runtime::Result;
use lakeward_runtime::config::SourceConfig;
use tokio_postgres::Client;

use super::catalog::{self, TableFilter};
use super::client::{connect, connect_replication, sql_error};
use super::{publication, slot};
use crate::Problem;

/// Every problem at once; empty: a connector can start. Nothing is changed on the server.
pub async fn problems(source: &SourceConfig) -> Vec<Problem> {
    let client = match connect(&source.url, "check").await {
        Ok(client) => client,
        Err(error) => {
            let fix =
                "check host, port, database, user and password in the source's url, and pg_hba.conf on the server";
            return vec![Problem::new(error.to_string(), fix)];
        }
    };
    let mut found = Vec::new();
    match look(source, &client).await {
        Ok(more) => found.extend(more),
        Err(error) => {
            found.push(Problem::new(error.to_string(), "the server refused a look at its catalog: see its message"))
        }
    }
    found
}

async fn look(source: &SourceConfig, client: &Client) -> Result<Vec<Problem>> {
    let mut found = Vec::new();
    let failed = |e| sql_error("looking at the server", e);
    let row = client
        .query_one(
            "SELECT current_setting('wal_level'), current_setting('server_version_num')::int, pg_is_in_recovery(),
                    r.rolreplication OR r.rolsuper, r.rolsuper, current_user::text,
                    has_database_privilege(current_database(), 'CREATE'),
                    current_setting('max_replication_slots')::int8 - (SELECT count(*) FROM pg_replication_slots),
                    current_setting('max_wal_senders')::int8 - (SELECT count(*) FROM pg_stat_replication)
               FROM pg_roles r WHERE r.rolname = current_user",
            &[],
        )
        .await
        .map_err(failed)?;
    let (level, version, standby): (String, i32, bool) = (row.get(0), row.get(1), row.get(2));
    let (replication, superuser, user, create): (bool, bool, String, bool) =
        (row.get(3), row.get(4), row.get(5), row.get(6));
    let (slots, senders): (i64, i64) = (row.get(7), row.get(8));
    if version < 140_000 {
        found.push(Problem::new(
            format!("the server is PostgreSQL {}", version / 10_000),
            "PostgreSQL 14 and later are supported",
        ));
    }
    if standby {
        found.push(Problem::new(
            "the server is a standby: standbys are not captured yet",
            "point the url at the primary",
        ));
    }
    if level != "logical" {
        found.push(Problem::new(
            format!("wal_level is {level}"),
            "ALTER SYSTEM SET wal_level = logical, then restart the server",
        ));
    }
    if !replication {
        found.push(Problem::new(
            format!("role {user} may not replicate"),
            format!("ALTER ROLE {} REPLICATION", catalog::quote_identifier(&user)),
        ));
    } else if let Err(error) = connect_replication(&source.url) {
        found.push(Problem::new(
            error.to_string(),
            "allow the role a `replication` connection from this host in pg_hba.conf",
        ));
    }
    let existing = slot::find(client, &source.slot).await?;
    match &existing {
        None if slots <= 0 => {
            found.push(Problem::new(
                "every replication slot of the server is in use",
                "raise max_replication_slots, or drop slots that nobody reads",
            ));
        }
        Some(slot) if slot.wal_status.as_deref() == Some("lost") => {
            found.push(Problem::new(
                format!("slot {} has lost WAL that it needs", source.slot),
                "drop the slot, and begin the source anew under another `name` (docs/log.md, Beginning a source anew)",
            ));
        }
        _ => {}
    }
    if senders <= 0 {
        found.push(Problem::new("every WAL sender of the server is in use", "raise max_wal_senders"));
    }
    let published: bool = client
        .query_one("SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1)", &[&source.publication])
        .await
        .map_err(failed)?
        .get(0);
    if !published && !create {
        found.push(Problem::new(
            format!("role {user} may not create publication {}", source.publication),
            "GRANT CREATE ON DATABASE to the role, or create the publication yourself and name it by `publication`",
        ));
    }
    let filter = TableFilter::new(&source.include, &source.exclude)?;
    let tables = catalog::list_tables(client, &filter).await?;
    if tables.is_empty() {
        found.push(Problem::new("no table matches `include` and `exclude`", "correct the globs, or create the tables"));
    }
    for table in &tables {
        if let Some((what, fix)) = publication::unfit(table) {
            found.push(Problem::new(what, fix));
            continue;
        }
        let rights = client
            .query_one(
                "SELECT has_table_privilege($1::oid, 'SELECT'), pg_has_role(c.relowner, 'USAGE') FROM pg_class c WHERE c.oid = $1::oid",
                &[&table.oid],
            )
            .await
            .map_err(failed)?;
        let (select, owner): (bool, bool) = (rights.get(0), rights.get(1));
        let name = table.qualified();
        if !select {
            found.push(Problem::new(
                format!("role {user} may not read {name}"),
                format!("GRANT SELECT ON {name} TO {}", catalog::quote_identifier(&user)),
            ));
        }
        if !owner && !superuser && !published {
            found.push(Problem::new(
                format!("role {user} does not own {name} and so cannot publish it"),
                "let the owner create the publication and name it by `publication`",
            ));
        }
    }
    if existing.is_none() {
        let rows = client
            .query(
                "SELECT 'prepared transaction ' || quote_literal(gid) || ' in database ' || database || ' since ' || prepared::text,
                        'COMMIT PREPARED or ROLLBACK PREPARED ' || quote_literal(gid)
                   FROM pg_prepared_xacts WHERE prepared < now() - interval '1 minute'
                 UNION ALL
                 SELECT 'transaction of pid ' || pid || ' in database ' || coalesce(datname, '-') || ' open since ' || xact_start::text,
                        'end it, or SELECT pg_terminate_backend(' || pid || ')'
                   FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND xact_start < now() - interval '1 minute'",
                &[],
            )
            .await
            .map_err(failed)?;
        for row in rows {
            found.push(Problem::new(
                format!("{}: the slot and the snapshot would wait for it", row.get::<_, String>(0)),
                row.get::<_, String>(1),
            ));
        }
    }
    Ok(found)
}
