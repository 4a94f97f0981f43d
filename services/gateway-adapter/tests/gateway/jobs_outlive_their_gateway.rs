//! Asynchronous jobs whose gateway ends or is killed: another takes each over once, and says what could not be.

use std::time::Duration;

use async_nats::jetstream::kv;
use berth_bus::{Bodies, get_json, put_json};
use berth_testkit::wait::until;
use berth_wire::{AsyncJob, Body, Finish, Job, JobId, JobStatus, ResultNote};
use bytes::Bytes;
use serde_json::Value;

use crate::support::*;

/// Longer than a gateway takes to be sure that another is gone.
const SOON: Duration = Duration::from_secs(15);

async fn later(gateway: &Gateway, body: String) -> String {
    let request =
        reqwest::Client::new().post(gateway.url("/v1/chat/completions")).header("prefer", "respond-async");
    let response = request.body(body).send().await.unwrap();
    assert_eq!(response.status(), 202);
    header(&response, "location").unwrap()
}

async fn get(gateway: &Gateway, path: &str) -> Value {
    reqwest::get(gateway.url(path)).await.unwrap().json().await.unwrap()
}

async fn becomes(gateway: &Gateway, path: &str, status: &str) -> Value {
    until(status, SOON, async || get(gateway, path).await["status"] == status).await;
    get(gateway, path).await
}

/// What a gateway that was killed leaves of a job: its record, and the job as it was kept.
struct Left {
    records: kv::Store,
    record: AsyncJob,
    job: Job,
}

impl Left {
    async fn of(played: &mut Played, gateway: &Gateway) -> Self {
        later(gateway, chat(true)).await;
        let job = played.job().await;
        let records = played.bus.bucket("async_jobs").await.unwrap();
        let (mut record, _): (AsyncJob, u64) =
            get_json(&records, &job.id.to_string()).await.unwrap().unwrap();
        record.id = JobId(7);
        record.gateway = "gw-killed-0".into();
        Self { records, record, job }
    }

    fn url(&self) -> String {
        format!("/api/v1/jobs/{}", self.record.id)
    }

    async fn keep(&mut self, played: &Played) {
        let store = Bodies::open(&played.bus).await.unwrap();
        let job = Job { id: self.record.id, gateway: self.record.gateway.clone(), ..self.job.clone() };
        let kept = Bytes::from(job.encode().unwrap());
        store.put(&self.record.kept_as(), &kept).await.unwrap();
        self.record.kept = Some(kept.len() as u64);
    }

    async fn write(&mut self, change: impl FnOnce(&mut AsyncJob)) {
        change(&mut self.record);
        put_json(&self.records, &self.record.id.to_string(), &self.record).await.unwrap();
    }

    async fn now(&self) -> AsyncJob {
        get_json(&self.records, &self.record.id.to_string()).await.unwrap().unwrap().0
    }
}

#[tokio::test]
async fn a_job_whose_gateway_ends_is_made_anew_by_the_next() {
    for begun in [false, true] {
        let (nats, mut played, gateway) = house(|_| {}).await;
        let url = later(&gateway, chat(false)).await;
        let first = played.job().await;
        if begun {
            played.go(&first, 1).await;
        }
        gateway.begin_shutdown();
        if begun {
            // It waits for what runs, for half a minute; here it is given up sooner.
            until("it drains", PATIENCE, async || get(&gateway, "/readyz").await["draining"] == true).await;
            let lost =
                berth_wire::ApiError::new(berth_wire::ErrorKind::Unavailable, "shutting_down", "it ends");
            played.frame(&first, end(1, Finish::Error(lost))).await;
        } else {
            assert_eq!(played.cancelled().await.job, first.id);
        }
        gateway.stop().await;
        let gateway = another(&nats, |_| {}).await;
        let again = played.job().await;
        assert_ne!((again.id, &again.gateway), (first.id, &first.gateway));
        assert_eq!(
            (&again.body, again.submitted_at, again.deadline),
            (&first.body, first.submitted_at, first.deadline)
        );
        played.answer(&again, 200, "application/json", b"{\"late\":true}").await;
        let done = becomes(&gateway, &url, "completed").await;
        assert_eq!(done["attempts"], if begun { 2 } else { 1 }, "{done}");
        let result = reqwest::get(gateway.url(&format!("{url}/result"))).await.unwrap();
        assert_eq!(result.text().await.unwrap(), "{\"late\":true}");
        let kept = Bodies::open(&played.bus).await.unwrap();
        until("what was kept of it is gone", SOON, async || {
            kept.get(&format!("later-{}", first.id), 1).await.is_err()
        })
        .await;
    }
}

#[tokio::test]
async fn a_job_of_a_killed_gateway_is_taken_over_once_and_what_is_left_of_it_is_cancelled() {
    let (nats, mut played, gateway) = house(|_| {}).await;
    let other = another(&nats, |_| {}).await;
    let mut left = Left::of(&mut played, &gateway).await;
    left.keep(&played).await;
    left.write(|record| record.status = JobStatus::Running).await;
    // Both gateways look after it.
    assert_eq!(tokio::time::timeout(SOON, played.cancelled()).await.unwrap().job, left.record.id);
    let again = tokio::time::timeout(SOON, played.job()).await.unwrap();
    assert_eq!((&again.body, again.stream), (&left.job.body, true));
    let record = left.now().await;
    assert_eq!((record.run, record.moves, &record.gateway), (Some(again.id), 1, &again.gateway));
    // As its client would have seen it, who asked for no usage.
    played.go(&again, 1).await;
    let usage = b"data: {\"choices\":[{}]}\n\ndata: {\"choices\":[],\"usage\":{}}\n\n";
    played.frame(&again, head(200, EVENTS, 1, usage)).await;
    played.frame(&again, data(2, "data: [DONE]\n\n")).await;
    played.frame(&again, end(3, Finish::Stop)).await;
    for gateway in [&gateway, &other] {
        becomes(gateway, &left.url(), "completed").await;
        let result = reqwest::get(gateway.url(&format!("{}/result", left.url()))).await.unwrap();
        assert_eq!(result.text().await.unwrap(), "data: {\"choices\":[{}]}\n\ndata: [DONE]\n\n");
    }
    // The next job is one that somebody asked for: nothing was made twice.
    later(&gateway, chat(false).replace("hi", "next")).await;
    let next = played.job().await;
    assert!(
        matches!(&next.body, Body::Inline(body) if body.windows(4).any(|four| four == b"next")),
        "{next:?}"
    );
}

#[tokio::test]
async fn a_job_that_cannot_be_taken_over_is_told_as_lost() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let mut left = Left::of(&mut played, &gateway).await;
    for (n, change) in [
        // Nothing was kept.
        (|record: &mut AsyncJob| record.kept = None) as fn(&mut AsyncJob),
        |record| record.kept = Some(10),
        |record| record.moves = 3,
        // The engine had answered, and the answer is not there.
        |record| record.result = Some(ResultNote { status: 200, content_type: None, len: 2 }),
    ]
    .into_iter()
    .enumerate()
    {
        left.record.id = JobId(100 + n as u128);
        let original = left.record.clone();
        if n > 1 {
            left.keep(&played).await;
        }
        left.write(change).await;
        let told = becomes(&gateway, &left.url(), "failed").await;
        assert_eq!(told["error"]["code"], "gateway_lost", "{n}: {told}");
        assert!(left.now().await.status.is_final());
        left.record = original;
    }
    // None of them was asked of an engine again.
    later(&gateway, chat(false)).await;
    assert!(!played.job().await.stream, "the streams were not made anew");
}

#[tokio::test]
async fn an_answer_that_was_stored_when_its_gateway_was_killed_is_not_asked_for_again() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let mut left = Left::of(&mut played, &gateway).await;
    left.keep(&played).await;
    let results = Bodies::results(&played.bus).await.unwrap();
    results.put(&left.record.id.to_string(), &Bytes::from_static(b"{}")).await.unwrap();
    let note = ResultNote { status: 200, content_type: Some("application/json".into()), len: 2 };
    left.write(|record| record.result = Some(note)).await;
    let done = becomes(&gateway, &left.url(), "completed").await;
    assert_eq!(done["result"]["bytes"], 2);
    let result = reqwest::get(gateway.url(&format!("{}/result", left.url()))).await.unwrap();
    assert_eq!((result.status().as_u16(), result.text().await.unwrap().as_str()), (200, "{}"));
}

#[tokio::test]
async fn a_job_of_a_killed_gateway_can_be_cancelled_at_once() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let mut left = Left::of(&mut played, &gateway).await;
    left.keep(&played).await;
    left.write(|_| {}).await;
    let response = reqwest::Client::new().delete(gateway.url(&left.url())).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.json::<Value>().await.unwrap()["status"], "cancelled");
    assert_eq!(played.cancelled().await.job, left.record.id);
    assert_eq!(left.now().await.status, JobStatus::Cancelled);
}

#[tokio::test]
async fn a_gateway_that_was_taken_for_gone_gives_its_job_up() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    later(&gateway, chat(false)).await;
    let job = played.job().await;
    let records = played.bus.bucket("async_jobs").await.unwrap();
    let (mut record, _): (AsyncJob, u64) = get_json(&records, &job.id.to_string()).await.unwrap().unwrap();
    // Another has claimed it.
    (record.gateway, record.run) = ("gw-other-0".into(), Some(JobId(8)));
    put_json(&records, &job.id.to_string(), &record).await.unwrap();
    played.go(&job, 1).await;
    assert_eq!(played.cancelled().await.job, job.id, "what runs here is ended");
    let (now, _): (AsyncJob, u64) = get_json(&records, &job.id.to_string()).await.unwrap().unwrap();
    assert_eq!(now.run, Some(JobId(8)), "and the other's record stays");
}
