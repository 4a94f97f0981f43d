//! `berth nats`: keys, permissions and certificates for the nats-server of a fleet.

mod folder;
mod tls;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use berth_bus::permit::Identity;
use clap::{Args, Subcommand};

use crate::exit::{Exit, Failure};
use folder::{Fleet, Folder};

pub(crate) const EXAMPLES: &str = "\
The folder holds the configuration of nats-server, a key for each role and host (mode 0600), and certificates. What a key
opens is written into auth.conf, for nats-server to read; `nats-server --signal reload` lets it read that anew.

Examples:
  berth nats init --dir nats --tls nats.example.com --host gpu-1 --host gpu-2
  nats-server -c nats/nats-server.conf
  berth nats add-host gpu-3 --dir nats
  berth nats rotate gpu-1 --dir nats            a second key; both open until --finish
  berth nats rotate gpu-1 --dir nats --finish
  berth nats remove-host gpu-2 --dir nats
  berth nats update --dir nats                  after an update of berth";

const NO_TLS: &str = "this fleet has no TLS: `berth nats init --tls NAME` makes it";

/// What to do with the folder.
#[derive(Debug, Args)]
pub(crate) struct NatsArgs {
    #[command(subcommand)]
    what: What,
}

/// The folder.
#[derive(Debug, Args)]
struct Dir {
    /// The folder of keys and configuration.
    #[arg(long, value_name = "DIR", default_value = "nats")]
    dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make keys, certificates and the configuration of a nats-server.
    Init(InitArgs),
    /// Make a key for one more host.
    AddHost {
        /// Its name, as `[host] name` in its berth.toml says.
        name: String,
        #[command(flatten)]
        dir: Dir,
    },
    /// Let the agent of a host in no more.
    RemoveHost {
        /// Its name.
        name: String,
        #[command(flatten)]
        dir: Dir,
    },
    /// Make a new key for a role or host beside its last, or with --finish let its last in no more.
    Rotate {
        /// `scheduler`, `gateway`, `health`, `operator`, the name of a host, or `tls` for the server's certificate.
        who: String,
        /// The new key is where it belongs: the last one opens no more.
        #[arg(long)]
        finish: bool,
        #[command(flatten)]
        dir: Dir,
    },
    /// Write auth.conf anew, for what this version of berth needs, with what is missing of keys and names.
    Update {
        /// A host that is to have a key; may be given several times.
        #[arg(long, value_name = "NAME")]
        host: Vec<String>,
        /// A name or address that the server's certificate is to hold; may be given several times.
        #[arg(long, value_name = "NAME")]
        tls: Vec<String>,
        #[command(flatten)]
        dir: Dir,
    },
}

/// Options of `init`.
#[derive(Debug, Args)]
struct InitArgs {
    #[command(flatten)]
    dir: Dir,
    /// A host that will run an agent, by the name that its berth.toml gives it; may be given several times.
    #[arg(long, value_name = "NAME")]
    host: Vec<String>,
    /// Use TLS, with a certificate for this name or address of the server; may be given several times.
    #[arg(long, value_name = "NAME")]
    tls: Vec<String>,
    /// Where the server listens [default: 0.0.0.0:4222 with --tls, else 127.0.0.1:4222].
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where the server keeps its streams [default: DIR/store].
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Root of all subjects, as `[bus] root` says.
    #[arg(long, value_name = "ROOT", default_value = "berth.v1")]
    root: String,
    /// Replace the keys and certificates that are there: nobody gets in by the old ones then.
    #[arg(long)]
    force: bool,
}

/// Does it.
pub(crate) fn run(args: NatsArgs) -> Result<Exit, Failure> {
    match args.what {
        What::Init(args) => init(args)?,
        What::AddHost { name, dir } => {
            let (folder, mut fleet) = Folder::open(&dir.dir)?;
            let agent = agent(&name)?;
            if fleet.has(&agent) {
                let why = format!("{name} has a key already; `berth nats rotate {name}` makes a new one");
                return Err(Failure::Input(why));
            }
            let path = folder.add_key(&mut fleet, &agent)?;
            folder.save(&fleet)?;
            outln!("made a key for the agent of {name}; let the server know: nats-server --signal reload");
            tell_agent(&folder, &fleet, &name, &path);
        }
        What::RemoveHost { name, dir } => {
            let (folder, mut fleet) = Folder::open(&dir.dir)?;
            let agent = agent(&name)?;
            if !fleet.has(&agent) {
                return Err(Failure::Input(format!(
                    "no host {name} has a key here; there are {}",
                    fleet.hosts()
                )));
            }
            fleet.remove(&agent);
            folder.forget_keys(&agent)?;
            folder.save(&fleet)?;
            outln!(
                "{name} has no key any more; once the server knows, it is cut off: nats-server --signal reload"
            );
        }
        What::Rotate { who, finish, dir } => rotate(&who, finish, &dir.dir)?,
        What::Update { host, tls, dir } => {
            let (folder, mut fleet) = Folder::open(&dir.dir)?;
            complete(&folder, &mut fleet, &host, &tls)?;
            folder.save(&fleet)?;
            outln!("wrote {}; let the server know: nats-server --signal reload", folder.auth().display());
        }
    }
    Ok(Exit::Done)
}

fn agent(host: &str) -> Result<Identity, Failure> {
    Identity::agent(host).ok_or_else(|| {
        Failure::Option(format!("`{host}` is no name of a host: use letters, digits, `-` and `_`"))
    })
}

/// Makes the keys that are missing, and a certificate with all names.
fn complete(folder: &Folder, fleet: &mut Fleet, hosts: &[String], names: &[String]) -> Result<(), Failure> {
    let agents = hosts.iter().map(|host| agent(host)).collect::<Result<Vec<_>, _>>()?;
    let missing = |name: &&String| !fleet.tls.contains(*name);
    let new: Vec<String> = names.iter().filter(missing).cloned().collect();
    if !new.is_empty() {
        if fleet.tls.is_empty() {
            return Err(Failure::Input(NO_TLS.into()));
        }
        let all = [fleet.tls.clone(), new].concat();
        tls::renew(&folder.path("tls"), &all)?;
        outln!("made a new certificate for the server, for {}", all.join(", "));
        fleet.tls = all;
    }
    for identity in Identity::ROLES.into_iter().chain(agents) {
        if !fleet.has(&identity) {
            folder.add_key(fleet, &identity)?;
            outln!("made a key for {}", identity.name());
        }
    }
    Ok(())
}

fn init(args: InitArgs) -> Result<(), Failure> {
    let agents = args.host.iter().map(|host| agent(host)).collect::<Result<Vec<_>, _>>()?;
    let listen = args.listen.unwrap_or_else(|| {
        SocketAddr::from((if args.tls.is_empty() { [127, 0, 0, 1] } else { [0, 0, 0, 0] }, 4222))
    });
    if args.tls.is_empty() && !berth_config::is_loopback(listen) {
        return Err(Failure::Option(format!(
            "other machines can reach {listen}, and prompts and answers would travel there for all to read: say --tls NAME, \
             the name or address by which they reach it"
        )));
    }
    let mut fleet = Fleet::new(args.root, listen, args.store, args.tls)?;
    let folder = Folder::create(&args.dir.dir, args.force)?;
    if !fleet.tls.is_empty() {
        tls::make(&folder.path("tls"), &fleet.tls)?;
    }
    for identity in Identity::ROLES.into_iter().chain(agents) {
        folder.add_key(&mut fleet, &identity)?;
    }
    folder.save(&fleet)?;
    folder.write_server(&fleet)?;
    outln!("made {} keys in {}", fleet.keys.len(), folder.path("keys").display());
    outln!("start the server:  nats-server -c {}", folder.path("nats-server.conf").display());
    outln!("give each process its key in berth.toml, or by BERTH_NATS_NKEY:");
    for role in Identity::ROLES {
        outln!("  {:<10} nkey_file = \"{}\"", role.name(), folder.key(&role).display());
    }
    for host in &args.host {
        if let Some(agent) = Identity::agent(host) {
            tell_agent(&folder, &fleet, host, &folder.key(&agent));
        }
    }
    Ok(())
}

/// What the berth.toml of a host needs.
fn tell_agent(folder: &Folder, fleet: &Fleet, host: &str, key: &Path) {
    outln!("\nberth.toml of {host}; take {} there, readable by its agent alone:", key.display());
    outln!("[bus]\nurls = [\"{}\"]\nnkey_file = \"/etc/berth/nats.nk\"", fleet.url());
    if !fleet.tls.is_empty() {
        outln!("ca = \"/etc/berth/nats-ca.pem\"    # {}", folder.path("tls/ca.pem").display());
    }
    outln!("[host]\nname = \"{host}\"");
}

fn rotate(who: &str, finish: bool, dir: &Path) -> Result<(), Failure> {
    let (folder, mut fleet) = Folder::open(dir)?;
    if who == "tls" {
        if fleet.tls.is_empty() {
            return Err(Failure::Input(NO_TLS.into()));
        }
        tls::renew(&folder.path("tls"), &fleet.tls)?;
        outln!("made a new certificate for the server; let it know: nats-server --signal reload");
        return Ok(());
    }
    let role = Identity::ROLES.into_iter().find(|role| role.name() == who);
    let identity = match role {
        Some(role) => role,
        None => agent(who.trim_start_matches("agent-"))?,
    };
    let keys = fleet.count(&identity);
    match (keys, finish) {
        (0, _) => Err(Failure::Input(format!(
            "nobody is called {who}; there are scheduler, gateway, health, operator, tls, and the hosts {}",
            fleet.hosts()
        ))),
        (1, true) => Err(Failure::Input(format!(
            "{who} has one key only; `berth nats rotate {who}` makes a second one first"
        ))),
        (1, false) => {
            folder.set_aside(&identity)?;
            let path = folder.add_key(&mut fleet, &identity)?;
            folder.save(&fleet)?;
            outln!("made a second key for {who}: {}", path.display());
            outln!("1. nats-server --signal reload: both keys open");
            outln!("2. put the new key in the place of the old one and restart {who}");
            outln!("3. berth nats rotate {who} --finish, and reload again");
            Ok(())
        }
        (_, false) => Err(Failure::Input(format!(
            "a rotation of {who} is under way; end it with `berth nats rotate {who} --finish`"
        ))),
        (_, true) => {
            fleet.keep_newest(&identity);
            folder.forget_old(&identity)?;
            folder.save(&fleet)?;
            outln!("the old key of {who} opens no more once the server knows: nats-server --signal reload");
            Ok(())
        }
    }
}
