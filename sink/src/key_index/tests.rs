//! The index against a plain map of the same entries, through merges, restarts and broken files.
#![allow(clippy::unwrap_used)]
use super::*;
use proptest::prelude::*;

fn definition() -> Definition {
    Definition { table_uuid: "t".into(), encoding: 1, key: vec![1] }
}

fn hash(key: u64) -> u128 {
    xxhash_rust::xxh3::xxh3_128(&key.to_le_bytes())
}

/// All live places of some keys, as the index sees them.
fn found(index: &KeyIndex, keys: &[u64]) -> BTreeMap<u64, Vec<(String, u32)>> {
    let mut hashes: Vec<(u128, u64)> = keys.iter().map(|k| (hash(*k), *k)).collect();
    hashes.sort_unstable();
    let sorted: Vec<u128> = hashes.iter().map(|h| h.0).collect();
    let mut out = BTreeMap::<u64, Vec<(String, u32)>>::new();
    index.lookup(&sorted, |i, e| {
        out.entry(hashes[i].1).or_default().push((index.path(e.file).unwrap().to_owned(), e.row));
    });
    out.values_mut().for_each(|places| places.sort());
    out
}

fn add(index: &mut KeyIndex, path: &str, keys: &[u64]) {
    let file = index.add_file(path);
    let entries = keys.iter().enumerate().map(|(row, k)| Entry { hash: hash(*k), file, row: row as u32 }).collect();
    index.add(entries).unwrap();
}

#[test]
fn survives_a_restart_and_finds_every_key() {
    let folder = tempfile::tempdir().unwrap();
    let mut index = KeyIndex::open(folder.path(), definition()).unwrap();
    assert_eq!(index.snapshot(), None);
    // Enough for several size classes.
    for file in 0..20u64 {
        let keys: Vec<u64> = (file * 3_000..(file + 1) * 3_000).collect();
        add(&mut index, &format!("f{file}"), &keys);
        index.merge(|_, _| false).unwrap();
    }
    index.save(7).unwrap();
    assert!(index.runs.len() < 2 * FAN_OUT, "merged");
    assert_eq!(index.entries(), 60_000);
    drop(index);
    let index = KeyIndex::open(folder.path(), definition()).unwrap();
    assert_eq!(index.snapshot(), Some(7));
    let keys: Vec<u64> = (0..70_000).collect();
    let all = found(&index, &keys);
    assert_eq!(all.len(), 60_000);
    assert_eq!(all[&31_234], [("f10".to_owned(), 1_234)]);
}

#[test]
fn another_definition_or_a_damaged_file_starts_empty() {
    let folder = tempfile::tempdir().unwrap();
    let mut index = KeyIndex::open(folder.path(), definition()).unwrap();
    add(&mut index, "f", &[1, 2, 3]);
    index.save(1).unwrap();
    let run = index.runs[0].path().to_owned();
    drop(index);
    let other = Definition { key: vec![2], ..definition() };
    assert_eq!(KeyIndex::open(folder.path(), other).unwrap().snapshot(), None);
    // The strays of the refused index are gone; make it again and damage one byte of an entry.
    let mut index = KeyIndex::open(folder.path(), definition()).unwrap();
    assert_eq!(index.snapshot(), None);
    add(&mut index, "f", &[1, 2, 3]);
    index.save(1).unwrap();
    drop(index);
    let run = if run.exists() { run } else { folder.path().join("0000000000.run") };
    let mut bytes = std::fs::read(&run).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&run, bytes).unwrap();
    assert_eq!(KeyIndex::open(folder.path(), definition()).unwrap().snapshot(), None);
}

#[test]
fn an_unsaved_change_is_not_there_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let mut index = KeyIndex::open(folder.path(), definition()).unwrap();
    add(&mut index, "a", &[1]);
    index.save(1).unwrap();
    add(&mut index, "b", &[2]);
    drop(index);
    let mut index = KeyIndex::open(folder.path(), definition()).unwrap();
    assert!(found(&index, &[2]).is_empty());
    let difference = index.difference(["b", "c"].into_iter());
    assert_eq!(difference, Difference { appeared: vec!["b".into(), "c".into()], vanished: vec!["a".into()] });
    index.remove_files(["a"].into_iter());
    assert!(found(&index, &[1]).is_empty());
}

#[test]
fn size_classes_grow_by_the_fan_out() {
    assert_eq!([1, 8_192, 8_193, 65_536, 65_537].map(size_class), [0, 0, 1, 1, 2]);
    assert_eq!(full_class(&[1; 7]), None);
    assert_eq!(full_class(&[1; 8]), Some(0));
    assert_eq!(full_class(&[10_000, 10_000, 10_000, 10_000, 10_000, 10_000, 10_000, 10_000, 5]), Some(1));
}

#[derive(Debug, Clone)]
enum Step {
    Add(Vec<u64>),
    RemoveOldest,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => proptest::collection::vec(0..200u64, 1..40).prop_map(Step::Add),
        1 => Just(Step::RemoveOldest),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn is_the_map_of_what_was_added(steps in steps()) {
        let folder = tempfile::tempdir().unwrap();
        let mut index = KeyIndex::open(folder.path(), definition()).unwrap();
        let mut model = BTreeMap::<String, Vec<u64>>::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Add(keys) => {
                    let path = format!("{number:04}");
                    add(&mut index, &path, &keys);
                    model.insert(path, keys);
                }
                Step::RemoveOldest => {
                    if let Some((path, _)) = model.pop_first() {
                        index.remove_files([path.as_str()].into_iter());
                    }
                }
                Step::Reopen => {
                    index.save(1).unwrap();
                    index = KeyIndex::open(folder.path(), definition()).unwrap();
                }
            }
            index.merge(|_, _| false).unwrap();
        }
        let mut expected = BTreeMap::<u64, Vec<(String, u32)>>::new();
        for (path, keys) in &model {
            for (row, key) in keys.iter().enumerate() {
                expected.entry(*key).or_default().push((path.clone(), row as u32));
            }
        }
        prop_assert_eq!(found(&index, &(0..250).collect::<Vec<_>>()), expected);
    }
}

/// Hashes are uniform, so a guess by proportion finds them; where they are not, the search is still right.
#[test]
fn a_wrong_guess_is_searched_again() {
    let folder = tempfile::tempdir().unwrap();
    for shift in [0, 100] {
        let mut index = KeyIndex::open(&folder.path().join(shift.to_string()), definition()).unwrap();
        let file = index.add_file("f");
        let hash = |i: u32| (u128::MAX * u128::from(shift > 0)) ^ (u128::from(i) << (shift / 2));
        index.add((0..5_000).map(|row| Entry { hash: hash(row), file, row }).collect()).unwrap();
        let mut wanted: Vec<u128> = (0..5_000).map(hash).collect();
        wanted.sort_unstable();
        let mut hits = Vec::new();
        index.lookup(&wanted, |place, entry| hits.push((place, hash(entry.row))));
        let expected: Vec<(usize, u128)> = wanted.iter().copied().enumerate().collect();
        assert_eq!(hits, expected);
    }
}
