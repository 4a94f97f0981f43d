//! `berth key`: API keys are made, listed and revoked in the bucket that every gateway follows. Who may use the bus may
//! do so.

use std::io::{BufRead, IsTerminal, Read};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use berth_bus::{Bus, BusError, create_json, delete_key};
use berth_config::Config;
use berth_wire::{Class, KEY_PREFIX, KeyHash, KeyId, KeyLimits, KeyRecord, Scope, Timestamp, is_key_name};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::cli::FleetArgs;
use crate::exit::{Exit, Failure};
use crate::{lease, setup, status, table};

/// Shorter keys could be guessed from their hash.
const SHORTEST: usize = 20;

pub(crate) const EXAMPLES: &str = "\
A gateway asks for a key as soon as there is one, in its configuration ([[gateway.keys]]) or here. What is made and
revoked here counts at once at every running gateway.

Examples:
  berth key create laptop                                       print a new key, this once
  berth key create ci --class batch --rpm 60 --expires 30d      a key with limits
  berth key create ops --scope admin                            a key for metrics and the fleet
  berth key create laptop --toml >> berth.toml                  for the configuration, without a fleet
  berth key list
  berth key revoke laptop
  berth key hash < key.txt                                      the hash of a key of your own";

/// Options of `key`.
#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

/// What to do with keys.
#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Make a key and print it, once: only its hash is kept.
    Create(Box<CreateArgs>),
    /// Show the keys there are, by name.
    List(ListArgs),
    /// Take a key back: gateways refuse it at once. Answers that run are finished.
    Revoke(RevokeArgs),
    /// Read a key from standard input and print its hash, for the configuration.
    Hash,
}

/// Options of `key create`.
#[derive(Debug, Args)]
struct CreateArgs {
    /// Its name in logs, metrics and tables: letters, digits, `-`, `_` and `.`.
    #[arg(value_parser = name)]
    name: KeyId,
    /// What it opens: `user` asks models and sees its own leases and jobs, `admin` may do everything.
    #[arg(long, default_value = "user", value_parser = scope)]
    scope: Scope,
    /// How much its requests' waiting counts: interactive, standard or batch.
    #[arg(long, default_value = "standard", value_parser = class)]
    class: Class,
    /// Requests that may wait or run at a time, at each gateway.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: Option<u32>,
    /// Requests within a minute, at each gateway.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rpm: Option<u32>,
    /// Tokens within a minute, of prompts and answers, at each gateway.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    tpm: Option<u32>,
    /// A model that it may name, or an alias; may be given several times [default: all].
    #[arg(long, value_name = "MODEL")]
    model: Vec<String>,
    /// For how long it opens anything, as in 30d [default: until it is revoked].
    #[arg(long, value_name = "TIME", value_parser = expiry)]
    expires: Option<Duration>,
    /// Keep it nowhere: print the lines for a configuration file, and the key on standard error.
    #[arg(long)]
    toml: bool,
    #[command(flatten)]
    fleet: FleetArgs,
}

/// Options of `key list`.
#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    fleet: FleetArgs,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// Options of `key revoke`.
#[derive(Debug, Args)]
struct RevokeArgs {
    /// Its name.
    name: String,
    #[command(flatten)]
    fleet: FleetArgs,
}

fn name(text: &str) -> Result<KeyId, String> {
    if is_key_name(text) {
        return Ok(text.into());
    }
    Err("a key's name has 1 to 64 letters, digits, `-`, `_` and `.`".into())
}

fn scope(text: &str) -> Result<Scope, String> {
    let known = [Scope::User, Scope::Admin];
    known.into_iter().find(|scope| scope.as_str() == text).ok_or_else(|| "there are user and admin".into())
}

fn class(text: &str) -> Result<Class, String> {
    let known = [Class::Interactive, Class::Standard, Class::Batch];
    let found = known.into_iter().find(|class| class.as_str() == text);
    found.ok_or_else(|| "there are interactive, standard and batch".into())
}

fn expiry(text: &str) -> Result<Duration, String> {
    let span = berth_config::parse_duration(text)?;
    if span.is_zero() { Err("a key that opens nothing is of no use; as in 30d".into()) } else { Ok(span) }
}

/// `berth key`
pub(crate) fn run(args: KeyArgs) -> Result<Exit, Failure> {
    match args.command {
        KeyCommand::Create(args) => create(&args),
        KeyCommand::List(args) => list(&args),
        KeyCommand::Revoke(args) => revoke(&args),
        KeyCommand::Hash => hash(),
    }
}

fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}

/// 256 bits that nobody can guess.
fn generate() -> Result<String, Failure> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::Input(format!("the system gives no random numbers: {error}")))?;
    Ok(bytes.iter().fold(KEY_PREFIX.to_owned(), |key, byte| format!("{key}{byte:02x}")))
}

fn create(args: &CreateArgs) -> Result<Exit, Failure> {
    let key = generate()?;
    let now = now();
    let mut record = KeyRecord {
        scope: args.scope,
        class: args.class,
        limits: KeyLimits {
            concurrency: args.concurrency,
            requests_per_minute: args.rpm,
            tokens_per_minute: args.tpm,
        },
        models: args.model.clone(),
        created: Some(now),
        expires: args.expires.map(|span| now.plus(span)),
        ..KeyRecord::new(args.name.clone(), KeyHash::of(&key))
    };
    if args.toml {
        eprintln!(
            "{key}\nThis is the key, shown only now. Standard output has the lines for the configuration."
        );
        out!("{}", lines(&record));
        return Ok(Exit::Done);
    }
    let (config, _) = setup::config(args.fleet.config.as_deref(), &args.fleet.nats_url)?;
    if config.gateway.keys.iter().any(|known| known.name == record.name) {
        return Err(taken(&record.name, "in the configuration"));
    }
    at_fleet(&args.fleet, async |bus| {
        let bucket = bus.bucket("keys").await?;
        for model in &mut record.models {
            *model = lease::resolve(bus, model).await?.as_str().to_owned();
        }
        match create_json(&bucket, &KeyRecord::key_of(&record.name), &record).await {
            Err(BusError::Conflict { .. }) => Err(taken(&record.name, "on this fleet")),
            other => Ok(other.map(|_| ())?),
        }
    })?;
    outln!("{key}");
    eprintln!(
        "This is the key `{}`, shown only now: only its hash is kept. Gateways that are not open ask for a key from now on.",
        record.name
    );
    Ok(Exit::Done)
}

fn taken(name: &KeyId, place: &str) -> Failure {
    Failure::Input(format!("there is a key `{name}` {place}; choose another name, or revoke that one first"))
}

/// The entry for a configuration file.
fn lines(key: &KeyRecord) -> String {
    let mut text =
        format!("\n[[gateway.keys]]\nname = \"{}\"\nhash = \"{}\"\n", key.name, key.hash.to_text());
    let mut line = |name: &str, value: String| text.push_str(&format!("{name} = {value}\n"));
    if key.scope != Scope::default() {
        line("scope", format!("\"{}\"", key.scope.as_str()));
    }
    if key.class != Class::default() {
        line("class", format!("\"{}\"", key.class.as_str()));
    }
    let limits = [
        ("concurrency", key.limits.concurrency),
        ("requests_per_minute", key.limits.requests_per_minute),
        ("tokens_per_minute", key.limits.tokens_per_minute),
    ];
    for (name, limit) in limits {
        if let Some(limit) = limit {
            line(name, limit.to_string());
        }
    }
    if !key.models.is_empty() {
        // A JSON list of texts is one of TOML too.
        line("models", json!(key.models).to_string());
    }
    if let Some(expires) = key.expires {
        line("expires", berth_config::show_time(expires));
    }
    text
}

/// A key as it is listed.
struct Row {
    key: Arc<KeyRecord>,
    from: &'static str,
    /// Another of that name counts.
    shadowed: bool,
}

fn list(args: &ListArgs) -> Result<Exit, Failure> {
    let (config, _) = setup::config(args.fleet.config.as_deref(), &args.fleet.nats_url)?;
    let rows = rows(&config, stored(&args.fleet)?);
    if args.json {
        let keys: Vec<Value> = rows.iter().map(shown).collect();
        outln!("{}", json!({ "keys": keys }));
    } else if rows.is_empty() {
        outln!(
            "there is no API key: gateways on loopback let everybody in; `berth key create NAME` makes one"
        );
    } else {
        let now = now();
        let cells: Vec<Vec<String>> = rows.iter().map(|row| cells(row, now)).collect();
        out!("{}", table::render(&["NAME", "SCOPE", "CLASS", "LIMITS", "MODELS", "EXPIRES", "FROM"], &cells));
        if config.gateway.open {
            outln!("the configuration says `open = true`: its gateways ask nobody for a key");
        }
    }
    Ok(Exit::Done)
}

fn rows(config: &Config, stored: Vec<Arc<KeyRecord>>) -> Vec<Row> {
    let own = |key: &KeyRecord| config.gateway.keys.iter().any(|known| known.name == key.name);
    let configured = config.gateway.keys.iter().map(|key| Row {
        key: Arc::new(key.clone()),
        from: "configuration",
        shadowed: false,
    });
    let stored = stored.into_iter().map(|key| {
        let shadowed = own(&key);
        Row { key, from: "fleet", shadowed }
    });
    let mut rows: Vec<Row> = configured.chain(stored).collect();
    rows.sort_by(|a, b| (&a.key.name, a.shadowed).cmp(&(&b.key.name, b.shadowed)));
    rows
}

fn cells(row: &Row, now: Timestamp) -> Vec<String> {
    let key = &row.key;
    let or_dash = |text: String| if text.is_empty() { "-".into() } else { text };
    let limits = [
        key.limits.concurrency.map(|n| format!("{n} at a time")),
        key.limits.requests_per_minute.map(|n| format!("{n}/min")),
        key.limits.tokens_per_minute.map(|n| format!("{n} tokens/min")),
    ];
    let expires = match key.expires {
        None => "-".into(),
        Some(_) if key.has_expired(now) => "expired".into(),
        Some(at) => format!("in {}", rough(at.since(now))),
    };
    let from =
        if row.shadowed { format!("{} (the configuration's counts)", row.from) } else { row.from.into() };
    vec![
        key.name.to_string(),
        key.scope.as_str().into(),
        key.class.as_str().into(),
        or_dash(limits.into_iter().flatten().collect::<Vec<_>>().join(", ")),
        if key.models.is_empty() { "all".into() } else { key.models.join(", ") },
        expires,
        from,
    ]
}

fn rough(span: Duration) -> String {
    match span.as_secs() {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7200 => format!("{}m", seconds / 60),
        seconds @ 7200..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", (seconds + 43_200) / 86_400),
    }
}

fn shown(row: &Row) -> Value {
    let mut shown = serde_json::to_value(&*row.key).unwrap_or_default();
    if let Some(fields) = shown.as_object_mut() {
        // Its beginning tells two keys apart; the whole is of use only to who would try keys.
        fields.insert("hash".into(), row.key.hash.to_string().into());
        fields.insert("from".into(), row.from.into());
        fields.insert("counts".into(), (!row.shadowed).into());
        fields.insert("expired".into(), row.key.has_expired(now()).into());
    }
    shown
}

fn stored(args: &FleetArgs) -> Result<Vec<Arc<KeyRecord>>, Failure> {
    at_fleet(args, async |bus| {
        bus.bucket("keys").await?;
        Ok(status::entries::<KeyRecord>(bus, "keys").await?.values().cloned().collect())
    })
}

fn revoke(args: &RevokeArgs) -> Result<Exit, Failure> {
    let (config, _) = setup::config(args.fleet.config.as_deref(), &args.fleet.nats_url)?;
    let configured = config.gateway.keys.iter().any(|key| key.name.as_str() == args.name);
    let left = at_fleet(&args.fleet, async |bus| {
        let bucket = bus.bucket("keys").await?;
        let stored = status::entries::<KeyRecord>(bus, "keys").await?;
        let slot = KeyRecord::key_of(&args.name.as_str().into());
        if !stored.contains_key(&slot) {
            return Err(Failure::Input(unknown(&args.name, configured, stored.values())));
        }
        delete_key(&bucket, &slot).await?;
        Ok(stored.len() - 1)
    })?;
    outln!("revoked {}", args.name);
    if configured {
        eprintln!(
            "A key of that name in the configuration still counts: take it out there, and restart the gateways."
        );
    } else if left == 0 && config.gateway.keys.is_empty() {
        eprintln!(
            "No key is left. Running gateways let nobody in; one that is started anew on loopback lets everybody in, \
             and one that listens elsewhere does not start."
        );
    }
    Ok(Exit::Done)
}

fn unknown<'a>(name: &str, configured: bool, stored: impl Iterator<Item = &'a Arc<KeyRecord>>) -> String {
    if configured {
        return format!("`{name}` is in the configuration: take it out there, and restart the gateways");
    }
    let names: Vec<&str> = stored.map(|key| key.name.as_str()).collect();
    match names.as_slice() {
        [] => format!("no key is called `{name}`; there are none"),
        names => format!("no key is called `{name}`; there are {}", names.join(", ")),
    }
}

fn hash() -> Result<Exit, Failure> {
    let input = std::io::stdin().lock();
    if input.is_terminal() {
        eprintln!("Type the key and press Enter:");
    }
    let mut text = String::new();
    let read = input.take(4096).read_line(&mut text);
    read.map_err(|source| Failure::System { what: "cannot read the key", source })?;
    outln!("{}", hash_of(text.trim()).map_err(Failure::Input)?.to_text());
    Ok(Exit::Done)
}

fn hash_of(key: &str) -> Result<KeyHash, String> {
    if key.len() < SHORTEST || !key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!(
            "a key is one line of at least {SHORTEST} letters, digits and signs: a shorter one can be guessed; \
             `berth key create` makes one"
        ));
    }
    Ok(KeyHash::of(key))
}

fn at_fleet<T>(args: &FleetArgs, run: impl AsyncFnOnce(&Bus) -> Result<T, Failure>) -> Result<T, Failure> {
    let options = status::options(args)?;
    actix_rt::System::new().block_on(Box::pin(async {
        let bus = Bus::connect(&options, "berth-key").await?;
        let done = run(&bus).await;
        bus.close().await;
        done
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str) -> KeyRecord {
        KeyRecord::new(name.into(), KeyHash::of(name))
    }

    #[test]
    fn a_key_is_new_each_time_and_has_256_bits() {
        let keys = [generate().unwrap(), generate().unwrap()];
        assert_ne!(keys[0], keys[1]);
        assert!(keys.iter().all(|key| key.len() == 6 + 64 && key.starts_with("berth-")), "{keys:?}");
        assert!(
            hash_of(&keys[0]).is_ok() && hash_of("hunter2").is_err() && hash_of(&"x y".repeat(9)).is_err()
        );
    }

    #[test]
    fn the_lines_for_a_configuration_read_back_as_the_key() {
        let mut key = record("ci");
        let config = |key: &KeyRecord| Config::parse(&lines(key), "f").unwrap().gateway.keys;
        assert_eq!(config(&key), [key.clone()]);
        key.scope = Scope::Admin;
        key.class = Class::Interactive;
        key.limits =
            KeyLimits { concurrency: Some(1), requests_per_minute: Some(2), tokens_per_minute: Some(3) };
        key.models = vec!["org/m:1".into()];
        key.expires = Some(Timestamp(1_801_353_600_000));
        assert_eq!(config(&key), [key.clone()]);
    }

    #[test]
    fn a_list_shows_no_hash_and_says_which_of_two_counts() {
        let mut config = Config::empty();
        config.gateway.keys = vec![record("a")];
        let mut limited = record("b");
        limited.limits.requests_per_minute = Some(60);
        limited.expires = Some(Timestamp(40 * 86_400_000));
        let rows = rows(&config, vec![Arc::new(limited), Arc::new(record("a"))]);
        let shown_rows: Vec<Vec<String>> = rows.iter().map(|row| cells(row, Timestamp(0))).collect();
        assert_eq!(shown_rows[0].join("|"), "a|user|standard|-|all|-|configuration");
        assert_eq!(shown_rows[1].join("|"), "a|user|standard|-|all|-|fleet (the configuration's counts)");
        assert_eq!(shown_rows[2].join("|"), "b|user|standard|60/min|all|in 40d|fleet");
        let json = shown(&rows[0]).to_string();
        assert!(!json.contains(&KeyHash::of("a").to_text()) && json.contains("\"counts\":true"), "{json}");
    }
}
