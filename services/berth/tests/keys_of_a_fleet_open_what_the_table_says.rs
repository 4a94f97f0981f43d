//! `berth nats`, and the permissions that it writes, against a real nats-server.

#![expect(clippy::unwrap_used, reason = "test code")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{ConnectOptions, Event};
use berth_bus::permit::{Identity, permissions};
use berth_bus::{Bus, BusError, BusOptions, provision};
use berth_testkit::nats::TestNats;
use berth_testkit::wait::until;
use berth_wire::{JobId, Subjects, Verb};
use bytes::Bytes;
use futures::StreamExt;

const SOON: Duration = Duration::from_secs(15);

fn berth(dir: &Path, args: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_berth"))
        .arg("nats")
        .args(args)
        .arg("--dir")
        .arg(dir)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

struct Keys {
    folder: tempfile::TempDir,
}

impl Keys {
    fn make(args: &[&str]) -> Self {
        let keys = Self { folder: tempfile::tempdir().unwrap() };
        let (ok, said) = keys.berth(&[&["init", "--host", "one", "--host", "two"], args].concat());
        assert!(ok, "{said}");
        keys
    }

    fn berth(&self, args: &[&str]) -> (bool, String) {
        berth(&self.dir(), args)
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("nats")
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir().join(name)).unwrap()
    }

    /// nats-server takes paths from its own configuration's folder, which is beside ours.
    fn include(&self) -> String {
        let name = self.folder.path().file_name().unwrap();
        format!("include {:?}", Path::new("..").join(name).join("nats/auth.conf"))
    }

    fn server(&self) -> TestNats {
        TestNats::start_with(&self.include()).unwrap()
    }

    fn key(&self, identity: &Identity) -> String {
        self.read(&format!("keys/{}.nk", identity.name())).trim().to_owned()
    }

    fn options(&self, nats: &TestNats, identity: &Identity) -> BusOptions {
        BusOptions {
            urls: vec![nats.url()],
            nkey: Some(self.key(identity)),
            identity: Some(identity.clone()),
            patience: Duration::ZERO,
            ..BusOptions::default()
        }
    }

    async fn bus(&self, nats: &TestNats, identity: &Identity) -> Bus {
        Bus::connect(&self.options(nats, identity), "test").await.unwrap()
    }
}

fn agent(host: &str) -> Identity {
    Identity::agent(host).unwrap()
}

fn everybody() -> Vec<Identity> {
    let mut all = Identity::ROLES.to_vec();
    all.extend([agent("one"), agent("two")]);
    all
}

/// A subject that a pattern has.
fn example(pattern: &str) -> String {
    pattern.replace(['*', '>'], "x")
}

/// What the server denies of `subjects` to who has this key.
async fn denied(
    nats: &TestNats,
    key: String,
    inbox: String,
    publish: bool,
    subjects: &BTreeSet<String>,
) -> BTreeSet<String> {
    let said = Arc::new(Mutex::new(BTreeSet::new()));
    let hears = Arc::clone(&said);
    let options = ConnectOptions::with_nkey(key).custom_inbox_prefix(&inbox).event_callback(move |event| {
        if let Event::ServerError(error) = event {
            let text = error.to_string();
            hears.lock().unwrap().insert(text.split('"').nth(1).unwrap().to_owned());
        }
        std::future::ready(())
    });
    let client = options.connect(nats.url()).await.unwrap();
    let mut subscribers = Vec::new();
    // The client forgets events that come all at once.
    for (n, some) in subjects.iter().collect::<Vec<_>>().chunks(40).enumerate() {
        for subject in some.iter().map(|subject| (*subject).clone()) {
            match publish {
                true => client.publish(subject, Bytes::new()).await.unwrap(),
                false => subscribers.push(client.subscribe(subject).await.unwrap()),
            }
        }
        // Denied last of all, it shows that the server has said all that there is to say.
        let end = format!("the.end.{n}");
        client.publish(end.clone(), Bytes::new()).await.unwrap();
        until("the server has answered", SOON, async || said.lock().unwrap().remove(&end)).await;
    }
    said.lock().unwrap().clone()
}

#[tokio::test]
async fn the_server_allows_and_denies_each_role_exactly_what_the_table_does() {
    let keys = Keys::make(&[]);
    let nats = keys.server();
    let subjects = Subjects::default();
    let all: Vec<_> = everybody().iter().map(|identity| permissions(identity, &subjects)).collect();
    let published: BTreeSet<String> = all.iter().flat_map(|may| &may.publish).map(|p| example(p)).collect();
    let heard: BTreeSet<String> = all.iter().flat_map(|may| &may.subscribe).map(|p| example(p)).collect();
    for (identity, may) in everybody().iter().zip(&all) {
        let inbox = identity.inbox(&subjects);
        let not: BTreeSet<_> = published.iter().filter(|s| !may.may_publish(s)).cloned().collect();
        assert_eq!(
            denied(&nats, keys.key(identity), inbox.clone(), true, &published).await,
            not,
            "{identity:?}"
        );
        let not: BTreeSet<_> = heard.iter().filter(|s| !may.may_subscribe(s)).cloned().collect();
        assert_eq!(denied(&nats, keys.key(identity), inbox, false, &heard).await, not, "{identity:?}");
    }
}

/// The server did not let it.
async fn is_forbidden(bus: &Bus, action: &str, subject: &str) {
    until(&format!("{action} {subject} is denied"), SOON, async || {
        bus.denied().iter().any(|denial| denial.action == action && denial.subject == subject)
    })
    .await;
}

async fn cannot_hear(bus: &Bus, subject: String) {
    let denied = bus.subscribe(subject.clone()).await;
    assert!(matches!(denied, Err(BusError::Forbidden { .. })), "{subject} can be heard");
}

async fn cannot_say(bus: &Bus, subject: String) {
    bus.client.publish(subject.clone(), Bytes::new()).await.unwrap();
    is_forbidden(bus, "publish", &subject).await;
}

#[tokio::test]
async fn a_stolen_key_opens_no_more_than_its_owner_needs() {
    let keys = Keys::make(&[]);
    let nats = keys.server();
    let scheduler = keys.bus(&nats, &Identity::Scheduler).await;
    provision(&scheduler).await.unwrap();
    let subjects = Subjects::default();
    let (one, two) = (keys.bus(&nats, &agent("one")).await, keys.bus(&nats, &agent("two")).await);
    // An agent and what is another's.
    for verb in Verb::ALL {
        cannot_hear(&one, subjects.ctl(&"two".into(), verb)).await;
        cannot_say(&one, subjects.ctl(&"two".into(), verb)).await;
    }
    for heard in ["berth.v1.ctl.*.*", "berth.v1.ctl.>", "berth.v1.>", ">", "_INBOX.>", "berth.v1.sched.lease"]
    {
        cannot_hear(&one, heard.into()).await;
    }
    cannot_hear(&one, subjects.out_all(&"gw".into())).await;
    cannot_hear(&one, subjects.out(&"gw".into(), JobId(1))).await;
    cannot_say(&one, subjects.report(&"two".into())).await;
    cannot_say(&one, "$KV.berth_hosts.two".into()).await;
    cannot_say(&one, "$KV.berth_engines.two.1-1".into()).await;
    cannot_say(&one, "$KV.berth_keys.mine".into()).await;
    one.bucket("hosts").await.unwrap().put("one", "mine".into()).await.unwrap();
    let hosts = scheduler.bucket("hosts").await.unwrap();
    assert!(hosts.get("one").await.unwrap().is_some() && hosts.get("two").await.unwrap().is_none());
    // A gateway moves no engine.
    let gateway = keys.bus(&nats, &Identity::Gateway).await;
    let mut commands = two.subscribe(subjects.ctl_all(&"two".into())).await.unwrap();
    for verb in [Verb::Start, Verb::Stop, Verb::Sleep, Verb::Wake, Verb::Lane, Verb::Dispatch, Verb::Logs] {
        cannot_say(&gateway, subjects.ctl(&"two".into(), verb)).await;
    }
    for said in [subjects.drain(), "$KV.berth_keys.mine".into()] {
        cannot_say(&gateway, said).await;
    }
    for verb in [Verb::Offer, Verb::Credit, Verb::Cancel, Verb::Roll] {
        gateway.client.publish(subjects.ctl(&"two".into(), verb), Bytes::new()).await.unwrap();
        let came = tokio::time::timeout(SOON, commands.next()).await.unwrap().unwrap();
        assert_eq!(Verb::of(&came.subject), Some(verb), "and nothing that was denied came before it");
    }
    // Health changes nothing.
    let health = keys.bus(&nats, &Identity::Health).await;
    for said in [
        "$KV.berth_hosts.two",
        "$KV.berth_catalog.m",
        "berth.v1.job.submit.m",
        "berth.v1.evt.a.b",
        "$JS.API.STREAM.PURGE.BERTH_JOBS",
    ] {
        cannot_say(&health, said.into()).await;
    }
    // Nobody else makes streams, or removes them.
    let operator = keys.bus(&nats, &Identity::Operator).await;
    for bus in [&one, &gateway, &health, &operator] {
        for asked in ["CREATE.MINE", "CREATE.BERTH_JOBS", "UPDATE.BERTH_JOBS", "DELETE.BERTH_JOBS"] {
            cannot_say(bus, format!("$JS.API.STREAM.{asked}")).await;
        }
    }
    cannot_say(&scheduler, "$JS.API.STREAM.CREATE.MINE".into()).await;
    cannot_say(&operator, subjects.ctl(&"two".into(), Verb::Stop)).await;
}

#[tokio::test]
async fn a_rotation_leaves_nobody_outside_and_a_removed_host_is() {
    let keys = Keys::make(&[]);
    let old = keys.key(&agent("one"));
    let (ok, said) = keys.berth(&["rotate", "one"]);
    assert!(ok && said.contains("--finish"), "{said}");
    assert!(!keys.berth(&["rotate", "one"]).0, "one at a time");
    let new = keys.key(&agent("one"));
    assert_ne!(old, new);
    let mut nats = keys.server();
    let opens = async |nats: &TestNats, key: &str| {
        let options = BusOptions { nkey: Some(key.into()), ..keys.options(nats, &agent("one")) };
        match Bus::connect(&options, "test").await {
            Ok(_) => true,
            Err(BusError::Denied { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    };
    assert!(opens(&nats, &old).await && opens(&nats, &new).await);
    let connected = keys.bus(&nats, &agent("one")).await;
    assert!(keys.berth(&["rotate", "one", "--finish"]).0);
    assert!(keys.berth(&["remove-host", "two"]).0);
    let reload = |nats: &TestNats| {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(nats.pid().unwrap()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
    };
    reload(&nats);
    until("the old key opens no more", SOON, async || !opens(&nats, &old).await).await;
    assert!(opens(&nats, &new).await);
    connected.subscribe(Subjects::default().ctl_all(&"one".into())).await.unwrap();
    assert!(!keys.dir().join("keys/agent-two.nk").exists());
    let (ok, said) = keys.berth(&["add-host", "three"]);
    assert!(ok && said.contains("nkey_file"), "{said}");
    // What is there already stays as it is.
    let three = keys.key(&agent("three"));
    let (ok, said) = keys.berth(&["update", "--host", "three", "--host", "four"]);
    assert!(ok && said.contains("made a key for agent-four") && !said.contains("three"), "{said}");
    assert_eq!(keys.key(&agent("three")), three);
    nats.restart().unwrap();
    keys.bus(&nats, &agent("three")).await;
    keys.bus(&nats, &agent("four")).await;
}

#[tokio::test]
async fn nothing_is_overwritten_and_keys_are_their_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let keys = Keys::make(&["--tls", "localhost"]);
    let before = keys.key(&Identity::Gateway);
    let (ok, said) = keys.berth(&["init"]);
    assert!(!ok && said.contains("--force"), "{said}");
    assert_eq!(keys.key(&Identity::Gateway), before);
    for name in ["keys/gateway.nk", "keys/agent-one.nk", "tls/ca.key", "tls/server.key"] {
        let mode = std::fs::metadata(keys.dir().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    for name in ["auth.conf", "fleet.toml", "nats-server.conf"] {
        assert!(everybody().iter().all(|who| !keys.read(name).contains(&keys.key(who))), "{name}");
    }
    assert!(keys.berth(&["init", "--force"]).0);
    assert_ne!(keys.key(&Identity::Gateway), before);
    let (ok, said) = berth(&keys.folder.path().join("open"), &["init", "--listen", "0.0.0.0:4222"]);
    assert!(!ok && said.contains("--tls NAME"), "{said}");
}

#[tokio::test]
async fn with_tls_only_the_right_server_is_talked_to() {
    let keys = Keys::make(&["--tls", "localhost", "--tls", "127.0.0.1"]);
    let tls = keys.dir().join("tls");
    let config = format!(
        "{}\ntls {{ cert_file: {:?}, key_file: {:?} }}",
        keys.include(),
        tls.join("server.pem"),
        tls.join("server.key")
    );
    let nats = TestNats::start_with(&config).unwrap();
    let with = |ca: PathBuf| BusOptions { ca: Some(ca), ..keys.options(&nats, &Identity::Health) };
    Bus::connect(&with(tls.join("ca.pem")), "test").await.unwrap();
    let other = Keys::make(&["--tls", "localhost"]);
    assert!(Bus::connect(&with(other.dir().join("tls/ca.pem")), "test").await.is_err());
    // A server without TLS is not told anything.
    let plain = keys.server();
    let options = BusOptions { ca: Some(tls.join("ca.pem")), ..keys.options(&plain, &Identity::Health) };
    assert!(Bus::connect(&options, "test").await.is_err());
    // The same authority signs a new certificate, also for one more name.
    assert!(keys.berth(&["rotate", "tls"]).0);
    let (ok, said) = keys.berth(&["update", "--tls", "localhost", "--tls", "nats.example.com"]);
    assert!(ok && said.contains("localhost, 127.0.0.1, nats.example.com"), "{said}");
    let again = TestNats::start_with(&config).unwrap();
    let options = BusOptions { urls: vec![again.url()], ..with(tls.join("ca.pem")) };
    Bus::connect(&options, "test").await.unwrap();
}
