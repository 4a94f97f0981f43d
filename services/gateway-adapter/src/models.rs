//! `/v1/models`: from memory, never waiting, and never a reason to start or keep an engine.

use std::sync::Arc;

use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use berth_wire::{ApiError, ErrorKind};
use serde::Serialize;

use crate::caller::Caller;
use crate::catalog::Named;
use crate::error;
use crate::fleet::Fleet;
use crate::troubles::Failing;
use crate::worker::Worker;

const PREFIX: &str = "/v1/models/";

#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Of an adapter its base, as vLLM says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<&'a str>,
    aliases: &'a [String],
    engine: &'static str,
    state: String,
    /// Why it has no engine and gets none now.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context_length: Option<u32>,
    concurrency: u32,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
}

fn model<'a>(fleet: &Fleet, caller: &Caller, failing: &Failing, named: &'a Named) -> Model<'a> {
    let spec = &named.spec;
    let (state, error) = match (fleet.state_of(spec), failing.get(&spec.id)) {
        ("stopped" | "failed", Some(why)) => (why.state.clone(), Some(why.told(caller))),
        (state, _) => (state.to_owned(), None),
    };
    Model {
        id: named.id().as_str(),
        object: "model",
        // The catalog keeps no dates; this one at least does not change while the gateway runs.
        created: fleet.started,
        owned_by: "berth",
        parent: named.adapter.is_some().then(|| spec.id.as_str()),
        aliases: named.aliases(),
        engine: spec.engine.kind.as_str(),
        state,
        error,
        context_length: spec.context,
        concurrency: spec.concurrency,
    }
}

/// `GET /v1/models`
pub(crate) async fn list(caller: Caller, worker: Data<Arc<Worker>>) -> HttpResponse {
    let fleet = worker.fleet();
    let (catalog, failing) = (fleet.catalog(), fleet.troubles.failing(&worker).await);
    let data = catalog
        .models()
        .iter()
        .filter(|named| caller.may_use(named))
        .map(|named| model(fleet, &caller, &failing, named))
        .collect();
    HttpResponse::Ok().json(List { object: "list", data })
}

/// `GET /v1/models/{id}`; ids hold slashes, which some clients escape and others do not.
pub(crate) async fn one(request: HttpRequest, caller: Caller, worker: Data<Arc<Worker>>) -> HttpResponse {
    let path = request.uri().path();
    let Some(name) = path.strip_prefix(PREFIX).and_then(unescape) else {
        let error = ApiError::new(ErrorKind::InvalidRequest, "invalid_path", "the model's name is not UTF-8");
        return error::response(&error);
    };
    let fleet = worker.fleet();
    match caller.resolve(&fleet.catalog(), &name) {
        Ok(named) => {
            let failing = fleet.troubles.failing(&worker).await;
            HttpResponse::Ok().json(model(fleet, &caller, &failing, named))
        }
        Err(error) => error::response(&error),
    }
}

/// A path as it is meant.
pub(crate) fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let high = char::from(rest.next()?).to_digit(16)?;
            let low = char::from(rest.next()?).to_digit(16)?;
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_name_reads_the_same_escaped_or_not() {
        assert_eq!(unescape("org/m:1.5").as_deref(), Some("org/m:1.5"));
        assert_eq!(unescape("org%2Fm%3a1.5").as_deref(), Some("org/m:1.5"));
        assert_eq!(unescape("50%"), None);
        assert_eq!(unescape("%ff"), None);
    }
}
