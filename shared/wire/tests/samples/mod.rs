//! Parts that messages are made of.

use std::time::Duration;

use berth_wire::*;

pub fn engine() -> EngineId {
    EngineId::new(Epoch(7), 3)
}

pub fn attempt() -> Attempt {
    Attempt::new(Epoch(7), 9)
}

pub fn spec() -> ModelSpec {
    ModelSpec {
        id: "org/m:1.5".into(),
        aliases: vec!["m".into()],
        engine: EngineSpec {
            kind: EngineKind::LlamaCpp,
            driver: Driver::Docker,
            image: Some("img".into()),
            command: vec![],
            args: vec!["--port".into(), "{port}".into()],
            env: vec!["TOKEN".into()],
            volumes: vec!["a:/b:ro".into()],
            port: 8080,
            health_path: "/health".into(),
            served_name: "org/m:1.5".into(),
            routes: None,
            container: berth_wire::ContainerSpec::default(),
            start_timeout: Duration::from_secs(600),
            stop_grace: Duration::from_secs(10),
            sleep: None,
        },
        memory: Some(1 << 30),
        accelerators: 1,
        concurrency: 4,
        context: Some(4096),
        idle_ttl: Some(Duration::from_secs(60)),
        asleep_ttl: None,
        pin: true,
        replicas: None,
        labels: vec!["gpu=a100".into()],
        adapters: Vec::new(),
        max_adapters: None,
        keep_context: None,
        leases_keep_context: false,
        silence: berth_wire::Silence::default(),
    }
}

pub fn reservations() -> Vec<Reservation> {
    vec![Reservation { accelerator: "ram".into(), bytes: 1 << 30 }]
}

pub fn error() -> ApiError {
    ApiError::new(ErrorKind::EngineFailed, "engine_failed", "it broke off")
        .param("model")
        .retry_after(Duration::from_secs(2))
}

pub fn beat() -> HostBeat {
    HostBeat {
        host: "h1".into(),
        boot: "b1".into(),
        version: "0.1.0".into(),
        at: Timestamp(1_000),
        accelerators: vec![Accelerator {
            id: "ram".into(),
            kind: AcceleratorKind::Ram,
            name: "CPU and RAM".into(),
            memory: 2 << 30,
            free: Some(1 << 30),
            held: None,
            unexplained: None,
        }],
        drivers: vec![Driver::Docker, Driver::Process],
        labels: vec![],
        running: 1,
        draining: false,
        sleep_memory: 0,
        sleep_spare: 0,
    }
}

pub fn engine_report() -> EngineReport {
    EngineReport {
        engine: engine(),
        model: "org/m:1.5".into(),
        state: EngineState::Ready,
        reservations: reservations(),
        concurrency: 4,
        failure: Some(EngineFailure { message: "why".into(), permanent: true, was_ready: false }),
        start_took: Some(Duration::from_millis(1234)),
        detail: Some("loading".into()),
        sleep: None,
        peak_memory: None,
    }
}

pub fn ended() -> Ended {
    Ended {
        job: JobId(1),
        attempt: attempt(),
        engine: engine(),
        outcome: Outcome::Failed { error: error(), output_sent: true },
        usage: Usage {
            prompt_tokens: Some(3),
            completion_tokens: Some(4),
            first_byte: Some(Duration::from_millis(5)),
            total: Duration::from_millis(6),
        },
        started: None,
    }
}

pub fn started() -> Started {
    Started {
        job: JobId(2),
        attempt: Attempt::EXPRESS,
        engine: engine(),
        model: "org/m:1.5".into(),
        submitted_at: Timestamp(5),
        session: Some("s".into()),
        key: Some("k1".into()),
        class: berth_wire::Class::Interactive,
        bytes: 99,
    }
}

pub fn lease() -> Lease {
    Lease {
        session: "team a/1".into(),
        model: "org/m:1.5".into(),
        key: Some("k1".into()),
        since: Timestamp(5),
        ttl: Duration::from_secs(120),
        expires: Timestamp(120_005),
        keep_context: false,
    }
}
