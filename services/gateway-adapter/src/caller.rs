//! Who asks: found out from the headers before anything of the body is read, and handed to the handlers.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::http::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use actix_web::middleware::Next;
use actix_web::{FromRequest, HttpMessage, HttpRequest, HttpResponse, ResponseError, web};
use berth_telemetry::metric;
use berth_wire::{ApiError, Class, ErrorKind, KeyHash, KeyId, Route, Scope};
use tracing::{debug, info};

use crate::allowance::Permit;
use crate::catalog::{Catalog, Named};
use crate::error::{self, Refusal};
use crate::fleet::Fleet;
use crate::intake;
use crate::keys::Key;
use crate::names;

/// Who asks, and what they may. A handler takes it as an argument; where it must be an administrator, [`Admin`].
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// `None`: no key is asked for here.
    key: Option<Arc<Key>>,
}

impl Caller {
    /// Whoever comes to a gateway that asks for no key.
    pub(crate) fn anybody() -> Self {
        Self { key: None }
    }

    pub(crate) fn with(key: Arc<Key>) -> Self {
        Self { key: Some(key) }
    }

    /// The name of the key, for what is counted by key.
    pub(crate) fn key(&self) -> Option<KeyId> {
        self.key.as_ref().map(|key| key.record.name.clone())
    }

    /// What its key hashes to, where one is asked for.
    pub(crate) fn hash(&self) -> Option<&KeyHash> {
        self.key.as_ref().map(|key| &key.record.hash)
    }

    pub(crate) fn is_admin(&self) -> bool {
        self.key.as_ref().is_none_or(|key| key.record.scope == Scope::Admin)
    }

    /// Whose jobs and leases it may see and end; `None`: everybody's.
    pub(crate) fn sees(&self) -> Option<KeyId> {
        if self.is_admin() { None } else { self.key() }
    }

    /// Whether it may name the model.
    pub(crate) fn may_use(&self, model: &Named) -> bool {
        self.key.as_ref().is_none_or(|key| key.record.allows(model.id().as_str(), model.aliases()))
    }

    /// The model that it means, if it may use it. Names of others' models are not suggested.
    pub(crate) fn resolve<'a>(&self, catalog: &'a Catalog, name: &str) -> Result<&'a Named, ApiError> {
        match catalog.resolve(name) {
            Ok(model) if self.may_use(model) => Ok(model),
            Ok(_) => {
                self.refused("model");
                let message = "this API key may not use this model; GET /v1/models lists those it may use";
                Err(ApiError::new(ErrorKind::Forbidden, "model_not_allowed", message).param("model"))
            }
            Err(unknown) if self.key.as_ref().is_none_or(|key| key.record.models.is_empty()) => {
                metrics::counter!(metric::UNKNOWN_MODELS).increment(1);
                Err(unknown)
            }
            Err(unknown) => {
                metrics::counter!(metric::UNKNOWN_MODELS).increment(1);
                let message =
                    "this model does not exist; GET /v1/models lists those that this API key may use";
                Err(ApiError { message: message.into(), ..unknown })
            }
        }
    }

    /// The class of its request: the key's, or less where `x-berth-class` asks for less.
    pub(crate) fn class(&self, headers: &HeaderMap) -> Result<Class, ApiError> {
        let own = self.key.as_ref().map_or_else(Class::default, |key| key.record.class);
        let Some(asked) = headers.get("x-berth-class") else { return Ok(own) };
        let known = [Class::Interactive, Class::Standard, Class::Batch];
        let asked =
            known.into_iter().find(|class| asked.as_bytes().eq_ignore_ascii_case(class.as_str().as_bytes()));
        let asked = asked.ok_or_else(|| {
            let message = "`x-berth-class` must be interactive, standard or batch";
            ApiError::new(ErrorKind::InvalidRequest, "invalid_value", message).param("x-berth-class")
        })?;
        // The later one weighs less.
        Ok(own.max(asked))
    }

    /// Lets a request in within the key's limits; `None` where no key is asked for.
    pub(crate) fn begin(&self) -> Result<Option<Permit>, ApiError> {
        self.key.as_ref().map(|key| key.allowance.begin(Instant::now())).transpose()
    }

    /// Whether some of what the route is for may be forbidden to it.
    pub(crate) fn is_bounded(&self, route: Route) -> bool {
        let some = self.key.as_ref().is_some_and(|key| !key.record.models.is_empty());
        some || (route == Route::Upstream && !self.is_admin())
    }

    /// That it is an administrator.
    pub(crate) fn admin(&self) -> Result<(), ApiError> {
        if self.is_admin() {
            return Ok(());
        }
        self.refused("scope");
        let message = "this needs an API key of scope admin";
        Err(ApiError::new(ErrorKind::Forbidden, "admin_required", message))
    }

    fn refused(&self, why: &'static str) {
        if let Some(key) = &self.key {
            let name = key.record.name.to_string();
            metrics::counter!(metric::KEY_REFUSED, "key" => name, "limit" => why).increment(1);
        }
    }

    fn of(request: &HttpRequest) -> Result<Self, Denied> {
        // Nothing comes here but by `authenticate`; if something does, it is let in nowhere.
        request.extensions().get::<Self>().cloned().ok_or_else(|| {
            Denied(ApiError::new(ErrorKind::Internal, "no_caller", "the gateway did not look who asks"))
        })
    }
}

impl FromRequest for Caller {
    type Error = Denied;
    type Future = Ready<Result<Self, Denied>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Self::of(request))
    }
}

/// A caller that may change the fleet and see what is others'; who may not is answered 403 before the handler runs.
#[derive(Debug, Clone)]
pub(crate) struct Admin;

impl FromRequest for Admin {
    type Error = Denied;
    type Future = Ready<Result<Self, Denied>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Caller::of(request).and_then(|caller| caller.admin().map_err(Denied)).map(|()| Self))
    }
}

/// A request that its caller may not make.
#[derive(Debug)]
pub(crate) struct Denied(ApiError);

impl std::fmt::Display for Denied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl ResponseError for Denied {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.0.kind.status()).unwrap_or(StatusCode::FORBIDDEN)
    }

    fn error_response(&self) -> HttpResponse {
        error::response(&self.0)
    }
}

/// How long a client without a key may go on sending a body that is forgotten, so that it reads its answer.
const LINGER: Duration = Duration::from_secs(2);

/// Looks who asks. Everything but `/`, `/healthz`, `/livez`, `/readyz` and the page at `/dashboard`, which tell nothing of
/// the fleet, passes here, so that a route that is added is closed.
pub(crate) async fn authenticate<B: MessageBody>(
    fleet: Arc<Fleet>,
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, actix_web::Error> {
    // As it was written: another spelling of these is closed.
    if matches!(request.path(), "/" | "/healthz" | "/livez" | "/readyz" | "/dashboard") {
        return Ok(next.call(request).await?.map_into_left_body());
    }
    let admitted = fleet.keys.admit(presented(request.headers()));
    match admitted.and_then(|caller| not_of_a_page(&fleet, &caller, &request).map(|()| caller)) {
        Ok(caller) => {
            let key = caller.key.clone();
            request.extensions_mut().insert(caller);
            let mut response = next.call(request).await?.map_into_left_body();
            if let Some(key) = key {
                key.allowance.headers(response.headers_mut(), Instant::now());
            }
            Ok(response)
        }
        Err(error) => {
            tell(&fleet, &request, &error);
            let (request, mut payload) = request.into_parts();
            let challenge = challenge(&error);
            let limit = fleet.config().body_limit;
            let refusal = match web::Payload::from_request(&request, &mut payload).await {
                Ok(rest) => intake::unread(&request, rest, error, limit),
                Err(_) => error.into(),
            };
            let mut response = Refusal { linger: refusal.linger.min(LINGER), ..refusal }.response();
            if let Some(challenge) = challenge {
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
            }
            Ok(ServiceResponse::new(request, response).map_into_right_body())
        }
    }
}

/// Where no key is asked for, a page from elsewhere in somebody's browser could change things all the same: browsers say so
/// of such requests (Fetch Metadata, <https://www.w3.org/TR/fetch-metadata/>). What only reads they do not let it see, unless
/// its name has come to lead here: then they call us by it.
fn not_of_a_page(fleet: &Fleet, caller: &Caller, request: &ServiceRequest) -> Result<(), ApiError> {
    if caller.key.is_some() {
        return Ok(());
    }
    names::check(fleet.config(), request.headers())?;
    let site = request.headers().get("sec-fetch-site").map(HeaderValue::as_bytes);
    if request.method().is_safe() || site != Some(b"cross-site") {
        return Ok(());
    }
    let message = "a page of another site asks for this, and this gateway asks for no API key; make one with \
                   `berth key create NAME` and send it";
    Err(ApiError::new(ErrorKind::Forbidden, "cross_site", message))
}

/// Says in the log that somebody came without a valid key: not what they sent, and not each time.
fn tell(fleet: &Fleet, request: &ServiceRequest, error: &ApiError) {
    debug!(code = error.code, "refused who asked");
    if error.kind == ErrorKind::Unauthorized
        && let Some(from) = request.peer_addr()
        && let Some(times) = fleet.knocks.count(from.ip(), Instant::now())
    {
        info!(from = %from.ip(), code = error.code, times, "refused who came without a valid API key");
    }
}

fn challenge(error: &ApiError) -> Option<&'static str> {
    match (error.kind, error.code.as_str()) {
        (ErrorKind::Unauthorized, "missing_api_key") => Some("Bearer realm=\"berth\""),
        (ErrorKind::Unauthorized, _) => Some("Bearer realm=\"berth\", error=\"invalid_token\""),
        _ => None,
    }
}

/// The key that came: as OpenAI's clients send it, as Anthropic's do, or as Azure's do.
fn presented(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim).filter(|text| !text.is_empty());
    let bearer = text(AUTHORIZATION.as_str()).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim()).filter(|key| !key.is_empty())
    });
    bearer.or_else(|| text("x-api-key")).or_else(|| text("api-key"))
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderName;
    use berth_wire::{AdapterSpec, KeyHash, KeyRecord, ModelSpec};

    use super::*;
    use crate::allowance::Allowance;
    use crate::catalog::tests::spec;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    fn caller(change: impl FnOnce(&mut KeyRecord)) -> Caller {
        let mut record = KeyRecord::new("k".into(), KeyHash::of("x"));
        change(&mut record);
        let allowance = Allowance::new(&record.name, record.limits);
        Caller::with(Arc::new(Key { record, allowance }))
    }

    #[test]
    fn a_key_is_taken_from_where_clients_put_it() {
        let of = |pairs: &[_]| presented(&headers(pairs)).map(str::to_owned);
        assert_eq!(of(&[("authorization", "Bearer  k ")]).as_deref(), Some("k"));
        assert_eq!(of(&[("authorization", "bearer k"), ("x-api-key", "l")]).as_deref(), Some("k"));
        assert_eq!(of(&[("authorization", "Basic abc"), ("x-api-key", "l")]).as_deref(), Some("l"));
        assert_eq!(of(&[("api-key", "m")]).as_deref(), Some("m"));
        assert_eq!(of(&[("authorization", "Bearer ")]), None);
        assert_eq!(of(&[("authorization", "k")]), None);
    }

    #[test]
    fn a_request_may_lower_its_class_and_not_raise_it() {
        let class = |own: Class, asked: &'static str| {
            caller(|key| key.class = own).class(&headers(&[("x-berth-class", asked)])).map_err(|e| e.param)
        };
        assert_eq!(class(Class::Interactive, "batch"), Ok(Class::Batch));
        assert_eq!(class(Class::Batch, "interactive"), Ok(Class::Batch));
        assert_eq!(class(Class::Standard, "Standard"), Ok(Class::Standard));
        assert_eq!(class(Class::Standard, "urgent"), Err(Some("x-berth-class".into())));
        assert_eq!(
            Caller::anybody().class(&headers(&[("x-berth-class", "interactive")])),
            Ok(Class::Standard)
        );
        assert_eq!(caller(|key| key.class = Class::Interactive).class(&headers(&[])), Ok(Class::Interactive));
    }

    #[test]
    fn a_key_of_some_models_is_told_of_no_others() {
        let models = [spec("qwen-7b", &["qwen"]), spec("secret-7b", &[])];
        let entries = models.iter().map(|s| (s.id.to_string(), Arc::new(s.clone()))).collect();
        let catalog = Catalog::new(&Arc::new(entries));
        let some = caller(|key| key.models = vec!["qwen".into()]);
        assert_eq!(some.resolve(&catalog, "qwen-7b").unwrap().id().as_str(), "qwen-7b");
        assert_eq!(some.resolve(&catalog, "secret-7b").unwrap_err().code, "model_not_allowed");
        let unknown = some.resolve(&catalog, "secret-8b").unwrap_err();
        assert_eq!((unknown.code.as_str(), unknown.message.contains("secret")), ("model_not_found", false));
        let all = caller(|_| {}).resolve(&catalog, "secret-8b").unwrap_err();
        assert!(all.message.contains("secret-7b"), "{}", all.message);
    }

    #[test]
    fn a_key_of_an_adapter_is_none_of_its_base_and_the_other_way_round() {
        let adapter = |id: &str| AdapterSpec { id: id.into(), aliases: Vec::new(), path: "/x".into() };
        let base = ModelSpec { adapters: vec![adapter("sql"), adapter("law")], ..spec("base", &[]) };
        let catalog = Catalog::new(&Arc::new([("base".to_owned(), Arc::new(base))].into()));
        let may = |models: &[&str], name: &str| {
            let models = models.iter().map(|name| (*name).to_owned()).collect();
            caller(|key| key.models = models).resolve(&catalog, name).is_ok()
        };
        assert!(may(&["sql"], "sql") && !may(&["sql"], "base") && !may(&["sql"], "law"));
        assert!(may(&["base"], "base") && !may(&["base"], "sql"));
        // By paths of its own an engine can be asked for any of its adapters.
        let target = berth_wire::Target { method: "POST".into(), path: "/v1/completions".into() };
        let reaches = |models: &[&str]| {
            let models = models.iter().map(|name| (*name).to_owned()).collect();
            let named = catalog.resolve("base").unwrap();
            crate::upstream::permit(&caller(|key| key.models = models), &catalog, named, &target).is_ok()
        };
        assert!(!reaches(&["base", "sql"]) && reaches(&["base", "sql", "law"]));
    }
}
