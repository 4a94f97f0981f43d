//! Fields of a small request, taken one by one: what is wrong is named, and so is what is not known.

use std::ops::RangeInclusive;
use std::time::Duration;

use actix_web::web::Query;
use berth_wire::{ApiError, ErrorKind};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::request;

/// What is left of a body or query.
#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

fn invalid(code: &str, field: &str, message: String) -> ApiError {
    ApiError::new(ErrorKind::InvalidRequest, code, message).param(field)
}

/// A client's own name for a field, fit for a message.
fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(64).collect()
}

/// The fields of a JSON object in their order, those that are there twice too.
struct Pairs(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Pairs;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        d.deserialize_map(Object)
    }
}

impl Fields {
    /// Those of a JSON object.
    pub(crate) fn of_body(body: &[u8]) -> Result<Self, ApiError> {
        let body = body.strip_prefix(request::MARK).unwrap_or(body);
        let wrong = |message: String| ApiError::new(ErrorKind::InvalidRequest, "invalid_body", message);
        if body.iter().all(u8::is_ascii_whitespace) {
            return Err(wrong("the request has no body; send a JSON object".into()));
        }
        match serde_json::from_slice::<Pairs>(body) {
            Ok(Pairs(pairs)) => Self::of_pairs(pairs),
            Err(error) if error.is_data() => Err(wrong("the body must be a JSON object".into())),
            Err(error) => Err(wrong(format!("the body is not valid JSON: {error}"))),
        }
    }

    /// Those of a query, all text.
    pub(crate) fn of_query(query: &str) -> Result<Self, ApiError> {
        let fields = Query::<Vec<(String, String)>>::from_query(query).map_err(|_| {
            let message = "the query cannot be read; write it as in `?sessionKey=my-session`";
            ApiError::new(ErrorKind::InvalidRequest, "invalid_query", message)
        })?;
        Self::of_pairs(fields.into_inner().into_iter().map(|(name, text)| (name, Value::from(text))))
    }

    /// A field that is there twice is refused: which of the two is meant is not ours to guess.
    fn of_pairs(pairs: impl IntoIterator<Item = (String, Value)>) -> Result<Self, ApiError> {
        let mut fields = Map::new();
        for (name, value) in pairs {
            if fields.contains_key(&name) {
                let shown = shown(&name);
                let message = format!("`{shown}` is there twice; say it once");
                return Err(invalid("duplicate_field", &shown, message));
            }
            fields.insert(name, value);
        }
        Ok(Self(fields))
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// A text that may be left out.
    pub(crate) fn optional_text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(invalid("invalid_value", name, format!("`{name}` must be a string"))),
        }
    }

    /// A text.
    pub(crate) fn text(&mut self, name: &str) -> Result<String, ApiError> {
        self.optional_text(name)?
            .ok_or_else(|| invalid("missing_field", name, format!("`{name}` is missing; it is a string")))
    }

    /// A truth that may be left out: then it is false.
    pub(crate) fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        Ok(self.optional_flag(name)?.unwrap_or_default())
    }

    /// A truth that may be left out.
    pub(crate) fn optional_flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(invalid("invalid_value", name, format!("`{name}` must be true or false"))),
        }
    }

    /// A time in seconds that may be left out, in any form of a number. `most` is for the message alone: whoever knows
    /// how long is too long says so itself.
    pub(crate) fn optional_seconds(
        &mut self,
        name: &str,
        least: f64,
        most: f64,
    ) -> Result<Option<Duration>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let seconds = value.as_f64().filter(|seconds| *seconds >= least);
        // Beyond all ages; more is no time for the bus.
        let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds.min(1e15)).ok());
        time.map(Some).ok_or_else(|| {
            let message = format!("`{name}` must be a number of seconds from {least} to {most}");
            invalid("invalid_value", name, message)
        })
    }

    /// A time in seconds.
    pub(crate) fn seconds(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Duration, ApiError> {
        let (least, most) = (range.start(), range.end());
        let message = format!("`{name}` must be a number of seconds from {least} to {most}");
        let value = self.take(name).ok_or_else(|| {
            invalid("missing_field", name, format!("`{name}` is missing; it is a number of seconds"))
        })?;
        value
            .as_f64()
            .filter(|number| range.contains(number))
            .and_then(|number| Duration::try_from_secs_f64(number).ok())
            .ok_or_else(|| invalid("invalid_value", name, message))
    }

    /// Nothing else may be there.
    pub(crate) fn end(self, known: &[&str]) -> Result<(), ApiError> {
        let Some(name) = self.0.keys().find(|name| !known.contains(&name.as_str())) else { return Ok(()) };
        let shown = shown(name);
        let known: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
        let message = format!("unknown field `{shown}`; known are {}", known.join(", "));
        Err(invalid("unknown_field", &shown, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(body: &str) -> Fields {
        Fields::of_body(body.as_bytes()).unwrap()
    }

    #[test]
    fn what_is_wrong_is_named() {
        let named = |error: ApiError| (error.code, error.param.unwrap_or_default());
        let pair = |code: &str, param: &str| (code.to_owned(), param.to_owned());
        assert_eq!(named(of("{}").text("model").unwrap_err()), pair("missing_field", "model"));
        assert_eq!(named(of(r#"{"model":1}"#).text("model").unwrap_err()), pair("invalid_value", "model"));
        for ttl in ["0", "0.9", "-1", "\"60\"", "true", "-1e400", "[60]"] {
            let Ok(mut fields) = Fields::of_body(format!(r#"{{"ttl":{ttl}}}"#).as_bytes()) else {
                continue;
            };
            let error = fields.optional_seconds("ttl", 1.0, 3600.0).unwrap_err();
            assert_eq!(error.message, "`ttl` must be a number of seconds from 1 to 3600");
        }
        let error = of(r#"{"ttl":1,"tll":2}"#).end(&["ttl"]).unwrap_err();
        assert_eq!(error.message, "unknown field `tll`; known are `ttl`");
        assert_eq!(named(error), pair("unknown_field", "tll"));
    }

    #[test]
    fn a_number_of_seconds_may_have_any_form() {
        for (form, millis) in
            [("60", 60_000), ("60.0", 60_000), ("6e1", 60_000), ("1e9", 1_000_000_000_000), ("1.5", 1500)]
        {
            let seconds = of(&format!(r#"{{"ttl":{form}}}"#)).optional_seconds("ttl", 1.0, 9.0).unwrap();
            assert_eq!(seconds, Some(Duration::from_millis(millis)), "{form}");
        }
        let most = of(r#"{"ttl":1e300}"#).optional_seconds("ttl", 1.0, 9.0).unwrap();
        assert!(most.is_some_and(|most| most.as_millis() < u128::from(u64::MAX)), "it is fit for the bus");
    }

    #[test]
    fn a_field_that_is_there_twice_is_named() {
        for body in [
            r#"{"model":"a","model":"b"}"#,
            r#"{"model":"a","ttl":1,"model":"a"}"#,
            r#"{"model":null,"model":"a"}"#,
            r#"{"model":"a","mode\u006c":"b"}"#,
        ] {
            let error = Fields::of_body(body.as_bytes()).unwrap_err();
            assert_eq!(
                (error.code.as_str(), error.param.as_deref()),
                ("duplicate_field", Some("model")),
                "{body}"
            );
            assert_eq!(error.message, "`model` is there twice; say it once");
        }
        let error = Fields::of_query("sessionKey=a&sessionKey=b").unwrap_err();
        assert_eq!(error.param.as_deref(), Some("sessionKey"));
    }

    #[test]
    fn what_may_be_left_out_may_be_null() {
        let mut fields = of(r#"{"model":null,"ttl":null,"in":2.5}"#);
        assert_eq!(fields.optional_text("model").unwrap(), None);
        assert_eq!(fields.optional_seconds("ttl", 1.0, 9.0).unwrap(), None);
        assert_eq!(fields.seconds("in", 0.0..=9.0).unwrap(), Duration::from_millis(2500));
        fields.end(&[]).unwrap();
    }

    #[test]
    fn a_body_that_is_no_object_is_refused_and_a_query_is_read() {
        for body in ["", " ", "[]", "1", "{"] {
            assert_eq!(Fields::of_body(body.as_bytes()).unwrap_err().code, "invalid_body", "{body}");
        }
        let mut query = Fields::of_query("sessionKey=a%20b").unwrap();
        assert_eq!(query.optional_text("sessionKey").unwrap().as_deref(), Some("a b"));
        assert!(Fields::of_query("x=1").unwrap().end(&["sessionKey"]).is_err());
    }
}
