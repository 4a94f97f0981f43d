//! One connection to NATS, watched: what it drops, refuses or loses is counted and logged.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event};
use berth_telemetry::metric;
use berth_wire::Subjects;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::error::BusError;
use crate::permit::{Denial, Denials, Identity};

/// How long a connection may take to close.
const CLOSE: Duration = Duration::from_secs(2);

/// How to reach the bus. Cheap to clone; the same for every role of a process.
#[derive(Clone)]
pub struct BusOptions {
    /// Servers to try.
    pub urls: Vec<String>,
    /// Root of all subjects.
    pub root: String,
    /// Token, if the server wants one.
    pub token: Option<String>,
    /// Seed of an nkey, if the server wants one.
    pub nkey: Option<String>,
    /// A credentials file, if the server wants one.
    pub credentials: Option<PathBuf>,
    /// Certificate of the authority that the server is checked against.
    pub ca: Option<PathBuf>,
    /// As whom we connect: replies come under a name of the role's own.
    pub identity: Option<Identity>,
    /// How long to keep trying before the first connection is given up.
    pub patience: Duration,
    /// On how many servers streams and buckets are kept.
    pub replicas: u32,
}

impl std::fmt::Debug for BusOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BusOptions")
            .field("urls", &self.urls)
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

impl Default for BusOptions {
    fn default() -> Self {
        Self {
            urls: vec!["nats://127.0.0.1:4222".into()],
            root: Subjects::default().root().into(),
            token: None,
            nkey: None,
            credentials: None,
            ca: None,
            identity: None,
            patience: Duration::from_secs(10),
            replicas: 1,
        }
    }
}

impl BusOptions {
    /// What the configuration says.
    #[must_use]
    pub fn from_config(config: &berth_config::BusConfig) -> Self {
        Self {
            urls: config.urls.clone(),
            root: config.root.clone(),
            token: config.token.as_ref().map(|secret| secret.expose().to_owned()),
            nkey: config.nkey.as_ref().map(|secret| secret.expose().to_owned()),
            credentials: config.credentials.clone(),
            replicas: config.replicas,
            ca: config.ca.clone(),
            // Services say which they are; who does not is a person.
            identity: Some(Identity::Operator),
            ..Self::default()
        }
    }

    /// The same as `identity`.
    #[must_use]
    pub fn with_identity(self, identity: Identity) -> Self {
        Self { identity: Some(identity), ..self }
    }
}

static SLOW_CONSUMERS: AtomicU64 = AtomicU64::new(0);

/// How often NATS has dropped messages of this process's subscriptions because they were not read fast enough.
#[must_use]
pub fn slow_consumers() -> u64 {
    SLOW_CONSUMERS.load(Ordering::Relaxed)
}

/// A connection. Clones share it.
#[derive(Clone, Debug)]
pub struct Bus {
    /// The client, for what this crate does not wrap.
    pub client: Client,
    /// JetStream on it.
    pub jetstream: jetstream::Context,
    /// The subject grammar.
    pub subjects: Arc<Subjects>,
    /// On how many servers streams and buckets are kept.
    pub(crate) replicas: usize,
    /// How often the connection was made, the first time included.
    pub(crate) connects: watch::Receiver<u64>,
    pub(crate) denials: Denials,
}

impl Bus {
    /// Connects; `name` shows in `nats server report connections`.
    ///
    /// # Errors
    /// When no server answers within `patience`, it refuses us, has no JetStream, or is older than 2.11.
    pub async fn connect(options: &BusOptions, name: &str) -> Result<Self, BusError> {
        let subjects = Subjects::new(&options.root).ok_or_else(|| BusError::Root(options.root.clone()))?;
        let began = Instant::now();
        let mut told = false;
        let (count, connects) = watch::channel(0);
        let count = Arc::new(count);
        let denials = Denials::default();
        let inbox = options.identity.as_ref().map(|identity| identity.inbox(&subjects));
        let client = loop {
            let watched = connect_options(options, name, Arc::clone(&count), denials.clone()).await?;
            let watched = match &inbox {
                Some(inbox) => watched.custom_inbox_prefix(inbox),
                None => watched,
            };
            match watched.connect(&options.urls[..]).await {
                Ok(client) if client.server_info().jetstream => break client,
                // A server that has just been started may come to it yet.
                Ok(_) if began.elapsed() < options.patience => {}
                Ok(_) => return Err(BusError::NoJetStream { urls: shown(&options.urls) }),
                Err(error) => {
                    let urls = shown(&options.urls);
                    if matches!(
                        error.kind(),
                        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation
                    ) {
                        return Err(BusError::Denied { urls, source: error });
                    }
                    if is_of_tls(&error) {
                        return Err(BusError::Tls { urls, source: error });
                    }
                    if began.elapsed() >= options.patience {
                        return Err(BusError::Unreachable { urls, source: error });
                    }
                    if !told {
                        warn!(urls, %error, "no NATS server yet; trying on");
                        told = true;
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        };
        if !client.is_server_compatible(2, 11, 0) {
            return Err(BusError::TooOld { version: client.server_info().version });
        }
        let jetstream = jetstream::new(client.clone());
        let replicas = usize::try_from(options.replicas).unwrap_or(1);
        Ok(Self { client, jetstream, subjects: Arc::new(subjects), replicas, connects, denials })
    }

    /// Fails unless `size` bytes fit into one message; an oversized publish would look like a time-out.
    pub(crate) fn check_size(&self, subject: &str, size: usize) -> Result<(), BusError> {
        let limit = self.client.max_payload();
        if size > limit {
            return Err(BusError::TooLarge { subject: subject.into(), size, limit });
        }
        Ok(())
    }

    /// What the server has not let this connection do since it was last made; a healthy service has none.
    #[must_use]
    pub fn denied(&self) -> Vec<Denial> {
        self.denials.all()
    }

    /// Whether it is connected just now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// Ends when the connection has been made anew since this was called.
    pub fn reconnected(&self) -> impl Future<Output = ()> + use<> {
        let mut connects = self.connects.clone();
        connects.mark_unchanged();
        async move {
            if connects.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Sends what is buffered and closes; for the end of a service, which a NATS that is away holds up for 2 s at most.
    /// To be called while the runtime lives that the connection was made on: its task answers.
    pub async fn close(&self) {
        let closed = async {
            let _ = self.client.flush().await;
            let _ = self.client.drain().await;
        };
        if tokio::time::timeout(CLOSE, closed).await.is_err() {
            debug!("NATS did not take what was buffered; leaving without");
        }
    }
}

/// A certificate that is not trusted comes as an error of input and output.
fn is_of_tls(error: &async_nats::ConnectError) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if inner.to_string().contains("certificate") {
            return true;
        }
        cause = inner.source();
    }
    error.kind() == ConnectErrorKind::Tls
}

/// Addresses without what may stand before the `@` in them.
fn shown(urls: &[String]) -> String {
    let shown = urls.iter().map(|url| match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://***@{host}"),
        (None, Some((_, host))) => format!("***@{host}"),
        _ => url.clone(),
    });
    shown.collect::<Vec<_>>().join(", ")
}

async fn connect_options(
    options: &BusOptions,
    name: &str,
    connects: Arc<watch::Sender<u64>>,
    denials: Denials,
) -> Result<ConnectOptions, BusError> {
    let label = name.to_owned();
    let mut connect = ConnectOptions::new()
        .name(name)
        // Hosts behind NAT lose idle connections silently; the default would notice after two minutes.
        .ping_interval(Duration::from_secs(10))
        .connection_timeout(Duration::from_secs(5))
        .event_callback(move |event| {
            note(&label, &event, &denials);
            if matches!(event, Event::Connected) {
                // The permissions may be others now, and what is subscribed is subscribed anew.
                denials.forget();
                connects.send_modify(|count| *count += 1);
            }
            std::future::ready(())
        });
    if let Some(token) = &options.token {
        connect = connect.token(token.clone());
    }
    if let Some(seed) = &options.nkey {
        connect = connect.nkey(seed.clone());
    }
    if let Some(path) = &options.credentials {
        connect = connect
            .credentials_file(path)
            .await
            .map_err(|source| BusError::Credentials { path: path.display().to_string(), source })?;
    }
    if let Some(path) = &options.ca {
        connect = connect.add_root_certificates(path.clone()).require_tls(true);
    }
    Ok(connect)
}

fn note(name: &str, event: &Event, denials: &Denials) {
    match event {
        Event::SlowConsumer(id) => {
            metrics::counter!(metric::BUS_SLOW_CONSUMER).increment(1);
            SLOW_CONSUMERS.fetch_add(1, Ordering::Relaxed);
            warn!(
                connection = name,
                subscription = id,
                "messages were dropped: a subscription is read too slowly"
            );
        }
        Event::Disconnected => {
            metrics::counter!(metric::BUS_DISCONNECTS).increment(1);
            warn!(connection = name, "lost the connection to NATS; reconnecting");
        }
        Event::ServerError(error) => {
            metrics::counter!(metric::BUS_SERVER_ERRORS).increment(1);
            if !denials.note(name, &error.to_string()) {
                warn!(connection = name, %error, "the NATS server reports an error");
            }
        }
        Event::ClientError(error) => warn!(connection = name, %error, "NATS client error"),
        Event::Connected => {
            metrics::counter!(metric::BUS_CONNECTS).increment(1);
            info!(connection = name, "connected to NATS");
        }
        Event::LameDuckMode => warn!(connection = name, "the NATS server is shutting down"),
        Event::Draining | Event::Closed => {}
    }
}
