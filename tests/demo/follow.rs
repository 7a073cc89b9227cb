//! One source from empty tables to a lake that has caught up.

use crate::progress::Line;
use crate::tpch;
use crate::workload::{Done, Workload};
use caudal_tests::agent::{Agent, Config, Running, Status};
use caudal_tests::{Result, S3Server, Source, bail};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often an agent is asked how it is.
const ASK: Duration = Duration::from_millis(250);
/// How long a copy or a last round may take; a scale of 1 needs minutes.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Where the agents write.
pub enum Lake {
    /// A directory.
    Directory(PathBuf),
    /// A bucket of a server in this process, and where its objects are copied for reading.
    S3(S3Server, PathBuf),
}

const BUCKET: &str = "lake";

impl Lake {
    /// A directory `lake` in `directory`.
    pub fn directory(directory: &Path) -> Result<Lake> {
        let lake = directory.join("lake");
        std::fs::create_dir_all(&lake)?;
        Ok(Lake::Directory(lake))
    }

    /// An S3 server with a bucket; its objects will be copied into `lake` in `directory`.
    pub fn s3(directory: &Path) -> Result<Lake> {
        Ok(Lake::S3(
            S3Server::start(&[BUCKET])?,
            directory.join("lake"),
        ))
    }

    fn configure(&self, config: &mut Config) {
        match self {
            Lake::Directory(path) => {
                config.set("sink.url", format!("file://{}", path.display()));
            }
            Lake::S3(server, _) => server.configure(config, BUCKET, "raw"),
        }
    }

    /// The directory that holds the streams, with the newest files of this one.
    fn read(&self, stream: &str) -> Result<PathBuf> {
        match self {
            Lake::Directory(path) => Ok(path.clone()),
            Lake::S3(server, copy) => {
                server.dump(BUCKET, &format!("raw/{stream}/"), &copy.join(stream))?;
                Ok(copy.clone())
            }
        }
    }
}

/// What became of one source.
pub struct Landed {
    /// The database's name and version.
    pub name: String,
    /// The lake's address of the stream.
    pub url: String,
    /// The directory of all streams, and this one's name in it.
    pub lake: PathBuf,
    /// The stream.
    pub stream: &'static str,
    /// Rows loaded, by table.
    pub loaded: Vec<(&'static str, u64)>,
    /// From the agent's start to the last live table.
    pub snapshot: Duration,
    /// What was done while the agent followed.
    pub done: Done,
}

impl Landed {
    /// The stream's files.
    pub fn stream_dir(&self) -> PathBuf {
        self.lake.join(self.stream)
    }
}

/// Loads, copies, follows, stops, and goes on until the lake has everything.
pub async fn follow(
    source: &Source,
    lake: &Lake,
    directory: &Path,
    scale: f64,
    how_long: Duration,
    line: Line,
) -> Result<Landed> {
    let mut session = source.session().await?;
    let mut loaded = Vec::new();
    for table in &tpch::TABLES {
        line.show("loading", table.name);
        loaded.push((table.name, tpch::load(&mut session, table, scale).await?));
    }
    let rows: u64 = loaded.iter().map(|(_, n)| n).sum();

    let stream = source.kind().config_name();
    let dir = directory.join(stream);
    let mut config = source.config(stream, &dir.join("state"));
    config.set("commit.max_delay", "1s");
    lake.configure(&mut config);
    let url = format!("{}/{stream}", config.get("sink.url"));
    let agent = Agent::new(&dir, config)?;

    let began = Instant::now();
    let mut running = agent.spawn()?;
    wait_until_live(&mut running, &line, rows).await?;
    let snapshot = began.elapsed();

    let workload = Workload::new(session).await?;
    let done = change(&mut running, workload, how_long, &line).await?;

    line.show("stopping the agent with SIGTERM", "");
    running.sigterm().await?.expect(0)?;
    line.show("once more, until caught up", "");
    agent
        .start(&["run", "--until-caught-up"])?
        .wait(PATIENCE)
        .await?
        .expect(0)?;
    line.finish(&format!(
        "caught up: {rows} rows copied, {} changes followed",
        done.rows()
    ));

    let name = source.version().to_string();
    Ok(Landed {
        name,
        url,
        lake: lake.read(stream)?,
        stream,
        loaded,
        snapshot,
        done,
    })
}

async fn ask(running: &mut Running) -> Result<Option<Status>> {
    if let Some(code) = running.ended()? {
        bail!("the agent ended ({code:?}):\n{}", running.log());
    }
    // It may not listen yet, or be busy: the next answer will do.
    let answer = tokio::time::timeout(Duration::from_secs(5), running.status()).await;
    Ok(answer.ok().and_then(Result::ok))
}

async fn wait_until_live(running: &mut Running, line: &Line, rows: u64) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Some(status) = ask(running).await? {
            if let Some(broken) = status.tables.iter().find(|t| t.state == "errored") {
                bail!(
                    "{}: {}",
                    broken.table,
                    broken.error.as_deref().unwrap_or("errored")
                );
            }
            if status.all_live() && status.tables.len() == tpch::TABLES.len() {
                return Ok(());
            }
            let live = status.tables.iter().filter(|t| t.state == "live").count();
            let detail = format!("{rows} rows: {live} of {} tables live", tpch::TABLES.len());
            line.show("copying", &detail);
        }
        tokio::time::sleep(ASK).await;
    }
    bail!(
        "not every table was live after {PATIENCE:?}:\n{}",
        running.log()
    )
}

/// Changes rows, and ends early if the agent does.
async fn change(
    running: &mut Running,
    workload: Workload,
    how_long: Duration,
    line: &Line,
) -> Result<Done> {
    let tell = |done: &Done| {
        let text = format!(
            "{} transactions, {} rolled back, {} rows",
            done.committed,
            done.rolled_back,
            done.rows()
        );
        line.show("following changes", &text);
    };
    let mut work = std::pin::pin!(workload.run(how_long, tell));
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(ASK) => {
                ask(running).await?;
            }
        }
    }
}
