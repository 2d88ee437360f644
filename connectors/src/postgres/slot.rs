//! The replication slot: where the server would continue, compared with where the log ends. `server + last checkpoint -> Start`.

use std::time::Duration;

use lakeward_event::position::{PartialTransaction, format_lsn, parse_lsn};
use lakeward_event::{Checkpoint, Position};
use lakeward_runtime::{Error, Result};
use pg_walstream::PgReplicationConnection;
use tokio_postgres::Client;

use super::client::{replication_error, sql_error};

/// Which history of which server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub system_id: String,
    pub timeline: u32,
}

/// `IDENTIFY_SYSTEM`.
pub fn identify(connection: &mut PgReplicationConnection) -> Result<Identity> {
    let row = connection.identify_system().map_err(|e| replication_error("identifying the server", e))?;
    let (Some(system_id), Some(timeline)) = (row.get_value(0, 0), row.get_value(0, 1)) else {
        return Err(Error::human("the server did not identify itself"));
    };
    let timeline = timeline.parse().map_err(|e| Error::human("the server's timeline is not a number").source(e))?;
    Ok(Identity { system_id, timeline })
}

/// A row of `pg_replication_slots`.
#[derive(Debug, Clone)]
pub struct Slot {
    pub plugin: Option<String>,
    pub database: Option<String>,
    /// Below this the server sends nothing any more.
    pub confirmed_flush: Option<u64>,
    /// `lost`: WAL that the slot needs was removed.
    pub wal_status: Option<String>,
}

pub async fn find(client: &Client, name: &str) -> Result<Option<Slot>> {
    let row = client
        .query_opt(
            "SELECT plugin::text, database::text, confirmed_flush_lsn::text, wal_status FROM pg_replication_slots WHERE slot_name = $1",
            &[&name],
        )
        .await
        .map_err(|e| sql_error("looking for the replication slot", e))?;
    Ok(row.map(|row| Slot {
        plugin: row.get(0),
        database: row.get(1),
        confirmed_flush: row.get::<_, Option<&str>>(2).and_then(parse_lsn),
        wal_status: row.get(3),
    }))
}

/// Creates the slot; returns the LSN from which it delivers. The server waits for every transaction that is open, a prepared
/// one included: they are named in the log while it waits.
pub async fn create(client: &Client, watcher: &Client, name: &str) -> Result<u64> {
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&name];
    let create =
        client.query_one("SELECT lsn::text FROM pg_create_logical_replication_slot($1, 'pgoutput')", &parameters);
    tokio::pin!(create);
    let row = loop {
        tokio::select! {
            row = &mut create => break row.map_err(|e| sql_error("creating the replication slot", e))?,
            () = tokio::time::sleep(Duration::from_secs(5)) => {
                let blockers = open_transactions(watcher).await?;
                tracing::warn!(slot = name, waiting_for = %blockers.join("; "), "the new slot waits for open transactions");
            }
        }
    };
    row.get::<_, Option<&str>>(0)
        .and_then(parse_lsn)
        .ok_or_else(|| Error::human("the server created a slot without a position").with("slot", name))
}

/// Transactions that have an xid and are open, oldest first, prepared ones of every database included, for people to read.
pub async fn open_transactions(client: &Client) -> Result<Vec<String>> {
    let rows = client
        .query(
            "SELECT 'prepared transaction ' || quote_literal(gid) || ' in database ' || database || ' since ' || prepared::text, prepared AS since
               FROM pg_prepared_xacts
             UNION ALL
             SELECT 'transaction of pid ' || pid || coalesce(' (' || nullif(application_name, '') || ')', '') || ' in database '
                    || coalesce(datname, '-') || ' since ' || xact_start::text, xact_start
               FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
             ORDER BY since LIMIT 10",
            &[],
        )
        .await
        .map_err(|e| sql_error("looking for open transactions", e))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Up to where the server has durable WAL.
pub async fn wal_end(client: &Client) -> Result<u64> {
    let row = client
        .query_one("SELECT pg_current_wal_flush_lsn()::text", &[])
        .await
        .map_err(|e| sql_error("asking for the end of the WAL", e))?;
    row.get::<_, Option<&str>>(0).and_then(parse_lsn).ok_or_else(|| Error::human("the server has no end of WAL"))
}

/// How a connector begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Neither checkpoint nor slot: create it.
    Create,
    /// A slot and no checkpoint: nothing is published yet, begin where the slot does.
    Adopt { lsn: u64 },
    /// Continue after the last checkpoint.
    Resume { lsn: u64, partial: Option<PartialTransaction> },
}

/// Compares what is published with what the server still has. Every mismatch is lost history, and says what is lost.
pub fn decide(
    last: Option<&Checkpoint>,
    slot: Option<&Slot>,
    identity: &Identity,
    wal_end: u64,
    name: &str,
    database: &str,
) -> Result<Start> {
    if let Some(slot) = slot {
        if slot.plugin.as_deref() != Some("pgoutput") {
            return Err(Error::configuration(
                "the replication slot is not one of pgoutput; choose another name by `slot`",
            )
            .with("slot", name));
        }
        if slot.database.as_deref() != Some(database) {
            return Err(Error::configuration(
                "the replication slot belongs to another database; choose another name by `slot`",
            )
            .with("slot", name)
            .with("its_database", slot.database.as_deref().unwrap_or("-")));
        }
    }
    let Some(last) = last else {
        return Ok(match slot {
            None => Start::Create,
            Some(slot) => Start::Adopt {
                lsn: slot.confirmed_flush.ok_or_else(|| {
                    Error::retry("the replication slot is being created by somebody else").with("slot", name)
                })?,
            },
        });
    };
    let Position::Postgres { lsn, partial, system_id, timeline } = &last.draft.position else {
        return Err(
            Error::human("the source's log was written by a connector of another kind").with("checkpoint", last.id)
        );
    };
    let lost = |reason: String| {
        Err(Error::resnapshot(format!(
            "{reason}; what was committed after {} may be lost: begin the source anew (docs/log.md, Beginning a source anew)",
            format_lsn(*lsn)
        ))
            .with("slot", name)
            .with("checkpoint", last.id))
    };
    if *system_id != identity.system_id {
        return lost(format!(
            "the server is another one (system identifier {}, the log was written from {system_id})",
            identity.system_id
        ));
    }
    if *timeline != identity.timeline {
        return lost(format!("the server is on timeline {}, the log was written from {timeline}", identity.timeline));
    }
    let Some(slot) = slot else { return lost("the replication slot is gone".into()) };
    if slot.wal_status.as_deref() == Some("lost") {
        return lost("the server has removed WAL that the replication slot needs".into());
    }
    match slot.confirmed_flush {
        Some(confirmed) if confirmed > *lsn => {
            return lost(format!("the replication slot is at {}, past the last checkpoint", format_lsn(confirmed)));
        }
        None => return lost("the replication slot has no position".into()),
        Some(_) => {}
    }
    if *lsn > wal_end {
        return lost(format!(
            "the server's WAL ends at {}, before the last checkpoint: it was restored from an older state",
            format_lsn(wal_end)
        ));
    }
    Ok(Start::Resume { lsn: *lsn, partial: partial.clone() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use lakeward_event::CheckpointDraft;
    use lakeward_runtime::Action;

    fn checkpoint(lsn: u64) -> Checkpoint {
        Checkpoint {
            id: 7,
            draft: CheckpointDraft {
                position: Position::Postgres { lsn, partial: None, system_id: "1".into(), timeline: 1 },
                next_sequence: 0,
                snapshot: serde_json::Value::Null,
                converging: vec![],
                watermark_from: 0,
                watermark: 0,
                cut: false,
            },
            wall_clock: 0,
            ends: Default::default(),
            complete: true,
        }
    }

    fn slot(confirmed: u64) -> Slot {
        Slot {
            plugin: Some("pgoutput".into()),
            database: Some("app".into()),
            confirmed_flush: Some(confirmed),
            wal_status: Some("reserved".into()),
        }
    }

    #[test]
    fn only_an_unbroken_history_is_resumed() {
        let identity = Identity { system_id: "1".into(), timeline: 1 };
        let at = |lsn, slot: Option<Slot>, identity: &Identity, wal| {
            decide(Some(&checkpoint(lsn)), slot.as_ref(), identity, wal, "s", "app")
        };
        assert_eq!(at(100, Some(slot(100)), &identity, 100).unwrap(), Start::Resume { lsn: 100, partial: None });
        assert_eq!(at(100, Some(slot(40)), &identity, 900).unwrap(), Start::Resume { lsn: 100, partial: None });
        let behind_slot = at(100, Some(slot(101)), &identity, 900).unwrap_err();
        assert_eq!(behind_slot.action(), Action::Resnapshot);
        assert!(behind_slot.to_string().contains("past the last checkpoint"), "{behind_slot}");
        assert_eq!(at(100, Some(slot(40)), &identity, 99).unwrap_err().action(), Action::Resnapshot);
        assert_eq!(at(100, None, &identity, 900).unwrap_err().action(), Action::Resnapshot);
        let lost = Slot { wal_status: Some("lost".into()), ..slot(100) };
        assert_eq!(at(100, Some(lost), &identity, 900).unwrap_err().action(), Action::Resnapshot);
        let other = Identity { system_id: "2".into(), timeline: 1 };
        assert_eq!(at(100, Some(slot(40)), &other, 900).unwrap_err().action(), Action::Resnapshot);
        let promoted = Identity { system_id: "1".into(), timeline: 2 };
        assert_eq!(at(100, Some(slot(40)), &promoted, 900).unwrap_err().action(), Action::Resnapshot);
    }

    #[test]
    fn a_first_start_creates_or_adopts() {
        let identity = Identity { system_id: "1".into(), timeline: 1 };
        let first = |slot: Option<Slot>| decide(None, slot.as_ref(), &identity, 900, "s", "app");
        assert_eq!(first(None).unwrap(), Start::Create);
        assert_eq!(first(Some(slot(40))).unwrap(), Start::Adopt { lsn: 40 });
        let foreign = Slot { plugin: Some("test_decoding".into()), ..slot(40) };
        assert_eq!(first(Some(foreign)).unwrap_err().action(), Action::Configuration);
    }
}
