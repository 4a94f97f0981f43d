//! `/upstream/{model}/{path}`: what an engine serves beside the routes that have a name here.

use std::borrow::Cow;

use actix_web::HttpRequest;
use actix_web::http::Method;
use berth_wire::{ApiError, Control, ErrorKind, Target};

use crate::caller::Caller;
use crate::catalog::{Catalog, Named};
use crate::models::unescape;
use crate::request::Asked;

pub(crate) const PREFIX: &str = "/upstream/";

/// Methods that are passed on: the others are for proxies.
pub(crate) const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

/// Reads the request line: which model, and what is asked of its engine. Names hold slashes, so the longest one that
/// is known counts; a path that begins with none is asked for by its first segment, which the catalog does not know.
pub(crate) fn look(request: &HttpRequest, catalog: &Catalog) -> Result<(Asked<'static>, Target), ApiError> {
    let tail = request.uri().path().strip_prefix(PREFIX).unwrap_or_default();
    let (model, path) = split(tail, |name| catalog.resolve(name).is_ok()).ok_or_else(|| {
        let message = "write the path as in /upstream/MODEL/PATH; the model's name must be UTF-8";
        ApiError::new(ErrorKind::InvalidRequest, "invalid_path", message)
    })?;
    let mut path = if path.is_empty() { "/".to_owned() } else { path.to_owned() };
    if let Some(query) = request.uri().query() {
        path.push('?');
        path.push_str(query);
    }
    let asked = Asked { model: Cow::Owned(model), stream: false, include_usage: false, session: None };
    Ok((asked, Target { method: request.method().to_string(), path }))
}

/// Lets through what uses an engine; what changes it is for administrators, and what its scheduler must know of for
/// nobody. What a request says to the engine itself may name any of its adapters.
pub(crate) fn permit(
    caller: &Caller,
    catalog: &Catalog,
    model: &Named,
    target: &Target,
) -> Result<(), ApiError> {
    for adapter in &model.spec.adapters {
        caller.resolve(catalog, adapter.id.as_str())?;
    }
    match model.spec.engine.kind.control(&target.method, &target.path) {
        None => Ok(()),
        Some(Control::Engine) => caller.admin(),
        Some(Control::Books) => Err(ApiError::new(
            ErrorKind::Forbidden,
            "scheduler_decides",
            "an engine is loaded, put to sleep, woken, paused and stopped by Berth's scheduler alone, or its books would be \
             wrong: a lease (POST /lease, `berth lease`) gets a model ready and keeps it so, and one that nobody uses makes \
             room by itself",
        )),
    }
}

/// The name of a model and the path behind it, which begins with a slash or is empty.
fn split(tail: &str, known: impl Fn(&str) -> bool) -> Option<(String, &str)> {
    let cuts = tail.match_indices('/').map(|(at, _)| at).chain([tail.len()]);
    let names = cuts.filter_map(|at| {
        let (name, path) = tail.split_at_checked(at)?;
        // A name has 200 bytes at most, each three when escaped.
        (name.len() <= 600).then(|| unescape(name)).flatten().map(|name| (name, path))
    });
    let mut first = None;
    let mut longest = None;
    for (name, path) in names {
        if known(&name) {
            longest = Some((name, path));
        } else if first.is_none() {
            first = Some((name, path));
        }
    }
    longest.or(first).filter(|(name, _)| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(tail: &str) -> Option<(String, &str)> {
        split(tail, |name| matches!(name, "org" | "org/m" | "org/m:1.5" | "a b"))
    }

    #[test]
    fn the_longest_known_name_counts_escaped_or_not() {
        let is = |tail: &'static str, name: &str, path: &str| {
            assert_eq!(of(tail), Some((name.to_owned(), path)), "{tail}");
        };
        is("org/m/props", "org/m", "/props");
        is("org%2fm/slots/1", "org/m", "/slots/1");
        is("org/m:1.5", "org/m:1.5", "");
        is("org%2Fm%3A1.5//x", "org/m:1.5", "//x");
        is("org/mx/y", "org", "/mx/y");
        is("a%20b/", "a b", "/");
        is("none/x/org", "none", "/x/org");
        assert_eq!(of(""), None);
        assert_eq!(of("/x"), None);
        assert_eq!(of("%ff/x"), None);
    }

    proptest! {
        #[test]
        fn what_is_no_name_is_the_path_unchanged(tail in "[a-z%/2F:]{0,40}") {
            if let Some((_, path)) = of(&tail) {
                prop_assert!(tail.ends_with(path) && (path.is_empty() || path.starts_with('/')));
            }
        }
    }
}
