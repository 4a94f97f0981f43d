//! Leases and hints: what sessions ask of the leader, and what it answers.

use actix::{Context, Handler, Message, MessageResult};
use berth_placement::Event;
use berth_wire::{
    ApiError, ErrorKind, KeyId, Lease, LeaseReply, LeaseRequest, LeaseStatus, ModelId, SESSION_MAX, SessionId,
};
use tracing::info;

use super::Leader;
use crate::keeper::Place;
use crate::restore::Kept;
use crate::translate;

/// Leases in one answer: of the longest names, so many fit into a message of 1 MiB.
const LISTED: usize = 1000;

/// What one event did to leases.
#[derive(Default)]
pub(super) struct Outcome {
    /// Why one was not granted, or a hint not taken.
    pub(super) refused: Option<ApiError>,
    /// Those that ended.
    pub(super) ended: Vec<(SessionId, ModelId)>,
}

/// What earlier leaders wrote down; comes once, after the catalog and before any job.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Restored(pub(crate) Kept);

impl Handler<Restored> for Leader {
    type Result = ();

    fn handle(&mut self, Restored(mut kept): Restored, ctx: &mut Self::Context) {
        for lease in kept.take_expired(self.clock.now()) {
            info!(session = %lease.session, model = %lease.model, "a lease has expired while nobody led");
            self.carrier.keeper.forget_lease(&lease.session, &lease.model);
        }
        kept.keep_fitting(|model| Some(translate::config(self.catalog.get(model)?)));
        self.feed(Event::Profiles(kept.profiles), ctx);
        self.feed(Event::LeasesRestored(kept.leases), ctx);
        self.restore_drains(kept.drains, ctx);
    }
}

/// Somebody asks something of leases.
#[derive(Message)]
#[rtype(result = "Answered")]
pub(crate) struct LeaseAsked(pub(crate) LeaseRequest);

/// The answer, and what is to be written down before it is given.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) reply: LeaseReply,
    pub(crate) after: Vec<Place>,
}

impl Answered {
    fn at_once(reply: LeaseReply) -> Self {
        Self { reply, after: Vec::new() }
    }
}

impl Handler<LeaseAsked> for Leader {
    type Result = MessageResult<LeaseAsked>;

    fn handle(&mut self, LeaseAsked(request): LeaseAsked, ctx: &mut Self::Context) -> Self::Result {
        let answered = self.asked(request, ctx);
        MessageResult(answered.unwrap_or_else(|error| Answered::at_once(LeaseReply::Refused(error))))
    }
}

impl Leader {
    fn asked(&mut self, request: LeaseRequest, ctx: &mut Context<Self>) -> Result<Answered, ApiError> {
        let now = self.clock.now();
        match request {
            LeaseRequest::Lease { session, model, key, ttl, keep_context } => {
                check(&session)?;
                let key = self.counted_for(&session, &model, key)?;
                let ttl = ttl.unwrap_or(self.lease_ttl);
                let (of, on) = (session.clone(), model.clone());
                let event = Event::LeaseAsked { session: of, model: on, key, ttl, keep_context };
                self.feed(event, ctx);
                if let Some(error) = self.leases.refused.take() {
                    return Err(error);
                }
                let view = self.state.lease(&session, &model, now).ok_or_else(|| unknown(&model))?;
                let after = vec![Place::of_lease(&session, &model)];
                Ok(Answered { reply: LeaseReply::Held(translate::lease(view, now)), after })
            }
            LeaseRequest::Release { session, model, key } => {
                check(&session)?;
                let asked = match &key {
                    None => vec![model],
                    // Only what is the key's own is named to the core.
                    Some(_) => self
                        .leases_of(&session, &key)
                        .filter(|own| model.as_ref().is_none_or(|m| m == own))
                        .map(Some)
                        .collect(),
                };
                for model in asked {
                    self.feed(Event::LeaseReleased { session: session.clone(), model }, ctx);
                }
                let ended = std::mem::take(&mut self.leases.ended);
                let ended = ended.into_iter().filter(|(of, _)| *of == session);
                let models: Vec<ModelId> = ended.map(|(_, model)| model).collect();
                let after = models.iter().map(|model| Place::of_lease(&session, model)).collect();
                Ok(Answered { reply: LeaseReply::Released { models }, after })
            }
            LeaseRequest::List { session, key } => {
                let views = self.state.leases(now).into_iter();
                let wanted = |lease: &Lease| {
                    session.as_ref().is_none_or(|session| lease.session == *session)
                        && (key.is_none() || lease.key == key)
                };
                let mut leases: Vec<LeaseStatus> = views
                    .filter(|view| wanted(&view.lease))
                    .map(|view| translate::lease(view, now))
                    .collect();
                let total = leases.len() as u64;
                leases.truncate(LISTED);
                Ok(Answered::at_once(LeaseReply::Leases { leases, total }))
            }
            LeaseRequest::Hint { session, model, lead, key } => {
                check(&session)?;
                self.feed(Event::Hint { session, model, due: now.plus(lead), key }, ctx);
                match self.leases.refused.take() {
                    Some(error) => Err(error),
                    None => Ok(Answered::at_once(LeaseReply::Noted)),
                }
            }
        }
    }

    /// The API key that a lease is counted for: the asker's, if the lease is not another key's already. Who asks
    /// without one leaves it as it is.
    fn counted_for(
        &self,
        session: &SessionId,
        model: &ModelId,
        asker: Option<KeyId>,
    ) -> Result<Option<KeyId>, ApiError> {
        let held = self.state.lease(session, model, self.clock.now()).and_then(|view| view.lease.key);
        match (held, asker) {
            (Some(held), Some(asker)) if held != asker => {
                let message =
                    "another API key holds a lease of this session on this model; choose another sessionKey";
                Err(ApiError::new(ErrorKind::Forbidden, "session_of_another_key", message)
                    .param("sessionKey"))
            }
            (held, asker) => Ok(asker.or(held)),
        }
    }

    /// The models that the session has leases on which count for `key`.
    fn leases_of(&self, session: &SessionId, key: &Option<KeyId>) -> impl Iterator<Item = ModelId> {
        let views = self.state.leases(self.clock.now()).into_iter();
        let (session, key) = (session.clone(), key.clone());
        views
            .filter(move |view| view.lease.session == session && view.lease.key == key)
            .map(|view| view.lease.model)
    }

    /// Leases for `berth status`.
    pub(super) fn shown_leases(&self, limit: usize) -> Vec<LeaseStatus> {
        let now = self.clock.now();
        self.state.leases(now).into_iter().take(limit).map(|view| translate::lease(view, now)).collect()
    }
}

fn check(session: &SessionId) -> Result<(), ApiError> {
    if (1..=SESSION_MAX).contains(&session.as_str().len()) {
        return Ok(());
    }
    let message = format!("a session is named by 1 to {SESSION_MAX} bytes");
    Err(ApiError::new(ErrorKind::InvalidRequest, "invalid_session", message).param("sessionKey"))
}

fn unknown(model: &ModelId) -> ApiError {
    let message = format!("the model `{model}` is not in the catalog");
    ApiError::new(ErrorKind::ModelNotFound, "model_not_found", message).param("model")
}
