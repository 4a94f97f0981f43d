//! Health against a real nats-server: what happens between two looks counts, and a health that is started anew goes on where
//! the last one ended.

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread::JoinHandle;
    use std::time::{Duration, SystemTime};

    use berth_bus::{Bus, BusOptions, Since, provision};
    use berth_config::Config;
    use berth_health::HealthError;
    use berth_testkit::nats::TestNats;
    use berth_testkit::wait::until_ok;
    use berth_wire::{EngineId, Epoch, Event, EventBody, Timestamp};
    use serde_json::Value;
    use tokio_util::sync::CancellationToken;

    const PATIENCE: Duration = Duration::from_secs(15);

    struct Health {
        shutdown: CancellationToken,
        thread: JoinHandle<Result<(), HealthError>>,
    }

    impl Health {
        fn start(options: &BusOptions) -> Self {
            let mut config = Config::empty();
            config.health.alerts.hold = Duration::from_secs(1);
            config.health.alerts.failure_window = Duration::from_secs(600);
            let (options, shutdown) = (options.clone(), CancellationToken::new());
            let thread = std::thread::spawn({
                let shutdown = shutdown.clone();
                move || {
                    actix_rt::System::new().block_on(berth_health::run(Arc::new(config), options, shutdown))
                }
            });
            Self { shutdown, thread }
        }

        fn stop(self) {
            self.shutdown.cancel();
            self.thread.join().unwrap().unwrap();
        }
    }

    async fn found(bus: &Bus) -> Result<Value, String> {
        let ask = async |subject: String| -> Result<Value, String> {
            let answer = bus.client.request(subject, bytes::Bytes::new()).await.map_err(|e| e.to_string())?;
            serde_json::from_slice(&answer.payload).map_err(|e| e.to_string())
        };
        let info = ask("$SRV.INFO.berth-health".into()).await?;
        let subject = info["endpoints"][0]["subject"].as_str().ok_or("no endpoint")?.to_owned();
        Ok(ask(subject).await?["found"].clone())
    }

    fn is_raised(found: &Value, alert: &str) -> bool {
        found["alerts"].as_array().is_some_and(|all| all.iter().any(|raised| raised["alert"] == alert))
    }

    async fn tell(bus: &Bus, body: EventBody) {
        let subject = bus.subjects.event(body.kind(), &body.id());
        let at = Timestamp::from(SystemTime::now());
        bus.publish_json(subject, &Event { at, body }).await.unwrap();
    }

    /// How often each alert was raised and resolved.
    async fn told(bus: &Bus, alert: &str) -> (usize, usize) {
        let mut story = bus.story(Since::Beginning, [bus.subjects.event("alert", "*")]).await.unwrap();
        let (mut raised, mut resolved) = (0, 0);
        while let Some(fact) = story.past().await.unwrap() {
            match fact.body {
                EventBody::AlertRaised { alert: of, .. } if of == alert => raised += 1,
                EventBody::AlertResolved { alert: of, .. } if of == alert => resolved += 1,
                _ => {}
            }
        }
        (raised, resolved)
    }

    #[tokio::test]
    async fn engines_that_fail_at_once_count_and_alerts_outlast_the_health_that_raised_them() {
        let nats = TestNats::start().unwrap();
        let options = BusOptions { urls: vec![nats.url()], ..BusOptions::default() };
        let bus = Bus::connect(&options, "test").await.unwrap();
        provision(&bus).await.unwrap();
        // Of a health that was before: one that is over by now, and one that is not.
        for alert in ["disk_low", "no_leader"] {
            let (alert, about) = (alert.to_owned(), "scheduler".to_owned());
            tell(&bus, EventBody::AlertRaised { alert, about, message: "as it was".into() }).await;
        }
        let (engine, host) = (EngineId::new(Epoch(1), 1), "h".into());
        tell(&bus, EventBody::EngineReady { engine, host, model: "m".into(), took_ms: None }).await;
        let first = Health::start(&options);
        // None of these is in the bucket of engines at any time.
        for n in 2..5 {
            let (engine, host, model) = (EngineId::new(Epoch(1), n), "h".into(), "m".into());
            tell(&bus, EventBody::EngineFailed { engine, host, model, message: "exit status 1".into() })
                .await;
        }
        let seen = |found: Value| {
            let all = is_raised(&found, "engine_crash_loop") && !is_raised(&found, "disk_low");
            if all { Ok(found) } else { Err(found.to_string()) }
        };
        let report = until_ok(
            "the failures raise an alert, and what is good again is resolved",
            PATIENCE,
            async || found(&bus).await.and_then(seen),
        )
        .await;
        assert!(is_raised(&report, "no_leader"), "{report}");
        assert_eq!(report["now"]["swaps"], 1, "{report}");
        first.stop();
        let second = Health::start(&options);
        let report = until_ok("another health knows of the alerts", PATIENCE, async || {
            found(&bus).await.and_then(seen)
        })
        .await;
        assert_eq!(report["now"]["swaps"], 1, "{report}");
        until_ok("it has raised one of its own", PATIENCE, async || {
            let report = found(&bus).await?;
            if is_raised(&report, "no_gateways") { Ok(()) } else { Err(report.to_string()) }
        })
        .await;
        assert_eq!(told(&bus, "disk_low").await, (1, 1));
        assert_eq!(told(&bus, "no_leader").await, (1, 0), "it was never over");
        assert_eq!(told(&bus, "engine_crash_loop").await, (1, 0));
        second.stop();
    }
}
