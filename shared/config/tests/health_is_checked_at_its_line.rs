//! `[health]` and the listeners for metrics.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::time::Duration;

use berth_config::{AlertConfig, Config};

fn complaint(text: &str) -> String {
    Config::parse(text, "berth.toml").unwrap_err().to_string()
}

#[test]
fn thresholds_and_listeners_are_read() {
    let text = "[health]\nlisten = \"127.0.0.1:1\"\n[health.alerts]\nqueue_wait = \"2m\"\ndisk_free = \"1GiB\"\n\
                [gateway]\nmetrics_listen = \"127.0.0.1:2\"\n[scheduler]\nmetrics_listen = \"127.0.0.1:3\"\n\
                [host]\nmetrics_listen = \"127.0.0.1:4\"\n";
    let config = Config::parse(text, "berth.toml").unwrap();
    let expected =
        AlertConfig { queue_wait: Duration::from_secs(120), disk_free: 1 << 30, ..AlertConfig::default() };
    assert_eq!(config.health.alerts, expected);
    let listeners = [
        config.health.listen,
        config.gateway.metrics_listen,
        config.scheduler.metrics_listen,
        config.host.metrics_listen,
    ];
    assert_eq!(listeners.map(|address| address.unwrap().port()), [1, 2, 3, 4]);
}

#[test]
fn what_cannot_be_meant_is_shown_at_its_line() {
    for (text, place, part) in [
        ("[health.alerts]\nengine_failures = 0\n", "2:19", "at least 1"),
        ("[health.alerts]\njetstream_percent = 101\n", "2:21", "1 to 100"),
        ("[health.alerts]\nqueue_wiat = \"1m\"\n", "2:1", "did you mean `queue_wait`?"),
        ("[scheduler]\nmetrics_listen = \"here\"\n", "2:", "here"),
    ] {
        let shown = complaint(text);
        assert!(shown.starts_with(&format!("berth.toml:{place}")) && shown.contains(part), "{shown}");
    }
}

#[test]
fn an_address_of_a_webhook_may_hold_a_secret_and_is_not_shown() {
    for url in ["ftp://hooks/hunter2", "https://a:hunter2@h/", "hunter2"] {
        let shown = complaint(&format!("[[health.webhooks]]\nurl = \"{url}\"\n"));
        assert!(shown.starts_with("berth.toml:2") && !shown.contains("hunter2"), "{shown}");
    }
    let shown = complaint("[[health.webhooks]]\nurl = \"http://h/\"\nsecret_file = \"/none/such\"\n");
    assert!(shown.contains("cannot read /none/such"), "{shown}");
}
