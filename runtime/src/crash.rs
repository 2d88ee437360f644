//! Named points where a test kills the process, as `kill -9` would: `FAILPOINTS="log.append.sent=3*off->return"` dies at the
//! fourth pass. Compiled in only with the feature `failpoints`; costs nothing otherwise.
//!
//! A point is written `lakeward_runtime::crash_point!("log.append.sent")`.

/// Dies here, without unwinding, if the test named this point.
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {
        $crate::fail::fail_point!($name, |_| $crate::crash::die($name))
    };
}

/// Says that the point fired, then is killed. Never returns; the type is whatever the enclosing function returns.
pub fn die<T>(name: &str) -> T {
    eprintln!("failpoint {name} fired");
    // SIGKILL cannot be sent by the standard library; `kill` is in every base system.
    let _ = std::process::Command::new("kill").args(["-9", &std::process::id().to_string()]).status();
    std::process::abort()
}

/// Reads `FAILPOINTS`; the binary calls it first.
pub fn setup() {
    if cfg!(feature = "failpoints") {
        // Dropping the scenario would clear the points again.
        std::mem::forget(fail::FailScenario::setup());
    }
}
