//! Wall time, processor time and memory of a process, as the kernel tells them.
//!
//! `/proc` is read every few milliseconds while the process runs: the last reading is at
//! most that old, which is nothing beside the seconds that are measured.

use caudal_tests::{Context, Result, bail};
use serde::Serialize;
use std::future::Future;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::Command;

/// Between two readings.
const EVERY: Duration = Duration::from_millis(10);
/// Linux tells processor time to programs in hundredths of a second on every architecture.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process took.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Taken {
    /// From start to exit.
    pub wall_seconds: f64,
    /// User and system time of all threads.
    pub cpu_seconds: f64,
    /// The highest resident set.
    pub peak_rss_bytes: u64,
}

/// The fields of `/proc/<pid>/stat` after the program's name, which may hold blanks.
fn stat(pid: u32) -> Option<Vec<u64>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(") ")?;
    // The state is a letter; it becomes 0 and nobody reads it.
    Some(
        fields
            .split(' ')
            .map(|f| f.trim().parse().unwrap_or(0))
            .collect(),
    )
}

/// Seconds of a process, and those of its children that have ended.
fn cpu_seconds(pid: u32) -> Option<(f64, f64)> {
    let fields = stat(pid)?;
    let ticks = |i: usize| fields.get(i).copied().unwrap_or(0) as f64 / TICKS_PER_SECOND;
    Some((ticks(11) + ticks(12), ticks(13) + ticks(14)))
}

/// Seconds of a server: the process, its children, and those that have ended.
pub fn server_cpu_seconds(pid: u32) -> f64 {
    let (own, ended) = cpu_seconds(pid).unwrap_or_default();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let children: f64 = processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|child| stat(*child).is_some_and(|s| s.get(1) == Some(&u64::from(pid))))
        .filter_map(|child| cpu_seconds(child).map(|(own, _)| own))
        .sum();
    own + ended + children
}

fn peak_rss_bytes(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Watches a process until `end` says that it is over.
pub async fn watch<T>(
    pid: Option<u32>,
    end: impl Future<Output = Result<T>>,
) -> Result<(T, Taken)> {
    let began = Instant::now();
    let mut taken = Taken {
        wall_seconds: 0.0,
        cpu_seconds: 0.0,
        peak_rss_bytes: 0,
    };
    let mut end = std::pin::pin!(end);
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            ended = &mut end => {
                taken.wall_seconds = began.elapsed().as_secs_f64();
                return Ok((ended?, taken));
            }
            _ = tick.tick() => {
                let Some(pid) = pid else { continue };
                if let Some((own, _)) = cpu_seconds(pid) {
                    taken.cpu_seconds = taken.cpu_seconds.max(own);
                }
                taken.peak_rss_bytes = taken.peak_rss_bytes.max(peak_rss_bytes(pid).unwrap_or(0));
            }
        }
    }
}

/// Runs a command to its end; its output is thrown away.
pub async fn run(mut command: Command) -> Result<Taken> {
    let what = format!("{:?}", command.as_std());
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context(&what)?;
    let pid = child.id();
    let end = async { Ok(child.wait_with_output().await?) };
    let (output, taken) = watch(pid, end).await?;
    if !output.status.success() {
        bail!("{what}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(taken)
}
