//! Health against a real nats-server: what it answers follows what the fleet publishes.

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::time::Duration;

    use berth_bus::{Bus, BusOptions, provision, put_json};
    use berth_config::Config;
    use berth_testkit::nats::TestNats;
    use berth_testkit::wait::{until, until_ok};
    use berth_wire::{HostBeat, LeaderRecord, Timestamp};
    use serde_json::Value;
    use tokio_util::sync::CancellationToken;

    const PATIENCE: Duration = Duration::from_secs(15);

    fn free_address() -> SocketAddr {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
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
        let shutdown = CancellationToken::new();
        let thread = std::thread::spawn({
            let (options, shutdown) = (options.clone(), shutdown.clone());
            move || {
                actix_rt::System::new().block_on(berth_health::run(
                    Arc::new(config),
                    options,
                    shutdown,
                    Some(Arc::new(|| "up 1\n".to_owned())),
                ))
            }
        });
        let bus = Bus::connect(&options, "test").await.unwrap();
        let get = async |path: &str| reqwest::get(format!("http://{address}{path}")).await;
        until("health is served", PATIENCE, async || get("/healthz").await.is_ok_and(|r| r.status() == 200))
            .await;
        assert_eq!(get("/readyz").await.unwrap().status(), 503, "there is no fleet yet");
        assert_eq!(get("/metrics").await.unwrap().text().await.unwrap(), "up 1\n");

        provision(&bus).await.unwrap();
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
        shutdown.cancel();
        until("health has ended", PATIENCE, async || thread.is_finished()).await;
        thread.join().unwrap().unwrap();
    }
}
