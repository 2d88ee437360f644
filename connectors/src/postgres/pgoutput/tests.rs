//! Messages as a server sends them, cut short at every byte, and random ones.
#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

/// Builds messages as the server does.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn new(kind: u8) -> Self {
        Self(vec![kind])
    }
    fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }
    fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }
    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }
    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }
    fn text(mut self, value: &str) -> Self {
        self.0.extend(value.as_bytes());
        self.u8(0)
    }
    fn value(mut self, kind: u8, value: &[u8]) -> Self {
        self = self.u8(kind).u32(value.len() as u32);
        self.0.extend(value);
        self
    }
}

fn relation() -> Vec<u8> {
    Writer::new(b'R')
        .u32(16_400)
        .text("public")
        .text("orders")
        .u8(b'd')
        .u16(2)
        .u8(1)
        .text("id")
        .u32(23)
        .u32(u32::MAX)
        .u8(0)
        .text("note")
        .u32(25)
        .u32(u32::MAX)
        .0
}

fn update() -> Vec<u8> {
    let old = Writer::new(b'U').u32(16_400).u8(b'K').u16(2).value(b't', b"1").u8(b'n');
    old.u8(b'N').u16(3).value(b't', b"2").u8(b'u').value(b'b', &[0, 255]).0
}

/// One of each kind.
fn messages() -> Vec<Vec<u8>> {
    vec![
        Writer::new(b'B').u64(7).u64(0).u32(500).0,
        Writer::new(b'C').u8(0).u64(7).u64(8).u64(1).0,
        Writer::new(b'O').u64(7).text("origin").0,
        relation(),
        Writer::new(b'Y').u32(9_000).text("public").text("mood").0,
        Writer::new(b'I').u32(16_400).u8(b'N').u16(1).u8(b'n').0,
        update(),
        Writer::new(b'D').u32(16_400).u8(b'O').u16(1).value(b't', b"").0,
        Writer::new(b'T').u32(2).u8(3).u32(16_400).u32(16_401).0,
        Writer::new(b'M').u8(1).u64(7).text("lakeward").value(b'x', b"tick").0,
        Writer::new(b'S').u32(500).u8(1).0,
        Writer::new(b'E').0,
        Writer::new(b'c').u32(500).u8(0).u64(7).u64(8).u64(1).0,
        Writer::new(b'A').u32(500).u32(501).0,
    ]
}

fn parse(bytes: &[u8]) -> Message<'_> {
    Message::parse(bytes, false).unwrap().1
}

#[test]
fn begin_and_commit_have_unix_times() {
    let all = messages();
    assert_eq!(parse(&all[0]), Message::Begin { final_lsn: 7, commit_time: 946_684_800_000_000, xid: 500 });
    assert_eq!(parse(&all[1]), Message::Commit { commit_lsn: 7, end_lsn: 8, commit_time: 946_684_800_000_001 });
    assert_eq!(
        parse(&all[12]),
        Message::StreamCommit { xid: 500, commit_lsn: 7, end_lsn: 8, commit_time: 946_684_800_000_001 }
    );
}

#[test]
fn relation_names_its_columns() {
    let bytes = relation();
    let Message::Relation(relation) = parse(&bytes) else { panic!() };
    assert_eq!((relation.oid, relation.namespace, relation.name), (16_400, "public", "orders"));
    assert_eq!(relation.replica_identity, b'd');
    let id = RelationColumn { key: true, name: "id", type_oid: 23, type_modifier: -1 };
    let note = RelationColumn { key: false, name: "note", type_oid: 25, type_modifier: -1 };
    assert_eq!(relation.columns, [id, note]);
}

#[test]
fn update_has_both_tuples() {
    let bytes = update();
    let Message::Update { relation: 16_400, old: Some(old), new } = parse(&bytes) else { panic!() };
    assert_eq!(old.kind, OldKind::Key);
    assert_eq!(old.tuple.iter().collect::<Vec<_>>(), [Value::Text(b"1"), Value::Null]);
    assert_eq!(new.len(), 3);
    assert_eq!(new.iter().collect::<Vec<_>>(), [Value::Text(b"2"), Value::Unchanged, Value::Binary(&[0, 255])]);
}

#[test]
fn the_others_are_read_too() {
    let all = messages();
    let Message::Truncate { relations, cascade: true, restart_identity: true } = parse(&all[8]) else { panic!() };
    assert_eq!(relations.iter().collect::<Vec<_>>(), [16_400, 16_401]);
    assert_eq!(parse(&all[10]), Message::StreamStart { xid: 500, first_segment: true });
    assert_eq!(parse(&all[11]), Message::StreamStop);
    assert_eq!(parse(&all[13]), Message::StreamAbort { xid: 500, subxid: 501 });
}

#[test]
fn a_logical_message_has_prefix_and_content() {
    let bytes = [&Writer::new(b'M').u8(1).u64(7).text("lakeward").u32(4).0[..], b"tick"].concat();
    let expected = Message::Logical { transactional: true, lsn: 7, prefix: "lakeward", content: b"tick" };
    assert_eq!(parse(&bytes), expected);
}

#[test]
fn in_a_stream_changes_carry_their_xid() {
    let bytes = Writer::new(b'I').u32(501).u32(16_400).u8(b'N').u16(1).u8(b'n').0;
    let (xid, message) = Message::parse(&bytes, true).unwrap();
    assert_eq!(xid, Some(501));
    assert!(matches!(message, Message::Insert { relation: 16_400, .. }));
    assert!(Message::parse(&bytes, false).is_err());
    let stop = Writer::new(b'E').0;
    assert_eq!(Message::parse(&stop, true).unwrap(), (None, Message::StreamStop));
}

#[test]
fn frames_and_status() {
    let frame = Writer::new(b'w').u64(1).u64(2).u64(3).u8(b'E').0;
    let expected = Frame::XLogData { start: 1, end: 2, server_time: 946_684_800_000_003, data: b"E" };
    assert_eq!(Frame::parse(&frame).unwrap(), expected);
    let frame = Writer::new(b'k').u64(2).u64(3).u8(1).0;
    let expected = Frame::Keepalive { end: 2, server_time: 946_684_800_000_003, reply: true };
    assert_eq!(Frame::parse(&frame).unwrap(), expected);
    let status = standby_status(1, 2, 3, 946_684_800_000_004, true);
    assert_eq!(status[..], Writer::new(b'r').u64(1).u64(2).u64(3).u64(4).u8(1).0);
}

#[test]
fn what_is_cut_short_or_too_long_is_an_error() {
    for message in messages().iter().filter(|m| m[0] != b'M') {
        assert!(Message::parse(message, false).is_ok());
        for length in 0..message.len() {
            assert!(Message::parse(&message[..length], false).is_err(), "{message:?} cut to {length}");
        }
        assert!(Message::parse(&[&message[..], &[0]].concat(), false).is_err(), "{message:?} and more");
    }
    let endless = Writer::new(b'I').u32(1).u8(b'N').u16(1).u8(b't').u32(u32::MAX).0;
    assert!(Message::parse(&endless, false).is_err());
    assert!(Message::parse(&Writer::new(b'T').u32(u32::MAX).u8(0).0, false).is_err());
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), stream: bool) {
        let _ = Frame::parse(&bytes);
        let _ = Message::parse(&bytes, stream);
    }

    /// Messages with one byte changed come further than random bytes do.
    #[test]
    fn no_flipped_byte_panics(which in 0..14usize, at: prop::sample::Index, byte: u8, stream: bool) {
        let mut message = messages().swap_remove(which);
        let at = at.index(message.len());
        message[at] = byte;
        if let Ok((_, Message::Insert { new, .. } | Message::Update { new, .. })) = Message::parse(&message, stream) {
            prop_assert_eq!(new.iter().count(), new.len());
        }
    }
}
