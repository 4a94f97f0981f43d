use std::time::Duration;

use berth_bus::{Bus, Election, Leadership};
use berth_testkit::nats::TestNats;
use berth_testkit::wait;
use tokio_util::sync::CancellationToken;

use super::{connect, provisioned};

async fn candidate(bus: &Bus, name: &str) -> (Election, CancellationToken) {
    let shutdown = CancellationToken::new();
    let (election, campaign) = Election::join(bus, name.into(), shutdown.clone()).await.unwrap();
    tokio::spawn(campaign);
    (election, shutdown)
}

fn epoch(election: &Election) -> Option<u64> {
    match *election.state.borrow() {
        Leadership::Leader(epoch) => Some(epoch.0),
        Leadership::Follower => None,
    }
}

#[tokio::test]
async fn one_candidate_leads_and_hands_over_to_the_other_with_a_later_epoch() {
    let nats = TestNats::start().unwrap();
    let bus = provisioned(&nats).await;
    let (first, resign) = candidate(&bus, "one").await;
    wait::until("the first leads", Duration::from_secs(5), async || epoch(&first).is_some()).await;
    let (mut second, _keep) = candidate(&connect(&nats).await, "two").await;
    // Long enough for it to have asked twice.
    let lead = second.state.wait_for(|state| *state != Leadership::Follower);
    let led = tokio::time::timeout(Duration::from_millis(1200), lead).await.is_ok();
    assert!(!led, "there is a leader already");
    let earlier = epoch(&first).unwrap();
    resign.cancel();
    wait::until("the second leads", Duration::from_secs(5), async || epoch(&second).is_some()).await;
    assert!(epoch(&second).unwrap() > earlier);
    assert_eq!(epoch(&first), None);
}

#[tokio::test]
async fn a_leader_that_loses_the_server_steps_down_by_itself_and_leads_again_later() {
    let mut nats = TestNats::start().unwrap();
    let bus = provisioned(&nats).await;
    let (election, _keep) = candidate(&bus, "one").await;
    wait::until("it leads", Duration::from_secs(5), async || epoch(&election).is_some()).await;
    let earlier = epoch(&election).unwrap();
    nats.kill9();
    wait::until("it steps down", Duration::from_secs(12), async || epoch(&election).is_none()).await;
    nats.restart().unwrap();
    wait::until("it leads again", Duration::from_secs(30), async || epoch(&election).is_some()).await;
    assert!(epoch(&election).unwrap() > earlier);
}
