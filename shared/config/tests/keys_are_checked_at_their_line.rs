//! API keys in a file: what is wrong with one is shown at its line, and never the key itself.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use berth_config::Config;
use berth_wire::{Class, KeyHash, KeyLimits, Scope, Timestamp};

fn complaint(text: &str) -> String {
    Config::parse(text, "berth.toml").unwrap_err().to_string()
}

#[track_caller]
fn refuses(text: &str, at: &str, parts: &[&str]) {
    let shown = complaint(text);
    assert!(shown.starts_with(&format!("berth.toml:{at}: ")), "expected {at} in:\n{shown}");
    for part in parts {
        assert!(shown.contains(part), "expected `{part}` in:\n{shown}");
    }
}

fn key(name: &str, secret: &str) -> String {
    format!("[[gateway.keys]]\nname = \"{name}\"\nhash = \"{}\"\n", KeyHash::of(secret).to_text())
}

#[test]
fn a_key_is_read_with_all_that_it_may_say() {
    let text = format!(
        "{}scope = \"admin\"\nclass = \"batch\"\nconcurrency = 4\nrequests_per_minute = 60\n\
         tokens_per_minute = 10000\nmodels = [\"m\"]\nexpires = 2027-01-31\n{}",
        key("ci", "one"),
        key("plain", "two")
    );
    let config = Config::parse(&text, "berth.toml").unwrap();
    let [ci, plain] = config.gateway.keys.as_slice() else { panic!("{:?}", config.gateway.keys) };
    assert_eq!((ci.name.as_str(), ci.scope, ci.class), ("ci", Scope::Admin, Class::Batch));
    assert_eq!(ci.hash, KeyHash::of("one"));
    let limits =
        KeyLimits { concurrency: Some(4), requests_per_minute: Some(60), tokens_per_minute: Some(10_000) };
    assert_eq!((ci.limits, ci.models.as_slice()), (limits, &["m".to_owned()][..]));
    assert_eq!(ci.expires, Some(Timestamp(1_801_353_600_000)));
    assert_eq!((plain.scope, plain.class), (Scope::User, Class::Standard));
    assert_eq!((plain.limits, plain.expires), (KeyLimits::default(), None));
}

#[test]
fn what_is_no_hash_is_named_and_not_shown() {
    let with = |hash: &str| format!("[[gateway.keys]]\nname = \"a\"\nhash = \"{hash}\"\n");
    refuses(&with("berth-hunter2"), "3:8", &["may be the key itself", "berth key hash"]);
    refuses(&with("blake3:hunter2"), "3:8", &["no hash of a key", "64 hexadecimal"]);
    refuses("[[gateway.keys]]\nname = \"a\"\nkey = \"hunter2\"\n", "3:1", &["unknown field `key`"]);
    for text in [with("hunter2"), with("blake3:hunter2"), "[[gateway.keys]]\nkey = \"hunter2\"\n".into()] {
        assert!(!complaint(&text).contains("hunter2"), "{}", complaint(&text));
    }
}

#[test]
fn a_name_or_a_key_used_twice_names_the_first_line() {
    let text = format!("{}{}", key("a", "one"), key("a", "two"));
    refuses(&text, "5:8", &["`a` is already the name of a key, in line 2"]);
    let text = format!("{}{}", key("a", "one"), key("b", "one"));
    refuses(&text, "6:8", &["this key is already in line 3"]);
    assert!(!complaint(&text).contains(&KeyHash::of("one").to_text()), "{}", complaint(&text));
}

#[test]
fn models_that_are_not_there_are_named_unless_there_are_none() {
    let model = "[[models]]\nid = \"demo\"\nengine = \"sim\"\naliases = [\"fast\"]\n";
    let text = format!("{}models = [\"fast\", \"dem\"]\n{model}", key("a", "one"));
    refuses(&text, "4:19", &["no model is called `dem`", "did you mean `demo`?"]);
    Config::parse(&format!("{}models = [\"fast\", \"demo\"]\n{model}", key("a", "one")), "f").unwrap();
    Config::parse(&format!("{}models = [\"elsewhere\"]\n", key("a", "one")), "f").unwrap();
    refuses(&format!("{}models = []\n", key("a", "one")), "4:10", &["leave `models` out"]);
}

#[test]
fn values_that_cannot_be_are_refused() {
    refuses(&key("a b", "one"), "2:8", &["no name of a key", "letters, digits"]);
    let with = |line: &str| format!("{}{line}\n", key("a", "one"));
    refuses(&with("concurrency = 0"), "4:15", &["let nothing through"]);
    refuses(&with("requests_per_minute = -1"), "4:23", &["whole number", "-1"]);
    refuses(&with("scope = \"root\""), "4:9", &["user, admin"]);
    refuses(&with("class = \"interactiv\""), "4:9", &["did you mean `interactive`?"]);
    refuses(&with("expires = 07:00:00"), "4:11", &["2027-01-31"]);
    refuses(&with("expires = \"soon\""), "4:11", &["expected"]);
    refuses("[gateway.keys]\nname = \"a\"\n", "1:1", &["two brackets"]);
}

#[test]
fn an_address_that_others_reach_without_a_key_is_noted_at_its_line() {
    let noted = |text: &str| {
        Config::parse(text, "berth.toml").unwrap().notes.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let notes = noted("[gateway]\nlisten = [\"127.0.0.1:1\", \"0.0.0.0:8421\"]\n");
    let [note] = notes.as_slice() else { panic!("{notes:?}") };
    assert!(note.starts_with("berth.toml:2:10: other machines can reach 0.0.0.0:8421"), "{note}");
    assert!(note.contains("berth key create") && note.contains("open = true"), "{note}");
    assert!(noted("[gateway]\nlisten = [\"127.0.0.1:1\", \"[::1]:1\"]\n").is_empty());
    assert!(noted("[gateway]\nlisten = \":1\"\nopen = true\n").is_empty());
    assert!(noted(&format!("[gateway]\nlisten = \":1\"\n{}", key("a", "one"))).is_empty());
    let both = format!("[gateway]\nopen = true\n{}", key("a", "one"));
    refuses(&both, "2:8", &["`open` lets everybody in"]);
}
