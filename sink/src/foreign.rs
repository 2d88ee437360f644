//! Sources that others write (`kind = "debezium"`): topics without checkpoints, whose tables their records tell.
//!
//! `ends of the topics, at each commit interval -> Cuts (checkpoints of our own making) -> the same worker as for our own topics`
//!
//! A cut is "all that was in the topics at this tick", never a moment of the database: topics have no order among each other.
//! Exactly once it is all the same, since each table's offsets are in its own snapshots; what a cut says is remembered nowhere
//! else.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use globset::GlobSet;
use lakeward_event::codec::any::AnyDecoder;
use lakeward_event::codec::debezium::{DebeziumDecoder, KnownTable};
use lakeward_event::codec::{Decoder, RecordRef};
use lakeward_event::schema::{DOC_COLUMN, TableKind};
use lakeward_event::{ChangeBatch, Checkpoint, CheckpointDraft, Column, Ends, Position, TableId, names};
use lakeward_lake::{COLUMNS_PROPERTY, ColumnMap, KEY_PROPERTY, Table};
use lakeward_log::{Bounds, CheckpointReader, Log, TopicFilter};
use lakeward_runtime::config::SourceConfig;
use lakeward_runtime::{Error, Result};
use tokio::time::sleep;

use crate::dead_letter::now;

/// Records between two checkpoints on the way to a cut, where memory may be given back by a commit.
const STEP: i64 = 256;

/// Debezium's topics that hold no table's rows, by the last part of a name of two.
const NOT_TABLES: [&str; 2] = ["transaction", "message"];

/// The topics of a source, by its globs.
pub fn topic_filter(source: &SourceConfig) -> Result<TopicFilter> {
    let mut globs = GlobSet::builder();
    for glob in &source.topics {
        let wrong = |e| Error::configuration(format!("source {}: `{glob}` is not a glob", source.name)).source(e);
        globs.add(globset::Glob::new(glob).map_err(wrong)?);
    }
    let globs = globs.build().map_err(|e| Error::configuration("the globs of topics").source(e))?;
    let name = source.name.clone();
    Ok(Arc::new(move |topic| {
        let not_a_table = topic.split_once('.').is_some_and(|(_, rest)| NOT_TABLES.contains(&rest));
        globs.is_match(topic)
            && names::is_data_topic(&name, topic)
            && !not_a_table
            && !topic.starts_with("__debezium-heartbeat")
    }))
}

/// What is being read up to.
struct Goal {
    ends: Ends,
    watermark: i64,
}

/// Checkpoints of topics that have none.
pub struct Cuts {
    log: Arc<dyn Log>,
    filter: TopicFilter,
    course: Course,
}

/// The way from cut to cut. Pure: ends in, checkpoints out.
struct Course {
    source: String,
    /// Microseconds.
    grid: i64,
    interval: i64,
    goal: Option<Goal>,
    /// Up to where checkpoints were given out.
    placed: Ends,
    /// The tick since which the topics are as they are.
    since: i64,
    /// Newest tick of a cut.
    reached: Option<i64>,
    last_id: i64,
}

impl Cuts {
    /// Goes on behind `held` (what the tables have), with ids above `after`.
    pub fn new(
        log: Arc<dyn Log>,
        source: &SourceConfig,
        grid: Duration,
        interval: Duration,
        held: Ends,
        after: i64,
    ) -> Result<Self> {
        let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX).max(1);
        let course = Course {
            source: source.name.clone(),
            grid: micros(grid),
            interval: micros(interval),
            goal: None,
            placed: held,
            since: i64::MIN,
            reached: None,
            last_id: after,
        };
        Ok(Self { filter: topic_filter(source)?, log, course })
    }
}

impl Course {
    /// The next tick at which the topics are looked at; the first look is at once.
    fn due(&self) -> i64 {
        self.reached.map_or(i64::MIN, |reached| (reached.div_euclid(self.interval) + 1).saturating_mul(self.interval))
    }

    /// Makes the ends of the topics, asked for at `asked_at`, the next cut.
    fn aim(&mut self, bounds: &Bounds, asked_at: i64) -> Result<()> {
        let mut changed = false;
        let mut ends = Ends::new();
        for (topic, partitions) in bounds {
            let placed = self.placed.entry(topic.clone()).or_default();
            for (partition, (first, end)) in partitions {
                let known = placed.get(partition).copied();
                if known.is_some_and(|known| *end < known) {
                    return Err(Error::human(
                        "the topic ends before what the lake has of it: it was deleted and made again. Drop its table to load it again",
                    )
                    .with("source", &self.source)
                    .with("topic", topic)
                    .with("partition", partition)
                    .with("end_offset", end)
                    .with("offset", known.unwrap_or_default()));
                }
                changed |= known != Some(*end);
                placed.entry(*partition).or_insert(*first);
                ends.entry(topic.clone()).or_default().insert(*partition, *end);
            }
        }
        let watermark = asked_at.div_euclid(self.grid) * self.grid;
        if changed || self.reached.is_none() {
            self.since = watermark;
        }
        self.goal = Some(Goal { ends, watermark });
        Ok(())
    }

    /// The next checkpoint on the way to the goal: some records further, or the cut itself.
    fn step(&mut self) -> Option<Checkpoint> {
        let goal = self.goal.take()?;
        let (mut ends, mut left, mut whole) = (Ends::new(), STEP, true);
        for (topic, partitions) in &goal.ends {
            let placed = self.placed.entry(topic.clone()).or_default();
            for (partition, end) in partitions {
                let from = placed.get(partition).copied().unwrap_or(0);
                let next = from.saturating_add(left).min(*end);
                left -= next - from;
                whole &= next == *end;
                if from != next {
                    placed.insert(*partition, next);
                    ends.entry(topic.clone()).or_default().insert(*partition, next);
                }
            }
        }
        self.last_id = now().max(self.last_id + 1);
        let offsets = self.placed.values().flat_map(|p| p.values()).map(|end| end.unsigned_abs()).sum();
        let draft = |watermark_from, watermark, cut| CheckpointDraft {
            position: Position::Topics { offsets },
            next_sequence: 0,
            snapshot: serde_json::Value::Null,
            converging: Vec::new(),
            watermark_from,
            watermark,
            cut,
        };
        let draft = if whole {
            self.reached = Some(goal.watermark);
            draft(self.since.min(goal.watermark), goal.watermark, true)
        } else {
            let reached = self.reached.unwrap_or(0);
            draft(reached, reached, false)
        };
        let (id, wall_clock) = (self.last_id, self.last_id);
        if whole {
            // A cut says all that there is, so that nothing depends on the checkpoints before it.
            return Some(Checkpoint { id, draft, wall_clock, ends: goal.ends, complete: true });
        }
        self.goal = Some(goal);
        Some(Checkpoint { id, draft, wall_clock, ends, complete: false })
    }
}

#[async_trait]
impl CheckpointReader for Cuts {
    async fn next(&mut self) -> Result<Checkpoint> {
        loop {
            if let Some(checkpoint) = self.try_next().await? {
                return Ok(checkpoint);
            }
            let wait = u64::try_from(self.course.due().saturating_sub(now())).unwrap_or(0);
            sleep(Duration::from_micros(wait.clamp(1_000, 60_000_000))).await;
        }
    }

    async fn try_next(&mut self) -> Result<Option<Checkpoint>> {
        let asked_at = now();
        if self.course.goal.is_none() && asked_at >= self.course.due() {
            let bounds = self.log.foreign_bounds(self.filter.clone()).await?;
            self.course.aim(&bounds, asked_at)?;
        }
        Ok(self.course.step())
    }
}

/// The decoder of a topic, whoever writes it.
pub enum TopicReader {
    Own(Box<AnyDecoder>),
    Debezium(Box<DebeziumDecoder>),
}

impl TopicReader {
    /// The table that the records told, where they tell one.
    pub fn told(&self) -> Option<&TableId> {
        match self {
            Self::Own(_) => None,
            Self::Debezium(decoder) => decoder.table(),
        }
    }

    fn decoder(&mut self) -> &mut dyn Decoder {
        match self {
            Self::Own(decoder) => decoder.as_mut(),
            Self::Debezium(decoder) => decoder.as_mut(),
        }
    }
}

impl Decoder for TopicReader {
    fn push(&mut self, record: &RecordRef<'_>) -> lakeward_event::Result<()> {
        self.decoder().push(record)
    }
    fn rows(&self) -> usize {
        match self {
            Self::Own(decoder) => decoder.rows(),
            Self::Debezium(decoder) => decoder.rows(),
        }
    }
    fn flush(&mut self) -> lakeward_event::Result<Vec<ChangeBatch>> {
        self.decoder().flush()
    }
}

/// What a topic is called that only holds what cannot be read: `<prefix>.<schema>.<table>`, as far as it goes.
pub fn table_by_name(source: &SourceConfig, topic: &str) -> TableId {
    let mut words = topic.rsplit('.');
    let name = words.next().unwrap_or(topic);
    let schema = words.next().filter(|_| words.next().is_some()).unwrap_or(&source.default_schema);
    TableId::new(&source.name, schema, name)
}

/// What the lake knows of a table, for its topic's decoder.
pub fn known(id: &TableId, table: &Table) -> Result<KnownTable> {
    let map = match table.properties().get(COLUMNS_PROPERTY) {
        Some(property) => ColumnMap::parse(property)?,
        None => ColumnMap::default(),
    };
    let key: Vec<i32> = match table.properties().get(KEY_PROPERTY) {
        Some(property) => serde_json::from_str(property)
            .map_err(|e| Error::human("table property `lakeward.key` cannot be read").with("table", id).source(e))?,
        None => Vec::new(),
    };
    let documents = map.columns.iter().any(|c| c.identity == DOC_COLUMN);
    let named = |id: &i32| map.columns.iter().find(|c| c.field_id == *id && !c.dropped).map(|c| c.name.clone());
    let columns = map.columns.iter().filter(|c| !c.dropped).filter_map(|c| {
        Some(Column {
            id: c.identity.parse().ok()?,
            name: c.name.clone(),
            ty: c.ty.clone(),
            source_type: "its column".to_owned(),
            nullable: true,
        })
    });
    let retired = map.columns.iter().filter(|c| c.dropped);
    Ok(KnownTable {
        table: id.clone(),
        kind: if documents { TableKind::Documents } else { TableKind::Relational },
        columns: if documents { Vec::new() } else { columns.collect() },
        retired: retired.filter_map(|c| Some((c.identity.parse().ok()?, c.ty.clone()))).collect(),
        key: key.iter().filter_map(named).collect(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn course(held: Ends) -> Course {
        Course {
            source: "s".into(),
            grid: 1_000_000,
            interval: 4_000_000,
            goal: None,
            placed: held,
            since: i64::MIN,
            reached: None,
            last_id: i64::MAX / 2,
        }
    }

    fn bounds(ends: &[(&str, i32, i64)]) -> Bounds {
        let mut bounds = Bounds::new();
        for (topic, partition, end) in ends {
            bounds.entry((*topic).to_owned()).or_default().insert(*partition, (0, *end));
        }
        bounds
    }

    #[test]
    fn a_backlog_is_cut_into_steps_and_only_the_last_is_a_cut() {
        let held = Ends::from([("a".to_owned(), BTreeMap::from([(0, 10), (1, 0)]))]);
        let mut cuts = course(held);
        cuts.aim(&bounds(&[("a", 0, 300), ("a", 1, 300), ("b", 0, 5)]), 9_700_000).unwrap();
        let mut steps = Vec::new();
        while let Some(step) = cuts.step() {
            steps.push(step);
        }
        assert!(steps.len() == 3 && steps.windows(2).all(|w| w[0].id < w[1].id), "{steps:?}");
        assert_eq!(steps.iter().map(|s| s.draft.cut).collect::<Vec<_>>(), [false, false, true]);
        assert_eq!(steps[0].ends["a"], BTreeMap::from([(0, 266)]));
        let last = &steps[2];
        assert_eq!((last.draft.watermark_from, last.draft.watermark), (9_000_000, 9_000_000));
        assert_eq!(last.ends["a"], BTreeMap::from([(0, 300), (1, 300)]));
        assert_eq!(last.draft.position.to_string(), "605");
        assert_eq!(cuts.due(), 12_000_000, "looked at again on the grid of commits");

        // Nothing new: the same state is true up to the new tick.
        cuts.aim(&bounds(&[("a", 0, 300), ("a", 1, 300), ("b", 0, 5)]), 12_100_000).unwrap();
        let same = cuts.step().unwrap();
        assert_eq!((same.draft.watermark_from, same.draft.watermark, same.draft.cut), (9_000_000, 12_000_000, true));
        cuts.aim(&bounds(&[("a", 0, 301), ("a", 1, 300), ("b", 0, 5)]), 16_100_000).unwrap();
        assert_eq!(cuts.step().unwrap().draft.watermark_from, 16_000_000);
    }

    #[test]
    fn a_topic_made_again_is_not_read_as_if_it_were_the_old_one() {
        let mut cuts = course(Ends::from([("a".to_owned(), BTreeMap::from([(0, 10)]))]));
        let error = cuts.aim(&bounds(&[("a", 0, 9)]), 0).unwrap_err();
        assert!(error.to_string().contains("made again"), "{error}");
    }

    #[test]
    fn topics_that_hold_no_rows_are_left_alone() {
        let mut source = lakeward_runtime::config::SourceConfig {
            name: "legacy".into(),
            kind: lakeward_runtime::config::SourceKind::Debezium,
            url: lakeward_runtime::config::Secret::new(String::new()),
            include: Vec::new(),
            exclude: Vec::new(),
            default_schema: "public".into(),
            wal_budget: 0,
            on_budget: lakeward_runtime::config::OnBudget::Stop,
            slot: String::new(),
            publication: String::new(),
            topics: vec!["legacy.*".into()],
            unavailable_value_placeholder: String::new(),
        };
        let filter = topic_filter(&source).unwrap();
        assert!(filter("legacy.public.orders") && filter("legacy.public.message"));
        for topic in ["legacy.transaction", "legacy.message", "legacy.__schemas", "other.public.orders"] {
            assert!(!filter(topic), "{topic}");
        }
        assert_eq!(table_by_name(&source, "orders").to_string(), "public.orders");
        assert_eq!(table_by_name(&source, "p.shop.orders").to_string(), "shop.orders");
        source.topics = vec!["{".into()];
        assert!(topic_filter(&source).is_err());
    }
}
