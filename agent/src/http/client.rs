//! Asks an agent on this host for its status.
//!
//! One GET over plain TCP to the address of the config: an HTTP client would be a large
//! dependency for it. An answer that is not a status of the stream counts as none.

use crate::status::StatusReport;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TIMEOUT: Duration = Duration::from_secs(2);
/// A status has some 200 bytes a table.
const MAX_BYTES: u64 = 64 << 20;

/// The status of a running agent of this stream, if one answers at `listen`.
pub async fn fetch_status(listen: &str, stream: &str) -> Option<StatusReport> {
    let answer = tokio::time::timeout(TIMEOUT, get(listen))
        .await
        .ok()?
        .ok()?;
    let report = parse(&answer)?;
    (report.stream == stream).then_some(report)
}

/// An agent that listens on every address answers on the loopback one.
fn reachable(listen: &str) -> String {
    match listen.rsplit_once(':') {
        Some(("0.0.0.0", port)) => format!("127.0.0.1:{port}"),
        Some(("[::]", port)) => format!("[::1]:{port}"),
        _ => listen.to_owned(),
    }
}

async fn get(listen: &str) -> std::io::Result<Vec<u8>> {
    let address = reachable(listen);
    let mut connection = TcpStream::connect(&address).await?;
    let request = format!(
        "GET /status HTTP/1.1\r\nHost: {address}\r\nAccept: application/json\r\nConnection: close\r\n\r\n"
    );
    connection.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    connection.take(MAX_BYTES).read_to_end(&mut answer).await?;
    Ok(answer)
}

fn parse(answer: &[u8]) -> Option<StatusReport> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(answer.get(..end)?).ok()?;
    let code = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?;
    (code == "200").then_some(())?;
    serde_json::from_slice(answer.get(end + 4..)?).ok()
}
