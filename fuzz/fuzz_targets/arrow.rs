//! The decoder of the `arrow` codec.
#![no_main]

use std::sync::LazyLock;

use lakeward_event::codec::RecordBlock;
use lakeward_event::codec::arrow::ArrowEncoder;
use libfuzzer_sys::fuzz_target;

static REAL: LazyLock<RecordBlock> =
    LazyLock::new(|| lakeward_fuzz::records(&mut ArrowEncoder::new().expect("an encoder")));

fuzz_target!(|input: &[u8]| lakeward_fuzz::run(&REAL, input));
