//! Which data file and row holds a key: `hashes of a commit's keys -> KeyIndex -> old rows to delete or to read`
//!
//! The table is the truth, the index a cache of one snapshot of it. It is a set of [`run`]s, each sorted by hash; a commit
//! adds one, and runs of similar size are merged, so that there are few. An entry says that the key *stood* at a row of a
//! file: the caller checks that the file is live in its base snapshot and the row not deleted there. The index therefore
//! need not forget anything at once; merging drops what is gone.
//!
//! Under `<state_dir>/index/<table uuid>/`: `state.json`, and the runs. When the state does not fit the table (another
//! definition, a history without our snapshot, a checksum that differs) the index starts empty and is filled from the key
//! columns of the data files ([`crate::table`] does the reading).

pub mod run;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use lakeward_runtime::{Action, Error, Result};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

pub use run::Entry;
use run::{Run, RunWriter};

/// Runs of one size class that make one of the next: fewer rewrite more, more are searched more.
const FAN_OUT: usize = 8;
/// Runs up to this many entries are in the first size class.
const SMALL_RUN: usize = 8_192;
const STATE: &str = "state.json";

/// What the entries of an index mean; another definition is another index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    pub table_uuid: String,
    /// Version of the canonical form of keys.
    pub encoding: u32,
    /// Field ids of the key, in key order.
    pub key: Vec<i32>,
}

#[derive(Serialize, Deserialize)]
struct State {
    definition: Definition,
    snapshot: i64,
    files: BTreeMap<u32, String>,
    next_file: u32,
    runs: Vec<RunState>,
    next_run: u64,
}

#[derive(Serialize, Deserialize)]
struct RunState {
    name: String,
    checksum: u64,
}

/// Data files that appeared in and vanished from a table since the index's snapshot.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    pub appeared: Vec<String>,
    pub vanished: Vec<String>,
}

/// The key index of one table.
#[derive(Debug)]
pub struct KeyIndex {
    folder: PathBuf,
    definition: Definition,
    /// The snapshot that the files are those of; None: nothing is known.
    snapshot: Option<i64>,
    files: BTreeMap<u32, String>,
    numbers: HashMap<String, u32>,
    next_file: u32,
    runs: Vec<Run>,
    next_run: u64,
}

impl KeyIndex {
    /// Opens what is on disk if it fits the definition, otherwise starts empty.
    pub fn open(folder: &Path, definition: Definition) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| failed("creating", folder, e))?;
        let mut index = Self {
            folder: folder.into(),
            definition,
            snapshot: None,
            files: BTreeMap::new(),
            numbers: HashMap::new(),
            next_file: 0,
            runs: Vec::new(),
            next_run: 0,
        };
        match index.load() {
            Ok(()) => {}
            Err(reason) => {
                tracing::info!(folder = %folder.display(), reason, "key index starts empty");
                index.forget();
            }
        }
        index.remove_strays()?;
        Ok(index)
    }

    fn load(&mut self) -> std::result::Result<(), String> {
        let text = std::fs::read_to_string(self.folder.join(STATE)).map_err(|e| e.to_string())?;
        let (checksum, body) = text.split_once('\n').ok_or("state is cut off")?;
        if checksum != format!("{:016x}", xxh3_64(body.as_bytes())) {
            return Err("checksum of the state differs".into());
        }
        let state: State = serde_json::from_str(body).map_err(|e| e.to_string())?;
        if state.definition != self.definition {
            return Err("the key's definition changed".into());
        }
        for run in &state.runs {
            let path = self.folder.join(&run.name);
            self.runs.push(Run::open(&path, run.checksum).map_err(|e| format!("{}: {e}", run.name))?);
        }
        self.snapshot = Some(state.snapshot);
        self.numbers = state.files.iter().map(|(number, path)| (path.clone(), *number)).collect();
        self.files = state.files;
        self.next_file = state.next_file;
        self.next_run = state.next_run;
        Ok(())
    }

    /// Deletes runs that no state names: left by a process that died.
    fn remove_strays(&self) -> Result<()> {
        let known: HashSet<&Path> = self.runs.iter().map(Run::path).collect();
        for entry in std::fs::read_dir(&self.folder).map_err(|e| failed("listing", &self.folder, e))? {
            let path = entry.map_err(|e| failed("listing", &self.folder, e))?.path();
            if path.extension().is_some_and(|e| e == "run") && !known.contains(path.as_path()) {
                std::fs::remove_file(&path).map_err(|e| failed("removing", &path, e))?;
            }
        }
        Ok(())
    }

    /// Empties the index. What is on disk is replaced by the next [`save`](Self::save).
    pub fn forget(&mut self) {
        self.snapshot = None;
        self.files.clear();
        self.numbers.clear();
        self.runs.clear();
    }

    pub fn snapshot(&self) -> Option<i64> {
        self.snapshot
    }
    /// Field ids of the key that the entries are of.
    pub fn key(&self) -> &[i32] {
        &self.definition.key
    }
    /// The path of a file number, None if the file has left the table.
    pub fn path(&self, file: u32) -> Option<&str> {
        self.files.get(&file).map(String::as_str)
    }
    /// No file is known: every look-up misses.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
    /// Entries over all runs, those of gone rows included.
    pub fn entries(&self) -> usize {
        self.runs.iter().map(Run::len).sum()
    }
    /// Bytes on disk.
    pub fn bytes(&self) -> usize {
        self.runs.iter().map(Run::bytes).sum()
    }

    /// Compares the files with those live in a snapshot.
    pub fn difference<'a>(&self, live: impl Iterator<Item = &'a str>) -> Difference {
        let mut appeared = Vec::new();
        let mut seen = HashSet::new();
        for path in live {
            match self.numbers.get(path) {
                Some(number) => drop(seen.insert(*number)),
                None => appeared.push(path.to_owned()),
            }
        }
        let vanished = self.files.iter().filter(|(n, _)| !seen.contains(n)).map(|(_, p)| p.clone()).collect();
        Difference { appeared, vanished }
    }

    /// Files that left the table: their entries count no more.
    pub fn remove_files<'a>(&mut self, paths: impl Iterator<Item = &'a str>) {
        for path in paths {
            if let Some(number) = self.numbers.remove(path) {
                self.files.remove(&number);
            }
        }
        if self.files.is_empty() {
            self.runs.clear();
        }
    }

    /// The number of a file, known from now on.
    pub fn add_file(&mut self, path: &str) -> u32 {
        if let Some(number) = self.numbers.get(path) {
            return *number;
        }
        let number = self.next_file;
        self.next_file += 1;
        self.files.insert(number, path.to_owned());
        self.numbers.insert(path.to_owned(), number);
        number
    }

    /// Adds entries of files that [`add_file`](Self::add_file) has numbered.
    pub fn add(&mut self, mut entries: Vec<Entry>) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        entries.sort_unstable();
        let path = self.next_path();
        let write = || -> std::io::Result<Run> {
            let mut writer = RunWriter::create(&path, entries.len() as u64)?;
            for entry in &entries {
                writer.push(*entry)?;
            }
            writer.finish()
        };
        self.runs.push(write().map_err(|e| failed("writing", &path, e))?);
        Ok(())
    }

    fn next_path(&mut self) -> PathBuf {
        let path = self.folder.join(format!("{:010}.run", self.next_run));
        self.next_run += 1;
        path
    }

    /// Calls `hit(index into hashes, entry)` for every row that one of the sorted `hashes` stood at, in files that the index
    /// has not seen leave.
    pub fn lookup(&self, hashes: &[u128], mut hit: impl FnMut(usize, Entry)) {
        let mut hit = |index: usize, entry: Entry| {
            if self.files.contains_key(&entry.file) {
                hit(index, entry);
            }
        };
        for run in &self.runs {
            run.lookup(hashes, &mut hit);
        }
    }

    /// Merges size classes that are full. Entries of gone files are dropped, and those for which `gone(path, row)`.
    pub fn merge(&mut self, gone: impl Fn(&str, u32) -> bool) -> Result<()> {
        while let Some(class) = full_class(&self.runs.iter().map(Run::len).collect::<Vec<_>>()) {
            let (merged, kept): (Vec<Run>, Vec<Run>) =
                std::mem::take(&mut self.runs).into_iter().partition(|run| size_class(run.len()) == class);
            self.runs = kept;
            let path = self.next_path();
            let keep = |entry: &Entry| self.files.get(&entry.file).is_some_and(|path| !gone(path, entry.row));
            let run = merge_runs(&path, &merged, keep).map_err(|e| failed("merging", &path, e))?;
            // The old files are named by the state on disk until the next save; `open` removes them after that.
            self.runs.push(run);
        }
        Ok(())
    }

    /// Says that the files are those of `snapshot`, and writes the state.
    pub fn save(&mut self, snapshot: i64) -> Result<()> {
        self.snapshot = Some(snapshot);
        let state = State {
            definition: self.definition.clone(),
            snapshot,
            files: self.files.clone(),
            next_file: self.next_file,
            runs: self
                .runs
                .iter()
                .filter_map(|run| {
                    let name = run.path().file_name()?.to_str()?.to_owned();
                    Some(RunState { name, checksum: run.checksum() })
                })
                .collect(),
            next_run: self.next_run,
        };
        let body = serde_json::to_string(&state).map_err(|e| Error::bug("key index state").source(e))?;
        let (path, draft) = (self.folder.join(STATE), self.folder.join("state.json.new"));
        let text = format!("{:016x}\n{body}", xxh3_64(body.as_bytes()));
        std::fs::write(&draft, text).map_err(|e| failed("writing", &draft, e))?;
        std::fs::rename(&draft, &path).map_err(|e| failed("renaming", &draft, e))?;
        self.remove_strays()
    }
}

/// 0, 1, 2, … for runs up to 1, 8, 64, … times [`SMALL_RUN`].
fn size_class(entries: usize) -> u32 {
    let mut class = 0;
    let mut limit = SMALL_RUN;
    while entries > limit {
        class += 1;
        limit = limit.saturating_mul(FAN_OUT);
    }
    class
}

/// The smallest class that holds [`FAN_OUT`] runs.
fn full_class(lengths: &[usize]) -> Option<u32> {
    let mut counts = BTreeMap::<u32, usize>::new();
    for length in lengths {
        *counts.entry(size_class(*length)).or_default() += 1;
    }
    counts.into_iter().find(|(_, count)| *count >= FAN_OUT).map(|(class, _)| class)
}

/// One run of all kept entries, in constant memory (but for the filter).
fn merge_runs(path: &Path, runs: &[Run], keep: impl Fn(&Entry) -> bool) -> std::io::Result<Run> {
    let mut heads = std::collections::BinaryHeap::new();
    for (number, run) in runs.iter().enumerate() {
        if !run.is_empty() {
            heads.push(std::cmp::Reverse((run.entry(0), number, 0)));
        }
    }
    let mut writer = RunWriter::create(path, runs.iter().map(|r| r.len() as u64).sum())?;
    while let Some(mut head) = heads.peek_mut() {
        let std::cmp::Reverse((entry, number, place)) = *head;
        if keep(&entry) {
            writer.push(entry)?;
        }
        if place + 1 < runs[number].len() {
            // Changed in place: one sift instead of a pop and a push.
            *head = std::cmp::Reverse((runs[number].entry(place + 1), number, place + 1));
        } else {
            std::collections::binary_heap::PeekMut::pop(head);
        }
    }
    writer.finish()
}

fn failed(doing: &str, path: &Path, error: std::io::Error) -> Error {
    Error::file(Action::Human, &format!("{doing} the key index"), path, error)
}
