//! SIGTERM or SIGINT -> a token that every part watches; a second signal ends the process at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{Error, Result};

/// The exit code after a second signal: 128 + SIGINT, as a shell would report it.
const IMPATIENT: i32 = 130;

/// Listens from now on. The token is cancelled at the first signal.
pub fn on_signals() -> Result<CancellationToken> {
    let listen = |kind| signal(kind).map_err(|e| Error::human("cannot listen for signals").source(e));
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        };
        let name = next().await;
        tracing::info!(signal = name, "shutting down; a second signal ends at once");
        cancelled.cancel();
        let name = next().await;
        tracing::warn!(signal = name, "ending at once");
        std::process::exit(IMPATIENT);
    });
    Ok(token)
}
