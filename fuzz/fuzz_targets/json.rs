//! The decoder of the `json` codec, both forms.
#![no_main]

use std::sync::LazyLock;

use lakeward_event::codec::RecordBlock;
use lakeward_event::codec::json::JsonEncoder;
use libfuzzer_sys::fuzz_target;

static REAL: LazyLock<[RecordBlock; 2]> = LazyLock::new(|| {
    [false, true].map(|inline| lakeward_fuzz::records(&mut JsonEncoder::default().with_inline_schemas(inline)))
});

fuzz_target!(|input: &[u8]| {
    // Records without and with their schemas, by the first bit.
    if let Some((first, input)) = input.split_first() {
        lakeward_fuzz::run(&REAL[usize::from(first & 1)], input);
    }
});
