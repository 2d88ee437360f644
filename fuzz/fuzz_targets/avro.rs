//! The decoder of the `avro` codec: damaged data, and real data by damaged schemas.
#![no_main]

use std::sync::LazyLock;

use lakeward_event::codec::RecordBlock;
use lakeward_event::codec::avro::AvroEncoder;
use lakeward_fuzz::REGISTRY;
use libfuzzer_sys::fuzz_target;

static REAL: LazyLock<RecordBlock> = LazyLock::new(|| lakeward_fuzz::records(&mut AvroEncoder::new(REGISTRY.clone())));

fuzz_target!(|input: &[u8]| {
    let real = &*REAL;
    match input.split_first() {
        Some((3, edits)) => {
            let mut texts = REGISTRY.texts();
            // Which schema, place (two bytes), new character.
            for edit in edits.chunks_exact(4) {
                let text = &mut texts[usize::from(edit[0]) % REGISTRY.texts().len()];
                let at = usize::from(u16::from_le_bytes([edit[1], edit[2]]));
                if text.is_char_boundary(at) && text.is_char_boundary(at + 1) {
                    text.replace_range(at..=at, &char::from(edit[3]).to_string());
                }
            }
            lakeward_fuzz::run_schemas(real, texts);
        }
        // A schema for everything, as it stands there.
        Some((5, text)) => {
            let text = String::from_utf8_lossy(text).into_owned();
            lakeward_fuzz::run_schemas(real, vec![text; REGISTRY.texts().len()]);
        }
        _ => lakeward_fuzz::run(real, input),
    }
});
