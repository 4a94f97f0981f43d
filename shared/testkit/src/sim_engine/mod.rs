//! The engine simulator: an OpenAI-compatible HTTP server that computes nothing, at a pace one can choose.
//!
//! It is named a simulator wherever it can be seen: in its text, its `system_fingerprint`, its `owned_by`. It has
//! slots like a real engine (`concurrency`; who finds none free waits, first come first served), loads for as long as
//! it is told, and fails on demand. `/sim/stats` tells what became of its requests.

mod answer;
mod embed;
mod media;
mod request;
mod routes;
mod stats;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::{ServerHandle, Service};
use actix_web::{App, HttpServer, web};
use thiserror::Error;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::answer::Script;
use self::stats::Books;

/// The name it goes by in `system_fingerprint` and `owned_by`.
pub const NAME: &str = "berth-simulator";

/// How the simulator behaves. A request may override its pace by a `"sim"` object in its body.
#[derive(Debug, Clone)]
pub struct SimOptions {
    /// Address to listen on.
    pub host: String,
    /// Port to listen on; 0 takes a free one.
    pub port: u16,
    /// The model it says it serves; a request for another is answered 404, as vLLM does.
    pub id: String,
    /// Requests served at once.
    pub concurrency: u32,
    /// How long `/health` says 503 after the start.
    pub load: Duration,
    /// From a request's turn to its first token.
    pub first_token: Duration,
    /// Between tokens.
    pub per_token: Duration,
    /// Tokens of an answer, where the request sets no lower `max_tokens`.
    pub tokens: u32,
    /// Print this to stderr and fail when the load is over.
    pub fail_start: Option<String>,
    /// End the whole process in the middle of an answer, after so many of its tokens.
    pub crash_after_tokens: Option<u32>,
    /// Stay when told to stop, so that only a kill helps.
    pub ignore_sigterm: bool,
    /// Threads that serve HTTP.
    pub workers: usize,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 0,
            id: "simulator".into(),
            concurrency: 4,
            load: Duration::ZERO,
            first_token: Duration::ZERO,
            per_token: Duration::ZERO,
            tokens: 16,
            fail_start: None,
            crash_after_tokens: None,
            ignore_sigterm: false,
            workers: 1,
        }
    }
}

/// Why the simulator is not running.
#[derive(Debug, Error)]
pub enum SimError {
    /// The address cannot be used.
    #[error("cannot listen on {address}: {source}; choose another port")]
    Listen {
        /// `host:port`.
        address: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The server broke off.
    #[error("the simulator's server failed: {0}")]
    Server(#[source] std::io::Error),
    /// Signals cannot be heard.
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] std::io::Error),
    /// It was told to fail.
    #[error("the simulated start failed as asked: {0}")]
    FailStart(String),
}

/// What a crash does.
#[derive(Debug, Clone, Copy)]
enum Crash {
    /// Ends the process, as a real engine's does.
    Process,
    /// Cuts the connection: inside a test's own process.
    Connection,
}

/// What every handler sees.
struct Sim {
    options: SimOptions,
    ready_at: Instant,
    script: Script,
    books: Arc<Books>,
    crash: Crash,
}

impl Sim {
    fn is_loading(&self) -> bool {
        // One that is to fail is never ready, not even for a moment before it ends.
        self.options.fail_start.is_some() || !self.options.load.is_zero() && Instant::now() < self.ready_at
    }
}

/// A simulator inside this process. Stops when dropped.
pub struct Simulator {
    address: SocketAddr,
    handle: ServerHandle,
    server: JoinHandle<std::io::Result<()>>,
}

impl Simulator {
    /// Starts one; it listens when this returns, and loads for as long as it was told.
    ///
    /// # Errors
    /// When the address cannot be used.
    pub fn start(options: SimOptions) -> Result<Self, SimError> {
        launch(options, Crash::Connection)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its base URL, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.server.abort();
        // Sends the stop at once; the returned future only waits for it.
        drop(self.handle.stop(false));
    }
}

/// Runs the simulator until SIGTERM or SIGINT; the process is the engine, so a crash ends it.
///
/// # Errors
/// When it cannot listen, or was told to fail.
pub async fn run(options: SimOptions) -> Result<(), SimError> {
    let load = options.load;
    let fail_start = options.fail_start.clone();
    let ignore_sigterm = options.ignore_sigterm;
    let id = options.id.clone();
    let mut simulator = launch(options, Crash::Process)?;
    eprintln!("{NAME}: `{id}` listens on {}; loading takes {load:?}", simulator.url());

    let loaded = tokio::time::sleep(load);
    let signalled = stop_signal(ignore_sigterm)?;
    tokio::pin!(loaded, signalled);
    tokio::select! {
        () = &mut loaded => {}
        () = &mut signalled => return Ok(()),
    }
    if let Some(message) = fail_start {
        eprintln!("{message}");
        return Err(SimError::FailStart(message));
    }
    eprintln!("{NAME}: `{id}` is ready");
    tokio::select! {
        ended = &mut simulator.server => {
            ended.map_err(|e| SimError::Server(std::io::Error::other(e)))?.map_err(SimError::Server)
        }
        () = &mut signalled => {
            eprintln!("{NAME}: `{id}` was told to stop");
            Ok(())
        }
    }
}

fn launch(options: SimOptions, crash: Crash) -> Result<Simulator, SimError> {
    let address = format!("{}:{}", options.host, options.port);
    let listen = |source| SimError::Listen { address: address.clone(), source };
    let workers = options.workers.max(1);
    let bind = (options.host.clone(), options.port);
    let sim = web::Data::new(Sim {
        ready_at: Instant::now() + options.load,
        script: Script::new(&options.id),
        books: Books::new(options.concurrency),
        crash,
        options,
    });
    let server = HttpServer::new(move || {
        let watched = sim.clone();
        App::new().app_data(sim.clone()).configure(routes::configure).wrap_fn(move |request, service| {
            if request.path().starts_with("/v1") {
                watched.books.see(request.headers());
            }
            service.call(request)
        })
    })
    .workers(workers)
    // Else a request lives on after its client has gone, until a write fails.
    .h1_allow_half_closed(false)
    .tcp_nodelay(true)
    // Longer than any client's pool keeps a connection, so that none is closed under a request.
    .keep_alive(Duration::from_secs(300))
    .disable_signals()
    .shutdown_timeout(0)
    .bind(bind)
    .map_err(listen)?;
    let bound =
        server.addrs().first().copied().ok_or_else(|| {
            SimError::Server(std::io::Error::other("the server was bound but has no address"))
        })?;
    let server = server.run();
    Ok(Simulator { address: bound, handle: server.handle(), server: tokio::spawn(server) })
}

/// Resolves when the process is told to stop; never, where it ignores that.
fn stop_signal(ignore: bool) -> Result<impl Future<Output = ()>, SimError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(SimError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(SimError::Signals)?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if !ignore {
                return;
            }
            eprintln!("{NAME}: told to stop, and stays as asked");
        }
    })
}
