//! A TCP proxy whose faults are switched while it runs: between an agent and its source,
//! or between an agent and its store.
//!
//! It never looks into what passes, so TLS and replication go through it; the certificates
//! of the test servers name 127.0.0.1, which is where it listens. A connection that it
//! stalls is half-open as after a switch lost its state: the peer's bytes are accepted (as
//! far as the kernel buffers them) and keepalives are answered, and nothing arrives.

use crate::agent::Config;
use crate::{Context, Failure, Result};
use socket2::SockRef;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What becomes of the bytes of one direction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Traffic {
    /// They are passed on.
    Pass,
    /// They are held, and passed on once this ends.
    Stall,
    /// They are passed on at this rate, bytes in a second of all connections together.
    Slow(u64),
    /// Each piece is passed on after this time.
    Delay(Duration),
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the agent.
    Up,
    /// To the agent.
    Down,
}

/// How connections end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// RST, as a firewall or a crashed machine sends it.
    Reset,
    /// FIN, as an orderly end.
    Close,
}

#[derive(Debug, Clone, Copy)]
struct Rules {
    up: Traffic,
    down: Traffic,
    refuse: bool,
    /// Connections up to this number are stalled for ever.
    stranded: u64,
    /// Raised to end every connection.
    cuts: u64,
    how: Cut,
}

#[derive(Debug)]
struct Shared {
    rules: watch::Sender<Rules>,
    /// Bytes that may still pass in each direction before the connection that carries them
    /// is reset; negative: any number.
    budget: [AtomicI64; 2],
    passed: [AtomicU64; 2],
    /// When the line is free for the next bytes, where it is slow.
    free: [Mutex<Instant>; 2],
    open: AtomicU64,
    accepted: AtomicU64,
    cut: AtomicU64,
}

/// A running proxy; it ends with this value, and its connections with it.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

impl Proxy {
    /// Starts a proxy to a server on a free port of this machine, in a thread of its own.
    pub fn start(host: &str, port: u16) -> Result<Proxy> {
        let target = (host.to_owned(), port);
        let (rules, _) = watch::channel(Rules {
            up: Traffic::Pass,
            down: Traffic::Pass,
            refuse: false,
            stranded: 0,
            cuts: 0,
            how: Cut::Reset,
        });
        let shared = Arc::new(Shared {
            rules,
            budget: [AtomicI64::new(-1), AtomicI64::new(-1)],
            passed: Default::default(),
            free: [Mutex::new(Instant::now()), Mutex::new(Instant::now())],
            open: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            cut: AtomicU64::new(0),
        });
        let stop = CancellationToken::new();
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stopped, state) = (stop.clone(), Arc::clone(&shared));
        std::thread::Builder::new()
            .name("proxy".into())
            .spawn(move || {
                runtime.block_on(async move {
                    let Ok(listener) = TcpListener::from_std(listener) else {
                        return;
                    };
                    stopped
                        .run_until_cancelled(accept(listener, target, state))
                        .await;
                });
            })?;
        Ok(Proxy {
            address,
            shared,
            stop,
        })
    }

    /// A proxy to the server that a config names as its source; the config then names the proxy.
    pub fn before_source(config: &mut Config) -> Result<Proxy> {
        let port = config.get("source.port").parse()?;
        let proxy = Proxy::start(&config.get("source.host"), port)?;
        config.set("source.host", "127.0.0.1");
        config.set("source.port", i64::from(proxy.address.port()));
        Ok(proxy)
    }

    /// The same for the S3 server of a config's sink.
    pub fn before_store(config: &mut Config) -> Result<Proxy> {
        let endpoint = config.get("sink.endpoint");
        let address = endpoint.trim_start_matches("http://");
        let (host, port) = address
            .rsplit_once(':')
            .ok_or_else(|| Failure::new("the sink has no endpoint with a port"))?;
        let proxy = Proxy::start(host, port.parse().context(address)?)?;
        config.set("sink.endpoint", format!("http://{}", proxy.address));
        Ok(proxy)
    }

    fn change(&self, change: impl FnOnce(&mut Rules)) {
        self.shared.rules.send_modify(change);
    }

    /// Both directions, of connections that are open and of those to come.
    pub fn set(&self, traffic: Traffic) {
        self.change(|r| (r.up, r.down) = (traffic, traffic));
    }

    /// One direction.
    pub fn set_one(&self, direction: Direction, traffic: Traffic) {
        self.change(|r| match direction {
            Direction::Up => r.up = traffic,
            Direction::Down => r.down = traffic,
        });
    }

    /// Whether new connections are reset as soon as they come.
    pub fn refuse(&self, refuse: bool) {
        self.change(|r| r.refuse = refuse);
    }

    /// Connections that are open now pass nothing ever again, as if a switch between had lost
    /// its state; new ones are not affected.
    pub fn strand(&self) {
        let last = self.accepted();
        self.change(|r| r.stranded = last);
    }

    /// Ends every connection.
    pub fn cut(&self, how: Cut) {
        self.change(|r| {
            r.how = how;
            r.cuts += 1;
        });
    }

    /// Resets the connection that carries the byte after the next `bytes` of a direction, of
    /// all connections together: in the middle of a frame as likely as not. Once.
    pub fn cut_after(&self, direction: Direction, bytes: u32) {
        self.shared.budget[direction as usize].store(i64::from(bytes), Ordering::SeqCst);
    }

    /// No server behind it: what is open is reset, what comes is too.
    pub fn part(&self) {
        self.refuse(true);
        self.cut(Cut::Reset);
    }

    /// Everything passes again.
    pub fn mend(&self) {
        for budget in &self.shared.budget {
            budget.store(-1, Ordering::SeqCst);
        }
        self.change(|r| {
            (r.up, r.down) = (Traffic::Pass, Traffic::Pass);
            r.refuse = false;
        });
    }

    /// Connections that are open now.
    pub fn open(&self) -> u64 {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Connections that came so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Connections that were reset by [`Self::cut_after`] so far.
    pub fn resets(&self) -> u64 {
        self.shared.cut.load(Ordering::SeqCst)
    }

    /// Bytes that went through so far.
    pub fn passed(&self, direction: Direction) -> u64 {
        self.shared.passed[direction as usize].load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept(listener: TcpListener, target: (String, u16), shared: Arc<Shared>) {
    loop {
        let Ok((agent, _)) = listener.accept().await else {
            continue;
        };
        let number = shared.accepted.fetch_add(1, Ordering::SeqCst) + 1;
        let (target, shared) = (target.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            if shared.rules.borrow().refuse {
                reset(&agent);
                return;
            }
            match TcpStream::connect((target.0.as_str(), target.1)).await {
                Ok(server) => {
                    shared.open.fetch_add(1, Ordering::SeqCst);
                    connection(agent, server, number, &shared).await;
                    shared.open.fetch_sub(1, Ordering::SeqCst);
                }
                Err(_) => reset(&agent),
            }
        });
    }
}

/// What is dropped after this is reset instead of closed.
fn reset(stream: &TcpStream) {
    // Fails for a peer that is gone, which needs no reset.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

async fn connection(mut agent: TcpStream, mut server: TcpStream, number: u64, shared: &Shared) {
    let _ = (agent.set_nodelay(true), server.set_nodelay(true));
    let mut rules = shared.rules.subscribe();
    let cuts = rules.borrow_and_update().cuts;
    let cut = {
        let (from_agent, to_agent) = agent.split();
        let (from_server, to_server) = server.split();
        let up = carry(from_agent, to_server, Direction::Up, number, shared);
        let down = carry(from_server, to_agent, Direction::Down, number, shared);
        let both = async { tokio::try_join!(up, down) };
        tokio::select! {
            ended = both => if ended.is_ok() { Cut::Close } else { Cut::Reset },
            rule = rules.wait_for(|r| r.cuts != cuts) => rule.map_or(Cut::Reset, |r| r.how),
        }
    };
    if cut == Cut::Reset {
        reset(&agent);
        reset(&server);
    }
}

/// The connection must be reset.
struct Broken;

/// Carries one direction to its end.
async fn carry(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    direction: Direction,
    number: u64,
    shared: &Shared,
) -> Result<(), Broken> {
    let mut rules = shared.rules.subscribe();
    let of = |r: &Rules| match direction {
        _ if number <= r.stranded => Traffic::Stall,
        Direction::Up => r.up,
        Direction::Down => r.down,
    };
    let budget = &shared.budget[direction as usize];
    let mut buffer = vec![0; 64 << 10];
    loop {
        let traffic = of(&rules.borrow_and_update());
        let most = match traffic {
            Traffic::Slow(rate) => (rate as usize / 20).clamp(1, buffer.len()),
            _ => buffer.len(),
        };
        let read = tokio::select! {
            read = from.read(&mut buffer[..most]), if traffic != Traffic::Stall => read,
            changed = rules.changed() => {
                if changed.is_err() {
                    return Err(Broken);
                }
                continue;
            }
        };
        let n = read.map_err(|_| Broken)?;
        if n == 0 {
            // The other direction may have more to say.
            return to.shutdown().await.map_err(|_| Broken);
        }
        match traffic {
            Traffic::Delay(time) => tokio::time::sleep(time).await,
            Traffic::Slow(rate) => {
                let takes = Duration::from_secs_f64(n as f64 / rate.max(1) as f64);
                let turn = {
                    let free = &shared.free[direction as usize];
                    let mut free = free.lock().unwrap_or_else(|e| e.into_inner());
                    *free = (*free).max(Instant::now()) + takes;
                    *free
                };
                tokio::time::sleep_until(turn).await;
            }
            Traffic::Pass | Traffic::Stall => {}
        }
        // What was read before a stall began is held as well.
        let passes = rules.wait_for(|r| of(r) != Traffic::Stall).await;
        passes.map(drop).map_err(|_| Broken)?;
        let allowed = spend(budget, n);
        let written = to.write_all(&buffer[..allowed]).await;
        written.map_err(|_| Broken)?;
        shared.passed[direction as usize].fetch_add(allowed as u64, Ordering::SeqCst);
        if allowed < n {
            let _ = to.flush().await;
            shared.cut.fetch_add(1, Ordering::SeqCst);
            return Err(Broken);
        }
    }
}

/// How many of `n` bytes may pass; the budget that runs out here is lifted.
fn spend(budget: &AtomicI64, n: usize) -> usize {
    let left = budget.load(Ordering::SeqCst);
    if left < 0 {
        return n;
    }
    let n_signed = i64::try_from(n).unwrap_or(i64::MAX);
    if n_signed <= left {
        budget.store(left - n_signed, Ordering::SeqCst);
        return n;
    }
    budget.store(-1, Ordering::SeqCst);
    usize::try_from(left).unwrap_or(0)
}
