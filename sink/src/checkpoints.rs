//! Rows of `lakeward.checkpoints`: `tables committed at a cut -> row -> the atomic multi-table commit that readers see`

use lakeward_event::Checkpoint;
use lakeward_lake::system::{Appended, CheckpointRow, CheckpointTable};
use lakeward_runtime::Result;

use crate::cut::{RowState, RowTables};
use crate::dead_letter::now;

/// What the rows of a source say so far, and its newest watermark.
pub async fn state(rows: &CheckpointTable, source: &str) -> Result<(RowState, Option<i64>)> {
    let rows = rows.rows(source, None).await?;
    let mut state = RowState { checkpoint: rows.first().map(|r| r.checkpoint), ..RowState::default() };
    for (distance, row) in rows.iter().enumerate() {
        for (table, snapshot) in &row.tables {
            state.tables.entry(table.clone()).or_insert(*snapshot);
        }
        if row.complete {
            state.since_complete = u32::try_from(distance).ok();
            break;
        }
    }
    Ok((state, rows.first().map(|r| r.watermark)))
}

/// Appends the row of a cut. False: the source has this row or a newer one already.
pub async fn append(rows: &CheckpointTable, source: &str, checkpoint: &Checkpoint, tables: &RowTables) -> Result<bool> {
    let draft = &checkpoint.draft;
    let row = CheckpointRow {
        source: source.to_owned(),
        checkpoint: checkpoint.id,
        position: draft.position.to_string(),
        watermark_from: draft.watermark_from,
        watermark: draft.watermark,
        committed_at: now(),
        converging: tables.converging.clone(),
        complete: tables.complete,
        tables: tables.tables.clone(),
    };
    lakeward_runtime::crash_point!("sink.checkpoint.before_row");
    match rows.append(vec![row]).await? {
        Appended::Done => Ok(true),
        Appended::Refused { newest, .. } => {
            tracing::info!(source, checkpoint = checkpoint.id, newest, "somebody else wrote the checkpoint's row");
            Ok(false)
        }
    }
}
