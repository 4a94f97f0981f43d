//! The HTTP server and the order in which a gateway starts and ends.

use std::collections::HashMap;
use std::io::ErrorKind as IoKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::http::{ConnectionType, Version};
use actix_web::middleware::{Next, from_fn};
use actix_web::web::{self, ServiceConfig};
use actix_web::{App, HttpMessage, HttpServer, Route, guard};
use berth_bus::{Bus, BusError, BusOptions, register};
use berth_config::Config;
use berth_probes::{ProbeError, Probes};
use berth_telemetry::trace;
use berth_wire::Route as Engines;
use thiserror::Error;
use tokio::net::TcpSocket;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::anthropic::{self, RequestId};
use crate::caller::authenticate;
use crate::fleet::Fleet;
use crate::intake::Complete;
use crate::upstream::PREFIX;
use crate::worker::Worker;
use crate::{
    about, error, infer, jobs, leases, meters, models, openapi, operate, patience, status, upstream,
};

/// Renders this process's metrics as Prometheus text.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// How long an actor may take to end.
const ACTOR_DRAIN: Duration = Duration::from_secs(5);

/// Why a gateway does not run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GatewayError {
    /// Somebody else listens there.
    #[error("{address} is in use by another program; choose another with --listen or [gateway] listen")]
    InUse {
        /// Where.
        address: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}; choose another with --listen or [gateway] listen")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// No address is configured.
    #[error("the gateway has no address to listen on; set [gateway] listen")]
    NoAddress,
    /// Whoever reaches the address could use it.
    #[error(
        "other machines can reach {address}, and there is no API key: make one with `berth key create NAME`, or one \
         for the configuration with `berth key create NAME --toml`; to let everybody in, say --open, or open = true \
         under [gateway]"
    )]
    NoKeys {
        /// Where it was to listen.
        address: SocketAddr,
    },
    /// The listener for metrics.
    #[error(transparent)]
    Probes(#[from] ProbeError),
    /// Traces are configured and cannot be had.
    #[error(transparent)]
    Traces(#[from] trace::TraceError),
    /// NATS.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The server failed while it ran.
    #[error("the HTTP server failed")]
    Server(#[source] std::io::Error),
}

/// Runs the gateway on this thread's actix system until `shutdown`. `started` is told the bound addresses once
/// requests are taken.
///
/// # Errors
/// When an address cannot be had, NATS cannot be reached, or the server fails.
pub async fn run(
    config: Arc<Config>,
    options: BusOptions,
    shutdown: CancellationToken,
    started: impl FnOnce(Vec<SocketAddr>),
    metrics: Option<RenderMetrics>,
) -> Result<(), GatewayError> {
    let unique = uuid::Uuid::now_v7().simple().to_string();
    let id = format!("gw-{}", unique.get(20..).unwrap_or(&unique));
    let listeners = listen(&config.gateway.listen)?;
    let bus = Bus::connect(&options, &format!("berth-gateway {id}")).await?;
    let end = CancellationToken::new();
    let (tracer, traces) = trace::start(&config.telemetry, "gateway", &id)?;
    let fleet = Fleet::follow(Arc::clone(&config), &bus, id.clone(), metrics, tracer, end.clone());
    if let Some(address) = config.gateway.exposed()
        && let Err(error) = guarded(&fleet, address, &shutdown).await
    {
        end.cancel();
        bus.close().await;
        return Err(error);
    }
    let workers = config
        .gateway
        .workers
        .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
        .unwrap_or(1)
        .max(1);

    let probes = {
        let watched = Arc::clone(&fleet);
        Probes::new("gateway", fleet.vitals.clone(), move || status::parts(&watched))
            .listen(config.gateway.metrics_listen, "[gateway] metrics_listen")?
    };
    let mut server = HttpServer::new({
        let fleet = Arc::clone(&fleet);
        move || {
            let (staffed, options) = (Arc::clone(&fleet), options.clone());
            App::new()
                .data_factory(move || Worker::of_this_thread(Arc::clone(&staffed), options.clone()))
                .wrap(from_fn({
                    let fleet = Arc::clone(&fleet);
                    move |request, next| authenticate(Arc::clone(&fleet), request, next)
                }))
                .wrap(from_fn({
                    let fleet = Arc::clone(&fleet);
                    move |request, next| stamp(Arc::clone(&fleet), request, next)
                }))
                .configure(routes)
                .default_service(web::to(error::not_found))
        }
    })
    .workers(workers)
    // The default keeps a handler running after its client has gone.
    .h1_allow_half_closed(false)
    .tcp_nodelay(true)
    .keep_alive(Duration::from_secs(75))
    .shutdown_timeout(1)
    .disable_signals();
    let mut addresses = Vec::new();
    for (address, listener) in listeners {
        addresses.push(listener.local_addr().unwrap_or(address));
        server = server.listen(listener).map_err(|source| GatewayError::Listen { address, source })?;
    }
    let server = server.run();
    let handle = server.handle();
    let running = actix_rt::spawn(server);

    let registered = {
        let fleet = Arc::clone(&fleet);
        let subject = format!("{}.status.gateway.{id}", bus.subjects.root());
        let metadata = HashMap::from([("instance".to_owned(), id.clone())]);
        register(&bus, "berth-gateway", "OpenAI-compatible endpoint", subject, metadata, move || {
            status::report(&fleet)
        })
        .await?
    };
    while fleet.workers_ready() < workers && !running.is_finished() && !shutdown.is_cancelled() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    if !running.is_finished() {
        info!(%id, workers, ?addresses, "gateway takes requests");
        started(addresses);
    }

    let mut running = running;
    let early = tokio::select! {
        () = shutdown.cancelled() => None,
        ended = &mut running => Some(ended),
    };
    let outcome = match early {
        Some(ended) => ended,
        None => {
            // Connections are still accepted: a listener that nobody accepts from lets clients hang, and resets them
            // at the end.
            fleet.draining.store(true, Ordering::Release);
            fleet.shelf.close();
            // Who still waits is told to come back at once; who is being answered is answered to the end.
            fleet.dismiss_waiting().await;
            finish(&fleet).await;
            fleet.drain(ACTOR_DRAIN).await;
            // Before the workers end: their connections live on their threads and could not say any more that they
            // are closed.
            fleet.close().await;
            handle.stop(true).await;
            running.await
        }
    };
    drop(registered);
    end.cancel();
    if let Some(probes) = probes {
        probes.stop().await;
    }
    traces.stop().await;
    bus.close().await;
    info!(%id, "gateway ended");
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(source)) => Err(GatewayError::Server(source)),
        Err(join) => Err(GatewayError::Server(std::io::Error::other(join))),
    }
}

/// Whether somebody has a key, before anything is taken at an address that other machines can reach. The bucket of keys
/// is there once a scheduler has been.
async fn guarded(
    fleet: &Fleet,
    address: SocketAddr,
    shutdown: &CancellationToken,
) -> Result<(), GatewayError> {
    let any = fleet.keys.any();
    tokio::pin!(any);
    let mut slow = tokio::time::interval(Duration::from_secs(10));
    slow.tick().await;
    loop {
        tokio::select! {
            any = &mut any => return if any { Ok(()) } else { Err(GatewayError::NoKeys { address }) },
            _ = slow.tick() => warn!("no scheduler has set up the bucket of API keys yet; waiting for one"),
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

/// Waits until every answer that runs is complete, for a bounded time.
async fn finish(fleet: &Fleet) {
    let began = Instant::now();
    loop {
        let left = fleet.running.load(Ordering::Acquire);
        if left == 0 {
            return;
        }
        if began.elapsed() >= fleet.config().finish {
            warn!(jobs = left, "answers still run; ending them");
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn listen(addresses: &[SocketAddr]) -> Result<Vec<(SocketAddr, std::net::TcpListener)>, GatewayError> {
    if addresses.is_empty() {
        return Err(GatewayError::NoAddress);
    }
    addresses
        .iter()
        .map(|&address| {
            let listener = bind(address).map_err(|source| match source.kind() {
                IoKind::AddrInUse => GatewayError::InUse { address },
                _ => GatewayError::Listen { address, source },
            })?;
            Ok((address, listener))
        })
        .collect()
}

/// Connections that may wait to be accepted, if the system allows as many. Beyond them a client's attempt is dropped, and
/// it tries again after 1, 3 and 7 s; the standard library's 128 are soon reached when many agents start at a time.
const BACKLOG: u32 = 4096;

fn bind(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // So that a restart need not wait.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

fn routes(app: &mut ServiceConfig) {
    let resource = |path: &str| web::resource(path.to_owned()).default_service(web::to(error::wrong_method));
    for route in Engines::ALL {
        for path in std::iter::once(&route.path()).chain(route.aliases()) {
            let infer = move |request, payload, caller, worker| {
                infer::handle(route, request, payload, caller, worker)
            };
            app.service(resource(path).route(web::post().to(infer)));
        }
    }
    let other =
        |request, payload, caller, worker| infer::handle(Engines::Upstream, request, payload, caller, worker);
    let all = upstream::METHODS.into_iter().fold(resource(&format!("{PREFIX}{{rest:.*}}")), |all, method| {
        all.route(web::method(method).to(other))
    });
    app.service(all)
        .service(resource("/").route(read().to(about::about)))
        .service(resource("/v1/models").route(read().to(models::list)))
        .service(resource("/v1/models/{id:.+}").route(read().to(models::one)))
        .service(resource("/lease").route(web::post().to(leases::lease)))
        .service(resource("/release").route(web::post().to(leases::release)))
        .service(resource("/leases").route(read().to(leases::list)))
        .service(resource("/hint").route(web::post().to(leases::hint)))
        .service(
            resource("/api/v1/jobs/{id}").route(read().to(jobs::show)).route(web::delete().to(jobs::cancel)),
        )
        .service(resource("/api/v1/jobs/{id}/result").route(read().to(jobs::result)))
        .service(resource("/api/v1/models").route(read().to(operate::models)))
        .service(resource("/api/v1/queue").route(read().to(operate::queue)))
        .service(resource("/api/v1/jobs").route(read().to(operate::jobs)))
        .service(resource("/api/v1/explain/{id}").route(read().to(operate::explain)))
        .service(resource("/api/v1/events").route(read().to(operate::events)))
        .service(resource("/api/v1/load").route(web::post().to(operate::load)))
        .service(resource("/api/v1/unload").route(web::post().to(operate::unload)))
        .service(resource("/api/v1/pin").route(web::post().to(operate::pin)))
        .service(resource("/api/v1/unpin").route(web::post().to(operate::unpin)))
        .service(resource("/api/v1/leases").route(read().to(leases::list)))
        .service(
            resource("/api/v1/hints")
                .route(read().to(operate::hints))
                .route(web::delete().to(operate::withdraw)),
        )
        .service(resource("/api/v1/hosts").route(read().to(operate::hosts)))
        .service(resource("/api/v1/engines").route(read().to(operate::engines)))
        .service(resource("/dashboard").route(read().to(operate::dashboard)))
        .service(resource("/openapi.json").route(read().to(openapi::openapi)))
        .service(resource("/healthz").route(read().to(status::healthz)))
        .service(resource("/livez").route(read().to(status::healthz)))
        .service(resource("/readyz").route(read().to(status::readyz)))
        .service(resource("/metrics").route(read().to(status::metrics)))
        .service(resource("/api/v1/fleet").route(read().to(status::fleet)));
}

/// GET, and HEAD for those who want its headers alone: the server leaves the body out by itself.
fn read() -> Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const PROCESSING_MS: HeaderName = HeaderName::from_static("openai-processing-ms");

/// What every answer carries: the request's id and our own time; and from a gateway that ends, that the connection
/// ends with it.
async fn stamp(
    fleet: Arc<Fleet>,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    let began = Instant::now();
    let own = request.headers().get(X_REQUEST_ID).filter(|id| {
        let id = id.as_bytes();
        (1..=128).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
    });
    let id = own
        .cloned()
        .or_else(|| HeaderValue::from_str(&format!("req-{}", uuid::Uuid::now_v7().simple())).ok());
    let known = id.clone().map(RequestId);
    if let Some(id) = known.clone() {
        request.extensions_mut().insert(id);
    }
    let time_out = patience::time_out(request.headers());
    let mut response = anthropic::speak(next.call(request).await?, known.as_ref());
    error::spare_the_wait(response.response_mut(), time_out);
    meters::answered(response.status().as_u16());
    let headers = response.headers_mut();
    if let Some(id) = id {
        headers.insert(X_REQUEST_ID, id);
    }
    let began = response.request().extensions().get::<Complete>().map_or(began, |complete| complete.0);
    let headers = response.headers_mut();
    let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    headers.insert(PROCESSING_MS, HeaderValue::from(ms));
    let old = response.request().version() < Version::HTTP_11;
    let head = response.response_mut().head_mut();
    if old {
        // It knows no chunks: a body without a length ends with its connection.
        head.no_chunking(true);
    }
    if old || fleet.draining.load(Ordering::Acquire) {
        head.set_connection_type(ConnectionType::Close);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn a_burst_of_clients_waits_to_be_accepted_and_is_not_turned_away() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        // One that is turned away tries again after a second.
        let connect = |_| TcpStream::connect_timeout(&address, Duration::from_millis(900));
        let waiting: Result<Vec<_>, _> = (0..400).map(connect).collect();
        assert_eq!(waiting.unwrap().len(), 400);
    }
}
