//! The decoder of the `json` codec.
#![no_main]

use std::sync::LazyLock;

use lakeward_event::codec::RecordBlock;
use lakeward_event::codec::json::JsonEncoder;
use libfuzzer_sys::fuzz_target;

static REAL: LazyLock<RecordBlock> = LazyLock::new(|| lakeward_fuzz::records(&mut JsonEncoder::default()));

fuzz_target!(|input: &[u8]| lakeward_fuzz::run(&REAL, input));
