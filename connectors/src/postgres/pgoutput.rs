//! Replication frames and pgoutput messages (protocol 1 and 2): `CopyData bytes -> Frame -> Message`, borrowed from the buffer.
//!
//! Forms: <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html> and
//! <https://www.postgresql.org/docs/current/protocol-replication.html>. No bytes make this panic; what is cut short, too long or
//! unknown is [`Error::Malformed`].

use lakeward_event::{Error, Result};

use super::EPOCH_SECONDS;

/// One CopyData of a replication stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// `w`: one pgoutput message.
    XLogData {
        /// Where the message's WAL starts; 0 for messages that have no place.
        start: u64,
        /// The server's current end of WAL.
        end: u64,
        /// The server's clock, microseconds since 1970.
        server_time: i64,
        /// The message, for [`Message::parse`].
        data: &'a [u8],
    },
    /// `k`
    Keepalive {
        /// The server's current end of WAL as far as it is decoded.
        end: u64,
        /// The server's clock, microseconds since 1970.
        server_time: i64,
        /// The server will soon give up unless it hears a [`standby_status`].
        reply: bool,
    },
}

impl<'a> Frame<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes, "replication frame");
        match reader.u8()? {
            b'w' => Ok(Self::XLogData {
                start: reader.u64()?,
                end: reader.u64()?,
                server_time: reader.time()?,
                data: reader.rest(),
            }),
            b'k' => {
                let (end, server_time, reply) = (reader.u64()?, reader.time()?, reader.u8()?);
                reader.end()?;
                Ok(Self::Keepalive { end, server_time, reply: reply != 0 })
            }
            kind => Err(reader.error(format!("unknown kind {:?}", char::from(kind)))),
        }
    }
}

/// The CopyData that tells the server how far its WAL is `written`, `flushed` (it may forget up to here) and `applied`.
/// `now` is our clock, microseconds since 1970.
pub fn standby_status(written: u64, flushed: u64, applied: u64, now: i64, reply: bool) -> [u8; 34] {
    let mut message = [0; 34];
    message[0] = b'r';
    message[1..9].copy_from_slice(&written.to_be_bytes());
    message[9..17].copy_from_slice(&flushed.to_be_bytes());
    message[17..25].copy_from_slice(&applied.to_be_bytes());
    message[25..33].copy_from_slice(&now.wrapping_sub(EPOCH_SECONDS * 1_000_000).to_be_bytes());
    message[33] = u8::from(reply);
    message
}

/// A message of pgoutput. All times are microseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    Begin {
        /// LSN of the transaction's commit record.
        final_lsn: u64,
        commit_time: i64,
        xid: u32,
    },
    Commit {
        commit_lsn: u64,
        /// Where the next transaction can begin: what is confirmed once this one is durable.
        end_lsn: u64,
        commit_time: i64,
    },
    Origin {
        commit_lsn: u64,
        name: &'a str,
    },
    /// Sent before the first change of a table, and again after anything about the table changed.
    Relation(Relation<'a>),
    /// Sent before the first use of a type that is not built in.
    Type {
        oid: u32,
        namespace: &'a str,
        name: &'a str,
    },
    Insert {
        relation: u32,
        new: Tuple<'a>,
    },
    Update {
        relation: u32,
        old: Option<Old<'a>>,
        new: Tuple<'a>,
    },
    Delete {
        relation: u32,
        old: Old<'a>,
    },
    Truncate {
        relations: RelationIds<'a>,
        cascade: bool,
        restart_identity: bool,
    },
    /// `pg_logical_emit_message`.
    Logical {
        transactional: bool,
        lsn: u64,
        prefix: &'a str,
        content: &'a [u8],
    },
    /// Protocol 2: changes of one transaction that is still open follow, until [`Message::StreamStop`].
    StreamStart {
        xid: u32,
        first_segment: bool,
    },
    StreamStop,
    StreamCommit {
        xid: u32,
        commit_lsn: u64,
        end_lsn: u64,
        commit_time: i64,
    },
    /// All changes of `subxid` are void; of the whole transaction where it equals `xid`.
    StreamAbort {
        xid: u32,
        subxid: u32,
    },
}

/// The old side of an update or delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Old<'a> {
    pub kind: OldKind,
    pub tuple: Tuple<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldKind {
    /// `K`: columns of the replica identity; all others are null.
    Key,
    /// `O`: the whole old row (REPLICA IDENTITY FULL).
    Row,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation<'a> {
    pub oid: u32,
    /// `pg_catalog` is sent as the empty string.
    pub namespace: &'a str,
    pub name: &'a str,
    /// `pg_class.relreplident`: `d`, `n`, `f`, `i`.
    pub replica_identity: u8,
    /// In the order of the tuples that follow.
    pub columns: Vec<RelationColumn<'a>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationColumn<'a> {
    /// Part of the replica identity (with FULL: every column).
    pub key: bool,
    pub name: &'a str,
    pub type_oid: u32,
    pub type_modifier: i32,
}

impl<'a> Message<'a> {
    /// Reads one message. `in_stream`: between StreamStart and StreamStop, where changes carry the xid of their
    /// (sub)transaction, which is returned with the message.
    pub fn parse(bytes: &'a [u8], in_stream: bool) -> Result<(Option<u32>, Self)> {
        let mut reader = Reader::new(bytes, "pgoutput message");
        let kind = reader.u8()?;
        let xid = match kind {
            b'R' | b'Y' | b'I' | b'U' | b'D' | b'T' | b'M' if in_stream => Some(reader.u32()?),
            _ => None,
        };
        let message = match kind {
            b'B' => Self::Begin { final_lsn: reader.u64()?, commit_time: reader.time()?, xid: reader.u32()? },
            b'C' => {
                reader.u8()?; // flags, unused
                Self::Commit { commit_lsn: reader.u64()?, end_lsn: reader.u64()?, commit_time: reader.time()? }
            }
            b'O' => Self::Origin { commit_lsn: reader.u64()?, name: reader.text()? },
            b'R' => Self::Relation(reader.relation()?),
            b'Y' => Self::Type { oid: reader.u32()?, namespace: reader.text()?, name: reader.text()? },
            b'I' => {
                let relation = reader.u32()?;
                reader.expect(b'N')?;
                Self::Insert { relation, new: reader.tuple()? }
            }
            b'U' => {
                let relation = reader.u32()?;
                let marker = reader.u8()?;
                let old = if marker == b'N' {
                    None
                } else {
                    let old = reader.old(marker)?;
                    reader.expect(b'N')?;
                    Some(old)
                };
                Self::Update { relation, old, new: reader.tuple()? }
            }
            b'D' => {
                let relation = reader.u32()?;
                let marker = reader.u8()?;
                Self::Delete { relation, old: reader.old(marker)? }
            }
            b'T' => {
                let count = reader.u32()?;
                let options = reader.u8()?;
                let bytes = usize::try_from(count).ok().and_then(|n| n.checked_mul(4));
                let ids = reader.take(bytes.unwrap_or(usize::MAX))?;
                Self::Truncate {
                    relations: RelationIds(ids),
                    cascade: options & 1 != 0,
                    restart_identity: options & 2 != 0,
                }
            }
            b'M' => {
                let transactional = reader.u8()? & 1 != 0;
                let (lsn, prefix) = (reader.u64()?, reader.text()?);
                let length = reader.u32()?;
                Self::Logical { transactional, lsn, prefix, content: reader.take(length as usize)? }
            }
            b'S' => Self::StreamStart { xid: reader.u32()?, first_segment: reader.u8()? != 0 },
            b'E' => Self::StreamStop,
            b'c' => {
                let xid = reader.u32()?;
                reader.u8()?; // flags, unused
                Self::StreamCommit {
                    xid,
                    commit_lsn: reader.u64()?,
                    end_lsn: reader.u64()?,
                    commit_time: reader.time()?,
                }
            }
            b'A' => Self::StreamAbort { xid: reader.u32()?, subxid: reader.u32()? },
            kind => return Err(reader.error(format!("unknown kind {:?}", char::from(kind)))),
        };
        reader.end()?;
        Ok((xid, message))
    }
}

/// The tables of a Truncate, by oid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationIds<'a>(&'a [u8]);

impl RelationIds<'_> {
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.chunks_exact(4).map(|id| u32::from_be_bytes([id[0], id[1], id[2], id[3]]))
    }
}

/// A row's values in the order of the Relation message. Checked when the message was parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    columns: u16,
    bytes: &'a [u8],
}

/// One value of a [`Tuple`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    Null,
    /// A TOAST value that the update did not touch: the server does not send it.
    Unchanged,
    /// The output function's text.
    Text(&'a [u8]),
    /// The send function's bytes (`binary 'true'`, or COPY BINARY).
    Binary(&'a [u8]),
}

impl<'a> Tuple<'a> {
    /// How many values.
    pub fn len(&self) -> usize {
        usize::from(self.columns)
    }
    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }
    /// How many bytes the values take in the message.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }
    pub fn iter(&self) -> Values<'a> {
        Values { left: self.columns, reader: Reader::new(self.bytes, "tuple") }
    }
}

/// Iterator over a [`Tuple`].
#[derive(Debug, Clone)]
pub struct Values<'a> {
    left: u16,
    reader: Reader<'a>,
}

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;
    #[inline]
    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        // Parsing walked the same bytes with the same function.
        self.reader.value().ok()
    }
}

/// Cursor over a message's bytes.
#[derive(Debug, Clone)]
struct Reader<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { bytes, what }
    }

    #[cold]
    fn error(&self, reason: impl Into<String>) -> Error {
        Error::malformed(self.what, reason)
    }

    #[inline]
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        match self.bytes.split_at_checked(length) {
            Some((head, tail)) => {
                self.bytes = tail;
                Ok(head)
            }
            None => Err(self.error(format!("{length} bytes wanted, {} left", self.bytes.len()))),
        }
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        match self.bytes.split_first_chunk() {
            Some((head, tail)) => {
                self.bytes = tail;
                Ok(*head)
            }
            None => Err(self.error(format!("{N} bytes wanted, {} left", self.bytes.len()))),
        }
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }
    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.array()?))
    }
    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }
    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// Microseconds since 2000 to microseconds since 1970.
    fn time(&mut self) -> Result<i64> {
        let time = i64::from_be_bytes(self.array()?);
        time.checked_add(EPOCH_SECONDS * 1_000_000).ok_or_else(|| self.error("time out of range"))
    }

    /// A string that ends with a zero byte.
    fn text(&mut self) -> Result<&'a str> {
        let Some(length) = self.bytes.iter().position(|b| *b == 0) else {
            return Err(self.error("string without end"));
        };
        let text = std::str::from_utf8(self.take(length)?).map_err(|e| self.error(format!("name: {e}")))?;
        self.u8()?;
        Ok(text)
    }

    fn expect(&mut self, marker: u8) -> Result<()> {
        match self.u8()? {
            found if found == marker => Ok(()),
            found => Err(self.error(format!("{:?} where {:?} belongs", char::from(found), char::from(marker)))),
        }
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }

    fn end(&self) -> Result<()> {
        if self.bytes.is_empty() { Ok(()) } else { Err(self.error(format!("{} bytes too many", self.bytes.len()))) }
    }

    fn relation(&mut self) -> Result<Relation<'a>> {
        let (oid, namespace, name) = (self.u32()?, self.text()?, self.text()?);
        let (replica_identity, count) = (self.u8()?, self.u16()?);
        let mut columns = Vec::with_capacity(usize::from(count).min(self.bytes.len()));
        for _ in 0..count {
            columns.push(RelationColumn {
                key: self.u8()? & 1 != 0,
                name: self.text()?,
                type_oid: self.u32()?,
                type_modifier: self.u32()? as i32,
            });
        }
        Ok(Relation { oid, namespace, name, replica_identity, columns })
    }

    fn old(&mut self, marker: u8) -> Result<Old<'a>> {
        let kind = match marker {
            b'K' => OldKind::Key,
            b'O' => OldKind::Row,
            other => return Err(self.error(format!("{:?} where an old row belongs", char::from(other)))),
        };
        Ok(Old { kind, tuple: self.tuple()? })
    }

    fn tuple(&mut self) -> Result<Tuple<'a>> {
        let columns = self.u16()?;
        let start = self.bytes;
        for _ in 0..columns {
            self.value()?;
        }
        Ok(Tuple { columns, bytes: &start[..start.len() - self.bytes.len()] })
    }

    #[inline]
    fn value(&mut self) -> Result<Value<'a>> {
        match self.u8()? {
            b'n' => Ok(Value::Null),
            b'u' => Ok(Value::Unchanged),
            b't' => {
                let length = self.u32()?;
                Ok(Value::Text(self.take(length as usize)?))
            }
            b'b' => {
                let length = self.u32()?;
                Ok(Value::Binary(self.take(length as usize)?))
            }
            kind => Err(self.error(format!("unknown kind of value {:?}", char::from(kind)))),
        }
    }
}

#[cfg(test)]
#[path = "pgoutput/tests.rs"]
mod tests;
