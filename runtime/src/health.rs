//! What an operator's tools ask of a running process: `/metrics`, `/healthz`, `/readyz` over HTTP.
//!
//! `parts of the process -> Readiness -> /readyz`, `metrics -> recorder -> /metrics`

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;

use crate::{Error, Result};

/// Histograms hold single values until they are folded into their buckets; this bounds them when nobody asks for metrics.
const UPKEEP: Duration = Duration::from_secs(5);

/// Which parts of the process do their work. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    /// By part; None: ready, else what it waits for.
    parts: Arc<Mutex<BTreeMap<String, Option<String>>>>,
}

impl Readiness {
    /// Names a part, which is not ready until it says so. Forgotten when the guard is dropped.
    pub fn register(&self, part: impl Into<String>) -> Part {
        let part = Part { name: part.into(), readiness: self.clone() };
        part.not_ready("starting");
        part
    }

    /// Parts that are not ready, with what they wait for.
    pub fn waiting(&self) -> Vec<(String, String)> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.iter().filter_map(|(part, waits)| Some((part.clone(), waits.clone()?))).collect()
    }
}

/// One part's place in [`Readiness`].
#[derive(Debug)]
pub struct Part {
    name: String,
    readiness: Readiness,
}

impl Part {
    pub fn ready(&self) {
        self.set(None);
    }
    pub fn not_ready(&self, waits_for: impl Into<String>) {
        self.set(Some(waits_for.into()));
    }
    fn set(&self, state: Option<String>) {
        self.readiness.parts.lock().unwrap_or_else(PoisonError::into_inner).insert(self.name.clone(), state);
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.readiness.parts.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

#[derive(Clone)]
struct Served {
    metrics: PrometheusHandle,
    readiness: Readiness,
}

/// Serves on `listen` (`telemetry.listen`) until shutdown. Fails at once when the address cannot be had.
pub async fn serve(
    listen: &str,
    metrics: PrometheusHandle,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> Result<()> {
    let listener = tokio::net::TcpListener::bind(listen).await.map_err(|e| {
        Error::configuration("cannot listen for telemetry: is the address right, and is no other process there?")
            .with("telemetry.listen", listen)
            .source(e)
    })?;
    serve_on(listener, metrics, readiness, shutdown).await
}

async fn serve_on(
    listener: tokio::net::TcpListener,
    metrics: PrometheusHandle,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> Result<()> {
    let upkeep = {
        let metrics = metrics.clone();
        async move {
            loop {
                tokio::time::sleep(UPKEEP).await;
                metrics.run_upkeep();
            }
        }
    };
    let router = Router::new()
        .route("/metrics", get(render_metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(render_readiness))
        .with_state(Served { metrics, readiness });
    let server = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned());
    tokio::select! {
        result = server => result.map_err(|e| Error::retry("the telemetry server ended").source(e)),
        () = upkeep => Ok(()),
    }
}

async fn render_metrics(State(served): State<Served>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], served.metrics.render())
}

async fn render_readiness(State(served): State<Served>) -> impl IntoResponse {
    let waiting = served.readiness.waiting();
    if waiting.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let lines = waiting.iter().map(|(part, waits)| format!("{part}: {waits}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, lines)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn ask(address: std::net::SocketAddr, path: &str) -> std::io::Result<String> {
        let mut socket = tokio::net::TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn readiness_is_that_of_every_part() -> anyhow::Result<()> {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || metrics::counter!("lakeward_tests").increment(3));
        let (readiness, shutdown) = (Readiness::default(), CancellationToken::new());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let server = tokio::spawn(serve_on(listener, recorder.handle(), readiness.clone(), shutdown.clone()));

        assert!(ask(address, "/healthz").await?.starts_with("HTTP/1.1 200"));
        assert!(ask(address, "/metrics").await?.contains("lakeward_tests 3"));
        let (one, two) = (readiness.register("sink"), readiness.register("source users"));
        one.ready();
        two.not_ready("waiting for a transaction");
        let answer = ask(address, "/readyz").await?;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.ends_with("source users: waiting for a transaction\n"),
            "{answer}"
        );
        two.ready();
        assert!(ask(address, "/readyz").await?.starts_with("HTTP/1.1 200"));
        one.not_ready("gone");
        drop(one);
        assert!(ask(address, "/readyz").await?.starts_with("HTTP/1.1 200"), "a part that is gone is not waited for");

        let taken = serve(&address.to_string(), recorder.handle(), readiness, shutdown.clone()).await;
        assert_eq!(taken.map_err(|e| e.action()), Err(crate::Action::Configuration));
        shutdown.cancel();
        server.await??;
        Ok(())
    }
}
