//! The agent's own server: metrics, health, readiness, status and a page that shows it.
//!
//! It only reads, and it never stands between the source and the lake: a port that is
//! taken (the previous agent of the stream has it until it is fenced) is tried again in
//! the background while the stream runs.

mod client;

pub use client::fetch_status;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::status::{StatusBoard, StreamState, Trouble};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Json};
use axum::routing::get;
use caudal_model::Result;
use std::io::ErrorKind;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const PAGE: &str = include_str!("page.html");
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// What the handlers answer from.
#[derive(Debug, Clone)]
struct Answers {
    board: StatusBoard,
    metrics: Metrics,
}

/// Starts the server in the background, where the config has one.
///
/// Errors: [`caudal_model::Kind::Config`] naming `http.listen`, if the address can never
/// be listened on. A port in use is a warning.
pub async fn start(
    config: &Config,
    board: StatusBoard,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> Result<()> {
    let Some(listen) = config.http_listen() else {
        return Ok(());
    };
    let listener = match TcpListener::bind(listen).await {
        Ok(listener) => Some(listener),
        Err(e) if e.kind() == ErrorKind::AddrInUse => {
            tracing::warn!(
                listen,
                "http.listen is in use by another process; the stream runs without its server \
                 until the port is free (give each agent on a host a port of its own, or \"off\")"
            );
            None
        }
        Err(e) => {
            let message = format!("cannot listen on `{listen}`: {e}");
            return Err(config.error_at("http.listen", message));
        }
    };
    let router = router(Answers { board, metrics });
    let listen = listen.to_owned();
    tokio::spawn(async move {
        let mut listener = listener;
        while listener.is_none() {
            if shutdown
                .run_until_cancelled(tokio::time::sleep(TRY_AGAIN))
                .await
                .is_none()
            {
                return;
            }
            listener = TcpListener::bind(&listen).await.ok();
        }
        let Some(listener) = listener else { return };
        tracing::info!(listen, "serving metrics, health and status");
        let served = axum::serve(listener, router)
            .with_graceful_shutdown(shutdown.cancelled_owned())
            .await;
        if let Err(error) = served {
            tracing::warn!(%error, "the agent's server has ended");
        }
    });
    Ok(())
}

fn router(answers: Answers) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(answers)
}

type Headers = [(HeaderName, &'static str); 3];

fn headers(content_type: &'static str) -> Headers {
    [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ]
}

async fn page() -> impl IntoResponse {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                  connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    (
        headers("text/html; charset=utf-8"),
        [(header::CONTENT_SECURITY_POLICY, policy)],
        PAGE,
    )
}

async fn status(State(answers): State<Answers>) -> impl IntoResponse {
    (
        [(header::CACHE_CONTROL, "no-store")],
        Json(answers.board.report()),
    )
}

async fn metrics(State(answers): State<Answers>) -> impl IntoResponse {
    // As true as `/readyz` is at this moment.
    crate::metrics::troubles(&answers.board.troubles());
    (
        headers("text/plain; version=0.0.4; charset=utf-8"),
        answers.metrics.render(),
    )
}

async fn healthz(State(answers): State<Answers>) -> impl IntoResponse {
    if answers.board.healthy() {
        return (StatusCode::OK, headers("text/plain"), "ok\n".to_owned());
    }
    let state = answers.board.state();
    let idle = answers.board.idle().as_secs();
    let body = format!("{state}; nothing has moved for {idle} s\n");
    (StatusCode::SERVICE_UNAVAILABLE, headers("text/plain"), body)
}

/// What `/readyz` answers.
#[derive(Debug, serde::Serialize)]
struct Readiness {
    ready: bool,
    state: StreamState,
    /// What is in the way, the first thing first.
    reasons: Vec<Trouble>,
}

async fn readyz(State(answers): State<Answers>) -> impl IntoResponse {
    let reasons = answers.board.troubles();
    let readiness = Readiness {
        ready: reasons.is_empty(),
        state: answers.board.state(),
        reasons,
    };
    let code = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, [(header::CACHE_CONTROL, "no-store")], Json(readiness))
}

#[cfg(test)]
mod tests;
