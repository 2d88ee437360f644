//! Work that blocks, away from the runtime's own threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Runs what blocks on a thread where that is allowed.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    settled(tokio::task::spawn_blocking(work)).await
}

/// Runs to its end what must not be broken off when the caller is.
pub(crate) async fn to_its_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    settled(tokio::spawn(work)).await
}

async fn settled<T>(task: tokio::task::JoinHandle<T>) -> T {
    match task.await {
        Ok(done) => done,
        Err(join) => match join.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Such work is cancelled only when the runtime goes down, and then nobody polls this.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Sets its flag when the future that waits is dropped, so that the thread that works for it stops.
pub(crate) struct AbandonOnDrop(pub Arc<AtomicBool>);

impl Drop for AbandonOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
