//! The decoder of Debezium's topics.
#![no_main]

use std::sync::LazyLock;

use lakeward_fuzz::foreign::{Recorded, recorded, run};
use libfuzzer_sys::fuzz_target;

static REAL: LazyLock<Vec<Recorded>> = LazyLock::new(recorded);

fuzz_target!(|input: &[u8]| run(&REAL, input));
