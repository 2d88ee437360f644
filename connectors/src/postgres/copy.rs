//! signatures first; bodies follow in the next commits
use lakeward_event::Result;
use super::tuple::{RowMeta, TableBuilder};

/// Decoder of one `COPY (SELECT {shape.snapshot_select()} FROM ...) TO STDOUT (FORMAT binary)`.
pub struct CopyDecoder { /* private */ }

impl CopyDecoder {
    pub fn new() -> Self { unimplemented!() }
    /// Takes the next bytes of the stream, cut anywhere; appends every whole row as `Op::Read`, the first with `meta.sequence`, each further one with one more. Returns how many rows.
    pub fn feed(&mut self, chunk: &[u8], builder: &mut TableBuilder, meta: RowMeta) -> Result<u64> { unimplemented!() }
    /// The stream has ended: an error unless the trailer was seen and nothing is left over.
    pub fn finish(self) -> Result<()> { unimplemented!() }
}
