//! Health against a real nats-server: what it answers follows what the fleet publishes.

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::{Read, Write};
    use std::net::SocketAddr;
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    use berth_bus::{Bus, BusOptions, provision, put_json, register};
    use berth_config::{Config, Secret, WebhookConfig};
    use berth_testkit::nats::TestNats;
    use berth_testkit::wait::{until, until_ok};
    use berth_wire::{HostBeat, LeaderRecord, Timestamp};
    use futures::StreamExt;
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use rustls::{ServerConfig, ServerConnection, StreamOwned};
    use serde_json::Value;
    use tokio_util::sync::CancellationToken;

    const PATIENCE: Duration = Duration::from_secs(15);

    fn free_address() -> SocketAddr {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    /// Takes posts, over TLS where it has a certificate, and turns the first one down.
    fn webhook(tls: Option<Arc<ServerConfig>>) -> (String, mpsc::Receiver<String>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}/alerts", listener.local_addr().unwrap());
        let (send, receive) = mpsc::channel();
        std::thread::spawn(move || {
            let mut taken = 0;
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let text = match &tls {
                    None => take(stream, taken == 0),
                    Some(tls) => {
                        let session = ServerConnection::new(Arc::clone(tls)).unwrap();
                        take(StreamOwned::new(session, stream), taken == 0)
                    }
                };
                // Whoever does not trust the certificate says nothing.
                let Some(text) = text else { continue };
                taken += 1;
                if taken > 1 && send.send(text).is_err() {
                    return;
                }
            }
        });
        (url, receive)
    }

    /// Reads a post and answers it.
    fn take(mut stream: impl Read + Write, turn_down: bool) -> Option<String> {
        let (mut buffer, mut text) = ([0; 4096], String::new());
        while !text.contains("\"state\"") {
            let read = stream.read(&mut buffer).ok().filter(|read| *read > 0)?;
            text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
        let status = if turn_down { "503 Service Unavailable" } else { "204 No Content" };
        let answer = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes()).unwrap();
        Some(text)
    }

    /// A certificate that nobody else has signed, and the file of it.
    fn self_signed(folder: &Path) -> (Arc<ServerConfig>, PathBuf) {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let file = folder.join("ca.pem");
        std::fs::write(&file, made.cert.pem()).unwrap();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.unwrap().with_no_client_auth();
        let config = config.with_single_cert(vec![made.cert.der().clone()], key.into()).unwrap();
        (Arc::new(config), file)
    }

    async fn ask(bus: &Bus, subject: String) -> Result<Value, String> {
        let answer = bus.client.request(subject, bytes::Bytes::new()).await.map_err(|e| e.to_string())?;
        serde_json::from_slice(&answer.payload).map_err(|e| e.to_string())
    }

    #[tokio::test]
    async fn it_answers_by_bus_and_by_http_what_the_fleet_publishes() {
        let mut nats = TestNats::start().unwrap();
        let options = BusOptions { urls: vec![nats.url()], ..BusOptions::default() };
        let address = free_address();
        let mut config = Config::empty();
        config.health.listen = Some(address);
        config.health.alerts.hold = Duration::from_secs(1);
        let folder = tempfile::tempdir().unwrap();
        let (tls, ca) = self_signed(folder.path());
        let ((url, posts), (private, over_tls), (strange, untrusted)) =
            (webhook(None), webhook(Some(Arc::clone(&tls))), webhook(Some(tls)));
        let hook = |url: String, ca| WebhookConfig { url, secret: Some(Secret::new("hush")), ca };
        config.health.webhooks = vec![hook(url, None), hook(private, Some(ca)), hook(strange, None)];
        let shutdown = CancellationToken::new();
        let thread = std::thread::spawn({
            let (options, shutdown) = (options.clone(), shutdown.clone());
            move || actix_rt::System::new().block_on(berth_health::run(Arc::new(config), options, shutdown))
        });
        let bus = Bus::connect(&options, "test").await.unwrap();
        let get = async |path: &str| reqwest::get(format!("http://{address}{path}")).await;
        until("health is served", PATIENCE, async || get("/healthz").await.is_ok_and(|r| r.status() == 200))
            .await;
        assert_eq!(get("/readyz").await.unwrap().status(), 503, "there is no fleet yet");

        provision(&bus).await.unwrap();
        let gateway = register(
            &bus,
            "berth-gateway",
            "stands for one",
            "berth.v1.status.gateway.g1".into(),
            HashMap::new(),
            || serde_json::json!({"actors": [{"name": "demux", "healthy": false}]}),
        );
        let gateway = gateway.await.unwrap();
        let mut alerts = bus.client.subscribe("berth.v1.evt.alert.>").await.unwrap();
        let leader = bus.bucket("leader").await.unwrap();
        let record =
            LeaderRecord { instance: "s1".into(), since: Timestamp::default(), epoch: berth_wire::Epoch(1) };
        let hosts = bus.bucket("hosts").await.unwrap();
        let beat = HostBeat {
            host: "h1".into(),
            boot: "b".into(),
            version: "0".into(),
            at: Timestamp::default(),
            accelerators: Vec::new(),
            drivers: Vec::new(),
            labels: Vec::new(),
            running: 0,
            draining: false,
            sleep_memory: 0,
            sleep_spare: 0,
        };
        let info = until_ok("health is registered", PATIENCE, async || {
            ask(&bus, "$SRV.INFO.berth-health".into()).await
        })
        .await;
        let subject = info["endpoints"][0]["subject"].as_str().unwrap().to_owned();
        assert!(subject.starts_with("berth.v1.status.health."), "{subject}");
        let report = until_ok("health sees the fleet and its own service", PATIENCE, async || {
            // As their owners do: both keys expire.
            put_json(&leader, "leader", &record).await.map_err(|e| e.to_string())?;
            put_json(&hosts, "h1", &beat).await.map_err(|e| e.to_string())?;
            let report = ask(&bus, subject.clone()).await?;
            let found = &report["found"];
            let seen = report["ready"] == true
                && found["fleet"]["leader"] == "s1"
                && found["fleet"]["hosts"][0] == "h1"
                && found["services"]["berth-health"].as_array().is_some_and(|all| all.len() == 1);
            if seen { Ok(report) } else { Err(report.to_string()) }
        })
        .await;
        assert_eq!(report["actors"][0]["healthy"], true);
        // One of its services has an actor that makes no progress.
        let told = async {
            loop {
                let fact: Value = serde_json::from_slice(&alerts.next().await.unwrap().payload).unwrap();
                if fact["alert"] == "actor_stuck" {
                    return fact;
                }
            }
        };
        let raised = tokio::time::timeout(PATIENCE, told).await.unwrap();
        assert_eq!(raised["kind"], "alert_raised");
        for posts in [posts, over_tls] {
            let posted = std::iter::repeat_with(|| posts.recv_timeout(PATIENCE).unwrap())
                .find(|post| post.contains("actor_stuck"));
            assert!(posted.is_some_and(|post| post.contains("authorization: Bearer hush")));
        }
        assert_eq!(get("/readyz").await.unwrap().status(), 200);

        // The hosts' bucket goes with the server. Each leader that is found tells that health has looked again.
        nats.restart().unwrap();
        // By a new connection: what the old one asked meanwhile is never answered.
        provision(&Bus::connect(&options, "test").await.unwrap()).await.unwrap();
        let looked = async |instance: &str| {
            let record = LeaderRecord { instance: instance.into(), ..record.clone() };
            until_ok("health has looked", PATIENCE, async || {
                put_json(&leader, "leader", &record).await.map_err(|e| e.to_string())?;
                let report = ask(&bus, subject.clone()).await?;
                if report["found"]["fleet"]["leader"] == instance {
                    Ok(report)
                } else {
                    Err(report.to_string())
                }
            })
            .await
        };
        looked("s2").await;
        until("the hosts' bucket is seen to be empty", PATIENCE, async || {
            put_json(&leader, "leader", &record).await.unwrap();
            get("/readyz").await.unwrap().status() == 503
        })
        .await;
        let report = looked("s3").await;
        assert_eq!(report["found"]["fleet"]["hosts"][0], "h1", "it has had no time to report again");

        put_json(&hosts, "h1", &beat).await.unwrap();
        until("the host is back", PATIENCE, async || get("/readyz").await.unwrap().status() == 200).await;
        hosts.delete("h1").await.unwrap();
        until("the lost host is noticed", PATIENCE, async || get("/readyz").await.unwrap().status() == 503)
            .await;
        drop(gateway);
        shutdown.cancel();
        until("health has ended", PATIENCE, async || thread.is_finished()).await;
        thread.join().unwrap().unwrap();
        assert!(untrusted.try_recv().is_err(), "nobody vouches for that server");
    }
}
