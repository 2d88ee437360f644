//! What the lake holds now: catalog, `lakeward.checkpoints` -> tables and cuts, re-read as seldom as freshness allows.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use iceberg::TableIdent;
use lakeward_lake::system::{CheckpointRow, CheckpointTable, NAMESPACE};
use lakeward_lake::{Lake, Table};
use lakeward_runtime::{Error, Result};
use tokio::sync::Mutex;

use crate::cut::{AsOf, Choice, Cut, SourceRows, choose};

/// The catalog is asked at most this often: one query, far below any commit interval.
const POLL: Duration = Duration::from_millis(200);

/// Tables and checkpoint rows, shared by all sessions.
pub struct Tables {
    lake: Lake,
    checkpoints: CheckpointTable,
    /// The grid, in microseconds.
    interval: i64,
    state: Mutex<State>,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tables").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    polled: Option<Instant>,
    locations: Arc<HashMap<TableIdent, String>>,
    tables: HashMap<TableIdent, Table>,
    /// Rows read at the present state of `lakeward.checkpoints`, by source and how far down.
    rows: HashMap<(String, Option<i64>), Arc<Vec<CheckpointRow>>>,
    newest: Option<Arc<HashMap<String, CheckpointRow>>>,
}

impl Tables {
    pub async fn open(lake: Lake, interval: Duration) -> Result<Self> {
        let checkpoints = CheckpointTable::open(&lake).await?;
        let interval = i64::try_from(interval.as_micros()).unwrap_or(i64::MAX);
        Ok(Self { lake, checkpoints, interval, state: Mutex::default() })
    }

    pub fn lake(&self) -> &Lake {
        &self.lake
    }

    /// Every table and where its newest metadata is, at most 200 ms old.
    pub async fn locations(&self) -> Result<Arc<HashMap<TableIdent, String>>> {
        let mut state = self.state.lock().await;
        if state.polled.is_none_or(|at| at.elapsed() >= POLL) {
            self.poll(&mut state).await?;
        }
        Ok(Arc::clone(&state.locations))
    }

    async fn poll(&self, state: &mut State) -> Result<()> {
        let locations = self.lake.metadata_locations().await?;
        let changed = |namespace: &str, name: &str| {
            let id = TableIdent::from_strs([namespace, name]);
            id.map_or(true, |id| locations.get(&id) != state.locations.get(&id))
        };
        if changed(NAMESPACE, "checkpoints") {
            state.rows.clear();
            state.newest = None;
        }
        state.tables.retain(|id, table| locations.get(id).is_some_and(|l| l == table.metadata_location()));
        state.locations = Arc::new(locations);
        state.polled = Some(Instant::now());
        Ok(())
    }

    /// A table at its newest metadata, at most 200 ms old.
    pub async fn load(&self, id: &TableIdent) -> Result<Option<Table>> {
        let locations = self.locations().await?;
        if !locations.contains_key(id) {
            return Ok(None);
        }
        if let Some(table) = self.state.lock().await.tables.get(id) {
            return Ok(Some(table.clone()));
        }
        // Not under the lock: other queries go on while metadata is read.
        let Some(table) = self.lake.load(id).await? else { return Ok(None) };
        self.state.lock().await.tables.insert(id.clone(), table.clone());
        Ok(Some(table))
    }

    /// A table whose metadata has this snapshot.
    pub async fn load_with(&self, id: &TableIdent, snapshot_id: i64) -> Result<Table> {
        if let Some(table) = self.load(id).await?
            && table.snapshot_by_id(snapshot_id).is_some()
        {
            return Ok(table);
        }
        // The checkpoint row may be younger than the metadata that was at hand.
        let table = self.lake.load(id).await?;
        match table {
            Some(table) if table.snapshot_by_id(snapshot_id).is_some() => {
                self.state.lock().await.tables.insert(id.clone(), table.clone());
                Ok(table)
            }
            Some(_) => Err(Error::refused(format!("snapshot {snapshot_id}, which this moment needs, has expired"))
                .with("table", id)),
            None => Err(Error::refused(format!("table {id} does not exist any more"))),
        }
    }

    /// Each source's newest checkpoint row.
    pub async fn newest(&self) -> Result<Arc<HashMap<String, CheckpointRow>>> {
        self.locations().await?;
        let mut state = self.state.lock().await;
        if let Some(newest) = &state.newest {
            return Ok(Arc::clone(newest));
        }
        let newest = Arc::new(self.checkpoints.newest().await?);
        state.newest = Some(Arc::clone(&newest));
        Ok(newest)
    }

    async fn rows(&self, source: &str, down_to: Option<i64>) -> Result<Arc<Vec<CheckpointRow>>> {
        self.locations().await?;
        let mut state = self.state.lock().await;
        let key = (source.to_string(), down_to);
        if let Some(rows) = state.rows.get(&key) {
            return Ok(Arc::clone(rows));
        }
        let rows = Arc::new(self.checkpoints.rows(source, down_to).await?);
        state.rows.insert(key, Arc::clone(&rows));
        Ok(rows)
    }

    /// The cut of these sources that `as_of` asks for.
    pub async fn cut(&self, sources: &BTreeSet<String>, as_of: AsOf) -> Result<Cut> {
        let start = match as_of {
            AsOf::Time(time) => Some(time.saturating_sub(1)),
            AsOf::Latest | AsOf::Checkpoint(_) => None,
        };
        // How far down each source's rows have been read.
        let mut down_to: HashMap<&str, Option<i64>> = sources.iter().map(|s| (s.as_str(), start)).collect();
        loop {
            let mut facts = Vec::with_capacity(sources.len());
            for source in sources {
                let down = down_to.get(source.as_str()).copied().flatten();
                let rows = self.rows(source, down).await?;
                facts.push(SourceRows {
                    source: source.clone(),
                    rows: rows.as_ref().clone(),
                    all: down == Some(i64::MIN),
                });
            }
            match choose(&facts, as_of, self.interval)? {
                Choice::Cut(cut) => return Ok(cut),
                Choice::Older { source, below } => {
                    let Some(down) = down_to.get_mut(source.as_str()) else {
                        return Err(
                            Error::bug("a cut asks for rows of a source that was not given").with("source", source)
                        );
                    };
                    // Each round reaches further down, so it ends; what one step did not answer is answered by all rows.
                    let wanted = below.saturating_sub(1);
                    *down = Some(if down.is_some_and(|d| d <= wanted) { i64::MIN } else { wanted });
                }
            }
        }
    }
}
