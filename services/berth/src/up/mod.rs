//! `berth up`: the whole fleet in one process, each role on a thread of its own, over a nats-server of its own.

mod bus_file;
mod crew;
mod found;
mod neighbours;
mod ready;

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berth_bus::server::{DataDir, NatsServer, Search};
use berth_bus::{Bus, BusOptions};
use berth_config::{Config, LlamaServer, Secret, env};
use tokio::sync::oneshot;

pub(crate) use self::bus_file::BusFile;
use self::crew::Crew;
use crate::cli::UpArgs;
use crate::exit::{Exit, Failure};
use crate::role::Role;
use crate::setup::{self, Source};
use crate::signals::Signals;

/// A line of the story, with what it is about in front. Nobody may be reading any more.
pub(crate) fn tell(about: &str, what: &str) {
    let mut output = std::io::stdout().lock();
    let _ = writeln!(output, "{about:<14}{what}").and_then(|()| output.flush());
}

/// Runs the fleet until it is told to stop.
pub(crate) fn run(args: &UpArgs) -> Result<Exit, Failure> {
    let (mut config, source) = load(args)?;
    let data_dir = args.data_dir.clone().unwrap_or_else(env::data_dir);
    if let Some(address) = args.listen {
        config.gateway.listen = vec![address];
    }
    setup::open(&mut config, args.open)?;
    if config.host.state_dir.is_none() {
        config.host.state_dir = Some(data_dir.join("agent"));
    }
    actix_rt::System::new().block_on(Box::pin(up(args, config, &source, &data_dir)))
}

fn load(args: &UpArgs) -> Result<(Config, Source), Failure> {
    let (mut config, source) = if args.config.is_none() && !args.model.is_empty() {
        (setup::overridden(Config::empty(), &args.nats_url)?, Source::Defaults)
    } else {
        setup::config(args.config.as_deref(), &args.nats_url)?
    };
    let server = LlamaServer::detect();
    for path in &args.model {
        config.add_gguf(path, &server)?;
    }
    Ok((config, source))
}

async fn up(args: &UpArgs, mut config: Config, source: &Source, data_dir: &Path) -> Result<Exit, Failure> {
    let signals = Signals::watch()?;
    let data_dir = DataDir::claim(data_dir)?;
    check_free(&config.gateway.listen)?;
    tell("berth", env!("CARGO_PKG_VERSION"));
    tell("configuration", &source.to_string());
    let found = berth_runner_agent::detect(&config).await;
    found::tell_all(&config, &found);
    for hint in neighbours::look(&config.gateway.listen, &config.external).await {
        tell("also here", &hint);
    }

    // A server that the user named, or one of our own.
    let named = !args.nats_url.is_empty() || env::nats_urls().is_some();
    let (nats, bus_file) = if named {
        tell("nats", &format!("{} (not started here)", shown_urls(&config.bus.urls)));
        (None, None)
    } else {
        let started = tokio::select! {
            started = Box::pin(start_nats(&data_dir)) => started?,
            () = signals.stop.cancelled() => return Ok(Exit::Interrupted),
        };
        config.bus.urls = vec![started.url().to_owned()];
        config.bus.token = Some(Secret::new(started.token()));
        config.bus.nkey = None;
        config.bus.credentials = None;
        config.bus.ca = None;
        let bus = Bus::connect(&BusOptions::from_config(&config.bus), "berth-up").await?;
        berth_bus::forget_leader(&bus).await?;
        bus.close().await;
        let gateway = config.gateway.listen.first().copied().filter(|address| address.port() != 0);
        let file = BusFile::write(data_dir.path(), &started, &config.bus.root, gateway)?;
        (Some(started), Some(file))
    };

    config.telemetry.several_roles = true;
    let outcome = serve(Arc::new(config), &signals).await;

    if let Some(file) = bus_file {
        file.remove();
    }
    if let Some(nats) = nats {
        nats.stop().await;
    }
    match &outcome {
        Ok(Exit::Done) => tell("stopped", "everything that was started"),
        Ok(_) => tell(
            "stopped",
            "at once; engines that still run are stopped by the next `berth up` or `berth agent`",
        ),
        Err(_) => {}
    }
    outcome
}

async fn start_nats(data_dir: &DataDir) -> Result<NatsServer, Failure> {
    let search = Search {
        nats_server: env::find_program("nats-server"),
        python: env::find_program("python3"),
        docker: env::find_program("docker"),
        cache_dir: env::cache_dir(),
    };
    let binary = berth_bus::server::find(&search, &|step| tell("nats", step)).await?;
    let server = NatsServer::start(binary.clone(), data_dir, None).await?;
    tell("nats", server.url());
    tell("", &binary.to_string());
    let address = server.url().trim_start_matches("nats://");
    tell("", "look inside with the NATS CLI:");
    tell(
        "",
        &format!("nats --server \"nats://$(cat {})@{address}\" sub '>'", env::show_path(server.token_file())),
    );
    Ok(server)
}

/// Runs the roles until the user or one of them ends it; all are stopped when this returns.
async fn serve(config: Arc<Config>, signals: &Signals) -> Result<Exit, Failure> {
    let options = BusOptions::from_config(&config.bus);
    let metrics = setup::metrics()?;
    let (started, addresses) = oneshot::channel::<Vec<SocketAddr>>();
    let mut crew = Crew::default();
    for role in [Role::Scheduler, Role::Health, Role::Agent] {
        crew.start(role, &config, &options, |_| {}, Some(Arc::clone(&metrics)))?;
    }
    let tell_addresses = move |addresses| {
        // Nobody waits for them once it is stopping.
        let _ = started.send(addresses);
    };
    crew.start(Role::Gateway, &config, &options, tell_addresses, Some(metrics))?;

    let story = async {
        if let Ok(addresses) = addresses.await {
            ready::tell_when_ready(&config, &addresses).await;
        }
        std::future::pending::<()>().await;
    };
    let failed = tokio::select! {
        () = signals.stop.cancelled() => None,
        failure = crew.first_end() => Some(failure),
        () = story => None,
    };
    if failed.is_none() {
        tell("stopping", "running answers may end; Ctrl-C again stops at once");
    }
    // The agent says goodbye to the scheduler, so that one ends after it.
    let drained = async {
        crew.stop(Role::Gateway, config.gateway.finish + Duration::from_secs(10)).await;
        crew.stop(Role::Agent, config.host.finish + Duration::from_secs(30)).await;
        crew.stop(Role::Health, Duration::from_secs(10)).await;
        crew.stop(Role::Scheduler, Duration::from_secs(10)).await;
    };
    let exit = tokio::select! {
        () = drained => Exit::Done,
        () = signals.hurry.cancelled() => Exit::Interrupted,
    };
    match failed {
        Some(failure) => Err(failure),
        None => Ok(exit),
    }
}

/// Says so at once if an address is taken, before anything is started.
fn check_free(addresses: &[SocketAddr]) -> Result<(), Failure> {
    for address in addresses.iter().copied() {
        match TcpListener::bind(address) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                return Err(Failure::InUse { address });
            }
            Err(source) => return Err(Failure::Listen { address, source }),
        }
    }
    Ok(())
}

/// Addresses without what may stand before the `@` in them.
fn shown_urls(urls: &[String]) -> String {
    let shown = urls.iter().map(|url| match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://***@{host}"),
        (None, Some((_, host))) => format!("***@{host}"),
        _ => url.clone(),
    });
    shown.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_addresses_are_not_shown() {
        let urls = ["nats://u:p@h:4222".to_owned(), "nats://h".to_owned()];
        assert_eq!(shown_urls(&urls), "nats://***@h:4222, nats://h");
    }

    #[test]
    fn a_taken_address_is_named_before_anything_starts() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = check_free(&[address]).unwrap_err().to_string();
        assert_eq!(error, format!("{address} is in use by another program; choose another with --listen"));
    }
}
