//! Trying again: an error that says [`Action::Retry`] -> a wait that grows -> the next try.

use std::time::Duration;

use rand::Rng as _;
use tokio_util::sync::CancellationToken;

use crate::{Action, Error, Result};

/// The wait after the first failure: a lost connection is usually back at once.
const FIRST: Duration = Duration::from_millis(200);
/// No wait is longer: when a server is back, work goes on within this time.
const CAP: Duration = Duration::from_secs(15);

/// Waits between tries: each twice the one before up to a cap, less up to half of it by chance, so that many who lost the same
/// server do not come back together.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    pub fn new() -> Self {
        Self::default()
    }

    /// To be called when something went well: the next failure is a first one.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Logs the failure of `what` and waits; gives the error back when it is not one to try again after, or at shutdown.
    pub async fn wait(&mut self, what: &str, error: Error, shutdown: &CancellationToken) -> Result<()> {
        if error.action() != Action::Retry || shutdown.is_cancelled() {
            return Err(error);
        }
        let delay = self.next_delay();
        tracing::warn!(error = %error, tries = self.failures, again_in_ms = delay.as_millis() as u64, "{what} failed, trying again");
        tokio::select! {
            () = tokio::time::sleep(delay) => Ok(()),
            () = shutdown.cancelled() => Err(error),
        }
    }

    fn next_delay(&mut self) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(16)).min(CAP);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

/// Does `work` until it succeeds, fails with an error that trying again does not cure, or the process shuts down.
pub async fn retry<T, F, Fut>(what: &str, shutdown: &CancellationToken, mut work: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let mut backoff = Backoff::new();
    loop {
        match work().await {
            Ok(done) => return Ok(done),
            Err(error) => backoff.wait(what, error, shutdown).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_start_over() {
        let mut backoff = Backoff::new();
        let delays: Vec<_> = (0..12).map(|_| backoff.next_delay()).collect();
        assert!(delays[0] >= FIRST / 2 && delays[0] <= FIRST);
        assert!(delays[5] > delays[0] * 4);
        assert!(delays.iter().all(|delay| *delay <= CAP));
        assert!(delays[11] >= CAP / 2);
        backoff.reset();
        assert!(backoff.next_delay() <= FIRST);
    }

    #[tokio::test]
    async fn only_retry_is_retried() -> Result<()> {
        let shutdown = CancellationToken::new();
        let mut tries = 0;
        let done = retry("counting", &shutdown, || {
            tries += 1;
            let result = if tries < 3 { Err(Error::retry("away")) } else { Ok(tries) };
            async move { result }
        })
        .await?;
        assert_eq!(done, 3);
        let mut tries = 0;
        let failed: Result<()> = retry("refusing", &shutdown, || {
            tries += 1;
            async { Err(Error::human("broken")) }
        })
        .await;
        assert_eq!((failed.map_err(|e| e.action()), tries), (Err(Action::Human), 1));
        shutdown.cancel();
        let failed: Result<()> = retry("stopping", &shutdown, || async { Err(Error::retry("away")) }).await;
        assert!(failed.is_err());
        Ok(())
    }
}
