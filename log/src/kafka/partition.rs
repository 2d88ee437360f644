//! One partition as a reader has fetched it: librdkafka's queue of the partition -> records below an end, in order.
//!
//! Each partition has a queue of its own, so that what lies beyond an end stays where it is, bounded, until it is asked for. The
//! queue is drained in batches through librdkafka's own call: the `poll` of rdkafka makes an event, and an allocation, per
//! record.

use std::ffi::{CString, c_char, c_void};
use std::ops::ControlFlow;
use std::sync::Arc;

use lakeward_event::codec::debezium::OLD_KEY;
use lakeward_event::codec::{HEADER, RecordRef};
use rdkafka::bindings as rdsys;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::types::RDKafkaRespErr;

use super::client::{Client, Consumer};
use super::error;
use crate::{Error, Result};

/// Records taken from the queue at a time: enough that the call costs nothing per record.
const BATCH: usize = 512;

pub(super) struct Partition {
    pub topic: String,
    pub partition: i32,
    /// Every committed record below it has been handed out.
    pub position: i64,
    queue: *mut rdsys::rd_kafka_queue_t,
    /// Taken from the queue and not handed out yet: `fetched[next..]`, each owned by us.
    fetched: Vec<*mut rdsys::rd_kafka_message_t>,
    next: usize,
    /// Keeps the client alive as long as its queue.
    consumer: Arc<Consumer>,
}

// SAFETY: librdkafka's queues and messages may be used and freed on any thread; `&mut self` keeps it to one at a time.
unsafe impl Send for Partition {}

/// What a look into the queue found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Everything below the end has been handed out.
    Reached,
    /// There was nothing to hand out.
    Nothing,
    /// Records were handed out, or passed over.
    Some,
    /// The visitor has had enough.
    Broke,
}

impl Partition {
    /// Takes the partition's queue out of the consumer's. Call it before the partition is assigned.
    pub fn new(consumer: Arc<Consumer>, topic: &str, partition: i32, offset: i64) -> Result<Self> {
        let name = CString::new(topic).map_err(|e| Error::bug("a topic name with a NUL").source(e))?;
        // SAFETY: the client is alive; the queue we get is ours to destroy. Forwarding it to nothing, before the assignment,
        // marks it so that the assignment does not forward it to the consumer's queue again.
        let queue = unsafe {
            let queue = rdsys::rd_kafka_queue_get_partition(consumer.client().native_ptr(), name.as_ptr(), partition);
            if !queue.is_null() {
                rdsys::rd_kafka_queue_forward(queue, std::ptr::null_mut());
            }
            queue
        };
        if queue.is_null() {
            return Err(Error::bug("no queue for a partition").with("topic", topic).with("partition", partition));
        }
        Ok(Self {
            topic: topic.to_owned(),
            partition,
            position: offset,
            queue,
            fetched: Vec::with_capacity(BATCH),
            next: 0,
            consumer,
        })
    }

    /// Hands out what is there below `end`, waiting at most `wait_ms` for the first of it.
    pub fn read(
        &mut self,
        client: &Client,
        end: i64,
        wait_ms: i32,
        take: &mut dyn FnMut(&RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<Progress> {
        if self.position >= end {
            return Ok(Progress::Reached);
        }
        if self.next >= self.fetched.len() && !self.fetch(wait_ms) {
            return Ok(Progress::Nothing);
        }
        while let Some(&message) = self.fetched.get(self.next) {
            // SAFETY: messages in `fetched[next..]` are alive and ours.
            let (code, offset) = unsafe { ((*message).err, (*message).offset) };
            if code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                self.next += 1;
                let result = self.event(client, code, offset);
                // SAFETY: as above; `next` has passed it.
                unsafe { rdsys::rd_kafka_message_destroy(message) };
                result?;
            } else if offset >= end {
                // Between the last record below the end and this one are only markers and aborted records.
                self.position = self.position.max(end);
            } else {
                self.next += 1;
                let flow = if offset >= self.position {
                    self.position = offset + 1;
                    // SAFETY: the record's slices live as long as the message, which is destroyed after the call.
                    take(&unsafe { record(&self.topic, self.partition, message) })
                } else {
                    // Handed out before: a leader change can make the client fetch again.
                    ControlFlow::Continue(())
                };
                // SAFETY: as above.
                unsafe { rdsys::rd_kafka_message_destroy(message) };
                if flow.is_break() {
                    return Ok(Progress::Broke);
                }
            }
            if self.position >= end {
                return Ok(Progress::Reached);
            }
        }
        Ok(Progress::Some)
    }

    /// Refills `fetched`; false: nothing came.
    fn fetch(&mut self, wait_ms: i32) -> bool {
        self.next = 0;
        // SAFETY: the queue is alive; at most `capacity` pointers are written, and exactly `count` of them are messages that
        // become ours. A call with a time-out waits until its array is full, so waiting is done for one message alone.
        self.fetched.clear();
        let count = unsafe {
            let into = self.fetched.as_mut_ptr();
            let count = rdsys::rd_kafka_consume_batch_queue(self.queue, 0, into, BATCH);
            if count == 0 && wait_ms > 0 {
                rdsys::rd_kafka_consume_batch_queue(self.queue, wait_ms, into, 1)
            } else {
                count
            }
        };
        let count = usize::try_from(count).unwrap_or(0);
        // SAFETY: `count` pointers were written.
        unsafe { self.fetched.set_len(count) };
        count > 0
    }

    /// Something other than a record in the queue.
    fn event(&mut self, client: &Client, code: RDKafkaRespErr, offset: i64) -> Result<()> {
        let code = Code::from(code);
        let doing = || client.doing("reading records").topic(&self.topic);
        match code {
            Code::PartitionEOF => {
                // Also past markers and aborted records at the end, which come as nothing else.
                self.position = self.position.max(offset);
                Ok(())
            }
            Code::AutoOffsetReset | Code::OffsetOutOfRange => Err(self.out_of_range(client)),
            code if error::heals_by_itself(code) => {
                tracing::debug!(topic = self.topic, partition = self.partition, %code, "fetch failed, librdkafka tries again");
                Ok(())
            }
            // The client says so of a topic that it lost sight of, too, and may never look again: the cluster's own list decides.
            code if error::MISSING.contains(&code) && client.has(&self.topic, self.partition)? => {
                Err(Error::retry("the client lost sight of a partition that the brokers have")
                    .with("topic", &self.topic)
                    .with("partition", self.partition))
            }
            code => Err(error::classify_code(code, doing()).with("partition", self.partition)),
        }
    }

    fn out_of_range(&self, client: &Client) -> Error {
        let (low, high) = match client.watermarks(&self.topic, self.partition) {
            Ok(bounds) => bounds,
            Err(error) => return error,
        };
        let message = if self.position < low {
            "the log was cut off before it was read: its retention is shorter than the time reading stood still"
        } else {
            "the log ends before the offset to read from: was the topic deleted and made again?"
        };
        Error::human(message)
            .with("topic", &self.topic)
            .with("partition", self.partition)
            .with("offset", self.position)
            .with("first_offset", low)
            .with("end_offset", high)
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        for &message in self.fetched.get(self.next..).unwrap_or_default() {
            // SAFETY: not handed out, so still ours.
            unsafe { rdsys::rd_kafka_message_destroy(message) };
        }
        // SAFETY: ours since `new`; the consumer outlives it.
        unsafe { rdsys::rd_kafka_queue_destroy(self.queue) };
    }
}

impl std::fmt::Debug for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}[{}]@{} of {:p}", self.topic, self.partition, self.position, Arc::as_ptr(&self.consumer))
    }
}

/// A message as a record that borrows from it.
///
/// # Safety
/// `message` is a consumed message without error, and is not destroyed while the record is used.
unsafe fn record<'a>(topic: &'a str, partition: i32, message: *mut rdsys::rd_kafka_message_t) -> RecordRef<'a> {
    // SAFETY: librdkafka gives a pointer and a length, or NULL.
    unsafe {
        let message_ref = &*message;
        RecordRef {
            topic,
            partition,
            offset: message_ref.offset,
            key: bytes(message_ref.key, message_ref.key_len),
            value: bytes(message_ref.payload, message_ref.len),
            header: header(message),
        }
    }
}

/// # Safety
/// `start` is NULL or points to `len` bytes that live for `'a`.
unsafe fn bytes<'a>(start: *const c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: the caller's promise.
    (!start.is_null()).then(|| unsafe { std::slice::from_raw_parts(start.cast::<u8>(), len) })
}

/// The value of our header, or of the one that Debezium marks a changed key with. Looked up by name in C: rdkafka's own reading
/// of headers panics at names that are not UTF-8.
///
/// # Safety
/// As for [`record`].
unsafe fn header<'a>(message: *mut rdsys::rd_kafka_message_t) -> Option<&'a [u8]> {
    const NAMES: [&[u8]; 2] = [b"lakeward\0", b"__debezium.oldkey\0"];
    const { assert!(NAMES[0].len() == HEADER.len() + 1 && NAMES[1].len() == OLD_KEY.len() + 1) };
    let mut headers = std::ptr::null_mut();
    let mut value: *const c_void = std::ptr::null();
    let mut len = 0;
    // SAFETY: the headers belong to the message and live as long.
    unsafe {
        if rdsys::rd_kafka_message_headers(message, &mut headers) != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        for name in NAMES {
            let found = rdsys::rd_kafka_header_get_last(headers, name.as_ptr().cast::<c_char>(), &mut value, &mut len);
            if found == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                return bytes(value, len);
            }
        }
        None
    }
}
